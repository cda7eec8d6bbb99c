//! Users who are listed nowhere: Postgres is asked for their secrets (`auth.query`).
//!
//! The query runs over a server connection of `query_user`, in a pool of its own that no client uses, whose connections count in
//! the budget like all others. The name is a parameter of the query and never a part of its text.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::admit::Reception;
use super::admit::denied::Denied;
use super::admit::welcome::give_back;
use super::world::HowToLookUp;
use crate::client::credentials::Credential;
use crate::client::login::LoginError as ClientError;
use crate::config::checked::{AuthMethod, Errors, Secret};
use crate::pool::book::ServiceLimits;
use crate::pool::pools::Refused;
use crate::server::login::{LoginError, Row};
use crate::wire::reply::{Report, ServerError, Severity, SqlState};
use crate::wire::startup::Startup;

/// The query, unless the configuration has another. A password that has expired is none.
const QUERY: &str = "SELECT a.rolname::pg_catalog.text, \
    CASE WHEN a.rolvaliduntil OPERATOR(pg_catalog.<) pg_catalog.now() THEN NULL ELSE a.rolpassword END \
    FROM pg_catalog.pg_authid AS a WHERE a.rolname OPERATOR(pg_catalog.=) $1 AND a.rolcanlogin";

/// What a role must be granted to run that.
const GRANT: &str =
    "GRANT SELECT (rolname, rolpassword, rolvaliduntil, rolcanlogin) ON pg_catalog.pg_authid TO";

/// The account of the server connections that this takes.
const SERVICE: &str = "(auth_query)";

/// Its pools are small; that is all the limit it needs.
const SERVICE_LIMITS: ServiceLimits = ServiceLimits {
    max_servers: 0,
    min_servers: 0,
    weight: 1,
    kept_servers: 0,
};

/// How long an answer serves. Whoever connects for each request, or many at once, cost a query a second; and a password that is
/// changed, or a role that is dropped, is noticed within that.
const FRESH: Duration = Duration::from_secs(1);

/// How long it serves after somebody had no proof for it: perhaps the password has just been changed. Whoever guesses passwords
/// costs no more queries than that.
const DOUBTED: Duration = Duration::from_millis(100);

/// Answers that are remembered. The names come from strangers.
const MOST: usize = 10_000;

/// How long Postgres may take for an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// PgBouncer's words for all that keeps it from looking up a user.
const CONFIG_ERROR: &str = "bouncer config error";

/// Why a user could not be looked up.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LookUpError {
    /// There is no server connection to do so.
    #[error("cannot look up users: {0}")]
    NoServer(Refused),
    /// Postgres does not run the query.
    #[error("cannot look up users: {error}; {hint}")]
    Refused {
        /// What it says.
        error: ServerError,
        /// What helps.
        hint: Arc<str>,
    },
    /// It gave no answer, or none of the right shape.
    #[error("cannot look up users: {0}")]
    NoAnswer(Arc<str>),
}

impl LookUpError {
    /// Why PgBouncer would say that it closes the client's connection.
    pub fn as_pgbouncer(&self) -> String {
        match self {
            Self::NoServer(refused) if !matches!(refused, Refused::Login { .. }) => {
                refused.as_pgbouncer()
            }
            Self::NoServer(refused) if refused.code() == Some(SqlState::INVALID_CATALOG_NAME) => {
                refused.as_pgbouncer()
            }
            _ => CONFIG_ERROR.to_owned(),
        }
    }

