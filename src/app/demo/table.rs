//! The tables at the end, and whether all is as it must be.

use std::fmt::Write;
use std::time::Duration;

use super::services::{BUDGET, MAX_CONNECTIONS, SERVICES};
use super::tally::{Outcome, Tally, Times};

/// Different failures that are told.
const TOLD: usize = 5;

/// Both crowds side by side.
pub(super) fn summary(direct: &Outcome, through: &Outcome) -> String {
    let totals = [direct.total(), through.total()];
    let count =
        |count: fn(&Tally) -> usize| totals.each_ref().map(|tally| count(tally).to_string());
    let times = |times: fn(&Tally) -> &Times| {
        totals
            .each_ref()
            .map(|tally| percentiles(times(tally), [50, 95, 99, 100]))
    };
    let most = [direct, through].map(|outcome| outcome.most.total.to_string());
    let head = ["", "direct", "through pgweir"].map(String::from);
    let row = |name: &str, [direct, through]: [String; 2]| vec![name.into(), direct, through];
    let mut rows = vec![
        head.to_vec(),
        row("clients", count(|tally| tally.clients)),
        row("connected", count(|tally| tally.connected)),
        row("refused with 53300", count(|tally| tally.shut_out)),
        row("  refused logins", count(|tally| tally.refusals)),
        row("failed", count(|tally| tally.failed)),
        row("transactions done", count(|tally| tally.transaction.len())),
        row(&format!("server connections (of {MAX_CONNECTIONS})"), most),
    ];
    rows.push(row(
        "milliseconds",
        [
            "p50 / p95 / p99 / max".into(),
            "p50 / p95 / p99 / max".into(),
        ],
    ));
    rows.push(row("  login", times(|tally| &tally.login)));
    rows.push(row("  wait for BEGIN", times(|tally| &tally.wait)));
    rows.push(row(
        "  whole transaction",
        times(|tally| &tally.transaction),
    ));
    format!("\n{}", aligned(&rows))
}

/// The services one by one.
pub(super) fn services(direct: &Outcome, through: &Outcome) -> String {
    let head = [
        "service",
        "clients",
        "direct",
        "refused",
        "pgweir",
        "transactions",
        "servers (cap)",
        "wait p50 / p99 / max",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for (index, service) in SERVICES.iter().enumerate() {
        let (before, after) = (&direct.services[index], &through.services[index]);
        rows.push(vec![
            service.name.into(),
            after.clients.to_string(),
            before.connected.to_string(),
            before.shut_out.to_string(),
            after.connected.to_string(),
            after.transaction.len().to_string(),
            format!("{} ({})", through.most.services[index], service.max_servers),
            percentiles(&after.wait, [50, 99, 100]),
        ]);
    }
    aligned(&rows)
}

/// What it shows, in a sentence.
pub(super) fn moral(direct: &Outcome, through: &Outcome) -> String {
    let clients = through.sum(|tally| tally.clients);
    let shut_out = direct.sum(|tally| tally.shut_out);
    let most = through.most.total;
    format!(
        "Directly, {shut_out} of {clients} clients stayed outside.\n\
         Through pgweir all were served, by {most} server connections, where it may have {BUDGET}."
    )
}

/// What is not as it must be through pgweir, within `budget`.
pub(super) fn complaints(through: &Outcome, budget: u32) -> Vec<String> {
    let total = through.total();
    let mut complaints = vec![];
    let mut complain = |wrong: bool, what: String| {
        if wrong {
            complaints.push(what);
        }
    };
    complain(
        total.refusals > 0,
        format!("{} logins were refused with 53300", total.refusals),
    );
    complain(
        total.connected < total.clients,
        format!("{} of {} connected", total.connected, total.clients),
    );
    complain(total.failed > 0, format!("{} clients failed", total.failed));
    complain(
        total.transaction.len() < total.clients,
        format!("only {} transactions were done", total.transaction.len()),
    );
    complain(
        through.most.total > budget as usize,
        format!(
            "{} server connections, where the budget is {budget}",
            through.most.total
        ),
    );
    for (service, most) in SERVICES.iter().zip(through.most.services) {
        complain(
            most > service.max_servers as usize,
            format!(
                "{} had {most} server connections, where its cap is {}",
                service.name, service.max_servers
            ),
        );
    }
    complaints.extend(total.failures.into_iter().take(TOLD));
    complaints
}

fn percentiles<const N: usize>(times: &Times, percents: [usize; N]) -> String {
    times
        .percentiles(percents)
        .map_or("-".into(), |all| all.map(millis).join(" / "))
}

pub(super) fn millis(time: Duration) -> String {
    let millis = time.as_secs_f64() * 1000.0;
    let digits = usize::from(millis < 10.0);
    format!("{millis:.digits$}")
}

/// Columns as wide as their widest cell: the first to the left, numbers to the right.
pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or_default()
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            if column == 0 {
                write!(text, "{cell:width$}")
            } else {
                write!(text, "   {cell:>width$}")
            }
            .expect("a String takes everything");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::demo::postgres::Seen;

    /// Ten clients of the first service, all served.
    fn served() -> Outcome {
        let mut outcome = Outcome::default();
        let tally = &mut outcome.services[0];
        (tally.clients, tally.connected) = (10, 10);
        for _ in 0..10 {
            tally.transaction.push(Duration::from_millis(3));
        }
        outcome.note(Seen {
            services: [5, 0, 0, 0],
            total: 5,
        });
        outcome
    }

    #[test]
    fn when_all_were_served_within_the_budget_there_is_no_complaint() {
        assert_eq!(complaints(&served(), 5), [] as [String; 0]);
    }

    #[test]
    fn each_broken_promise_is_a_complaint() {
        let broken = |breaks: fn(&mut Outcome)| {
            let mut outcome = served();
            breaks(&mut outcome);
            complaints(&outcome, 5)
        };
        let first = |breaks| broken(breaks).remove(0);
        assert!(first(|it| it.services[0].refusals = 1).contains("53300"));
        assert!(first(|it| it.services[0].connected = 9).contains("9 of 10"));
        assert!(first(|it| it.most.total = 6).contains("budget is 5"));
        assert!(first(|it| it.most.services[0] = 99).contains("cap is 20"));
        assert!(first(|it| it.services[0].transaction = Times::default()).contains("only 0"));
        let failed = broken(|it| it.services[1].fail("alas".into()));
        assert_eq!(failed, ["1 clients failed", "alas"]);
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["a", "b"], ["long", "1000"]].map(|row| row.map(String::from).to_vec());
        assert_eq!(aligned(&rows), "a         b\nlong   1000\n");
    }

    #[test]
    fn small_times_have_a_decimal() {
        let shown = [1_234, 9_900, 10_600].map(|micros| millis(Duration::from_micros(micros)));
        assert_eq!(shown, ["1.2", "9.9", "11"]);
    }

    #[test]
    fn the_tables_can_be_drawn_of_nothing() {
        let nothing = Outcome::default();
        assert!(summary(&nothing, &nothing).contains("refused with 53300"));
        assert_eq!(
            services(&nothing, &nothing).lines().count(),
            1 + SERVICES.len()
        );
    }
}
