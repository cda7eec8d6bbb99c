//! The last hour, minute by minute, for the chart of the status page.
//!
//! Pure: minutes are numbers, and what is seen at a moment is an argument.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use serde::Serialize;

/// Minutes that are kept, the running one among them.
pub(super) const MINUTES: usize = 60;

/// Services that are kept apart within a minute; the rest of it is one sum.
const SERVICES: usize = 20;

/// What is seen at one moment. What only grows is given as it stands, and the difference counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample<S> {
    /// Server connections by service.
    pub(super) servers: Vec<(S, u32)>,
    /// Server connections that all Postgres together may have; `None`: not known of every one.
    pub(super) budget: Option<u32>,
    /// Clients that wait.
    pub(super) waiters: u32,
    /// Waits that were over by now, by the bounds of [`History::new`].
    pub(super) waits: Vec<u64>,
    /// Clients that were refused.
    pub(super) refusals: u64,
    /// Sessions that were closed.
    pub(super) closings: u64,
}

/// One minute of it.
#[derive(Debug, Default)]
struct Minute<S> {
    number: u64,
    /// At the moment that had most of them. Each service's own most would make a sum that never was.
    servers: Vec<(S, u32)>,
    others: u32,
    total: u32,
    budget: Option<u32>,
    waiters: u32,
    waits: Vec<u64>,
    refusals: u64,
    closings: u64,
}

/// The last hour.
#[derive(Debug)]
pub(super) struct History<S> {
    /// The oldest first.
    minutes: VecDeque<Minute<S>>,
    /// The highest wait of each bucket, in milliseconds; the last bucket has the waits above all.
    bounds: Vec<f64>,
    /// The sums as they were last seen.
    before: Option<(Vec<u64>, u64, u64)>,
}

/// What the chart draws: columns of [`MINUTES`] values, the oldest first; `None` where nothing was noted.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Columns {
    services: Vec<Column>,
    others: Vec<Option<u32>>,
    budget: Vec<Option<u32>>,
    waiters: Vec<Option<u32>>,
    p99_ms: Vec<Option<f64>>,
    refusals: Vec<u64>,
    closings: Vec<u64>,
}

/// The server connections of one service.
#[derive(Debug, PartialEq, Serialize)]
struct Column {
    name: String,
    counts: Vec<Option<u32>>,
}

impl<S: Clone + Eq + Hash> History<S> {
    /// Nothing yet. `bounds`: the highest wait of each bucket but the last, in milliseconds.
    pub(super) fn new(bounds: Vec<f64>) -> Self {
        Self {
            minutes: VecDeque::with_capacity(MINUTES),
            bounds,
            before: None,
        }
    }

    /// Notes what is seen in the minute of this number, which never goes back.
    pub(super) fn note(&mut self, number: u64, sample: Sample<S>) {
        if self
            .minutes
            .back()
            .is_none_or(|minute| minute.number < number)
        {
            if self.minutes.len() == MINUTES {
                self.minutes.pop_front();
            }
            self.minutes.push_back(Minute {
                number,
                waits: vec![0; sample.waits.len()],
                ..Minute::empty()
            });
        }
        let minute = self.minutes.back_mut().expect("one was made just now");
        // What happened before the first look belongs to no minute.
        let (waits, refusals, closings) = self
            .before
            .replace((sample.waits.clone(), sample.refusals, sample.closings))
            .unwrap_or((sample.waits.clone(), sample.refusals, sample.closings));
        for ((sum, now), before) in minute.waits.iter_mut().zip(&sample.waits).zip(waits) {
            *sum += now.saturating_sub(before);
        }
        minute.refusals += sample.refusals.saturating_sub(refusals);
        minute.closings += sample.closings.saturating_sub(closings);
        minute.waiters = minute.waiters.max(sample.waiters);
        minute.budget = sample.budget;
        minute.note_servers(sample.servers);
    }

    /// The hour that ends with the minute of this number.
    pub(super) fn columns(&self, last: u64, name: impl Fn(&S) -> String) -> Columns {
        let mut columns = Columns {
            services: Vec::new(),
            others: vec![None; MINUTES],
            budget: vec![None; MINUTES],
            waiters: vec![None; MINUTES],
            p99_ms: vec![None; MINUTES],
            refusals: vec![0; MINUTES],
            closings: vec![0; MINUTES],
        };
        let mut places = HashMap::new();
        for minute in &self.minutes {
            let Some(at) = place(minute.number, last) else {
                continue;
            };
            columns.others[at] = Some(minute.others);
            columns.budget[at] = minute.budget;
            columns.waiters[at] = Some(minute.waiters);
            columns.p99_ms[at] = quantile(&self.bounds, &minute.waits, 0.99);
            columns.refusals[at] = minute.refusals;
            columns.closings[at] = minute.closings;
            for (service, count) in &minute.servers {
                let place = *places.entry(service).or_insert_with(|| {
                    let counts = vec![None; MINUTES];
                    let name = name(service);
                    columns.services.push(Column { name, counts });
                    columns.services.len() - 1
                });
                columns.services[place].counts[at] = Some(*count);
            }
        }
        columns
    }
}

impl<S> Minute<S> {
    fn empty() -> Self {
        Self {
            number: 0,
            servers: Vec::new(),
            others: 0,
            total: 0,
            budget: None,
            waiters: 0,
            waits: Vec::new(),
            refusals: 0,
            closings: 0,
        }
    }

