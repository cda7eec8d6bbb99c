//! PAM checks a client's password: the modules that are installed on this machine, as its `/etc/pam.d` says.
//!
//! PAM blocks, for seconds where a password is wrong. It has a thread of its own, one as with PgBouncer: modules were written for
//! programs that have no more, and the data that they share is not ours to guard.

use std::ffi::{OsStr, OsString};
use std::thread;

use nonstick::items::ItemsMut;
use nonstick::{
    AuthnFlags, ConversationAdapter, ErrorCode, PamShared, Result as PamResult, Transaction,
    TransactionBuilder,
};
use tokio::sync::{mpsc, oneshot};

use crate::config::checked::Secret;

/// Checks that wait for the thread; who comes later waits for a place, as with PgBouncer.
const QUEUE: usize = 100;

/// Why PAM did not say yes. It goes to the log; the client hears that it failed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It refuses.
    #[error("{step} failed: {code}")]
    Refused {
        /// Where.
        step: &'static str,
        /// Why.
        code: ErrorCode,
    },
    /// A name or a password that C cannot be told.
    #[error("zero byte in the name or the password")]
    ZeroByte,
    /// There is no thread to do so.
    #[error("PAM's thread has ended")]
    NoThread,
}

/// What is to be checked.
#[derive(Debug)]
pub struct Question {
    /// The file in `/etc/pam.d`.
    pub service: String,
    /// Who the client says it is.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// Where it comes from.
    pub from: String,
}

type Answer = Result<(), Refusal>;

/// The thread that asks PAM.
#[derive(Debug)]
pub struct Pam(mpsc::Sender<(Question, oneshot::Sender<Answer>)>);

impl Pam {
    /// Starts it. It ends when this is dropped, after what it is at.
    pub fn start() -> Self {
        let (asking, mut asked) = mpsc::channel::<(Question, oneshot::Sender<Answer>)>(QUEUE);
        let serve = move || {
            while let Some((question, answer)) = asked.blocking_recv() {
                // Whoever has gone needs no answer.
                if !answer.is_closed() {
                    // It may have gone meanwhile.
                    let _ = answer.send(check(question));
                }
            }
        };
        // Without a thread the channel is closed, and who asks hears that.
        let started = thread::Builder::new().name("pam".to_owned()).spawn(serve);
        if let Err(error) = started {
            tracing::error!("cannot start a thread for PAM: {error}");
        }
        Self(asking)
    }

    /// Has PAM check a password.
    pub async fn verify(&self, question: Question) -> Answer {
        let (answer, answered) = oneshot::channel();
        let sent = self.0.send((question, answer)).await;
        sent.map_err(|_| Refusal::NoThread)?;
        answered.await.unwrap_or(Err(Refusal::NoThread))
    }
}

fn check(question: Question) -> Answer {
    let Question {
        service,
        user,
        password,
        from,
    } = question;
    if [&user, password.expose(), &from]
        .iter()
        .any(|text| text.contains('\0'))
    {
        return Err(Refusal::ZeroByte);
    }
    let at = |step| move |code| Refusal::Refused { step, code };
    let conversation = Answers(password).into_conversation();
    let mut transaction = TransactionBuilder::new_with_service(service)
        .username(&user)
        .build(conversation)
        .map_err(at("pam_start()"))?;
    transaction
        .items_mut()
        .set_remote_host(Some(OsStr::new(&from)))
        .map_err(at("pam_set_item()"))?;
    transaction
        .authenticate(AuthnFlags::SILENT)
        .map_err(at("pam_authenticate()"))?;
    transaction
        .account_management(AuthnFlags::SILENT)
        .map_err(at("pam_acct_mgmt()"))
}

/// What modules are told: the password, whenever they ask for something that is not to be seen.
struct Answers(Secret);

impl ConversationAdapter for Answers {
    fn prompt(&self, _: impl AsRef<OsStr>) -> PamResult<OsString> {
        Err(ErrorCode::ConversationError)
    }

    fn masked_prompt(&self, _: impl AsRef<OsStr>) -> PamResult<OsString> {
        Ok(self.0.expose().into())
    }

    fn error_msg(&self, message: impl AsRef<OsStr>) {
        tracing::warn!("PAM says: {}", message.as_ref().display());
    }

    fn info_msg(&self, _: impl AsRef<OsStr>) {}
}
