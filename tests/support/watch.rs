//! Looks at pg_stat_activity all the time, and remembers the most connections it ever saw.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::postgres::{OWN, Postgres};

/// What was seen.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// The most client connections at one moment, whoever they belonged to.
    pub total: usize,
    /// The same by user name.
    pub by_user: BTreeMap<String, usize>,
    /// The same by application_name.
    pub by_application: BTreeMap<String, usize>,
    /// How often was looked.
    pub looks: usize,
}

/// A running watch; [`Watch::finish`] gives what it saw.
pub struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Watch {
    /// Begins to watch the client connections of a Postgres, less the fixtures' own. One that is still starting has no state and no
    /// name, and may be the fixtures' own: it is seen at the next look.
    #[track_caller]
    pub fn start(postgres: &Postgres) -> Self {
        let mut control = postgres
            .control("postgres")
            .unwrap_or_else(|error| panic!("cannot log in directly: {error}"));
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let sql = format!(
            "select coalesce(usename, ''), coalesce(application_name, ''), count(*) from pg_stat_activity \
             where backend_type = 'client backend' and application_name <> '{OWN}' \
             and (state is not null or application_name <> '') group by 1, 2"
        );
        let thread = thread::spawn(move || {
            let mut seen = Seen::default();
            // Ends with the Postgres, too.
            while let Ok(rows) = control.query(&sql) {
                seen.note(&rows);
                if told.load(Ordering::Relaxed) {
                    break;
                }
                thread::sleep(Duration::from_millis(5));
            }
            seen
        });
        Self { over, thread }
    }

    #[track_caller]
    pub fn finish(self) -> Seen {
        self.over.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("the watch does not panic");
        assert!(seen.looks > 0, "the watch saw nothing");
        seen
    }
}

impl Seen {
    fn note(&mut self, rows: &[Vec<Option<String>>]) {
        let mut total = 0;
        let mut users = BTreeMap::new();
        let mut applications = BTreeMap::new();
        for row in rows {
            let text = |column: usize| row[column].clone().unwrap_or_default();
            let count: usize = text(2).parse().expect("a count is a number");
            total += count;
            *users.entry(text(0)).or_insert(0) += count;
            *applications.entry(text(1)).or_insert(0) += count;
        }
        self.looks += 1;
        self.total = self.total.max(total);
        raise(&mut self.by_user, users);
        raise(&mut self.by_application, applications);
    }
}

fn raise(most: &mut BTreeMap<String, usize>, now: BTreeMap<String, usize>) {
    for (name, count) in now {
        let best = most.entry(name).or_insert(0);
        *best = count.max(*best);
    }
}
