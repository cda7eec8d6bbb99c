//! What everybody may see of a server connection while one session holds it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::login::Welcome;
use super::reach::Place;
use crate::net::line::Line;
use crate::wire::parameters::Parameters;

/// What everybody may see of a server connection. Whoever holds the connection writes it.
#[derive(Debug)]
pub struct Facts {
    /// Postgres' process id for it.
    pub pid: u32,
    /// Where it leads.
    pub place: Place,
    /// Its line.
    pub line: Line,
    /// Since when it is there.
    pub connected: SystemTime,
    welcome: Arc<Welcome>,
    /// The session's number, or 0.
    client: AtomicU32,
    prepared: AtomicU32,
    cancel: AtomicU8,
    /// What its session is like, as far as it differs from what it began with.
    parameters: Mutex<Arc<Parameters>>,
}

/// How far a cancel request for a server connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CancelStage {
    /// There is none.
    None,
    /// Too many others are on their way.
    Queued,
    /// It is being sent, or Postgres has not answered it.
    Sent,
}

impl Facts {
    /// Of a connection that was just made.
    pub fn new(pid: u32, place: Place, line: Line, welcome: Arc<Welcome>) -> Self {
        Self {
            pid,
            place,
            line,
            connected: SystemTime::now(),
            welcome,
            client: AtomicU32::new(0),
            prepared: AtomicU32::new(0),
            cancel: AtomicU8::new(CancelStage::None as u8),
            parameters: Mutex::default(),
        }
    }

    /// The number of the session that holds it.
    pub fn client(&self) -> Option<u32> {
        Some(self.client.load(Relaxed)).filter(|id| *id != 0)
    }

    /// How many prepared statements pgweir keeps on it.
    pub fn prepared(&self) -> u32 {
        self.prepared.load(Relaxed)
    }

    /// How far a cancel request for it has come.
    pub fn cancel(&self) -> CancelStage {
        match self.cancel.load(Relaxed) {
            0 => CancelStage::None,
            1 => CancelStage::Queued,
            _ => CancelStage::Sent,
        }
    }

    /// The application name that its session had when it was last lent.
    pub fn application_name(&self) -> String {
        const NAME: &str = "application_name";
        let parameters = Arc::clone(&self.parameters.lock());
        let began_with = || {
            let mut parameters = self.welcome.parameters.iter();
            parameters.find_map(|(name, value)| (**name == *NAME).then_some(&**value))
        };
        let name = parameters.value(NAME).or_else(began_with);
        name.unwrap_or_default().to_owned()
    }

    pub(super) fn serves(&self, client: u32) {
        self.client.store(client, Relaxed);
    }

    pub(super) fn has_prepared(&self, count: usize) {
        self.prepared
            .store(u32::try_from(count).unwrap_or(u32::MAX), Relaxed);
    }

    pub(super) fn is_like(&self, parameters: &Arc<Parameters>) {
        *self.parameters.lock() = Arc::clone(parameters);
    }

    /// A cancel request is to be sent. Until the guard is dropped, that is known.
    pub(super) fn cancels(self: &Arc<Self>) -> Canceling {
        let facts = Arc::clone(self);
        facts.cancel.store(CancelStage::Queued as u8, Relaxed);
        Canceling(facts)
    }
}

/// A cancel request for a connection, as long as it is not answered.
#[derive(Debug)]
pub(super) struct Canceling(Arc<Facts>);

impl Canceling {
    /// Its turn has come.
    pub(super) fn is_sent(&self) {
        self.0.cancel.store(CancelStage::Sent as u8, Relaxed);
    }
}

impl Drop for Canceling {
    fn drop(&mut self) {
        self.0.cancel.store(CancelStage::None as u8, Relaxed);
    }
}