    fn note_servers(&mut self, mut servers: Vec<(S, u32)>) {
        let total = servers.iter().map(|(_, count)| count).sum();
        if total < self.total {
            return;
        }
        servers.retain(|(_, count)| *count > 0);
        servers.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(*count));
        let rest = servers.split_off(servers.len().min(SERVICES));
        servers.shrink_to_fit();
        self.total = total;
        self.others = rest.iter().map(|(_, count)| count).sum();
        self.servers = servers;
    }
}

/// Where a minute stands in the columns.
fn place(number: u64, last: u64) -> Option<usize> {
    let ago = usize::try_from(last.checked_sub(number)?).ok()?;
    (MINUTES - 1).checked_sub(ago)
}

/// Below which wait `share` of all are, as a line through the bucket in which it lies would have it; `None` = nobody asked.
#[expect(
    clippy::cast_precision_loss,
    reason = "a quantile of buckets is no exact thing"
)]
fn quantile(bounds: &[f64], counts: &[u64], share: f64) -> Option<f64> {
    let wanted = counts.iter().sum::<u64>() as f64 * share;
    if wanted == 0.0 {
        return None;
    }
    let mut below = 0.0;
    for (at, count) in counts.iter().enumerate() {
        let count = *count as f64;
        if below + count >= wanted {
            // Above the last bound nothing more is known.
            let floor = if at == 0 { 0.0 } else { bounds[at - 1] };
            let ceiling = bounds.get(at).copied().unwrap_or(floor);
            return Some(floor + (ceiling - floor) * (wanted - below) / count);
        }
        below += count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history() -> History<u32> {
        History::new(vec![1.0, 10.0, 100.0])
    }

    fn sample(servers: &[(u32, u32)]) -> Sample<u32> {
        Sample {
            servers: servers.to_vec(),
            waits: vec![0; 4],
            ..Sample::default()
        }
    }

    fn columns(history: &History<u32>, last: u64) -> Columns {
        history.columns(last, |service| format!("service {service}"))
    }

    #[test]
    fn a_minute_shows_the_moment_with_most_server_connections() {
        let mut history = history();
        history.note(7, sample(&[(1, 5), (2, 0)]));
        history.note(7, sample(&[(1, 1), (2, 6)]));
        history.note(7, sample(&[(1, 6), (2, 0)]));
        let columns = columns(&history, 7);
        let last: Vec<_> = columns
            .services
            .iter()
            .map(|column| (&*column.name, column.counts[MINUTES - 1]))
            .collect();
        assert_eq!(last, [("service 2", Some(6)), ("service 1", Some(1))]);
        assert_eq!(columns.waiters[MINUTES - 2], None);
    }

    #[test]
    fn small_services_are_one_sum() {
        let mut history = history();
        let many: Vec<_> = (0..1000).map(|n| (n, 1 + n)).collect();
        history.note(0, sample(&many));
        let columns = columns(&history, 0);
        assert_eq!(columns.services.len(), SERVICES);
        let named: u32 = (0..1000).rev().take(SERVICES).map(|n| 1 + n).sum();
        assert_eq!(columns.others[MINUTES - 1], Some(500_500 - named));
    }

    #[test]
    fn an_hour_is_kept_and_minutes_without_a_look_are_gaps() {
        let mut history = history();
        for number in (0..200).filter(|number| *number != 190) {
            history.note(
                number,
                Sample {
                    waiters: 3,
                    ..sample(&[])
                },
            );
        }
        assert_eq!(history.minutes.len(), MINUTES);
        let columns = columns(&history, 201);
        let gaps: Vec<_> = (0..MINUTES)
            .filter(|at| columns.waiters[*at].is_none())
            .collect();
        assert_eq!(gaps, [48, 58, 59]);
    }

    #[test]
    fn sums_are_split_over_the_minutes_in_which_they_grew() {
        let mut history = history();
        for (number, refusals) in [(0, 100), (0, 103), (1, 104), (1, 110), (2, 110)] {
            history.note(
                number,
                Sample {
                    refusals,
                    ..sample(&[])
                },
            );
        }
        assert_eq!(columns(&history, 2).refusals[57..], [3, 7, 0]);
    }

    #[test]
    fn waits_are_of_their_own_minute() {
        let mut history = history();
        for (number, waits) in [
            (0, [1000, 0, 0, 5]),
            (0, [1100, 0, 0, 5]),
            (1, [1100, 0, 100, 5]),
            (2, [1100, 0, 100, 5]),
        ] {
            history.note(
                number,
                Sample {
                    waits: waits.to_vec(),
                    ..sample(&[])
                },
            );
        }
        let p99 = columns(&history, 2).p99_ms;
        assert_eq!(p99[57..], [Some(0.99), Some(99.1), None]);
    }

    #[test]
    fn a_quantile_lies_where_its_bucket_says() {
        let bounds = [1.0, 10.0];
        for (counts, expected) in [
            ([0, 0, 0], None),
            ([0, 1, 0], Some(9.91)),
            ([99, 1, 0], Some(1.0)),
            ([0, 0, 7], Some(10.0)),
            ([1, 0, 99], Some(10.0)),
        ] {
            assert_eq!(quantile(&bounds, &counts, 0.99), expected, "{counts:?}");
        }
    }
}
