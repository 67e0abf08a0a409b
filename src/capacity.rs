//! Counters with a limit: requests being worked on, bytes of bodies and answers, connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of things that may be held at once.
#[derive(Debug)]
pub struct Capacity {
    held: AtomicUsize,
    max: usize,
}

impl Capacity {
    /// At most `max` of them.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { held: AtomicUsize::new(0), max })
    }

    /// Takes `count`, or none if that would be too many. They are given back on drop.
    pub fn try_acquire(self: &Arc<Self>, count: usize) -> Option<CapacityGuard> {
        let mut held = CapacityGuard { budget: Arc::clone(self), count: 0 };
        held.grow(count).then_some(held)
    }

    /// How many are held now.
    pub fn in_use(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// A part of a [`Capacity`].
#[derive(Debug)]
pub struct CapacityGuard {
    budget: Arc<Capacity>,
    count: usize,
}

impl CapacityGuard {
    /// Takes `more`, or none if that would be too many.
    pub fn grow(&mut self, more: usize) -> bool {
        let max = self.budget.max;
        let taken = self
            .budget
            .held
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |held| held.checked_add(more).filter(|sum| *sum <= max));
        if taken.is_ok() {
            self.count += more;
        }
        taken.is_ok()
    }

    /// How many it holds.
    pub fn count(&self) -> usize {
        self.count
    }
}

impl Drop for CapacityGuard {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.count, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_is_held_and_all_comes_back() {
        let budget = Capacity::new(10);
        let mut first = budget.try_acquire(6).expect("room");
        assert!(budget.try_acquire(5).is_none());
        assert!(!first.grow(usize::MAX));
        assert!(first.grow(4));
        assert!(budget.try_acquire(1).is_none());
        assert_eq!((first.count(), budget.in_use()), (10, 10));
        drop(first);
        assert_eq!(budget.in_use(), 0);
        assert!(budget.try_acquire(10).is_some());
    }
}
