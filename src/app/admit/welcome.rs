//! What a client is told when it is let in: what Postgres says of itself, and what it takes of the client's parameters.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;

use super::Reception;
use super::belong::APPLICATION_NAME;
use super::denied::Denied;
use crate::client::credentials::Credential;
use crate::client::login::LoginError;
use crate::config::checked::Database;
use crate::net::end::EndError;
use crate::net::listen::Peer;
use crate::pool::book::{Party, ServiceId};
use crate::pool::lease::{Called, Lease};
use crate::pool::pools::{Accepted, Checkout, Pool, Refused};
use crate::server::login::{ServerLogin, Welcome};
use crate::wire::parameters::{DEPLOYMENT, OptionsError, Parameters};
use crate::wire::reply::{
    Message, Report, SqlState, authentication, backend_key_data, parameter_status_into,
    ready_for_query,
};
use crate::wire::startup::Startup;

/// How long Postgres may take to say what it thinks of a client's parameters.
const TAKE_ON_LIMIT: Duration = Duration::from_secs(30);

/// Room for what most clients are told at login.
const USUAL_HELLO: usize = 1024;

/// What Postgres has to say to whom it lets in.
pub(super) struct Welcomed {
    pub(super) welcome: Arc<Welcome>,
    pub(super) accepted: Arc<Accepted>,
    /// The server connection of a client that keeps one.
    pub(super) lease: Option<Lease>,
}

impl Reception<'_> {
    /// What pgweir asks Postgres for on a client's behalf, with what the configuration has to say about it: nothing for one that
    /// replicates, whose startup message Postgres reads itself.
    pub(super) fn for_postgres(
        &self,
        asked: Result<Parameters, OptionsError>,
        replicates: bool,
        peer: Peer,
        database: &Database,
    ) -> Result<Parameters, Denied> {
        if replicates {
            return Ok(Parameters::default());
        }
        let mut asked = asked.map_err(Denied::Options)?;
        // Postgres would take it for a parameter of an extension's.
        asked.unset(DEPLOYMENT);
        if asked.value(APPLICATION_NAME).is_none() {
            // Who gives none has none, and not what pgweir calls itself.
            let default = database.parameters.application_name.as_deref();
            asked.set(APPLICATION_NAME, default.unwrap_or(""));
        }
        if self.world.config.pool.application_name_add_host {
            let named = asked
                .value(APPLICATION_NAME)
                .filter(|name| !name.is_empty());
            let with_host = format!("{} - {peer}", named.unwrap_or("app"));
            asked.set(APPLICATION_NAME, &with_host);
        }
        Ok(asked)
    }

    pub(in crate::app) fn pool(
        &self,
        startup: &Startup,
        database: &Database,
        credential: &Credential,
    ) -> Arc<Pool> {
        let (user, proof) = self.world.server_login(database, &startup.user, credential);
        if startup.is_replication() {
            let settings = self
                .world
                .pool_settings(&startup.database, database, &user, proof);
            let settings = settings.as_replication(startup);
            let pools = &self.app.pools;
            return pools.replication(&startup.database, &user, settings);
        }
        let pool = self.app.pools.pool(&startup.database, &user, || {
            self.world
                .pool_settings(&startup.database, database, &user, proof.clone())
        });
        // A client's SCRAM login teaches the keys with which to log in to Postgres; after a change of password, new ones.
        if !matches!(proof, ServerLogin::Nothing) {
            pool.prove_with(proof);
        }
        pool
    }

    /// What Postgres tells whom it lets in. The first client of a pool has a server connection opened for it.
    async fn welcome(&self, pool: &Arc<Pool>, service: ServiceId) -> Result<Arc<Welcome>, Denied> {
        if let Some(welcome) = pool.welcome() {
            return Ok(welcome);
        }
        let mut lease = self.lease(pool, service).await.map_err(Denied::Refused)?;
        let welcome = Arc::clone(&lease.connection().welcome);
        give_back(lease);
        Ok(welcome)
    }

    /// What a client is told that gets server connections when it needs them.
    pub(super) async fn learn(
        &self,
        pool: &Arc<Pool>,
        service: ServiceId,
        asked: Parameters,
    ) -> Result<Welcomed, Denied> {
        Ok(Welcomed {
            welcome: self.welcome(pool, service).await?,
            accepted: self.accept(pool, service, asked).await?,
            lease: None,
        })
    }

    /// What a client is told that keeps a server connection from now on, and that connection.
    pub(super) async fn hold(
        &self,
        pool: &Arc<Pool>,
        party: Party,
        asked: Parameters,
    ) -> Result<Welcomed, Denied> {
        let mut lease = self.lease(pool, party).await.map_err(Denied::Refused)?;
        let accepted = give(&mut lease, asked).await?;
        Ok(Welcomed {
            welcome: Arc::clone(&lease.connection().welcome),
            accepted: Arc::new(accepted),
            lease: Some(lease),
        })
    }

    /// What a client is told that replicates, and the connection that was made for it and with its own startup message.
    pub(super) async fn replicate(
        &self,
        pool: &Arc<Pool>,
        party: Party,
    ) -> Result<Welcomed, Denied> {
        let mut lease = self.lease(pool, party).await.map_err(Denied::Refused)?;
        let accepted = Accepted {
            parameters: Arc::default(),
            reported: Vec::new(),
        };
        Ok(Welcomed {
            welcome: Arc::clone(&lease.connection().welcome),
            accepted: Arc::new(accepted),
            lease: Some(lease),
        })
    }

    /// What becomes of what the client asked for at startup: Postgres is asked once, and whatever it does not take is told to this
    /// client alone.
    async fn accept(
        &self,
        pool: &Arc<Pool>,
        service: ServiceId,
        asked: Parameters,
    ) -> Result<Arc<Accepted>, Denied> {
        if let Some(accepted) = pool.accepted(&asked) {
            return Ok(accepted);
        }
        let mut lease = self.lease(pool, service).await.map_err(Denied::Refused)?;
        let accepted = give(&mut lease, asked.clone()).await;
        give_back(lease);
        Ok(pool.accept(asked, accepted?))
    }

    pub(in crate::app) async fn lease(
        &self,
        pool: &Arc<Pool>,
        party: impl Into<Party>,
    ) -> Result<Lease, Refused> {
        let party = party.into();
        loop {
            let asked =
                poll_fn(|cx| Poll::Ready(pool.ask(party, self.thread, 0, cx.waker()))).await;
            let called = match asked {
                Checkout::Lease(lease) => Called::Lease(lease),
                Checkout::Ticket(mut ticket) => poll_fn(|_| ticket.poll()).await,
            };
            let mut lease = match called {
                Called::Lease(lease) => lease,
                Called::Refused(refused) => return Err(refused),
                Called::Again => continue,
            };
            if !lease.wants_check() {
                return Ok(lease);
            }
            let mut checking = lease.check();
            if let Some(lease) = poll_fn(|cx| checking.poll(cx)).await {
                return Ok(lease);
            }
        }
    }
}

