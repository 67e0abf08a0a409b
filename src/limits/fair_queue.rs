//! A fair queue: callers of one class are served round-robin, so a busy caller cannot starve the others.
//!
//! A fixed number of entries hold a turn at the same time. The other entries wait, those of one caller in the order of
//! arrival. When a turn ends, the next caller of the first class with waiting entries gets it for its first entry. Within
//! a class, this is deficit round-robin with items of equal cost.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::domain::caller::{ByClass, CallerQueue, Class, QueueKey};

/// A fair queue.
#[derive(Debug)]
pub(crate) struct FairQueue(Mutex<Turns>);

#[derive(Debug)]
struct Turns {
    free: usize,
    max: usize,
    /// Waiting entries by caller. No queue is empty.
    waiting: HashMap<CallerQueue, VecDeque<Waiting>>,
    /// Each caller of `waiting` once in the order of its class; the next one to be served is first.
    order: ByClass<VecDeque<QueueKey>>,
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
pub(crate) struct TurnGuard(Option<Arc<FairQueue>>);

impl FairQueue {
    /// Returns a queue in which up to `max` entries have a turn at the same time.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        let (waiting, order) = (HashMap::new(), ByClass::default());
        Arc::new(Self(Mutex::new(Turns { free: max, max, waiting, order, last_number: 0 })))
    }

    /// Joins the queue. Counting the entries ahead and joining are one step, so of two entries that join at the same
    /// time one is behind the other.
    pub(super) fn join(self: &Arc<Self>, queue: CallerQueue) -> QueueEntry<'_> {
        let mut turns = self.0.lock();
        let ahead = turns.ahead_of(queue);
        if turns.free > 0 {
            turns.free -= 1;
            return QueueEntry { ahead, state: EntryState::Served(TurnGuard(Some(Arc::clone(self)))) };
        }
        let (tx, rx) = oneshot::channel();
        let Turns { waiting, order, last_number, .. } = &mut *turns;
        let entries = waiting.entry(queue).or_default();
        if entries.is_empty() {
            order[queue.class].push_back(queue.caller);
        }
        *last_number += 1;
        let number = *last_number;
        entries.push_back(Waiting { number, tx });
        QueueEntry { ahead, state: EntryState::Waits(rx, LeaveGuard { turns: self, queue, number }) }
    }

    /// Returns how many entries have a turn.
    pub(crate) fn in_use(&self) -> usize {
        let turns = self.0.lock();
        turns.max - turns.free
    }

    /// Returns whether a new entry would have to wait.
    pub(crate) fn is_full(&self) -> bool {
        self.0.lock().free == 0
    }

    /// Returns how many entries wait for a turn.
    pub(super) fn waiting(&self) -> usize {
        self.0.lock().waiting.values().map(VecDeque::len).sum()
    }

    #[cfg(test)]
    pub(super) fn ahead_of(&self, queue: CallerQueue) -> usize {
        self.0.lock().ahead_of(queue)
    }

    /// Removes the entry that is next in order; without one, frees a turn.
    fn pop_next(&self) -> Option<oneshot::Sender<TurnGuard>> {
        let mut turns = self.0.lock();
        let pop = |class| Some(CallerQueue { class, caller: turns.order[class].pop_front()? });
        let Some(queue) = Class::ALL.into_iter().find_map(pop) else {
            turns.free += 1;
            return None;
        };
        let entries = turns.waiting.get_mut(&queue)?;
        let next = entries.pop_front().map(|entry| entry.tx);
        if entries.is_empty() {
            turns.waiting.remove(&queue);
        } else {
            turns.order[queue.class].push_back(queue.caller);
        }
        next
    }
}

impl Turns {
    /// Returns how many entries are served before a new one of this caller, including those that have their turn.
    fn ahead_of(&self, queue: CallerQueue) -> usize {
        let own = self.waiting.get(&queue).map_or(0, VecDeque::len);
        let others = self.waiting.iter().filter(|(other, _)| **other != queue);
        let ahead = |(other, entries): (&CallerQueue, &VecDeque<Waiting>)| match other.class.cmp(&queue.class) {
            Ordering::Less => entries.len(),
            Ordering::Equal => entries.len().min(own + 1),
            Ordering::Greater => 0,
        };
        self.max - self.free + own + others.map(ahead).sum::<usize>()
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
    turns: &'a FairQueue,
    queue: CallerQueue,
    number: u64,
}

impl Drop for LeaveGuard<'_> {
    fn drop(&mut self) {
        let CallerQueue { class, caller } = self.queue;
        let mut turns = self.turns.0.lock();
        let Turns { waiting, order, .. } = &mut *turns;
        let Some(entries) = waiting.get_mut(&self.queue) else { return };
        entries.retain(|entry| entry.number != self.number);
        if entries.is_empty() {
            waiting.remove(&self.queue);
            order[class].retain(|other| *other != caller);
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

    const BUSY: CallerQueue = CallerQueue::interactive(QueueKey(1));
    const OTHER: CallerQueue = CallerQueue::interactive(QueueKey(2));
    const BATCH: CallerQueue = CallerQueue { class: Class::Batch, caller: QueueKey(3) };

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
        assert!(turns.waiting.is_empty() && turns.order == ByClass::default());
    }

    #[tokio::test]
    async fn earlier_class_is_served_first() {
        let queue = FairQueue::new(1);
        let first = queue.join(BATCH).turn().await;
        let mut batch: Vec<_> = (0..3).map(|_| Box::pin(queue.join(BATCH).turn())).collect();
        for entry in &mut batch {
            assert_waits!(*entry);
        }
        assert_eq!((queue.ahead_of(BATCH), queue.ahead_of(BUSY)), (4, 1));
        let mut interactive = [Box::pin(queue.join(BUSY).turn()), Box::pin(queue.join(BUSY).turn())];
        for entry in &mut interactive {
            assert_waits!(*entry);
        }
        let other_batch = CallerQueue { caller: QueueKey(4), ..BATCH };
        assert_eq!((queue.ahead_of(other_batch), queue.waiting()), (4, 5), "every interactive one, and one in turn");
        drop(first);
        for entry in &mut interactive {
            let turn = entry.await;
            assert_waits!(batch[0]);
            drop(turn);
        }
        let _turn = batch.remove(0).await;
        assert_waits!(batch[0]);
    }
}
