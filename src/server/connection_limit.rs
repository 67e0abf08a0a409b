//! How many connections a listener may have open, and what happens to the next one.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::timeouts::InFlight;
use crate::capacity::{Capacity, CapacityGuard};

/// The limit of open connections of a listener. Clones share it.
#[derive(Debug, Clone)]
pub(crate) enum ConnectionLimit {
    /// Once it is reached, new connections are closed.
    Fixed(Arc<Capacity>),
    /// Once it is reached, the connection that has been idle longest is closed for a new one.
    Recycling(Arc<RecyclingLimit>),
}

impl ConnectionLimit {
    /// Allows `max` connections, and closes further ones.
    pub(super) fn fixed(max: usize) -> Self {
        ConnectionLimit::Fixed(Capacity::new(max))
    }

    /// Allows `max` connections, a quarter of which is kept for this machine. Makes room for new ones.
    pub(crate) fn recycling(max: usize) -> Self {
        let (all, remote) = (Capacity::new(max), Capacity::new(max - max / 4));
        let (open, recycled) = (Mutex::default(), AtomicU64::new(0));
        ConnectionLimit::Recycling(Arc::new(RecyclingLimit { all, remote, open, recycled }))
    }

    /// Admits a connection, or returns `None` if there is no room for it. `is_remote` means that it does not come over
    /// loopback or a Unix socket.
    pub(super) fn admit(&self, is_remote: bool) -> Option<AdmittedConnection> {
        match self {
            ConnectionLimit::Fixed(capacity) => {
                let slot = Slot::Fixed(capacity.try_acquire(1)?);
                Some(AdmittedConnection { in_flight: InFlight::default(), recycled: None, _slot: slot })
            }
            ConnectionLimit::Recycling(limit) => limit.admit(is_remote),
        }
    }

    /// Returns the number of open connections.
    pub(crate) fn in_use(&self) -> usize {
        match self {
            ConnectionLimit::Fixed(capacity) => capacity.in_use(),
            ConnectionLimit::Recycling(limit) => limit.all.in_use(),
        }
    }

    /// Returns the number of connections that were closed to make room for others.
    pub(crate) fn recycled(&self) -> u64 {
        match self {
            ConnectionLimit::Fixed(_) => 0,
            ConnectionLimit::Recycling(limit) => limit.recycled.load(Ordering::Relaxed),
        }
    }
}

/// A connection that counts towards its limit until it is dropped.
#[derive(Debug)]
pub(super) struct AdmittedConnection {
    /// Its requests.
    pub(super) in_flight: InFlight,
    /// Cancelled once another connection has its place; `None` if that cannot happen.
    recycled: Option<CancellationToken>,
    _slot: Slot,
}

impl AdmittedConnection {
    /// Waits until another connection has the place of this one.
    pub(super) async fn recycled(&self) {
        match &self.recycled {
            Some(recycled) => recycled.cancelled().await,
            None => pending().await,
        }
    }
}

#[derive(Debug)]
enum Slot {
    Fixed(#[allow(dead_code, reason = "released on drop")] CapacityGuard),
    Recycling { limit: Arc<RecyclingLimit>, id: u64 },
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Slot::Recycling { limit, id } = self {
            limit.open.lock().by_id.remove(id);
        }
    }
}

/// See [`ConnectionLimit::Recycling`].
#[derive(Debug)]
pub(crate) struct RecyclingLimit {
    all: Arc<Capacity>,
    /// Connections from other machines, which must leave some for this one.
    remote: Arc<Capacity>,
    open: Mutex<OpenConnections>,
    recycled: AtomicU64,
}

#[derive(Debug, Default)]
struct OpenConnections {
    last_id: u64,
    by_id: BTreeMap<u64, OpenConnection>,
}

#[derive(Debug)]
struct OpenConnection {
    in_flight: InFlight,
    places: Places,
    recycled: CancellationToken,
}

/// What a connection takes of the two capacities.
#[derive(Debug)]
struct Places {
    _of_all: CapacityGuard,
    of_remote: Option<CapacityGuard>,
}

