//! What the names of hosts were found to be, for as long as that counts. Dials look here first; names that are in use are asked for
//! again when their time is over, so that a change in DNS moves the server connections as well. One for the process, as its resolver is.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

static NAMES: LazyLock<Names> = LazyLock::new(Names::default);

/// Those of this process.
pub fn names() -> &'static Names {
    &NAMES
}

/// What is known of names.
#[derive(Debug, Default)]
pub struct Names(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<Box<str>, Known>,
    times: Times,
}

/// For how long an answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Times {
    /// Addresses.
    pub found: Duration,
    /// That there are none.
    pub missing: Duration,
}

#[derive(Debug)]
struct Known {
    found: Result<Arc<[SocketAddr]>, (io::ErrorKind, Box<str>)>,
    until: Instant,
    /// Somebody is asking again.
    is_asked: bool,
}

/// A name, as the console shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameRow {
    /// As configured.
    pub name: Box<str>,
    /// How long the answer still counts.
    pub ttl: Duration,
    /// Its addresses; none if there are none.
    pub addresses: Vec<IpAddr>,
}

impl Names {
    /// Says for how long answers count from now on.
    pub fn set_times(&self, times: Times) {
        self.0.lock().times = times;
    }

    /// The addresses of a host: known ones, or those that the system's resolver knows.
    pub async fn look_up(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        self.look_up_by(name, port, ask).await
    }

    async fn look_up_by(
        &self,
        name: &str,
        port: u16,
        ask: impl AsyncFn(&str) -> io::Result<Vec<SocketAddr>>,
    ) -> io::Result<Vec<SocketAddr>> {
        let with_port = |address: &SocketAddr| {
            let mut address = *address;
            address.set_port(port);
            address
        };
        if let Ok(address) = name.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let found = match self.fresh(name) {
            Some(found) => found?,
            None => self.keep(name, ask(name).await)?,
        };
        Ok(found.iter().map(with_port).collect())
    }

    /// What is known and still counts.
    fn fresh(&self, name: &str) -> Option<io::Result<Arc<[SocketAddr]>>> {
        let state = self.0.lock();
        let known = state.known.get(name)?;
        (known.until > Instant::now()).then(|| known.answer())
    }

    /// Notes what came of asking.
    fn keep(
        &self,
        name: &str,
        answer: io::Result<Vec<SocketAddr>>,
    ) -> io::Result<Arc<[SocketAddr]>> {
        let found = answer
            .map(Arc::from)
            .map_err(|error| (error.kind(), error.to_string().into()));
        let mut state = self.0.lock();
        let ttl = match found {
            Ok(_) => state.times.found,
            Err(_) => state.times.missing,
        };
        let known = Known {
            found,
            until: Instant::now() + ttl,
            is_asked: false,
        };
        let answer = known.answer();
        state.known.insert(name.into(), known);
        answer
    }

    /// Nobody could be reached at what is known: the next dial asks anew.
    pub fn doubt(&self, name: &str) {
        if let Some(known) = self.0.lock().known.get_mut(name) {
            known.until = Instant::now();
        }
    }

    /// Of names that are in use: whether this one is to be asked for again, by who hears it. Once until that is done.
    pub fn is_due(&self, name: &str) -> bool {
        let mut state = self.0.lock();
        let Some(known) = state.known.get_mut(name) else {
            return false;
        };
        let is_due = known.until <= Instant::now() && !known.is_asked;
        known.is_asked |= is_due;
        is_due
    }

    /// Asks for a name again.
    pub async fn refresh(&self, name: &str) {
        let answer = ask(name).await;
        if let Err(error) = &answer {
            tracing::warn!(name, %error, "DNS lookup failed");
        }
        let _ = self.keep(name, answer);
    }

    /// Whether an address is one that this name no longer has.
    pub fn has_left(&self, name: &str, address: SocketAddr) -> bool {
        let state = self.0.lock();
        let found = state.known.get(name).map(|known| &known.found);
        // A resolver that does not answer is no reason to leave.
        let Some(Ok(found)) = found else {
            return false;
        };
        !found.is_empty() && found.iter().all(|known| known.ip() != address.ip())
    }