    /// The last words to the client.
    pub fn to_client(&self, errors: Errors) -> Vec<u8> {
        const WORDS: &str = "pgweir cannot look up this role";
        let report = match self {
            // About the database that the client has asked for.
            Self::NoServer(refused) if refused.code() == Some(SqlState::INVALID_CATALOG_NAME) => {
                return refused.to_client(errors);
            }
            Self::NoServer(Refused::Login { .. }) => {
                Report::new(SqlState::UNABLE_TO_CONNECT, WORDS).detail("Its own login failed.")
            }
            Self::NoServer(refused) => return refused.to_client(errors),
            Self::Refused { error, hint } => {
                Report::new(error.code, format!("{WORDS}: {}", error.message)).hint(&**hint)
            }
            Self::NoAnswer(why) => Report::new(SqlState::UNABLE_TO_CONNECT, WORDS).detail(&**why),
        };
        let report = match errors {
            Errors::Postgres => report,
            Errors::PgBouncer => report.as_pgbouncer(Some(CONFIG_ERROR.to_owned())),
        };
        report.error(Severity::Fatal)
    }
}

/// What was asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    database: String,
    query: Option<String>,
    user: String,
}

/// `None`: there is no such user.
type Answer = Result<Option<Arc<Credential>>, LookUpError>;

/// The answers of a moment.
#[derive(Debug, Default)]
pub struct LookUps(DashMap<Question, Arc<Remembered>>);

impl LookUps {
    fn of(&self, question: Question) -> Arc<Remembered> {
        if self.0.len() >= MOST {
            self.forget_old();
        }
        // Without a place to be remembered the question is asked each time.
        if self.0.len() >= MOST && !self.0.contains_key(&question) {
            return Arc::default();
        }
        Arc::clone(&self.0.entry(question).or_default())
    }

    /// Forgets what does not serve any more. Called about once a second.
    pub fn forget_old(&self) {
        self.0
            .retain(|_, answer| Arc::strong_count(answer) > 1 || answer.is_fresh());
    }

    /// Forgets everything.
    pub fn forget_all(&self) {
        self.0.clear();
    }
}

/// One question's answer, which serves whoever asks at the same time or soon after.
#[derive(Debug, Default)]
struct Remembered {
    last: Mutex<Option<Last>>,
    is_doubted: AtomicBool,
}

#[derive(Debug, Clone)]
struct Last {
    answer: Answer,
    since: Instant,
}

impl Remembered {
    /// The last answer if it serves, or what `ask` gives for everybody who waits. `ask` is shown who the user was before.
    async fn answer<F>(&self, ask: impl FnOnce(Option<Arc<Credential>>) -> F) -> Answer
    where
        F: Future<Output = Answer>,
    {
        let came = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(Last { answer, since }) = &*last {
            // It was found while this one waited for it, or it is young enough.
            if *since > came || self.serves(answer, *since) {
                return answer.clone();
            }
        }
        let before = last.take().and_then(|last| last.answer.ok().flatten());
        let answer = ask(before).await;
        self.is_doubted.store(false, Ordering::Relaxed);
        *last = Some(Last {
            answer: answer.clone(),
            since: Instant::now(),
        });
        answer
    }

    fn serves(&self, answer: &Answer, since: Instant) -> bool {
        let limit = match answer {
            Err(_) => return false,
            Ok(_) if self.is_doubted.load(Ordering::Relaxed) => DOUBTED,
            Ok(_) => FRESH,
        };
        since.elapsed() < limit
    }

    fn is_fresh(&self) -> bool {
        // Whoever holds the lock is asking.
        self.last.try_lock().map_or(true, |last| {
            last.as_ref()
                .is_some_and(|last| last.since.elapsed() < FRESH)
        })
    }
}

/// A user, known or not.
pub(super) struct Found {
    pub(super) credential: Arc<Credential>,
    /// Where the answer is remembered, if Postgres was asked.
    remembered: Option<Arc<Remembered>>,
}

impl Found {
    /// Whether nobody knows the user, and Postgres was not asked.
    pub(super) fn is_listed_nowhere(&self) -> bool {
        !self.credential.is_known() && self.remembered.is_none()
    }

    /// Its client had no proof: the secret may be another one by now.
    pub(super) fn doubt(&self) {
        if let Some(remembered) = &self.remembered {
            remembered.is_doubted.store(true, Ordering::Relaxed);
        }
    }