/// Gives back a lease over which nothing was sent.
pub(in crate::app) fn give_back(mut lease: Lease) {
    if let Some(proof) = lease.connection().end.settled() {
        lease.release(proof);
    }
}

/// Gives the session of a lease what Postgres takes of these parameters.
async fn give(lease: &mut Lease, mut wanted: Parameters) -> Result<Accepted, Denied> {
    loop {
        let tried = timeout(TAKE_ON_LIMIT, take_on(lease, &wanted)).await;
        match tried.map_err(|_| Denied::TooSlow)?? {
            Taken::All(accepted) => return Ok(accepted),
            Taken::AllBut(parameter) => {
                tracing::info!(parameter, "can be set at connection start only: no effect");
                wanted.unset(&parameter);
            }
        }
    }
}

/// What Postgres takes of a client's parameters.
enum Taken {
    All(Accepted),
    /// It would have taken this one when the connection began. That is not worth a connection of one's own.
    AllBut(String),
}

/// Gives the session of a lease these parameters, and finds out what becomes of them.
async fn take_on(lease: &mut Lease, wanted: &Parameters) -> Result<Taken, Denied> {
    // Whatever the end is, it is not this client's: it may try again.
    let lost = |error: EndError| Denied::Login(LoginError::Io(io::Error::other(error)));
    let connection = lease.connection();
    match connection
        .take_on(&Arc::new(wanted.clone()))
        .await
        .map_err(lost)?
    {
        Ok(answer) => {
            let values = answer
                .rows
                .iter()
                .filter_map(|(name, value)| Some((&**name, value.as_deref()?)));
            let parameters = Arc::new(values.collect::<Parameters>());
            connection.end.state_mut().set_parameters(&parameters);
            Ok(Taken::All(Accepted {
                parameters,
                reported: answer.reported,
            }))
        }
        Err(refused) => match refused.quoted_name() {
            Some(name)
                if refused.code == SqlState::CANNOT_CHANGE_PARAMETER
                    && wanted.value(&name).is_some()
                    && connection
                        .context_of(&name)
                        .await
                        .map_err(lost)?
                        .is_some_and(|context| context.ends_with("backend")) =>
            {
                Ok(Taken::AllBut(name))
            }
            _ => Err(Denied::Parameters(refused)),
        },
    }
}

/// Everything from AuthenticationOk to ReadyForQuery.
pub(super) fn hello(
    welcome: &Welcome,
    accepted: &Accepted,
    (id, secret): (u32, &[u8]),
    notice: Option<&str>,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(USUAL_HELLO);
    bytes.extend(authentication::request(authentication::OK, &[]));
    for (name, value) in &welcome.parameters {
        let reported = accepted.reported.iter().rev();
        let reported = reported.filter(|(known, _)| known == name);
        let value = accepted
            .parameters
            .value(name)
            .or(reported.map(|(_, value)| &**value).next())
            .unwrap_or(value);
        parameter_status_into(name, value, &mut bytes);
    }
    bytes.extend(backend_key_data(id, secret));
    for notice in &welcome.notices {
        bytes.extend(Message::new(b'N').bytes(notice).done());
    }
    if let Some(notice) = notice {
        bytes.extend(Report::new(SqlState::SUCCESSFUL_COMPLETION, notice).notice());
    }
    bytes.extend(ready_for_query());
    bytes
}