    /// Forgets those that are not among these.
    pub fn retain(&self, is_used: impl Fn(&str) -> bool) {
        self.0.lock().known.retain(|name, _| is_used(name));
    }

    /// All that are known, by name.
    pub fn rows(&self) -> Vec<NameRow> {
        let (state, now) = (self.0.lock(), Instant::now());
        let rows = state.known.iter().map(|(name, known)| {
            let found = known.found.as_deref().unwrap_or_default();
            NameRow {
                name: name.clone(),
                ttl: known.until.saturating_duration_since(now),
                addresses: found.iter().map(SocketAddr::ip).collect(),
            }
        });
        rows.collect()
    }
}

impl Known {
    fn answer(&self) -> io::Result<Arc<[SocketAddr]>> {
        match &self.found {
            Ok(found) => Ok(Arc::clone(found)),
            Err((kind, text)) => Err(io::Error::new(*kind, text.to_string())),
        }
    }
}

/// Asks the system's resolver.
async fn ask(name: &str) -> io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((name, 0)).await?.collect())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const TIMES: Times = Times {
        found: Duration::from_secs(15),
        missing: Duration::from_secs(5),
    };

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 0))
    }

    fn found(last: u8) -> Vec<SocketAddr> {
        vec![SocketAddr::from(([10, 0, 0, last], 5432))]
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_for_its_time_and_then_is_asked_for_again() {
        let (names, asked) = (Names::default(), Cell::new(0));
        names.set_times(TIMES);
        let ask = async |_: &str| {
            asked.set(asked.get() + 1);
            Ok(vec![address(asked.get())])
        };
        for (seconds, expected) in [(0, 1), (14, 1), (1, 2), (0, 2)] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            let answer = names.look_up_by("db", 5432, ask).await.unwrap();
            assert_eq!(answer, found(expected));
        }
        names.doubt("db");
        let answer = names.look_up_by("db", 5432, ask).await.unwrap();
        assert_eq!(answer, found(3), "nobody was there");
        let plain = names.look_up_by("10.0.0.9", 5432, ask).await.unwrap();
        assert_eq!((plain, asked.get()), (found(9), 3), "that is no name");
    }

    #[tokio::test(start_paused = true)]
    async fn that_there_is_no_such_name_counts_for_a_time_too() {
        let (names, asked) = (Names::default(), Cell::new(0));
        names.set_times(TIMES);
        let ask = async |_: &str| {
            asked.set(asked.get() + 1);
            Err(io::Error::other("no such name"))
        };
        for (seconds, expected) in [(0, 1), (4, 1), (1, 2)] {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            let error = names.look_up_by("db", 5432, ask).await.unwrap_err();
            assert_eq!(error.to_string(), "no such name");
            assert_eq!(asked.get(), expected);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_is_left_when_the_name_has_others() {
        let names = Names::default();
        names.set_times(TIMES);
        assert!(!names.has_left("db", address(1)), "nothing is known");
        names.keep("db", Ok(vec![address(1), address(2)])).unwrap();
        assert!(!names.has_left("db", SocketAddr::from(([10, 0, 0, 2], 5432))));
        names.keep("db", Ok(vec![address(2)])).unwrap();
        assert!(names.has_left("db", address(1)));
        assert!(!names.is_due("db"));
        tokio::time::advance(TIMES.found).await;
        assert!(names.is_due("db") && !names.is_due("db"), "one asks");
        drop(names.keep("db", Err(io::Error::other("no resolver"))));
        assert!(!names.has_left("db", address(2)), "nobody knows");
        let row = NameRow {
            name: "db".into(),
            ttl: TIMES.missing,
            addresses: Vec::new(),
        };
        assert_eq!(names.rows(), [row]);
        names.retain(|name| name != "db");
        assert_eq!(names.rows(), []);
    }
}
