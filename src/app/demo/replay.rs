//! The incident behind pgweir, in small: the site is deployed six times, and each old deployment keeps the sessions that it had, some
//! of them in the middle of a transaction. The bot connects for each question; the others keep theirs.

use std::cell::RefCell;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::DemoError;
use super::crowd::CENSUS;
use super::postgres::{Seen, Watch, connect, is_refusal};
use super::progress::Progress;
use super::services::{BUDGET, Login, MAX_CONNECTIONS, SERVICES, identity};
use super::table::{aligned, millis};
use crate::incident::export::markdown;
use crate::incident::{Incident, What};
use crate::net::packet::Packets;
use crate::net::stream::Stream;
use crate::server::login::{LoginError, ask};
use crate::wire::reply::{ServerError, SqlState, TERMINATE};

/// How often the site is deployed.
pub(super) const DEPLOYMENTS: usize = 6;

/// The sessions of each deployment.
pub(super) const SESSIONS: usize = 20;

/// Those of them that are left in a transaction.
const HANGING: usize = 3;

/// The site is told of above this many clients: when its second deployment begins.
pub(super) const ALERT: usize = 24;

/// The time from one deployment to the next: a little more than it takes to be current, see `pooler`.
const ROLLOUT: Duration = Duration::from_millis(1300);

/// How long the last deployment is watched, and how long pgweir may take to close what the others left.
const AFTERWARDS: Duration = Duration::from_secs(1);
const CLOSING: Duration = Duration::from_secs(20);

/// Between two questions of one session.
const THINK: Duration = Duration::from_millis(100);

/// The longest message that a session of the demo is sent.
const LONGEST: usize = 1 << 16;

/// The places of those services in [`SERVICES`].
const SITE: usize = 0;
const WORKER: usize = 1;
const BOT: usize = 2;
const METRICS: usize = 3;

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Story {
    /// The sessions that each deployment got.
    pub(super) got: [usize; DEPLOYMENTS],
    /// Of the last deployment, sessions that were lost.
    pub(super) lost: usize,
    /// Questions of the other services, how many failed, and how long the slowest took.
    pub(super) questions: usize,
    pub(super) refused: usize,
    pub(super) failed: Vec<String>,
    pub(super) longest: Duration,
    /// Sessions of old deployments that were closed, and what one of them was told.
    pub(super) closed: usize,
    pub(super) told: Option<String>,
    /// The most server connections at once.
    pub(super) most: Seen,
}

/// Where the incident takes place.
pub(super) struct Stage<'a> {
    /// What the progress line calls it.
    pub(super) name: &'static str,
    pub(super) port: u16,
    pub(super) logins: &'a [Login],
    /// Whether somebody closes what old deployments leave behind.
    pub(super) is_kept_clean: bool,
}

impl Stage<'_> {
    /// Plays it from the first deployment to the end of the last one's predecessors.
    pub(super) async fn play(
        &self,
        watch: &mut Watch,
        progress: &mut Progress,
    ) -> Result<Story, DemoError> {
        let story = Rc::new(RefCell::new(Story::default()));
        let begun = Instant::now();
        let mut census = interval(CENSUS);
        census.set_missed_tick_behavior(MissedTickBehavior::Delay);
        {
            let mut incident = pin!(self.roll_out(&story));
            loop {
                tokio::select! {
                    _ = census.tick() => {
                        let seen = watch.census().await?;
                        story.borrow_mut().most.raise(&seen);
                        progress.now(|| self.line(begun.elapsed(), &story.borrow(), &seen))?;
                    }
                    () = &mut incident => break,
                }
            }
        }
        Ok(story.take())
    }

    fn line(&self, elapsed: Duration, story: &Story, seen: &Seen) -> String {
        format!(
            "{:6} {:5.1} s  site {:3} sessions, {:3} closed  others {:5} questions, {:3} refused  {:3}/{MAX_CONNECTIONS} connections",
            self.name,
            elapsed.as_secs_f32(),
            story.got.iter().sum::<usize>(),
            story.closed,
            story.questions,
            story.refused,
            seen.total,
        )
    }

    async fn roll_out(&self, story: &Rc<RefCell<Story>>) {
        // Dropped at the end, and every session with it.
        let mut sessions = JoinSet::new();
        for service in [WORKER, METRICS, BOT] {
            sessions.spawn_local(question(
                Visitor::new(self, service, "v1"),
                Rc::clone(story),
            ));
        }
        sleep(ROLLOUT).await;
        let mut traffic = CancellationToken::new();
        for nth in 0..DEPLOYMENTS {
            let old = std::mem::take(&mut traffic);
            for place in 0..SESSIONS {
                let visitor = Visitor::new(self, SITE, &format!("v{}", nth + 1));
                let (story, quiet) = (Rc::clone(story), traffic.clone());
                let hangs = place < HANGING;
                sessions.spawn_local(async move {
                    visitor.serve(nth, hangs, quiet, &story).await;
                });
            }
            // The new one is up, and gets the requests from now on.
            sleep(ROLLOUT / 2).await;
            old.cancel();
            sleep(ROLLOUT / 2).await;
        }
        let left = || SESSIONS * (DEPLOYMENTS - 1) - story.borrow().closed;
        let deadline = Instant::now() + CLOSING;
        while self.is_kept_clean && left() > 0 && Instant::now() < deadline {
            sleep(THINK).await;
        }
        sleep(AFTERWARDS).await;
    }
}

