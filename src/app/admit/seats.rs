//! A client's seats under the caps on clients.

use std::time::Duration;

use tokio::time::sleep;

use super::Reception;
use super::denied::Denied;
use crate::app::serve::Capped;
use crate::client::directory::{Seat, Who};
use crate::config::checked::{Config, Database};

/// How often room is made for a client whose service is full, before it is refused; and how long those who are asked to leave may
/// take.
const ROOM_TRIES: u32 = 20;
const ROOM_PAUSE: Duration = Duration::from_millis(20);

impl Reception<'_> {
    /// Its seats under the caps on clients.
    pub(super) async fn seats(
        &self,
        first: Seat,
        who: &Who,
        database: &Database,
    ) -> Result<Box<[Seat]>, Denied> {
        let Config { limits, users, .. } = &*self.world.config;
        let user = users
            .get(&who.user)
            .and_then(|user| user.max_clients)
            .unwrap_or(limits.max_clients_per_user);
        let database = database
            .max_clients
            .unwrap_or(limits.max_clients_per_database);
        // Without a cap nobody needs the count.
        let enter = |kind, name: &str, cap, limit| match cap {
            0 => Ok(None),
            cap => self
                .app
                .quotas
                .of(kind, name)
                .enter(cap)
                .map(Some)
                .ok_or(Denied::Full(limit)),
        };
        let user = enter(Capped::User, &who.user, user, "max_clients_per_user")?;
        let database = enter(
            Capped::Database,
            &who.database,
            database,
            "max_clients_per_database",
        )?;
        let service = self.service_seat(who).await?;
        let seats = [Some(first), user, database, service];
        Ok(seats.into_iter().flatten().collect())
    }

    /// A seat under the cap of its service. Where that is full of what an old deployment has left, room is made.
    async fn service_seat(&self, who: &Who) -> Result<Option<Seat>, Denied> {
        let most = self.world.service_clients(&who.service);
        if most == 0 {
            return Ok(None);
        }
        let quota = self.app.quotas.of(Capped::Service, &who.service);
        let cap = self.app.clients_for(who, most);
        for _ in 0..ROOM_TRIES {
            if let Some(seat) = quota.enter(cap) {
                return Ok(Some(seat));
            }
            if !self.app.make_room_for(who) {
                break;
            }
            sleep(ROOM_PAUSE).await;
        }
        Err(Denied::Full("max_clients of the service"))
    }

    /// Notes for which service a client is refused that would have come in, had there been a place for it.
    pub(super) fn count_refusal(&self, service: &str, denied: &Denied) {
        let reason = match denied {
            Denied::Refused(refused) => refused.as_str(),
            Denied::Full(_) => denied.as_str(),
            _ => return,
        };
        self.app.watch.was_refused(service, reason);
    }
}
