//! The open connections, and which of them makes room for a new one.
//!
//! Any pod can connect to the webhook's port, and most API servers send no client certificate. A connection is *proven*
//! after its first successful request. A client is a *caller* for a minute after one. On AKS, all API servers connect from
//! the addresses of the konnectivity agents, and calls to Services use HTTP/1.1, so a burst opens many new connections.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

/// Minimum time before an unproven connection is closed for another one. A review arrives long before that.
const MIN_LIFETIME: Duration = Duration::from_secs(2);

/// How long a client counts as a caller after a successful request.
const CALLER_LIFETIME: Duration = Duration::from_secs(60);

/// Maximum number of callers that are remembered. A cluster has a few API servers or konnectivity agents.
const MAX_CALLERS: usize = 256;

/// Interval of the checks whether an unproven connection is old enough to be closed.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// The open connections. At most `max` are open, and at most three quarters of them are unproven ones of strangers.
pub(super) struct OpenConnections {
    max: usize,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Default)]
struct State {
    open: usize,
    next_id: u64,
    /// The unproven connections, oldest first.
    unproven: BTreeMap<u64, Unproven>,
    /// Number of unproven connections whose client is no caller.
    strangers: usize,
    /// Addresses with the time of the last successful request.
    callers: HashMap<IpAddr, Instant>,
}

struct Unproven {
    opened: Instant,
    is_stranger: bool,
    signal: Arc<Signal>,
}

/// Tells the task of a connection to close it.
#[derive(Default)]
struct Signal {
    close: Notify,
    is_evicted: AtomicBool,
}

/// An open connection. Dropping it makes room for another one.
pub(super) struct Slot {
    connections: Arc<OpenConnections>,
    id: u64,
    peer: IpAddr,
    signal: Arc<Signal>,
    is_rejected: AtomicBool,
}

/// There is no room for a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All connections are proven or too young. The client may wait.
    Wait,
    /// Strangers have too many connections that are too young to be closed. The client must try again.
    Refuse,
}

impl OpenConnections {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, state: Mutex::default(), freed: Notify::new() })
    }

    /// Returns whether the maximum is reached.
    pub(super) fn is_full(&self) -> bool {
        self.lock().open >= self.max
    }

    /// Opens a connection. If there is no room, closes the oldest unproven connection instead.
    ///
    /// # Errors
    ///
    /// [`Full`] if no connection may be closed.
    pub(super) fn open(self: &Arc<Self>, peer: IpAddr) -> Result<Slot, Full> {
        let (mut state, now) = (self.lock(), Instant::now());
        let is_stranger = !state.is_caller(peer, now);
        if is_stranger && state.strangers >= self.max - self.max / 4 && !state.evict(now, |other| other.is_stranger) {
            return Err(Full::Refuse);
        }
        // Strangers make room before callers do.
        if state.open >= self.max && !state.evict(now, |other| other.is_stranger) && !state.evict(now, |_| true) {
            return Err(Full::Wait);
        }
        let (id, signal) = (state.next_id, Arc::<Signal>::default());
        state.next_id += 1;
        state.open += 1;
        state.strangers += usize::from(is_stranger);
        state.unproven.insert(id, Unproven { opened: now, is_stranger, signal: signal.clone() });
        Ok(Slot { connections: self.clone(), id, peer, signal, is_rejected: AtomicBool::new(false) })
    }

    /// Waits until a connection is closed, or until one may be closed.
    pub(super) async fn freed(&self) {
        let _ = timeout(RETRY_INTERVAL, self.freed.notified()).await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_caller(&self, peer: IpAddr, now: Instant) -> bool {
        self.callers.get(&peer).is_some_and(|last| now.duration_since(*last) < CALLER_LIFETIME)
    }

    /// Closes the oldest connection that fits. Returns whether there is one.
    fn evict(&mut self, now: Instant, fits: impl Fn(&Unproven) -> bool) -> bool {
        let mut old = self.unproven.iter().take_while(|(_, other)| now.duration_since(other.opened) >= MIN_LIFETIME);
        let Some(id) = old.find(|(_, other)| fits(other)).map(|(id, _)| *id) else { return false };
        if let Some(evicted) = self.remove(id) {
            evicted.signal.is_evicted.store(true, Ordering::Relaxed);
            evicted.signal.close.notify_one();
            self.open -= 1;
        }
        true
    }

    /// Removes an unproven connection.
    fn remove(&mut self, id: u64) -> Option<Unproven> {
        let removed = self.unproven.remove(&id)?;
        self.strangers -= usize::from(removed.is_stranger);
        Some(removed)
    }
}

