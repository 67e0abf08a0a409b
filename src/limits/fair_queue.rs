//! A line in which callers take turns, so that one who sends much keeps nobody else from a turn.
//!
//! So many may be past the line at once; the others wait, each caller's in the order of coming, and
//! whenever a place is free the next caller gets it for its first in line. (Deficit round robin
//! whose items all cost the same.)

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::domain::caller::QueueKey;

/// The line.
#[derive(Debug)]
pub struct FairQueue(Mutex<State>);

#[derive(Debug)]
struct State {
    free: usize,
    places: usize,
    /// Those who wait, by caller; none is empty.
    queues: HashMap<QueueKey, VecDeque<(u64, oneshot::Sender<TurnGuard>)>>,
    /// Each caller of `queues` once, the next in turn first.
    turns: VecDeque<QueueKey>,
    /// Numbers those who wait.
    next: u64,
}

/// A place past the line; the next one gets it when it is dropped.
#[derive(Debug)]
pub struct TurnGuard(Option<Arc<FairQueue>>);

impl FairQueue {
    /// A line past which there are so many places.
    pub fn new(places: usize) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            free: places,
            places,
            queues: HashMap::new(),
            turns: VecDeque::new(),
            next: 0,
        })))
    }

    /// Joins the line. Says how many are to be served before, those past the line included; that and
    /// the joining are one step, so that of two who come together one is behind the other.
    pub fn join(self: &Arc<Self>, caller: QueueKey) -> QueueEntry<'_> {
        let mut state = self.state();
        let ahead = state.ahead_of(caller);
        if state.free > 0 {
            state.free -= 1;
            return QueueEntry { ahead, place: Some(TurnGuard(Some(Arc::clone(self)))), waiting: None };
        }
        let (give, given) = oneshot::channel();
        let State { queues, turns, next, .. } = &mut *state;
        let queue = queues.entry(caller).or_default();
        if queue.is_empty() {
            turns.push_back(caller);
        }
        *next += 1;
        queue.push_back((*next, give));
        let leaving = EntryGuard { line: self, caller, number: *next };
        QueueEntry { ahead, place: None, waiting: Some((given, leaving)) }
    }

    /// How many wait in it, those past it not included.
    pub fn waiting(&self) -> usize {
        self.state().queues.values().map(VecDeque::len).sum()
    }

    #[cfg(test)]
    pub(crate) fn ahead_of(&self, caller: QueueKey) -> usize {
        self.state().ahead_of(caller)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next in turn, who leaves the line.
    fn next(&self) -> Option<oneshot::Sender<TurnGuard>> {
        let mut state = self.state();
        let Some(caller) = state.turns.pop_front() else {
            state.free += 1;
            return None;
        };
        let queue = state.queues.get_mut(&caller)?;
        let next = queue.pop_front().map(|(_, give)| give);
        if queue.is_empty() {
            state.queues.remove(&caller);
        } else {
            state.turns.push_back(caller);
        }
        next
    }
}

impl State {
    /// How many would be served before one who came now.
    fn ahead_of(&self, caller: QueueKey) -> usize {
        let own = self.queues.get(&caller).map_or(0, VecDeque::len);
        let others = self.queues.iter().filter(|(other, _)| **other != caller);
        let in_line: usize = own + others.map(|(_, queue)| queue.len().min(own + 1)).sum::<usize>();
        self.places - self.free + in_line
    }
}

/// One who has joined. Dropped, it has left again.
pub struct QueueEntry<'a> {
    /// How many are served before it, if nobody leaves.
    pub ahead: usize,
    place: Option<TurnGuard>,
    waiting: Option<(oneshot::Receiver<TurnGuard>, EntryGuard<'a>)>,
}

impl QueueEntry<'_> {
    /// Waits for its place. Dropping the future gives it up.
    pub async fn turn(self) -> TurnGuard {
        match (self.place, self.waiting) {
            (Some(place), _) => place,
            (None, Some((given, _leaving))) => given.await.expect("a place is given to everybody who waits"),
            (None, None) => unreachable!("it has the one or waits for the other"),
        }
    }
}

/// Takes one out of the line who no longer waits, if it is still there.
struct EntryGuard<'a> {
    line: &'a FairQueue,
    caller: QueueKey,
    number: u64,
}

impl Drop for EntryGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.line.state();
        let State { queues, turns, .. } = &mut *state;
        let Some(queue) = queues.get_mut(&self.caller) else { return };
        queue.retain(|(number, _)| *number != self.number);
        if queue.is_empty() {
            queues.remove(&self.caller);
            turns.retain(|caller| *caller != self.caller);
        }
    }
}

impl Drop for TurnGuard {
    fn drop(&mut self) {
        let mut line = self.0.take();
        while let Some(next) = line.as_ref().and_then(|line| line.next()) {
            match next.send(TurnGuard(line.take())) {
                Ok(()) => return,
                // It has left: to the next one.
                Err(mut place) => line = place.0.take(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANY: QueueKey = QueueKey(1);
    const FEW: QueueKey = QueueKey(2);

    /// Polls a future that is not to be ready yet.
    macro_rules! waits {
        ($future:expr) => {
            assert!(futures_are_pending(&mut $future).await)
        };
    }

    async fn futures_are_pending<F: Future + Unpin>(future: &mut F) -> bool {
        tokio::select! {
            biased;
            _ = future => false,
            () = std::future::ready(()) => true,
        }
    }

    #[tokio::test]
    async fn who_asks_now_and_then_does_not_wait_behind_a_flood() {
        let line = FairQueue::new(1);
        let first = line.join(MANY).turn().await;
        let mut flood: Vec<_> = (0..100).map(|_| Box::pin(line.join(MANY).turn())).collect();
        for waiting in &mut flood {
            waits!(*waiting);
        }
        assert_eq!((line.ahead_of(MANY), line.ahead_of(FEW)), (101, 2));
        let mut few = Box::pin(line.join(FEW).turn());
        waits!(few);
        drop(first);
        let second = flood.remove(0).await;
        waits!(few);
        drop(second);
        let _few = few.await;
        waits!(flood[0]);
    }

    #[tokio::test]
    async fn who_leaves_costs_no_place() {
        let line = FairQueue::new(1);
        let first = line.join(MANY).turn().await;
        let mut leaving = Box::pin(line.join(MANY).turn());
        let mut given = Box::pin(line.join(MANY).turn());
        waits!(leaving);
        waits!(given);
        assert_eq!(line.ahead_of(MANY), 3);
        drop(leaving);
        assert_eq!(line.ahead_of(MANY), 2);
        drop(first);
        // It has its place by now, and leaves without having looked.
        drop(given);
        let again = line.join(FEW).turn().await;
        assert_eq!(line.ahead_of(FEW), 1);
        drop(again);
        assert_eq!(line.ahead_of(FEW), 0);
        assert!(line.state().queues.is_empty() && line.state().turns.is_empty());
    }
}
