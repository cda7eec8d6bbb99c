//! Other processes behind the same address: a cancel request that came here and is meant for a session of theirs is passed on.
//! Each has connections and a queue of its own, so that one that does not answer costs the others nothing.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

use super::reach::reach;
use crate::config::checked::{Host, Peer, Tcp};
use crate::net::stream::Stream;
use crate::wire::startup::{CancelKey, cancel_request};

/// How many cancel requests may wait for one peer: each holds a socket.
const LONGEST_QUEUE: u32 = 1000;

/// The peers that requests were passed on to since they are configured as they are.
#[derive(Debug, Default)]
pub struct Peers(Mutex<BTreeMap<u16, Arc<PeerPool>>>);

/// The connections to one peer.
#[derive(Debug)]
struct PeerPool {
    host: Arc<Host>,
    size: u32,
    turns: Semaphore,
    waiting: AtomicU32,
    dialing: AtomicU32,
    sent: AtomicU32,
}

/// What is under way to one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerRow {
    /// Its number.
    pub id: u16,
    /// Requests that wait for a connection.
    pub waiting: u32,
    /// Connections that are being made.
    pub dialing: u32,
    /// Requests that were sent and are not answered.
    pub sent: u32,
}

/// How requests are passed on.
#[derive(Debug, Clone, Copy)]
pub struct Way<'a> {
    /// Socket options.
    pub tcp: &'a Tcp,
    /// How long one may take, waiting included.
    pub limit: Duration,
    /// How many may be on their way to a peer at once, where it does not say so itself.
    pub size: u32,
}

/// Why a request did not reach a peer.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// Too many wait for it already.
    #[error("too many cancel requests wait for it")]
    Full,
    /// It could not be reached, or did not answer.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Peers {
    /// Passes a request on to a peer, and returns when that has done with it.
    pub async fn pass_on(
        &self,
        id: u16,
        peer: &Peer,
        key: &CancelKey,
        way: Way<'_>,
    ) -> Result<(), PassError> {
        let pool = self.pool(id, peer, way.size);
        pool.pass_on(key, way.tcp, Instant::now() + way.limit).await
    }

    /// Forgets those that are no longer configured, or otherwise. What is on its way to them goes on.
    pub fn keep(&self, configured: &BTreeMap<u16, Peer>, size: u32) {
        let is_same = |id: &u16, pool: &PeerPool| {
            let peer = configured.get(id);
            peer.is_some_and(|peer| pool.is_for(peer, size))
        };
        self.0.lock().retain(|id, pool| is_same(id, pool));
    }

    /// What is under way.
    pub fn rows(&self) -> Vec<PeerRow> {
        let pools = self.0.lock();
        let row = |(id, pool): (&u16, &Arc<PeerPool>)| PeerRow {
            id: *id,
            waiting: pool.waiting.load(Relaxed),
            dialing: pool.dialing.load(Relaxed),
            sent: pool.sent.load(Relaxed),
        };
        pools.iter().map(row).collect()
    }

    fn pool(&self, id: u16, peer: &Peer, size: u32) -> Arc<PeerPool> {
        let mut pools = self.0.lock();
        let pool = pools
            .entry(id)
            .or_insert_with(|| Arc::new(PeerPool::new(peer, size)));
        if !pool.is_for(peer, size) {
            *pool = Arc::new(PeerPool::new(peer, size));
        }
        Arc::clone(pool)
    }
}

impl PeerPool {
    fn new(peer: &Peer, size: u32) -> Self {
        let size = peer.pool_size.unwrap_or(size);
        Self {
            host: Arc::new(peer.host.clone()),
            size,
            turns: Semaphore::new(size as usize),
            waiting: AtomicU32::new(0),
            dialing: AtomicU32::new(0),
            sent: AtomicU32::new(0),
        }
    }

    fn is_for(&self, peer: &Peer, size: u32) -> bool {
        *self.host == peer.host && self.size == peer.pool_size.unwrap_or(size)
    }

    async fn pass_on(
        &self,
        key: &CancelKey,
        tcp: &Tcp,
        deadline: Instant,
    ) -> Result<(), PassError> {
        let waits = Counted::below(&self.waiting, LONGEST_QUEUE).ok_or(PassError::Full)?;
        let turn = timeout_at(deadline, self.turns.acquire()).await;
        let _turn = flat(turn.map(|turn| turn.map_err(io::Error::other)))?;
        let dials = Counted::up(&self.dialing);
        drop(waits);
        let left = deadline.saturating_duration_since(Instant::now());
        let reached = reach(std::slice::from_ref(&self.host), tcp, left).await;
        let (stream, _) = reached.map_err(|unreachable| unreachable.cause)?;
        let _sent = Counted::up(&self.sent);
        drop(dials);
        flat(timeout_at(deadline, tell(stream, key)).await)?;
        Ok(())
    }
}

