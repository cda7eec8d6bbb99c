//! Services and deployments on the console.

use std::time::SystemTime;

use super::command::{Acting, Call, Done};
use super::table::Row;
use crate::policy::deployment::Unknown;
use crate::row;
use crate::wire::reply::{Report, SqlState};

type Rows = Result<Vec<Row>, Report>;

/// SHOW SERVICES.
pub fn services(call: &Call) -> Rows {
    let (config, deployments) = (call.process.config(), call.process.deployments());
    let sessions = call.process.directory().count();
    let mut rows = Vec::new();
    for service in call.process.pools().services() {
        let listed = config.services.listed.iter();
        let limits = listed
            .clone()
            .find(|listed| listed.name == *service.name)
            .map_or(&config.services.limits, |listed| &listed.limits);
        let own = deployments.iter().filter(|row| row.service == service.name);
        let current: Vec<_> = own
            .clone()
            .filter(|row| row.state == "current")
            .map(|row| row.deployment.to_string())
            .collect();
        let stale: u32 = own
            .filter(|row| row.state == "superseded")
            .map(|row| row.sessions)
            .sum();
        let clients: u64 = sessions
            .iter()
            .filter(|(who, _)| *who.service == *service.name)
            .map(|(_, count)| count)
            .sum();
        rows.push(row![
            service.name.to_string(),
            Some(current.join(", ")).filter(|names| !names.is_empty()),
            clients,
            stale,
            limits.max_clients,
            service.waiters,
            u64::try_from(service.longest_wait.as_millis()).unwrap_or(u64::MAX),
            service.tally.total(),
            service.tally.idle(),
            limits.max_servers,
            limits.min_servers,
            limits.weight,
        ]);
    }
    Ok(rows)
}

/// SHOW DEPLOYMENTS.
pub fn deployments(call: &Call) -> Rows {
    let rows = call.process.deployments().into_iter().map(|deployment| {
        row![
            deployment.service.to_string(),
            deployment.deployment.to_string(),
            deployment.state,
            deployment.sessions,
            time(deployment.first_seen),
            time(deployment.last_seen),
            deployment.superseded_by.map(|by| by.to_string()),
            deployment.superseded_at.map(time),
        ]
    });
    Ok(rows.collect())
}

/// SHOW WAITERS.
pub fn waiters(call: &Call) -> Rows {
    let rows = call.process.pools().waiters().into_iter().map(|waiter| {
        let client = waiter
            .client
            .and_then(|id| call.process.directory().row_of(id));
        let who = client.as_ref().map(|client| &client.who);
        row![
            waiter.client,
            waiter.pool.database.clone(),
            waiter.pool.user.clone(),
            waiter.service.to_string(),
            who.and_then(|who| who.deployment.as_deref())
                .map(str::to_owned),
            client.as_ref().map(|client| client.peer.to_string()),
            u64::try_from(waiter.age.as_millis()).unwrap_or(u64::MAX),
            waiter.place,
        ]
    });
    Ok(rows.collect())
}

/// SHOW REAPED.
pub fn reaped(call: &Call) -> Rows {
    let rows = call.process.reaped().last().into_iter().map(|reaped| {
        let (who, sentence) = (&reaped.who, &reaped.sentence);
        row![
            time(reaped.at),
            reaped.id,
            who.user.clone(),
            who.database.clone(),
            sentence.service.clone(),
            sentence.deployment.clone(),
            reaped.peer.to_string(),
            sentence.reason.as_str(),
            sentence.rested.as_secs(),
            sentence.by.as_ref().map(ToString::to_string),
            sentence.since.map(time),
            reaped.dry_run,
        ]
    });
    Ok(rows.collect())
}

/// PROMOTE.
pub fn promote(call: Call) -> Acting {
    Box::pin(async move {
        let (service, deployment) = of(&call);
        let done = call.process.promote(service, deployment);
        done.map(|()| Done::default()).map_err(unknown)
    })
}

/// SUPERSEDE.
pub fn supersede(call: Call) -> Acting {
    Box::pin(async move {
        let (service, deployment) = of(&call);
        let done = call.process.supersede(service, deployment);
        done.map(|()| Done::default()).map_err(unknown)
    })
}

/// KILL STALE.
pub fn kill_stale(call: Call) -> Acting {
    Box::pin(async move {
        let asked = call.process.kill_stale(call.argument(0));
        let text = format!("{asked} sessions of superseded deployments were asked to leave");
        let notice = Report::new(SqlState::SUCCESSFUL_COMPLETION, text);
        Ok(Done {
            notices: vec![notice],
            tag: None,
        })
    })
}

fn of(call: &Call) -> (&str, &str) {
    let argument = |index| call.argument(index).unwrap_or_default();
    (argument(0), argument(1))
}

fn unknown(error: Unknown) -> Report {
    Report::new(SqlState::UNDEFINED_OBJECT, error.to_string())
        .hint("SHOW DEPLOYMENTS lists those that are known.")
}

fn time(at: SystemTime) -> String {
    let at = jiff::Timestamp::try_from(at).unwrap_or_default();
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}
