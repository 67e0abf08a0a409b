//! The lanes in front of a command's quota: one for each class of callers.
//!
//! A call waits for its turn in its lane, connects, and then takes the next permit of its lane. Calls of a later class
//! take no permit while a call of an earlier one is ready for it. So a ready call waits for at most one permit that a
//! later class took just before, however many calls of that class wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Mutex, Notify};

use super::fair_queue::{FairQueue, QueueEntry};
use crate::domain::caller::{ByClass, CallerQueue, Class};

/// How many calls of a command and class may hold a connection while they wait for their permit.
const READY_MAX: usize = 8;

/// The lanes of one command.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: ByClass<Lane>,
    /// Notified when no call of a lane is ready any more.
    no_longer_ready: Notify,
}

#[derive(Debug)]
struct Lane {
    /// Calls that wait. Those that have their turn connect and take a permit.
    queue: Arc<FairQueue>,
    /// How many calls hold a connection and wait for their permit.
    ready: AtomicUsize,
    /// Held by the call that takes the next permit of the lane.
    taking: Mutex<()>,
}

impl Lanes {
    pub(super) fn new() -> Self {
        let lane = |_| Lane { queue: FairQueue::new(READY_MAX), ready: AtomicUsize::new(0), taking: Mutex::default() };
        Self { lanes: ByClass::new(lane), no_longer_ready: Notify::new() }
    }

    /// Joins the lane of a class. Returns the entry, and how many calls are served before it.
    pub(super) fn join(&self, queue: CallerQueue) -> (QueueEntry<'_>, usize) {
        let entry = self.lanes[queue.class].queue.join(queue);
        let earlier = queue.class.earlier().map(|class| {
            let lane = &self.lanes[class].queue;
            lane.in_use() + lane.waiting()
        });
        let ahead = entry.ahead + earlier.sum::<usize>();
        (entry, ahead)
    }

    /// Returns how many calls of a class wait for their turn.
    pub(super) fn waiting(&self, class: Class) -> usize {
        self.lanes[class].queue.waiting()
    }

    /// Returns how many calls of a class are ready.
    pub(super) fn ready(&self, class: Class) -> usize {
        self.lanes[class].ready.load(Ordering::SeqCst)
    }

    /// Counts a call as ready while the guard lives.
    pub(super) fn count_ready(&self, class: Class) -> ReadyGuard<'_> {
        self.lanes[class].ready.fetch_add(1, Ordering::SeqCst);
        ReadyGuard { lanes: self, class }
    }

    /// Waits until this call is the one that takes the next permit of its lane.
    pub(super) async fn taking(&self, class: Class) -> tokio::sync::MutexGuard<'_, ()> {
        self.lanes[class].taking.lock().await
    }

    /// Returns whether a call of an earlier class is ready.
    pub(super) fn is_preceded(&self, class: Class) -> bool {
        class.earlier().any(|earlier| self.ready(earlier) > 0)
    }

    /// Waits until no call of an earlier class is ready.
    pub(super) async fn until_not_preceded(&self, class: Class) {
        loop {
            // Created before the check: it then notices every later notification.
            let notified = self.no_longer_ready.notified();
            if !self.is_preceded(class) {
                return;
            }
            notified.await;
        }
    }

    #[cfg(test)]
    pub(super) fn ahead_of(&self, queue: CallerQueue) -> usize {
        self.lanes[queue.class].queue.ahead_of(queue)
    }
}

/// A call that is ready.
pub(super) struct ReadyGuard<'a> {
    lanes: &'a Lanes,
    class: Class,
}

impl Drop for ReadyGuard<'_> {
    fn drop(&mut self) {
        if self.lanes.lanes[self.class].ready.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.lanes.no_longer_ready.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn later_class_waits_until_no_earlier_call_is_ready() {
        let lanes = Lanes::new();
        let _batch = lanes.count_ready(Class::Batch);
        let ready = [lanes.count_ready(Class::Interactive), lanes.count_ready(Class::Interactive)];
        assert_eq!(Class::ALL.map(|class| lanes.is_preceded(class)), [false, true, true]);
        let mut waits = std::pin::pin!(lanes.until_not_preceded(Class::Batch));
        for guard in ready {
            tokio::select! {
                biased;
                () = &mut waits => panic!("an interactive call is ready"),
                () = std::future::ready(()) => drop(guard),
            }
        }
        waits.await;
        assert_eq!(Class::ALL.map(|class| lanes.is_preceded(class)), [false, false, true]);
    }
}