/// Somebody who connects.
struct Visitor {
    port: u16,
    identity: crate::server::login::Identity,
    /// The bot connects for each question.
    comes_anew: bool,
}

impl Visitor {
    fn new(stage: &Stage<'_>, service: usize, deployment: &str) -> Self {
        Self {
            port: stage.port,
            identity: identity(service, deployment, stage.logins),
            comes_anew: service == BOT,
        }
    }

    async fn enter(&self) -> Result<Packets<Stream>, LoginError> {
        connect(self.port, &self.identity).await
    }

    /// A session of the site: it answers requests as long as there are any, and then stays.
    async fn serve(
        &self,
        nth: usize,
        hangs: bool,
        quiet: CancellationToken,
        story: &Rc<RefCell<Story>>,
    ) {
        let Ok(mut session) = self.enter().await else {
            return;
        };
        story.borrow_mut().got[nth] += 1;
        let ended = loop {
            if let Err(error) = ask(&mut session, "SELECT pg_sleep(0.002)").await {
                break Err(error);
            }
            tokio::select! {
                () = quiet.cancelled() => break linger(&mut session, hangs).await,
                () = sleep(THINK) => {}
            }
        };
        let mut story = story.borrow_mut();
        match ended {
            Ok(words) if words.code == SqlState::ADMIN_SHUTDOWN && nth + 1 < DEPLOYMENTS => {
                story.closed += 1;
                story.told.get_or_insert(words.message);
            }
            Ok(words) => story.fail(nth, &words.message),
            Err(error) => story.fail(nth, &error.to_string()),
        }
    }
}

/// Stays, and hears the last words.
async fn linger(session: &mut Packets<Stream>, hangs: bool) -> Result<ServerError, LoginError> {
    if hangs {
        ask(session, "BEGIN").await?;
        ask(session, "SELECT 1").await?;
    }
    loop {
        let packet = session.read(LONGEST).await?;
        if packet.tag == b'E' {
            return Ok(ServerError::parse(&packet.body));
        }
    }
}

/// One of the other services.
async fn question(visitor: Visitor, story: Rc<RefCell<Story>>) {
    let mut kept = None;
    loop {
        let begun = Instant::now();
        let answer = answer(&visitor, &mut kept).await;
        story.borrow_mut().answered(begun.elapsed(), answer);
        sleep(THINK / 4).await;
    }
}

async fn answer(visitor: &Visitor, kept: &mut Option<Packets<Stream>>) -> Result<(), LoginError> {
    let mut session = match kept.take() {
        Some(session) => session,
        None => visitor.enter().await?,
    };
    ask(&mut session, "SELECT 1").await?;
    if visitor.comes_anew {
        session.write(&TERMINATE).await?;
    } else {
        *kept = Some(session);
    }
    Ok(())
}

impl Story {
    fn answered(&mut self, after: Duration, answer: Result<(), LoginError>) {
        self.questions += 1;
        self.longest = self.longest.max(after);
        match answer {
            Ok(()) => {}
            Err(error) if is_refusal(&error) => self.refused += 1,
            Err(error) => self.failed.push(error.to_string()),
        }
    }

    fn fail(&mut self, nth: usize, what: &str) {
        self.lost += usize::from(nth + 1 == DEPLOYMENTS);
        self.failed.push(format!("site@v{}: {what}", nth + 1));
    }
}

/// What pgweir did, whom it named, and where to read more.
pub(super) fn moral(
    through: &Story,
    incident: &Incident,
    report: Option<&Path>,
) -> Result<String, DemoError> {
    let alert = incident.notes.iter().find_map(|note| match &note.what {
        What::Opened { text, .. } => Some(text.as_str()),
        _ => None,
    });
    let told = through.told.as_deref();
    let mut text = format!(
        "Directly, others were refused because of what old deployments held.\n\
         Through pgweir nobody was, and the current deployment lost nothing.\n\
         The alert: {}.\n\
         Each of the {} old sessions was told, once it was idle for long enough:\n  {}\n",
        alert.unwrap_or_default(),
        through.closed,
        told.unwrap_or_default(),
    );
    match report {
        None => text.push_str(
            "With --report FILE the incident's export, the skeleton of a post-mortem, is kept.",
        ),
        Some(path) => {
            let export = markdown(incident).unwrap_or_default();
            let what = format!("write {}", path.display());
            std::fs::write(path, export).map_err(DemoError::system(what))?;
            text.push_str("The incident's export, the skeleton of a post-mortem: ");
            text.push_str(&path.display().to_string());
        }
    }
    Ok(text)
}