    /// The same as what it is told, and for the log whether Postgres does not know the user.
    pub(super) fn why(&self, denied: Denied) -> Denied {
        self.doubt();
        match denied {
            Denied::Login(error @ (ClientError::Password(_) | ClientError::Proof(_)))
                if !self.credential.is_known() && self.remembered.is_some() =>
            {
                Denied::NoUser(error)
            }
            denied => denied,
        }
    }
}

impl Reception<'_> {
    /// Who a client says it is: someone listed, someone whom Postgres knows, or nobody.
    pub(super) async fn find(&self, startup: &Startup) -> Result<Found, Denied> {
        let known = &self.world.credentials;
        let user = &startup.user;
        let listed = |credential| Found {
            credential,
            remembered: None,
        };
        // Whoever has somebody else check passwords has users there.
        if matches!(
            self.world.config.auth.method,
            AuthMethod::Ldap | AuthMethod::Pam
        ) {
            return Ok(listed(known.unknown(user)));
        }
        if let Some(credential) = known.get(user) {
            return Ok(listed(Arc::clone(credential)));
        }
        let Some(how) = self.world.look_up(&startup.database) else {
            return Ok(listed(known.unknown(user)));
        };
        let remembered = self.app.look_ups.of(Question {
            database: how.database.clone(),
            query: how.query.map(str::to_owned),
            user: user.clone(),
        });
        let answer = remembered
            .answer(|before| self.ask(how, user, before))
            .await?;
        Ok(Found {
            credential: answer.unwrap_or_else(|| known.unknown(user)),
            remembered: Some(remembered),
        })
    }

    async fn ask(
        &self,
        how: HowToLookUp<'_>,
        user: &str,
        before: Option<Arc<Credential>>,
    ) -> Answer {
        let HowToLookUp {
            role,
            database,
            query,
            settings,
        } = how;
        let place = settings.target.identity.database.clone();
        let pool = self.app.pools.look_up(&database, role, || settings);
        let service = self.app.pools.service(SERVICE, true, SERVICE_LIMITS);
        let mut lease = self
            .lease(&pool, service)
            .await
            .map_err(LookUpError::NoServer)?;
        let asking = lease.connection().look_up(query.unwrap_or(QUERY), user);
        let answer = timeout(ANSWER_LIMIT, asking).await;
        give_back(lease);
        let rows = match answer {
            Ok(Ok(rows)) => rows,
            Ok(Err(LoginError::Refused(error))) => {
                let hint = hint(role, &place, query.is_none()).into();
                let said = format_args!("S: error in auth_query: ERROR: {}", error.message);
                if let Some(said) = self.world.config.log.words(said) {
                    tracing::error!(said, "auth_query failed");
                } else {
                    tracing::warn!(database, role, %error, "auth_query failed: {hint}");
                }
                return Err(LookUpError::Refused { error, hint });
            }
            Ok(Err(error)) => return Err(LookUpError::NoAnswer(error.to_string().into())),
            Err(_) => {
                let late = format!("no answer within {ANSWER_LIMIT:?}");
                return Err(LookUpError::NoAnswer(late.into()));
            }
        };
        let secret = secret(&rows, user).map_err(|why| {
            tracing::warn!(database, role, user, "auth_query: {why}");
            LookUpError::NoAnswer(why.into())
        })?;
        let credentials = &self.world.credentials;
        Ok(secret.map(|secret| credentials.adopt(user, &secret, before.as_ref())))
    }
}

/// The secret of `user`, empty if the user has none; `None`: there is no such user.
fn secret(rows: &[Row], user: &str) -> Result<Option<Secret>, &'static str> {
    let row = match rows {
        [] => return Ok(None),
        [row] => row,
        _ => return Err("the query gave more than one row"),
    };
    let [name, secret, ..] = row.as_slice() else {
        return Err("the query gave less than two columns");
    };
    match name.as_deref() {
        // What an SQL function returns when it finds nobody.
        None | Some("") => Ok(None),
        Some(name) if name == user => Ok(Some(Secret::new(secret.as_deref().unwrap_or_default()))),
        // Of a name that is too long, Postgres takes the beginning.
        Some(_) => Ok(None),
    }
}

