//! A fair queue: callers are served round-robin, so a busy caller cannot starve the others.
//!
//! A fixed number of entries hold a turn at the same time. The other entries wait, those of one caller in the order of
//! arrival. When a turn ends, the next caller gets it for its first entry. This is deficit round-robin with items of
//! equal cost.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::domain::caller::QueueKey;

/// A fair queue.
#[derive(Debug)]
pub(super) struct FairQueue(Mutex<Turns>);

#[derive(Debug)]
struct Turns {
    free: usize,
    max: usize,
    /// Waiting entries by caller. No queue is empty.
    waiting: HashMap<QueueKey, VecDeque<Waiting>>,
    /// Each caller of `waiting` once; the next one to be served is first.
    order: VecDeque<QueueKey>,
    /// The number of the last entry that had to wait.
    last_number: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    tx: oneshot::Sender<TurnGuard>,
}

/// A turn. The next entry gets it when the guard is dropped.
#[derive(Debug)]
pub(super) struct TurnGuard(Option<Arc<FairQueue>>);

impl FairQueue {
    /// Returns a queue in which up to `max` entries have a turn at the same time.
    pub(super) fn new(max: usize) -> Arc<Self> {
        let (waiting, order) = (HashMap::new(), VecDeque::new());
        Arc::new(Self(Mutex::new(Turns { free: max, max, waiting, order, last_number: 0 })))
    }

    /// Joins the queue. Counting the entries ahead and joining are one step, so of two entries that join at the same
    /// time one is behind the other.
    pub(super) fn join(self: &Arc<Self>, caller: QueueKey) -> QueueEntry<'_> {
        let mut turns = self.0.lock();
        let ahead = turns.ahead_of(caller);
        if turns.free > 0 {
            turns.free -= 1;
            return QueueEntry { ahead, state: EntryState::Served(TurnGuard(Some(Arc::clone(self)))) };
        }
        let (tx, rx) = oneshot::channel();
        let Turns { waiting, order, last_number, .. } = &mut *turns;
        let queue = waiting.entry(caller).or_default();
        if queue.is_empty() {
            order.push_back(caller);
        }
        *last_number += 1;
        let number = *last_number;
        queue.push_back(Waiting { number, tx });
        QueueEntry { ahead, state: EntryState::Waits(rx, LeaveGuard { queue: self, caller, number }) }
    }

    /// Returns how many entries wait for a turn.
    pub(super) fn waiting(&self) -> usize {
        self.0.lock().waiting.values().map(VecDeque::len).sum()
    }

    #[cfg(test)]
    pub(super) fn ahead_of(&self, caller: QueueKey) -> usize {
        self.0.lock().ahead_of(caller)
    }

    /// Removes the entry that is next in order; without one, frees a turn.
    fn pop_next(&self) -> Option<oneshot::Sender<TurnGuard>> {
        let mut turns = self.0.lock();
        let Some(caller) = turns.order.pop_front() else {
            turns.free += 1;
            return None;
        };
        let queue = turns.waiting.get_mut(&caller)?;
        let next = queue.pop_front().map(|entry| entry.tx);
        if queue.is_empty() {
            turns.waiting.remove(&caller);
        } else {
            turns.order.push_back(caller);
        }
        next
    }
}

impl Turns {
    /// Returns how many entries are served before a new one of this caller, including those that have their turn.
    fn ahead_of(&self, caller: QueueKey) -> usize {
        let own = self.waiting.get(&caller).map_or(0, VecDeque::len);
        let others = self.waiting.iter().filter(|(other, _)| **other != caller);
        let queued: usize = own + others.map(|(_, queue)| queue.len().min(own + 1)).sum::<usize>();
        self.max - self.free + queued
    }
}

/// An entry in the queue. It leaves when it is dropped.
pub(super) struct QueueEntry<'a> {
    /// How many entries were ahead when it joined.
    pub(super) ahead: usize,
    state: EntryState<'a>,
}

enum EntryState<'a> {
    Served(TurnGuard),
    Waits(oneshot::Receiver<TurnGuard>, LeaveGuard<'a>),
}

impl QueueEntry<'_> {
    /// Waits for the entry's turn. Dropping the future leaves the queue.
    pub(super) async fn turn(self) -> TurnGuard {
        match self.state {
            EntryState::Served(turn) => turn,
            EntryState::Waits(rx, _leave) => rx.await.expect("each waiting entry gets a turn"),
        }
    }
}

/// Removes an entry that no longer waits, if it is still queued.
struct LeaveGuard<'a> {
    queue: &'a FairQueue,
    caller: QueueKey,
    number: u64,
}

impl Drop for LeaveGuard<'_> {
    fn drop(&mut self) {
        let mut turns = self.queue.0.lock();
        let Turns { waiting, order, .. } = &mut *turns;
        let Some(queue) = waiting.get_mut(&self.caller) else { return };
        queue.retain(|entry| entry.number != self.number);
        if queue.is_empty() {
            waiting.remove(&self.caller);
            order.retain(|caller| *caller != self.caller);
        }
    }
}

impl Drop for TurnGuard {
    fn drop(&mut self) {
        let mut queue = self.0.take();
        while let Some(next) = queue.as_ref().and_then(|queue| queue.pop_next()) {
            match next.send(TurnGuard(queue.take())) {
                Ok(()) => return,
                // The entry has left; the turn passes to the next one.
                Err(mut turn) => queue = turn.0.take(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: QueueKey = QueueKey(1);
    const OTHER: QueueKey = QueueKey(2);

    /// Polls a future and asserts that it is pending.
    macro_rules! assert_waits {
        ($future:expr) => {
            assert!(is_pending(&mut $future).await)
        };
    }

    async fn is_pending<F: Future + Unpin>(future: &mut F) -> bool {
        tokio::select! {
            biased;
            _ = future => false,
            () = std::future::ready(()) => true,
        }
    }

    #[tokio::test]
    async fn busy_caller_does_not_delay_another_caller() {
        let queue = FairQueue::new(1);
        let first = queue.join(BUSY).turn().await;
        let mut flood: Vec<_> = (0..100).map(|_| Box::pin(queue.join(BUSY).turn())).collect();
        for entry in &mut flood {
            assert_waits!(*entry);
        }
        assert_eq!((queue.ahead_of(BUSY), queue.ahead_of(OTHER)), (101, 2));
        let mut other = Box::pin(queue.join(OTHER).turn());
        assert_waits!(other);
        drop(first);
        let second = flood.remove(0).await;
        assert_waits!(other);
        drop(second);
        let _other = other.await;
        assert_waits!(flood[0]);
    }

    #[tokio::test]
    async fn entry_that_leaves_loses_no_turn() {
        let queue = FairQueue::new(1);
        let first = queue.join(BUSY).turn().await;
        let mut leaving = Box::pin(queue.join(BUSY).turn());
        let mut served = Box::pin(queue.join(BUSY).turn());
        assert_waits!(leaving);
        assert_waits!(served);
        assert_eq!(queue.ahead_of(BUSY), 3);
        drop(leaving);
        assert_eq!(queue.ahead_of(BUSY), 2);
        drop(first);
        // It has its turn by now, and leaves before it polls.
        drop(served);
        let again = queue.join(OTHER).turn().await;
        assert_eq!(queue.ahead_of(OTHER), 1);
        drop(again);
        assert_eq!(queue.ahead_of(OTHER), 0);
        let turns = queue.0.lock();
        assert!(turns.waiting.is_empty() && turns.order.is_empty());
    }
}
