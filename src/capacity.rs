//! Counters with a limit: requests in flight, bytes of bodies and responses, connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A bounded counter. [`Capacity::try_acquire`] returns a guard that releases its part on drop.
#[derive(Debug)]
pub(crate) struct Capacity {
    in_use: AtomicUsize,
    max: AtomicUsize,
}

impl Capacity {
    /// Allows at most `max` units at once.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { in_use: AtomicUsize::new(0), max: AtomicUsize::new(max) })
    }

    /// Acquires `count` units; `None` if fewer are free.
    pub(crate) fn try_acquire(self: &Arc<Self>, count: usize) -> Option<CapacityGuard> {
        let mut guard = CapacityGuard { capacity: Arc::clone(self), count: 0 };
        guard.grow(count).then_some(guard)
    }

    /// Changes the limit. Units beyond a lower one stay in use until they are released.
    pub(crate) fn set_max(&self, max: usize) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Returns the number of units in use.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }
}

/// Units of a [`Capacity`] in use, until it is dropped.
#[derive(Debug)]
pub(crate) struct CapacityGuard {
    capacity: Arc<Capacity>,
    count: usize,
}

impl CapacityGuard {
    /// Acquires `more` units. Returns whether that many were free; if not, nothing changes.
    pub(crate) fn grow(&mut self, more: usize) -> bool {
        let max = self.capacity.max.load(Ordering::Relaxed);
        let fits = |in_use: usize| in_use.checked_add(more).filter(|sum| *sum <= max);
        let grown = self.capacity.in_use.fetch_update(Ordering::AcqRel, Ordering::Relaxed, fits).is_ok();
        if grown {
            self.count += more;
        }
        grown
    }

    /// Returns the number of units held.
    pub(crate) fn count(&self) -> usize {
        self.count
    }
}

impl Drop for CapacityGuard {
    fn drop(&mut self) {
        self.capacity.in_use.fetch_sub(self.count, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_never_exceeded_and_is_released_on_drop() {
        let capacity = Capacity::new(10);
        let mut first = capacity.try_acquire(6).expect("room");
        assert!(capacity.try_acquire(5).is_none());
        assert!(!first.grow(usize::MAX));
        assert!(first.grow(4));
        assert!(capacity.try_acquire(1).is_none());
        assert_eq!((first.count(), capacity.in_use()), (10, 10));
        drop(first);
        assert_eq!(capacity.in_use(), 0);
        assert!(capacity.try_acquire(10).is_some());
    }

    #[test]
    fn changed_limit_counts_units_in_use() {
        let capacity = Capacity::new(10);
        let held = capacity.try_acquire(6).expect("room");
        capacity.set_max(4);
        assert!(capacity.try_acquire(1).is_none());
        capacity.set_max(7);
        assert!(capacity.try_acquire(2).is_none() && capacity.try_acquire(1).is_some());
        drop(held);
        assert!(capacity.try_acquire(8).is_none() && capacity.try_acquire(7).is_some());
    }
}
