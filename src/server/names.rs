//! What the names of hosts were found to be, for as long as that counts. Dials look here first; names that are in use are asked for
//! again when their time is over, or when their zone has changed, so that a change in DNS moves the server connections as well. One for
//! the process, as its resolver is.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::name_servers::NameServers;

/// An answer counts for this long even if its name server does not want it to.
const SHORTEST: Duration = Duration::from_secs(1);

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
    /// The serial numbers of their zones, where these are looked at.
    zones: BTreeMap<Box<str>, u32>,
    times: Times,
    /// When the zones were looked at last.
    looked: Option<Instant>,
    /// Who is asked; `None`: the system's resolver.
    servers: Option<Arc<NameServers>>,
}

/// For how long an answer counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Times {
    /// Addresses, at most.
    pub found: Duration,
    /// That there are none.
    pub missing: Duration,
    /// How often zones are asked whether they have changed; `None`: never.
    pub zones: Option<Duration>,
}

/// What came of asking for a name.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its addresses.
    pub addresses: Vec<SocketAddr>,
    /// For how long that counts, where the name server says so.
    pub ttl: Option<Duration>,
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

/// A zone, as the console shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZoneRow {
    /// Its name.
    pub name: Box<str>,
    /// Its serial number when it was last asked for.
    pub serial: u32,
    /// How many names that are known are in it.
    pub names: usize,
}

/// The zone in which a name is looked for: what follows its first dot.
fn zone(name: &str) -> Option<&str> {
    let (_, zone) = name.split_once('.')?;
    (!zone.is_empty() && name.parse::<IpAddr>().is_err()).then_some(zone)
}

impl Names {
    /// Says who is asked from now on; `None`: the system's resolver.
    pub fn ask_from(&self, servers: Option<Arc<NameServers>>) {
        self.0.lock().servers = servers;
    }

    /// Says for how long answers count from now on.
    pub fn set_times(&self, times: Times) {
        self.0.lock().times = times;
    }

    /// The addresses of a host: known ones, or those that whoever is asked knows.
    pub async fn look_up(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let ask = async |name: &str| self.ask(name).await;
        self.look_up_by(name, port, ask).await
    }

    /// Asks the name servers of the configuration, or the system's resolver, which does not say for how long an answer counts.
    async fn ask(&self, name: &str) -> io::Result<Answer> {
        let servers = self.0.lock().servers.clone();
        if let Some(servers) = servers {
            return servers.addresses(name).await;
        }
        Ok(Answer {
            addresses: tokio::net::lookup_host((name, 0)).await?.collect(),
            ttl: None,
        })
    }

