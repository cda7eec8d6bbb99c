//! Passwords that somebody else checks: a directory, or PAM.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Reception;
use super::denied::Denied;
use super::proof::Proof;
use crate::client::credentials::Credential;
use crate::client::ldap;
use crate::client::login::{LoginError, ask_password};
#[cfg(feature = "pam")]
use crate::client::pam;
use crate::config::checked::Secret;
use crate::config::ldap_options::LdapOptions;
use crate::net::listen::Peer;
use crate::net::packet::Packets;
use crate::net::stream::Stream;
use crate::repeats;

/// Checks by a directory at once; the others wait, up to `client_login`. Each is a connection or two, and a deployment's logins come
/// all together.
const DIRECTORY_CHECKS: usize = 32;

/// What the log says of a check.
const LDAP_FAILED: &str = "LDAP authentication failed";

/// The same of PAM's.
#[cfg(feature = "pam")]
const PAM_FAILED: &str = "PAM authentication failed";

/// The checks under way.
#[derive(Debug)]
pub struct Elsewhere {
    directory: Semaphore,
    /// Started by the first who needs it.
    #[cfg(feature = "pam")]
    pam: std::sync::OnceLock<pam::Pam>,
}

impl Default for Elsewhere {
    fn default() -> Self {
        Self {
            directory: Semaphore::new(DIRECTORY_CHECKS),
            #[cfg(feature = "pam")]
            pam: std::sync::OnceLock::new(),
        }
    }
}

impl Reception<'_> {
    /// Asks the client for its password, and the directory whether it is right.
    pub(super) async fn prove_by_ldap(
        &self,
        packets: &mut Packets<Stream>,
        user: &str,
        options: &LdapOptions,
    ) -> Result<Proof, Denied> {
        let password = ask_password(packets).await?;
        let connector = self.world.directory.as_deref();
        let turn = self.app.elsewhere.directory.acquire().await;
        // Boxed, because what is waited for here is large, and few do.
        let verified = Box::pin(ldap::verify(options, connector, user, &password)).await;
        drop(turn);
        match verified {
            Ok(()) => Ok(vouched(user, &password)),
            Err(refusal) => {
                if repeats::is_news(LDAP_FAILED, refusal.to_string()) {
                    if refusal.is_the_directorys() {
                        tracing::warn!(user, "{LDAP_FAILED}: {refusal}");
                    } else {
                        tracing::info!(user, "{LDAP_FAILED}: {refusal}");
                    }
                }
                let user = user.to_owned();
                Err(LoginError::Elsewhere { by: "LDAP", user }.into())
            }
        }
    }

    /// Asks the client for its password, and PAM whether it is right.
    #[cfg(feature = "pam")]
    pub(super) async fn prove_by_pam(
        &self,
        packets: &mut Packets<Stream>,
        user: &str,
        peer: Peer,
    ) -> Result<Proof, Denied> {
        let password = ask_password(packets).await?;
        let question = pam::Question {
            service: self.world.config.auth.pam_service.clone(),
            user: user.to_owned(),
            password: password.clone(),
            from: peer.ip().map_or("unix".to_owned(), |ip| ip.to_string()),
        };
        let pam = self.app.elsewhere.pam.get_or_init(pam::Pam::start);
        match pam.verify(question).await {
            Ok(()) => Ok(vouched(user, &password)),
            Err(refusal) => {
                if repeats::is_news(PAM_FAILED, format!("{user}: {refusal}")) {
                    tracing::warn!(user, said = refusal.to_string(), "{PAM_FAILED}: {refusal}");
                }
                let user = user.to_owned();
                Err(LoginError::Elsewhere { by: "PAM", user }.into())
            }
        }
    }

    /// Nobody comes in: such a configuration is refused.
    #[cfg(not(feature = "pam"))]
    pub(super) async fn prove_by_pam(
        &self,
        _: &mut Packets<Stream>,
        user: &str,
        _: Peer,
    ) -> Result<Proof, Denied> {
        let user = user.to_owned();
        Err(LoginError::Elsewhere { by: "PAM", user }.into())
    }
}

/// The user logs in to Postgres with the password that was found right, whatever is listed for that name: as with PgBouncer.
fn vouched(user: &str, password: &Secret) -> Proof {
    Proof::Vouched(Arc::new(Credential::vouched(user, password)))
}
