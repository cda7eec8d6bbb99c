//! PgBouncer's statistics: totals since the process began, averages over the last minute. Times are in microseconds.

use super::Rows;
use crate::admin::command::{Call, Run};
use crate::admin::table::{Cell, numeric, text};
use crate::pool::stats::{DatabaseStats, Totals};
use crate::row;

/// SHOW STATS.
pub const STATS: Run = Run::Show {
    columns: &[
        text("database"),
        numeric("total_server_assignment_count"),
        numeric("total_xact_count"),
        numeric("total_query_count"),
        numeric("total_received"),
        numeric("total_sent"),
        numeric("total_xact_time"),
        numeric("total_query_time"),
        numeric("total_wait_time"),
        numeric("total_client_parse_count"),
        numeric("total_server_parse_count"),
        numeric("total_bind_count"),
        numeric("total_client_login_count"),
        numeric("avg_server_assignment_count"),
        numeric("avg_xact_count"),
        numeric("avg_query_count"),
        numeric("avg_recv"),
        numeric("avg_sent"),
        numeric("avg_xact_time"),
        numeric("avg_query_time"),
        numeric("avg_wait_time"),
        numeric("avg_client_parse_count"),
        numeric("avg_server_parse_count"),
        numeric("avg_bind_count"),
        numeric("avg_client_login_count"),
    ],
    rows: |call| {
        let row = |stats: DatabaseStats| {
            let totals = stats.totals.each().chain(stats.averages.each());
            let mut row = row![stats.database.to_string()];
            row.extend(totals.map(|(_, total)| Cell::from(total)));
            row
        };
        Ok(all(call).into_iter().map(row).collect())
    },
};

/// SHOW STATS_TOTALS.
pub const STATS_TOTALS: Run = Run::Show {
    columns: &[
        text("database"),
        numeric("server_assignment_count"),
        numeric("xact_count"),
        numeric("query_count"),
        numeric("bytes_received"),
        numeric("bytes_sent"),
        numeric("xact_time"),
        numeric("query_time"),
        numeric("wait_time"),
        numeric("client_parse_count"),
        numeric("server_parse_count"),
        numeric("bind_count"),
        numeric("client_login_count"),
    ],
    rows: |call| {
        let row = |stats: DatabaseStats| {
            let mut row = row![stats.database.to_string()];
            row.extend(stats.totals.each().map(|(_, total)| Cell::from(total)));
            row
        };
        Ok(all(call).into_iter().map(row).collect())
    },
};

/// SHOW STATS_AVERAGES. Only the younger columns say that they are averages.
pub const STATS_AVERAGES: Run = Run::Show {
    columns: &[
        text("database"),
        numeric("server_assignment_count"),
        numeric("xact_count"),
        numeric("query_count"),
        numeric("bytes_received"),
        numeric("bytes_sent"),
        numeric("xact_time"),
        numeric("query_time"),
        numeric("wait_time"),
        numeric("avg_client_parse_count"),
        numeric("avg_server_parse_count"),
        numeric("avg_bind_count"),
        numeric("avg_client_login_count"),
    ],
    rows: |call| {
        let row = |stats: DatabaseStats| {
            let mut row = row![stats.database.to_string()];
            row.extend(
                stats
                    .averages
                    .each()
                    .map(|(_, average)| Cell::from(average)),
            );
            row
        };
        Ok(all(call).into_iter().map(row).collect())
    },
};

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
    let Run::Show { columns, .. } = STATS else {
        return Ok(vec![]);
    };
    let names = columns
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