    async fn look_up_by(
        &self,
        name: &str,
        port: u16,
        ask: impl AsyncFn(&str) -> io::Result<Answer>,
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
    fn keep(&self, name: &str, answer: io::Result<Answer>) -> io::Result<Arc<[SocketAddr]>> {
        let mut state = self.0.lock();
        let ttl = match &answer {
            Ok(Answer { ttl: Some(ttl), .. }) => state.times.found.min((*ttl).max(SHORTEST)),
            Ok(_) => state.times.found,
            Err(_) => state.times.missing,
        };
        let found = answer
            .map(|answer| Arc::from(answer.addresses))
            .map_err(|error| (error.kind(), error.to_string().into()));
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
        let answer = self.ask(name).await;
        if let Err(error) = &answer {
            tracing::warn!(name, %error, "DNS lookup failed");
        }
        let _ = self.keep(name, answer);
    }

    /// Whether it is time to ask the zones whether they have changed, by who hears it.
    pub fn zones_are_due(&self) -> bool {
        let mut state = self.0.lock();
        let Some(period) = state.times.zones else {
            state.looked = None;
            state.zones.clear();
            return false;
        };
        let is_due = state.looked.is_none_or(|looked| looked.elapsed() >= period);
        if is_due {
            state.looked = Some(Instant::now());
        }
        is_due
    }

    /// Asks for the serial number of each zone that has names here. A number that has changed ends the time of the zone's names.
    pub async fn look_at_zones(&self) {
        let given = self.0.lock().servers.clone();
        let servers = match given.map_or_else(|| NameServers::of_the_system().map(Arc::new), Ok) {
            Ok(servers) => servers,
            Err(error) => return tracing::warn!(%error, "no name server to ask for zones"),
        };
        for zone in self.zones() {
            match servers.serial(&zone).await {
                Ok(serial) => self.note_serial(&zone, serial),
                Err(error) => tracing::debug!(zone = &*zone, %error, "zone lookup failed"),
            }
        }
    }

    fn zones(&self) -> BTreeSet<Box<str>> {
        let state = self.0.lock();
        let zones = state.known.keys().filter_map(|name| zone(name));
        zones.map(Box::from).collect()
    }

    fn note_serial(&self, of: &str, serial: u32) {
        let mut state = self.0.lock();
        let before = state.zones.insert(of.into(), serial);
        if before == Some(serial) {
            return;
        }
        // PgBouncer's words, whose first number is 0.
        let old = before.unwrap_or(0);
        tracing::info!("zone '{of}' serial changed: old={old} new={serial}");
        if before.is_none() {
            return;
        }
        let now = Instant::now();
        let in_it = state
            .known
            .iter_mut()
            .filter(|(name, _)| zone(name) == Some(of));
        in_it.for_each(|(_, known)| known.until = now);
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
        let mut state = self.0.lock();
        state.known.retain(|name, _| is_used(name));
        let State { known, zones, .. } = &mut *state;
        zones.retain(|of, _| known.keys().any(|name| zone(name) == Some(of)));
    }

    /// The zones that have been asked, by name.
    pub fn zone_rows(&self) -> Vec<ZoneRow> {
        let state = self.0.lock();
        let rows = state.zones.iter().map(|(of, &serial)| ZoneRow {
            name: of.clone(),
            serial,
            names: state
                .known
                .keys()
                .filter(|name| zone(name) == Some(of))
                .count(),
        });
        rows.collect()
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const TIMES: Times = Times {
        found: Duration::from_secs(15),
        missing: Duration::from_secs(5),
        zones: None,
    };

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 0))
    }

    fn answer(last: &[u8]) -> Answer {
        Answer {
            addresses: last.iter().map(|last| address(*last)).collect(),
            ttl: None,
        }
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
            Ok(answer(&[asked.get()]))
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
        names.keep("db", Ok(answer(&[1, 2]))).unwrap();
        assert!(!names.has_left("db", SocketAddr::from(([10, 0, 0, 2], 5432))));
        names.keep("db", Ok(answer(&[2]))).unwrap();
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

    #[tokio::test(start_paused = true)]
    async fn an_answer_counts_no_longer_than_its_name_server_says() {
        let names = Names::default();
        names.set_times(TIMES);
        for (told, counts) in [(3, 3), (0, 1), (100, 15)] {
            let ttl = Some(Duration::from_secs(told));
            let answer = Answer {
                ttl,
                ..answer(&[1])
            };
            names.keep("db", Ok(answer)).unwrap();
            assert_eq!(names.rows()[0].ttl, Duration::from_secs(counts));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_serial_number_ends_the_time_of_the_names_of_a_zone() {
        let names = Names::default();
        let zones = Some(Duration::from_secs(10));
        names.set_times(Times { zones, ..TIMES });
        assert!(names.zones_are_due() && !names.zones_are_due());
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(names.zones_are_due());
        for name in [
            "db.test",
            "other.test",
            "db.elsewhere.test",
            "db",
            "10.0.0.1",
        ] {
            names.keep(name, Ok(answer(&[1]))).unwrap();
        }
        let zones: Vec<_> = names.zones().into_iter().collect();
        assert_eq!(zones, ["elsewhere.test".into(), Box::from("test")]);
        for serial in [7, 7] {
            names.note_serial("test", serial);
            assert!(!names.is_due("db.test"), "it is as it was");
        }
        names.note_serial("test", 6);
        assert!(names.is_due("db.test") && names.is_due("other.test"));
        assert!(!names.is_due("db.elsewhere.test") && !names.is_due("db"));
        let row = ZoneRow {
            name: "test".into(),
            serial: 6,
            names: 2,
        };
        assert_eq!(names.zone_rows(), [row]);
        names.retain(|name| name == "db");
        assert_eq!(names.zone_rows(), []);
    }
}
