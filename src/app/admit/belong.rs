//! Where a session belongs: its service and its deployment, at login and when its client calls itself something else.

use super::Reception;
use crate::app::serve::{App, Capped};
use crate::app::world::World;
use crate::client::directory::{Listed, Who};
use crate::client::greet::Secured;
use crate::net::listen::Peer;
use crate::policy::service::Facts;
use crate::pool::book::ServiceId;
use crate::session::run::{Moved, Registrar};
use crate::wire::parameters::{DEPLOYMENT, Parameters};
use crate::wire::startup::Startup;

/// What says where a session belongs.
pub(super) const APPLICATION_NAME: &str = "application_name";

impl App {
    /// Finds the service and the deployment of a session that calls itself so. `who`: what is known of it, with the deployment
    /// that it named in so many words, if it did.
    fn classify(
        &self,
        world: &World,
        who: Who,
        application_name: &str,
        peer: Peer,
    ) -> (ServiceId, Who) {
        let named = who.deployment.as_deref().filter(|_| who.named_deployment);
        let classified = world.classifier.classify(&Facts {
            user: &who.user,
            database: &who.database,
            application_name,
            address: peer.ip(),
            certificate: who.certificate.as_deref(),
            deployment: named,
        });
        let limits = world.service_limits(classified.listed);
        let listed = classified.listed.is_some();
        let service = self.pools.service(&classified.service, listed, limits);
        let who = Who {
            service: classified.service.to_string(),
            deployment: classified.deployment.map(Into::into),
            application_name: application_name.to_owned(),
            ..who
        };
        (service, who)
    }
}

impl Registrar for App {
    /// A session is never refused its move, so that Postgres' answer to its SET stays true: it counts at its new service even
    /// beyond a cap, which then keeps others out.
    fn renamed(&self, listed: &Listed, application_name: &str) -> Option<Moved> {
        let (entry, world) = (listed.entry(), self.world());
        let old = entry.who();
        let (service, who) = self.classify(&world, (*old).clone(), application_name, entry.peer);
        if who == *old {
            return None;
        }
        let left = self.quotas.of(Capped::Service, &old.service);
        let capped = world.service_clients(&who.service) > 0;
        let quota = capped.then(|| self.quotas.of(Capped::Service, &who.service));
        tracing::debug!(
            id = entry.id(),
            service = who.service,
            deployment = who.deployment.as_deref(),
            "moved"
        );
        listed.belongs_to(who);
        Some(Moved {
            service,
            seat: quota.and_then(|quota| quota.enter(0)),
            left,
        })
    }
}

impl Reception<'_> {
    pub(in crate::app) fn classify(
        &self,
        startup: &Startup,
        asked: Option<&Parameters>,
        peer: Peer,
        secured: Option<&Secured>,
    ) -> (ServiceId, Who) {
        let subject = secured.and_then(|secured| secured.subject.as_ref());
        let said = |name| asked.and_then(|asked| asked.value(name));
        let deployment = said(DEPLOYMENT).filter(|name| !name.is_empty());
        let who = Who {
            user: startup.user.clone(),
            database: startup.database.clone(),
            named_deployment: deployment.is_some(),
            deployment: deployment.map(Into::into),
            certificate: subject.and_then(|subject| subject.common_name.clone()),
            ..Who::default()
        };
        let name = said(APPLICATION_NAME).unwrap_or_default();
        self.app.classify(&self.world, who, name, peer)
    }
}
