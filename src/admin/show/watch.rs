//! What is left at each Postgres, who has the rest, alerts and incidents.

use std::collections::BTreeMap;

use super::Rows;
use crate::admin::command::{Call, Run};
use crate::admin::table::{boolean, int4, int8, text};
use crate::incident::export::markdown;
use crate::incident::time;
use crate::policy::budget::Whose;
use crate::row;
use crate::wire::reply::{Report, SqlState};

/// SHOW BUDGET: one row for each Postgres. What only the monitor knows is null where it does not work.
pub const BUDGET: Run = Run::Show {
    columns: &[
        text("postgres"),
        int4("budget"),
        int4("in_use"),
        int4("idle"),
        int4("max_connections"),
        int4("reserved"),
        int4("others"),
        int4("free"),
        boolean("is_full"),
        int8("refusals"),
        text("trouble"),
    ],
    rows: budget,
};

/// SHOW FOREIGN: who is connected to Postgres past this pgweir, as far as Postgres tells.
pub const FOREIGN: Run = Run::Show {
    columns: &[
        text("postgres"),
        text("whose"),
        text("application_name"),
        text("user"),
        text("address"),
        text("state"),
        int4("connections"),
        int8("oldest_seconds"),
    ],
    rows: foreign,
};

/// SHOW ALERTS: those that are raised.
pub const ALERTS: Run = Run::Show {
    columns: &[
        text("alert"),
        text("subject"),
        text("since"),
        int8("value"),
        int8("threshold"),
        text("service"),
        text("deployment"),
        int8("held"),
        text("text"),
        text("command"),
    ],
    rows: alerts,
};

/// SHOW INCIDENTS: those that are kept, the newest first.
pub const INCIDENTS: Run = Run::Show {
    columns: &[
        int8("id"),
        text("opened"),
        text("closed"),
        text("cause"),
        text("text"),
        int4("snapshots"),
    ],
    rows: incidents,
};

/// SHOW INCIDENT: its story, a line in each row.
pub const INCIDENT: Run = Run::Show {
    columns: &[text("incident")],
    rows: incident,
};

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
fn budget(call: &Call) -> Rows {
    let row = |ground: crate::pool::pools::GroundView| {
        let measured = ground.measured;
        row![
            ground.name,
            ground.budget,
            ground.tally.total(),
            ground.tally.idle(),
            measured.map(|measured| measured.limits.max_connections),
            measured.map(|measured| measured.limits.reserved),
            measured.map(|measured| measured.others),
            measured.map(|measured| measured.limits.free(measured.open)),
            ground.is_full,
            ground.refusals,
            ground.trouble.map(|trouble| trouble.to_string()),
        ]
    };
    Ok(call
        .process
        .pools()
        .grounds()
        .into_iter()
        .map(row)
        .collect())
}

/// What those who are counted together agree in.
type Foreigner = [String; 6];

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
fn foreign(call: &Call) -> Rows {
    let mut counts = BTreeMap::<Foreigner, (u32, Option<u64>)>::new();
    for (postgres, whose, backend) in call.process.backends() {
        let whose = match whose {
            Whose::Ours => continue,
            Whose::Siblings => "pgweir",
            Whose::Foreign => "foreign",
        };
        let key = [
            postgres,
            whose.to_owned(),
            backend.application_name,
            backend.user,
            backend.address,
            backend.state,
        ];
        let (count, oldest) = counts.entry(key).or_default();
        *count += 1;
        *oldest = (*oldest).max(backend.age);
    }
    let row = |(key, (count, oldest)): (Foreigner, _)| {
        let [postgres, whose, name, user, address, state] = key;
        row![postgres, whose, name, user, address, state, count, oldest]
    };
    Ok(counts.into_iter().map(row).collect())
}

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
fn alerts(call: &Call) -> Rows {
    let row = |(since, measured): (i64, crate::policy::alert::Measured)| {
        let (service, deployment, held) = match measured.holder {
            Some(holder) => (
                Some(holder.service),
                Some(holder.deployment),
                Some(holder.count),
            ),
            None => (None, None, None),
        };
        row![
            measured.kind.as_str(),
            measured.subject,
            time(since),
            measured.value,
            measured.threshold,
            service,
            deployment,
            held,
            measured.text,
            measured.command,
        ]
    };
    Ok(call.process.alerts().into_iter().map(row).collect())
}

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
fn incidents(call: &Call) -> Rows {
    let incidents = call.process.incidents();
    let row = |incident: &crate::incident::Summary| {
        row![
            incident.number,
            time(incident.opened),
            incident.closed.map(time),
            incident.cause.as_str(),
            incident.text.clone(),
            incident.snapshots,
        ]
    };
    Ok(incidents.iter().map(row).collect())
}

fn incident(call: &Call) -> Rows {
    let wrong = |text: String| Report::new(SqlState::PROTOCOL_VIOLATION, text);
    let [number] = call.arguments.as_slice() else {
        return Err(wrong("the number of an incident is required".to_owned()));
    };
    let parsed = number.parse();
    let number = parsed.map_err(|_| wrong(format!("\"{number}\" is no number of an incident")))?;
    let incident = call.process.incident(number);
    let story = markdown(&incident.map_err(wrong)?);
    let story = story.ok_or_else(|| wrong(format!("nothing is left of incident {number}")))?;
    Ok(story.lines().map(|line| row![line.to_owned()]).collect())
}
