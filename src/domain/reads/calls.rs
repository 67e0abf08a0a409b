//! Calls in flight or queued, which equal requests share.
//!
//! A request joins a call only if the call is not sent yet, or was sent after the last write that could change its
//! response. So the guarantee of the fence also covers requests that wait. It does not join a call that waits behind its
//! own class.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::cache::ReadKey;
use crate::domain::caller::Class;
use crate::domain::tick::Tick;

/// Maximum number of shared calls of an app. A request beyond it makes its call alone, and its response is not kept.
pub const CALLS_MAX: usize = 4096;

/// When a call was sent.
#[derive(Debug, Default)]
pub struct SentAt(AtomicU64);

impl SentAt {
    /// Records that the call is about to be sent. Only the first time counts.
    pub fn record(&self, now: Tick) {
        let now = now.max(Tick::from_micros(1));
        let _ = self.0.compare_exchange(0, now.micros(), Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Returns the time; `None` if the call is not sent yet.
    pub fn get(&self) -> Option<Tick> {
        Some(Tick::from_micros(self.0.load(Ordering::SeqCst))).filter(|at| *at != Tick::NEVER)
    }
}

/// The shared calls of one app, with an `H` to wait for each.
///
/// A key may have several calls: a request that must not join the call in flight replaces it for later requests.
#[derive(Debug)]
pub struct SharedCalls<H> {
    /// The latest call of each key. Keys come from outside, so the hash is keyed.
    latest: HashMap<ReadKey, SharedCall<H>>,
    /// Number of calls that have not ended, replaced ones included.
    running: usize,
    next: u64,
}

#[derive(Debug)]
struct SharedCall<H> {
    id: CallId,
    class: Class,
    sent: Arc<SentAt>,
    handle: H,
}

/// A shared call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallId(u64);

impl<H> Default for SharedCalls<H> {
    fn default() -> Self {
        Self { latest: HashMap::default(), running: 0, next: 0 }
    }
}

impl<H> SharedCalls<H> {
    /// Returns the call that an equal request of this class may wait for, if there is one. `last_mark` is the fence.
    pub fn join(&self, key: &ReadKey, last_mark: Tick, class: Class) -> Option<(&H, &Arc<SentAt>)> {
        let call = self.latest.get(key)?;
        let may_join = call.sent.get().map_or(call.class <= class, |sent| sent > last_mark);
        may_join.then_some((&call.handle, &call.sent))
    }

    /// Adds a call that waits in the queue of a class; `None` if there are [`CALLS_MAX`] already. [`SharedCalls::end`] must follow.
    pub fn start(&mut self, key: ReadKey, class: Class, handle: H, sent: Arc<SentAt>) -> Option<CallId> {
        if self.running >= CALLS_MAX {
            return None;
        }
        self.running += 1;
        self.next += 1;
        let id = CallId(self.next);
        self.latest.insert(key, SharedCall { id, class, sent, handle });
        Some(id)
    }

    /// Removes a call. No further request joins it.
    pub fn end(&mut self, key: &ReadKey, id: CallId) {
        self.running -= 1;
        if self.latest.get(key).is_some_and(|call| call.id == id) {
            self.latest.remove(key);
        }
    }

    /// Returns the number of calls that have not ended.
    pub fn len(&self) -> usize {
        self.running
    }

    /// Returns whether no call is running.
    pub fn is_empty(&self) -> bool {
        self.running == 0
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::cache::ReadCache;
    use super::*;

    fn key(number: usize) -> ReadKey {
        let app = ReadCache::new(1).add_app();
        ReadKey { app, command: "a/b".into(), request: Bytes::from(number.to_string()) }
    }

    fn at(micros: u64) -> Tick {
        Tick::from_micros(micros)
    }

    #[test]
    fn request_joins_no_call_sent_before_a_mark() {
        let mut calls = SharedCalls::default();
        let sent = Arc::<SentAt>::default();
        let id = calls.start(key(1), Class::Batch, 'a', Arc::clone(&sent)).expect("room");
        let joined =
            |calls: &SharedCalls<char>, mark| calls.join(&key(1), mark, Class::Batch).map(|(handle, _)| *handle);
        assert_eq!(joined(&calls, at(99)), Some('a'), "it will be sent after any mark");
        let interactive =
            |calls: &SharedCalls<char>| calls.join(&key(1), at(9), Class::Interactive).map(|(handle, _)| *handle);
        assert_eq!(interactive(&calls), None, "it may wait for long");
        sent.record(at(10));
        sent.record(at(20));
        assert_eq!(sent.get(), Some(at(10)), "the first time counts");
        assert_eq!(interactive(&calls), Some('a'), "it waits for no permit any more");
        assert_eq!([9, 10, 11].map(|mark| joined(&calls, at(mark))), [Some('a'), None, None]);
        assert_eq!(calls.join(&key(2), Tick::NEVER, Class::Batch).map(|(handle, _)| *handle), None);
        calls.end(&key(1), id);
        assert!(joined(&calls, Tick::NEVER).is_none() && calls.is_empty());
    }

    #[test]
    fn replaced_call_ends_without_ending_its_successor() {
        let mut calls = SharedCalls::default();
        let first = calls.start(key(1), Class::Batch, 'a', Arc::default()).expect("room");
        let second = calls.start(key(1), Class::Interactive, 'b', Arc::default()).expect("room");
        calls.end(&key(1), first);
        assert_eq!(calls.join(&key(1), Tick::NEVER, Class::Interactive).map(|(handle, _)| *handle), Some('b'));
        assert_eq!(calls.len(), 1);
        calls.end(&key(1), second);
        assert!(calls.is_empty() && calls.join(&key(1), Tick::NEVER, Class::Interactive).is_none());
    }

    #[test]
    fn number_of_calls_is_bounded() {
        let mut calls = SharedCalls::default();
        // Half of them replace another one.
        let ids: Vec<_> =
            (0..CALLS_MAX).map(|n| calls.start(key(n / 2), Class::Batch, (), Arc::default()).expect("room")).collect();
        assert_eq!(calls.start(key(CALLS_MAX), Class::Batch, (), Arc::default()), None);
        calls.end(&key(0), ids[0]);
        assert!(calls.start(key(CALLS_MAX), Class::Batch, (), Arc::default()).is_some());
        assert_eq!(calls.len(), CALLS_MAX);
    }
}