impl RecyclingLimit {
    fn admit(self: &Arc<Self>, is_remote: bool) -> Option<AdmittedConnection> {
        let mut open = self.open.lock();
        let places = match self.take(is_remote) {
            Some(places) => places,
            None => {
                self.make_room(&mut open, is_remote)?;
                self.take(is_remote)?
            }
        };
        open.last_id += 1;
        let (id, in_flight, recycled) = (open.last_id, InFlight::watched(), CancellationToken::new());
        let connection = OpenConnection { in_flight: in_flight.clone(), places, recycled: recycled.clone() };
        open.by_id.insert(id, connection);
        let slot = Slot::Recycling { limit: Arc::clone(self), id };
        Some(AdmittedConnection { in_flight, recycled: Some(recycled), _slot: slot })
    }

    fn take(&self, is_remote: bool) -> Option<Places> {
        let of_all = self.all.try_acquire(1)?;
        let of_remote = if is_remote { Some(self.remote.try_acquire(1)?) } else { None };
        Some(Places { _of_all: of_all, of_remote })
    }

    /// Closes the connection that has been idle longest, among those whose places a new one can use.
    fn make_room(&self, open: &mut OpenConnections, is_remote: bool) -> Option<()> {
        let must_be_remote = is_remote && self.remote.try_acquire(1).is_none();
        let usable = open.by_id.iter().filter(|(_, other)| !must_be_remote || other.places.of_remote.is_some());
        let idle = usable.filter_map(|(id, other)| Some((other.in_flight.idle_since()?, *id)));
        let (_, id) = idle.min()?;
        open.by_id.remove(&id)?.recycled.cancel();
        self.recycled.fetch_add(1, Ordering::Relaxed);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: bool = false;
    const REMOTE: bool = true;

    fn is_recycled(connection: &AdmittedConnection) -> bool {
        connection.recycled.as_ref().is_some_and(CancellationToken::is_cancelled)
    }

    #[test]
    fn fixed_limit_admits_no_more() {
        let limit = ConnectionLimit::fixed(1);
        let first = limit.admit(REMOTE);
        assert!(first.is_some() && limit.admit(LOCAL).is_none());
        drop(first);
        assert!(limit.admit(LOCAL).is_some());
        assert_eq!((limit.in_use(), limit.recycled()), (0, 0));
    }

    #[test]
    fn longest_idle_connection_makes_room() {
        let limit = ConnectionLimit::recycling(3);
        let open: Vec<_> = (0..3).map(|_| limit.admit(LOCAL).expect("room")).collect();
        // The first is used once more, and the second is in use.
        drop(open[0].in_flight.begin(false));
        let request = open[1].in_flight.begin(false);
        let fourth = limit.admit(LOCAL).expect("the third is idle longest");
        assert_eq!(open.iter().map(is_recycled).collect::<Vec<_>>(), [false, false, true]);
        let fifth = limit.admit(LOCAL).expect("the first is idle");
        assert_eq!(open.iter().map(is_recycled).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!((limit.in_use(), limit.recycled()), (3, 2));
        let _requests = [fourth.in_flight.begin(false), fifth.in_flight.begin(false)];
        assert!(limit.admit(LOCAL).is_none(), "all are in use");
        // A recycled connection that ends gives back nothing: its place has been taken.
        drop(open);
        assert_eq!(limit.in_use(), 2);
        drop((request, fourth, fifth));
        assert_eq!(limit.in_use(), 0);
    }

    #[test]
    fn other_machines_leave_a_quarter() {
        let limit = ConnectionLimit::recycling(8);
        let remote: Vec<_> = (0..6).map(|_| limit.admit(REMOTE).expect("room")).collect();
        let requests: Vec<_> = remote.iter().map(|connection| connection.in_flight.begin(false)).collect();
        assert!(limit.admit(REMOTE).is_none());
        let local = [limit.admit(LOCAL).expect("kept"), limit.admit(LOCAL).expect("kept")];
        assert!(limit.admit(REMOTE).is_none(), "an idle local connection is not closed for a remote one");
        assert!(!local.iter().any(is_recycled));
        drop(requests);
        let _other = limit.admit(REMOTE).expect("a remote one is idle");
        assert_eq!(remote.iter().filter(|connection| is_recycled(connection)).count(), 1);
        assert_eq!(limit.in_use(), 8);
    }
}