/// Both side by side.
pub(super) fn table(direct: &Story, through: &Story) -> String {
    let head = ["", "direct", "through pgweir"].map(String::from);
    let mut rows = vec![head.to_vec()];
    let mut row = |name: String, tell: &dyn Fn(&Story) -> String| {
        rows.push(vec![name, tell(direct), tell(through)]);
    };
    for nth in 0..DEPLOYMENTS {
        let name = format!("site v{}, sessions of {SESSIONS}", nth + 1);
        row(name, &|story| story.got[nth].to_string());
    }
    row("  old ones closed".into(), &|story| {
        story.closed.to_string()
    });
    row("questions of the others".into(), &|story| {
        story.questions.to_string()
    });
    row("  refused with 53300".into(), &|story| {
        story.refused.to_string()
    });
    row("  slowest, milliseconds".into(), &|story| {
        millis(story.longest)
    });
    let most = format!("server connections (of {MAX_CONNECTIONS})");
    row(most, &|story| story.most.total.to_string());
    row("  of the site".into(), &|story| {
        story.most.services[SITE].to_string()
    });
    format!("\n{}", aligned(&rows))
}

/// What is not as it must be.
pub(super) fn complaints(direct: &Story, through: &Story) -> Vec<String> {
    let mut complaints = vec![];
    let mut complain = |wrong: bool, what: String| {
        if wrong {
            complaints.push(what);
        }
    };
    let cap = SERVICES[SITE].max_servers as usize;
    let old = SESSIONS * (DEPLOYMENTS - 1);
    complain(direct.refused == 0, "directly, nobody was refused".into());
    complain(
        through.refused > 0,
        format!("{} questions were refused through pgweir", through.refused),
    );
    complain(
        through.got != [SESSIONS; DEPLOYMENTS],
        format!(
            "of {SESSIONS} sessions, the deployments got {:?}",
            through.got
        ),
    );
    complain(
        through.lost > 0,
        format!("the current deployment lost {} sessions", through.lost),
    );
    complain(
        through.closed != old,
        format!("{} of {old} old sessions were closed", through.closed),
    );
    complain(
        through.most.total > BUDGET as usize,
        format!(
            "{} server connections, where the budget is {BUDGET}",
            through.most.total
        ),
    );
    complain(
        through.most.services[SITE] > cap,
        format!(
            "the site had {} server connections, where its cap is {cap}",
            through.most.services[SITE]
        ),
    );
    complaints.extend(through.failed.iter().take(5).cloned());
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Story {
        Story {
            got: [SESSIONS; DEPLOYMENTS],
            closed: SESSIONS * (DEPLOYMENTS - 1),
            questions: 100,
            ..Story::default()
        }
    }

    fn bad() -> Story {
        Story {
            refused: 7,
            ..Story::default()
        }
    }

    #[test]
    fn a_story_that_ends_well_is_not_complained_of() {
        assert_eq!(complaints(&bad(), &good()), [] as [String; 0]);
    }

    #[test]
    fn each_thing_that_goes_wrong_is_complained_of() {
        let broken = |breaks: fn(&mut Story)| {
            let mut story = good();
            breaks(&mut story);
            complaints(&bad(), &story).remove(0)
        };
        assert!(complaints(&good(), &good())[0].contains("nobody was refused"));
        assert!(broken(|story| story.refused = 3).contains("3 questions"));
        assert!(broken(|story| story.got[2] = 1).contains("[20, 20, 1,"));
        assert!(broken(|story| story.closed = 99).contains("99 of 100"));
        assert!(broken(|story| story.most.total = 41).contains("budget is 40"));
        assert!(broken(|story| story.most.services[SITE] = 21).contains("cap is 20"));
        assert!(broken(|story| story.fail(5, "alas")).contains("lost 1"));
        assert_eq!(broken(|story| story.fail(0, "alas")), "site@v1: alas");
    }

    #[test]
    fn the_table_has_both() {
        let table = table(&bad(), &good());
        assert!(table.contains("refused with 53300"));
        assert_eq!(table.lines().count(), 2 + DEPLOYMENTS + 6);
    }
}
