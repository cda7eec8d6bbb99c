//! PgBouncer's statistics: totals since the process began, averages over the last minute. Times are in microseconds.

use super::Rows;
use crate::admin::command::{Call, Run};
use crate::admin::table::{Cell, Column, numeric, text};
use crate::pool::stats::{DatabaseStats, Totals};
use crate::row;

/// The columns of the three tables: for each measure what SHOW STATS calls its total and its average, SHOW STATS_TOTALS and
/// SHOW STATS_AVERAGES, in the order of [`Totals::each`].
macro_rules! measures {
    ($($total:literal $average:literal $plain_total:literal $plain_average:literal;)*) => {
        const BOTH: &[Column] = &[text("database"), $(numeric($total),)* $(numeric($average),)*];
        const TOTAL: &[Column] = &[text("database"), $(numeric($plain_total),)*];
        const AVERAGE: &[Column] = &[text("database"), $(numeric($plain_average),)*];
    };
}

// Only the younger columns of the averages say what they are.
measures! {
    "total_server_assignment_count" "avg_server_assignment_count" "server_assignment_count" "server_assignment_count";
    "total_xact_count" "avg_xact_count" "xact_count" "xact_count";
    "total_query_count" "avg_query_count" "query_count" "query_count";
    "total_received" "avg_recv" "bytes_received" "bytes_received";
    "total_sent" "avg_sent" "bytes_sent" "bytes_sent";
    "total_xact_time" "avg_xact_time" "xact_time" "xact_time";
    "total_query_time" "avg_query_time" "query_time" "query_time";
    "total_wait_time" "avg_wait_time" "wait_time" "wait_time";
    "total_client_parse_count" "avg_client_parse_count" "client_parse_count" "avg_client_parse_count";
    "total_server_parse_count" "avg_server_parse_count" "server_parse_count" "avg_server_parse_count";
    "total_bind_count" "avg_bind_count" "bind_count" "avg_bind_count";
    "total_client_login_count" "avg_client_login_count" "client_login_count" "avg_client_login_count";
}

/// SHOW STATS.
pub const STATS: Run = Run::Show {
    columns: BOTH,
    rows: |call| each(call, |stats| vec![stats.totals, stats.averages]),
};

/// SHOW STATS_TOTALS.
pub const STATS_TOTALS: Run = Run::Show {
    columns: TOTAL,
    rows: |call| each(call, |stats| vec![stats.totals]),
};

/// SHOW STATS_AVERAGES.
pub const STATS_AVERAGES: Run = Run::Show {
    columns: AVERAGE,
    rows: |call| each(call, |stats| vec![stats.averages]),
};

/// A row for each database: its name, then these.
#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
fn each(call: &Call, of: fn(&DatabaseStats) -> Vec<Totals>) -> Rows {
    let row = |stats: DatabaseStats| {
        let mut row = row![stats.database.to_string()];
        for totals in of(&stats) {
            row.extend(totals.each().map(|(_, total)| Cell::from(total)));
        }
        row
    };
    Ok(all(call).into_iter().map(row).collect())
}

/// SHOW TOTALS: over all databases.
pub const TOTALS: Run = Run::Show {
    columns: &[text("name"), numeric("value")],
    rows: totals,
};

#[expect(clippy::unnecessary_wraps, reason = "tables may fail")]
fn totals(call: &Call) -> Rows {
    let (mut sum, mut average) = (Totals::default(), Totals::default());
    for stats in all(call) {
        sum += stats.totals;
        average += stats.averages;
    }
    let names = BOTH
        .iter()
        .skip(1)
        .map(|column| column.name.clone().into_owned());
    let values = sum.each().chain(average.each()).map(|(_, value)| value);
    Ok(names
        .zip(values)
        .map(|(name, value)| row![name, value])
        .collect())
}

/// The statistics of each database, the console's among them.
fn all(call: &Call) -> Vec<DatabaseStats> {
    let mut stats = call.process.pools().stats();
    stats.push(call.process.own().stats());
    stats.sort_unstable_by(|one, other| one.database.cmp(&other.database));
    stats
}
