//! Passwords that somebody else checks: a directory.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Reception;
use super::denied::Denied;
use super::proof::Proof;
use crate::client::credentials::Credential;
use crate::client::ldap;
use crate::client::login::{LoginError, ask_password};
use crate::config::checked::Secret;
use crate::config::ldap_options::LdapOptions;
use crate::net::packet::Packets;
use crate::net::stream::Stream;
use crate::repeats;

/// Checks by a directory at once; the others wait, up to `client_login`. Each is a connection or two, and a deployment's logins come
/// all together.
const DIRECTORY_CHECKS: usize = 32;

/// What the log says of a check.
const FAILED: &str = "LDAP authentication failed";

/// The checks under way.
#[derive(Debug)]
pub struct Elsewhere {
    directory: Semaphore,
}

impl Default for Elsewhere {
    fn default() -> Self {
        Self {
            directory: Semaphore::new(DIRECTORY_CHECKS),
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
                if repeats::is_news(FAILED, refusal.to_string()) {
                    if refusal.is_the_directorys() {
                        tracing::warn!(user, "{FAILED}: {refusal}");
                    } else {
                        tracing::info!(user, "{FAILED}: {refusal}");
                    }
                }
                let user = user.to_owned();
                Err(LoginError::Elsewhere { by: "LDAP", user }.into())
            }
        }
    }
}

/// The user logs in to Postgres with the password that was found right, whatever is listed for that name: as with PgBouncer.
fn vouched(user: &str, password: &Secret) -> Proof {
    Proof::Vouched(Arc::new(Credential::vouched(user, password)))
}
