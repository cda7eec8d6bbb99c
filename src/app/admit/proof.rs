//! Who a client is: what it must show, and to whom.

use std::sync::Arc;

use super::Reception;
use super::denied::Denied;
use super::welcome::give_back;
use crate::client::credentials::Credential;
use crate::client::greet::Secured;
use crate::client::login::{LoginError, Method, ask_password, authenticate};
use crate::config::checked::{AuthMethod, Secret, TlsMode};
use crate::config::hba_file;
use crate::net::listen::Peer;
use crate::net::names;
use crate::net::packet::Packets;
use crate::net::stream::Stream;
use crate::pool::book::ServiceId;
use crate::pool::errand::Discard;
use crate::pool::pools::{Pool, Refused, Vouched};
use crate::server::login::ServerLogin;
use crate::wire::startup::Startup;

/// What a client has done to show who it is.
#[derive(Debug)]
pub(in crate::app) enum Proof {
    /// Enough.
    Given,
    /// Enough, to somebody else. With this it logs in to Postgres.
    Vouched(Arc<Credential>),
    /// Nothing: none was asked for.
    None,
}

impl Reception<'_> {
    /// Whether the connection is as safe as `[tls.client]` demands.
    pub(in crate::app) fn check_tls(
        &self,
        startup: &Startup,
        peer: Peer,
        secured: Option<&Secured>,
    ) -> Result<(), Denied> {
        let mode = self.world.config.tls_client.mode;
        // A unix socket needs no TLS, and cannot have it.
        if matches!(peer, Peer::Unix(_)) {
            return Ok(());
        }
        if mode.demands() && secured.is_none() {
            return Err(Denied::Insecure);
        }
        if mode == TlsMode::VerifyFull && !self.world.certificate_is_for(secured, &startup.user) {
            return Err(LoginError::Certificate(startup.user.clone()).into());
        }
        Ok(())
    }

    /// The client proves who it is to pgweir.
    pub(in crate::app) async fn prove(
        &self,
        packets: &mut Packets<Stream>,
        startup: &Startup,
        peer: Peer,
        secured: Option<&Secured>,
        credential: &Credential,
    ) -> Result<Proof, Denied> {
        let known = credential.is_known() || self.world.was_told_nobody();
        let user = &startup.user;
        let method = match self.world.config.auth.method {
            AuthMethod::Cert if !self.world.certificate_is_for(secured, &startup.user) => {
                return Err(LoginError::Certificate(startup.user.clone()).into());
            }
            AuthMethod::Any => return Ok(Proof::None),
            AuthMethod::Trust if known => return Ok(Proof::None),
            AuthMethod::Cert if known => return Ok(Proof::Given),
            AuthMethod::Trust | AuthMethod::Cert => {
                return Err(Denied::Stranger(startup.user.clone()));
            }
            AuthMethod::Password => Method::Password,
            AuthMethod::Md5 => Method::Md5,
            AuthMethod::ScramSha256 => Method::Scram,
            AuthMethod::Ldap => {
                let options = &self.world.config.auth.ldap_options;
                let options = options.as_ref().expect("a checked configuration has them");
                return self.prove_by_ldap(packets, user, options).await;
            }
            AuthMethod::Pam => return self.prove_by_pam(packets, user, peer).await,
            AuthMethod::Hba => {
                let record = self.record(startup, peer, secured)?;
                match record {
                    hba_file::Method::Reject => return Err(Denied::Rejected),
                    // A file that names who may come in from where means those who are known.
                    hba_file::Method::Trust if credential.is_known() => return Ok(Proof::None),
                    hba_file::Method::Trust => return Err(Denied::Stranger(user.clone())),
                    hba_file::Method::Cert(map) => {
                        let map = map.as_deref();
                        if self.world.certificate_by(map, secured, user) {
                            return Ok(Proof::Given);
                        }
                        return Err(LoginError::Certificate(user.clone()).into());
                    }
                    hba_file::Method::Peer(map) => {
                        let name = owner(packets.stream());
                        let map = map.as_deref();
                        if name.is_some_and(|name| self.world.is_mapped(map, &name, user)) {
                            return Ok(Proof::Given);
                        }
                        return Err(LoginError::Peer(user.clone()).into());
                    }
                    hba_file::Method::Ldap(options) => {
                        return self.prove_by_ldap(packets, user, options).await;
                    }
                    hba_file::Method::Pam => {
                        return self.prove_by_pam(packets, user, peer).await;
                    }
                    hba_file::Method::Password => Method::Password,
                    hba_file::Method::Md5 => Method::Md5,
                    hba_file::Method::ScramSha256 => Method::Scram,
                }
            }
        };
        let end_point = secured.and_then(|secured| secured.end_point.as_deref());
        authenticate(packets, &startup.user, credential, method, end_point).await?;
        Ok(Proof::Given)
    }

    /// What the HBA file says of this client.
    fn record(
        &self,
        startup: &Startup,
        peer: Peer,
        secured: Option<&Secured>,
    ) -> Result<&hba_file::Method, Denied> {
        let replicates = startup.is_replication()
            && !startup
                .parameter("replication")
                .is_some_and(|value| value.eq_ignore_ascii_case("database"));
        let asking = hba_file::Asking {
            address: peer.ip(),
            tls: secured.is_some(),
            database: &startup.database,
            user: &startup.user,
            replicates,
        };
        let found = self.world.hba.method(&asking);
        found.ok_or_else(|| {
            let host = peer.ip().map_or("[local]".to_owned(), |ip| ip.to_string());
            let Startup { user, database, .. } = startup;
            let encryption = if secured.is_some() {
                "SSL encryption"
            } else {
                "no encryption"
            };
            Denied::NoRecord(format!(
                "no pg_hba.conf entry for host \"{host}\", user \"{user}\", database \"{database}\", {encryption}"
            ))
        })
    }

    /// Nobody told pgweir who may log in, so Postgres is asked: with no password, and if it wants one, with the client's.
    pub(in crate::app) async fn vouch(
        &self,
        packets: &mut Packets<Stream>,
        pool: &Arc<Pool>,
        service: ServiceId,
    ) -> Result<(), Denied> {
        // One at a time: guessing passwords through pgweir is no faster than one login after the other.
        let mut vouched = pool.vouched().lock().await;
        if vouched.is_none() {
            match self.lease(pool, service).await {
                Ok(lease) => {
                    give_back(lease);
                    *vouched = Some(Vouched::Trusted);
                }
                Err(Refused::Login {
                    wants_proof: true, ..
                }) => {}
                Err(refused) => return Err(Denied::Refused(refused)),
            }
        }
        if matches!(&*vouched, Some(Vouched::Trusted)) {
            return Ok(());
        }
        drop(vouched);
        let password = self.in_time(ask_password(packets)).await?;
        let mut vouched = pool.vouched().lock().await;
        if matches!(&*vouched, Some(Vouched::By(known)) if *known == password) {
            return Ok(());
        }
        self.try_password(pool, service, &password).await?;
        pool.prove_with(ServerLogin::password(&password));
        *vouched = Some(Vouched::By(password));
        Ok(())
    }

    /// The same for a client that gets a connection of its own: it is asked for its password, and Postgres tries it when that
    /// connection is made.
    pub(super) async fn vouch_alone(
        &self,
        packets: &mut Packets<Stream>,
        pool: &Arc<Pool>,
        service: ServiceId,
    ) -> Result<(), Denied> {
        match self.lease(pool, service).await {
            // It trusts; the connection is closed, and made once more for the client.
            Ok(lease) => lease.discard(Discard::Replication),
            Err(Refused::Login {
                wants_proof: true, ..
            }) => {
                let password = self.in_time(ask_password(packets)).await?;
                pool.prove_with(ServerLogin::password(&password));
            }
            Err(refused) => return Err(Denied::Refused(refused)),
        }
        Ok(())
    }

    /// Logs in to Postgres with a password that nobody has vouched for yet, within the budget like everything else.
    async fn try_password(
        &self,
        pool: &Arc<Pool>,
        service: ServiceId,
        password: &Secret,
    ) -> Result<(), Denied> {
        let settings = pool.settings().as_probe(ServerLogin::password(password));
        let probe = self.app.pools.probe(pool, settings);
        let tried = self
            .lease(&probe, service)
            .await
            .map(|lease| lease.discard(Discard::Probe));
        tried.map_err(Denied::Refused)
    }
}

/// Which user of this machine is at the other end of a unix socket.
fn owner(stream: &Stream) -> Option<String> {
    names::user_name(stream.peer_user()?)
}