impl Slot {
    /// Records a response. After a successful one, the connection is proven, and its client is a caller. After another
    /// one, the connection must close.
    pub(super) fn responded(&self, is_success: bool) {
        if !is_success {
            self.is_rejected.store(true, Ordering::Relaxed);
            return;
        }
        let (mut state, now) = (self.connections.lock(), Instant::now());
        state.remove(self.id);
        if state.callers.len() >= MAX_CALLERS && !state.callers.contains_key(&self.peer) {
            state.callers.retain(|_, last| now.duration_since(*last) < CALLER_LIFETIME);
        }
        if state.callers.len() < MAX_CALLERS || state.callers.contains_key(&self.peer) {
            state.callers.insert(self.peer, now);
        }
    }

    /// Returns whether the client sent a request that was not successful.
    pub(super) fn is_rejected(&self) -> bool {
        self.is_rejected.load(Ordering::Relaxed)
    }

    /// Returns whether all connections are in use.
    pub(super) fn is_at_capacity(&self) -> bool {
        self.connections.is_full()
    }

    /// Waits until the connection must make room for another one.
    pub(super) async fn evicted(&self) {
        self.signal.close.notified().await;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.connections.lock();
        state.remove(self.id);
        if !self.signal.is_evicted.load(Ordering::Relaxed) {
            state.open -= 1;
        }
        drop(state);
        self.connections.freed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;

    const CALLER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
    const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));

    fn is_evicted(slot: &Slot) -> bool {
        slot.evicted().now_or_never().is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_take_at_most_three_quarters_and_the_oldest_makes_room() {
        let connections = OpenConnections::new(8);
        let strangers: Vec<_> = (0..6).map(|_| connections.open(STRANGER).unwrap()).collect();
        assert_eq!(connections.open(STRANGER).err(), Some(Full::Refuse), "all are younger than 2 s");
        advance(MIN_LIFETIME).await;
        let newest = connections.open(STRANGER).unwrap();
        assert_eq!(strangers.iter().map(is_evicted).collect::<Vec<_>>(), [true, false, false, false, false, false]);
        drop(strangers);
        assert!(!is_evicted(&newest));
        let _others: Vec<_> = (0..5).map(|_| connections.open(STRANGER).unwrap()).collect();
        assert_eq!(connections.open(STRANGER).err(), Some(Full::Refuse));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_gets_a_connection_during_a_flood() {
        let connections = OpenConnections::new(8);
        connections.open(CALLER).unwrap().responded(true);
        let flood: Vec<_> = (0..20).filter_map(|_| connections.open(STRANGER).ok()).collect();
        assert_eq!(flood.len(), 6);
        let calls: Vec<_> = (0..2).map(|_| connections.open(CALLER).unwrap()).collect();
        assert_eq!(connections.open(CALLER).err(), Some(Full::Wait));
        advance(MIN_LIFETIME).await;
        assert!(connections.open(CALLER).is_ok(), "a stranger made room");
        assert!(!calls.iter().any(is_evicted));
        advance(CALLER_LIFETIME).await;
        for call in &calls {
            call.responded(true);
        }
        assert!(!is_evicted(&calls[0]), "a proven connection stays");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_gets_errors_is_no_caller() {
        let connections = OpenConnections::new(4);
        let slot = connections.open(STRANGER).unwrap();
        slot.responded(false);
        assert!(slot.is_rejected());
        advance(MIN_LIFETIME).await;
        let _others: Vec<_> = (0..3).map(|_| connections.open(STRANGER).unwrap()).collect();
        assert!(is_evicted(&slot));
    }
}