/// Sends the request. Nothing is ever sent back: the end, of whatever kind, says that it was done.
async fn tell(mut stream: Stream, key: &CancelKey) -> io::Result<()> {
    stream.write_all(&cancel_request(key)).await?;
    while matches!(stream.read(&mut [0; 64]).await, Ok(1..)) {}
    Ok(())
}

fn flat<T>(outcome: Result<io::Result<T>, Elapsed>) -> io::Result<T> {
    outcome.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// One more of something, until it is dropped.
struct Counted<'a>(&'a AtomicU32);

impl<'a> Counted<'a> {
    fn up(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }

    fn below(count: &'a AtomicU32, most: u32) -> Option<Self> {
        let one_more = |count: u32| (count < most).then(|| count + 1);
        count.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        Some(Self(count))
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const TCP: Tcp = Tcp::LEFT_ALONE;

    const WAY: Way<'_> = Way {
        tcp: &TCP,
        limit: Duration::from_secs(10),
        size: 2,
    };

    fn key() -> CancelKey {
        CancelKey::among_peers(2, 7, [1, 2, 3, 4].into())
    }

    async fn peer() -> (TcpListener, Peer) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let host = Host::Tcp("127.0.0.1".into(), port);
        let pool_size = None;
        (listener, Peer { host, pool_size })
    }

    #[tokio::test]
    async fn a_peer_is_told_and_waited_for_by_as_many_as_its_pool_has_room_for() {
        let ((listener, peer), peers) = (peer().await, Peers::default());
        let key = key();
        let pass_on = || peers.pass_on(2, &peer, &key, WAY);
        let far = async {
            let (mut one, _) = listener.accept().await.unwrap();
            let (other, _) = listener.accept().await.unwrap();
            let mut heard = [0; 16];
            one.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard[..], cancel_request(&key));
            let waits = || {
                let [row] = peers.rows()[..] else {
                    panic!("one peer");
                };
                row
            };
            while waits().sent < 2 {
                tokio::task::yield_now().await;
            }
            assert_eq!((waits().waiting, waits().dialing), (1, 0));
            drop((one, other));
            listener.accept().await.unwrap();
        };
        let (one, two, three, ()) = tokio::join!(pass_on(), pass_on(), pass_on(), far);
        assert!(one.is_ok() && two.is_ok() && three.is_ok());
        let nothing = PeerRow {
            id: 2,
            waiting: 0,
            dialing: 0,
            sent: 0,
        };
        assert_eq!(peers.rows(), [nothing]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_answer_holds_up_nobody_for_longer_than_the_limit() {
        let ((_silent, silent), (listener, good)) = (peer().await, peer().await);
        let peers = Peers::default();
        let start = Instant::now();
        let to = |id, peer| {
            let peers = &peers;
            async move { peers.pass_on(id, peer, &key(), WAY).await }
        };
        let accept = async { drop(listener.accept().await.unwrap()) };
        let (one, two, three, four, ()) = tokio::join!(
            to(1, &silent),
            to(1, &silent),
            to(1, &silent),
            async {
                let passed = to(3, &good).await;
                assert_eq!(start.elapsed(), Duration::ZERO, "it waits for no other");
                passed
            },
            accept
        );
        let late = |outcome: Result<(), PassError>| matches!(outcome, Err(PassError::Io(error)) if error.kind() == io::ErrorKind::TimedOut);
        assert!(late(one) && late(two) && late(three) && four.is_ok());
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test]
    async fn a_queue_has_an_end_and_a_changed_peer_a_pool_of_its_own() {
        let ((_silent, silent), peers) = (peer().await, Peers::default());
        let pool = peers.pool(1, &silent, 2);
        pool.waiting.store(LONGEST_QUEUE, Relaxed);
        let refused = peers.pass_on(1, &silent, &key(), WAY).await;
        assert!(matches!(refused, Err(PassError::Full)));
        let mut configured = BTreeMap::from([(1, silent.clone())]);
        peers.keep(&configured, 2);
        assert!(Arc::ptr_eq(&pool, &peers.pool(1, &silent, 2)));
        peers.keep(&configured, 3);
        assert!(peers.rows().is_empty());
        let other = Peer {
            pool_size: Some(9),
            ..silent.clone()
        };
        assert!(!Arc::ptr_eq(&pool, &peers.pool(1, &other, 2)));
        configured.clear();
        peers.keep(&configured, 2);
        assert!(peers.rows().is_empty());
    }
}