/// What to do so that Postgres runs the query.
fn hint(role: &str, database: &str, is_own: bool) -> String {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    if is_own {
        format!("As a superuser, in database \"{database}\": {GRANT} {role}")
    } else {
        format!(
            "auth_query runs in database \"{database}\" as {role}, which must be allowed to do so, with search_path = pg_catalog: \
             other names in it need their schema"
        )
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::advance;

    use super::*;

    fn row(columns: &[Option<&str>]) -> Row {
        columns
            .iter()
            .map(|column| column.map(str::to_owned))
            .collect()
    }

    #[test]
    fn one_row_of_the_user_asked_for_is_an_answer() {
        let alice = row(&[Some("alice"), Some("md5...")]);
        let exposed = |rows: &[Row]| {
            secret(rows, "alice").map(|secret| secret.map(|secret| secret.expose().to_owned()))
        };
        assert_eq!(exposed(&[]), Ok(None));
        assert_eq!(exposed(&[row(&[None, None])]), Ok(None));
        for nobody in ["", "pgweir_auth", "Alice"] {
            assert_eq!(exposed(&[row(&[Some(nobody), Some("x")])]), Ok(None));
        }
        assert_eq!(
            exposed(std::slice::from_ref(&alice)),
            Ok(Some("md5...".to_owned()))
        );
        assert_eq!(
            exposed(&[row(&[Some("alice"), None])]),
            Ok(Some(String::new()))
        );
        for wrong in [
            vec![alice.clone(), alice],
            vec![row(&[Some("alice")])],
            vec![row(&[])],
        ] {
            assert!(exposed(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_serves_for_a_moment_and_shorter_when_it_is_doubted() {
        let remembered = Remembered::default();
        let asked = Cell::new(0);
        let ask = async || {
            let answer = remembered.answer(|_| async {
                asked.set(asked.get() + 1);
                Ok(None)
            });
            assert!(answer.await.is_ok());
            asked.get()
        };
        assert_eq!(ask().await, 1);
        advance(FRESH / 2).await;
        assert_eq!(ask().await, 1);
        advance(FRESH / 2).await;
        assert_eq!(ask().await, 2);
        remembered.is_doubted.store(true, Ordering::Relaxed);
        assert_eq!(ask().await, 2, "doubts cost no more than this");
        advance(DOUBTED).await;
        assert_eq!(ask().await, 3);
        advance(DOUBTED).await;
        assert_eq!(ask().await, 3, "the doubt is over");
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_wait_share_an_answer_be_it_a_failure() {
        let remembered = Remembered::default();
        let asked = Cell::new(0);
        let ask = || {
            remembered.answer(|_| async {
                asked.set(asked.get() + 1);
                tokio::time::sleep(FRESH * 10).await;
                Err(LookUpError::NoAnswer("no".into()))
            })
        };
        let (one, two, three) = tokio::join!(ask(), ask(), ask());
        assert!(one.is_err() && two.is_err() && three.is_err());
        assert_eq!(asked.get(), 1);
        assert!(ask().await.is_err());
        assert_eq!(asked.get(), 2, "a failure is not remembered");
    }

    #[tokio::test(start_paused = true)]
    async fn what_strangers_call_themselves_is_forgotten() {
        let look_ups = LookUps::default();
        let question = |nth: usize| Question {
            database: "site".into(),
            query: None,
            user: nth.to_string(),
        };
        for nth in 0..=MOST {
            let answer = look_ups.of(question(nth)).answer(async |_| Ok(None)).await;
            assert!(answer.is_ok());
        }
        assert_eq!(look_ups.0.len(), MOST);
        advance(FRESH).await;
        look_ups.forget_old();
        assert_eq!(look_ups.0.len(), 0);
    }
}
