//! Calls in flight or queued, which equal requests share.
//!
//! A request joins a call only if the call is not sent yet, or was sent after the last write that could change its
//! response. So the guarantee of the fence also covers requests that wait. It does not join a call that waits for a permit
//! behind its own class. A call that it joins after it was sent takes on its class, in case it is tried again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::cache::ReadKey;
use crate::domain::caller::Class;
use crate::domain::tick::Tick;

/// Maximum number of shared calls of an app. A request beyond it makes its call alone, and its response is not kept.
pub const CALLS_MAX: usize = 4096;

/// How far a call is, and how urgent it is.
#[derive(Debug)]
pub struct Progress {
    /// When it was sent for the first time, in microseconds; 0 before.
    sent: AtomicU64,
    /// The class of the most urgent request that has joined it, and [`WAITS`].
    lane: AtomicU8,
}

/// The call waits for a permit, or is about to.
const WAITS: u8 = 1 << 7;

impl Progress {
    /// Returns that of a call which waits for its first permit.
    pub fn new(class: Class) -> Self {
        Self { sent: AtomicU64::new(0), lane: AtomicU8::new(class as u8 | WAITS) }
    }

    /// Records that the call waits for a permit, and returns the class in which it waits. Until it is sent, no request of
    /// an earlier class joins it.
    pub fn wait_for_permit(&self) -> Class {
        let lane = self.lane.fetch_or(WAITS, Ordering::SeqCst) & !WAITS;
        Class::ALL[usize::from(lane)]
    }

    /// Records that the call is about to be sent. Only the first time counts.
    pub fn record_sent(&self, now: Tick) {
        let now = now.max(Tick::from_micros(1));
        let _ = self.sent.compare_exchange(0, now.micros(), Ordering::SeqCst, Ordering::SeqCst);
        self.lane.fetch_and(!WAITS, Ordering::SeqCst);
    }

    /// Returns when the call was sent for the first time; `None` if it is not sent yet.
    pub fn sent(&self) -> Option<Tick> {
        Some(Tick::from_micros(self.sent.load(Ordering::SeqCst))).filter(|at| *at != Tick::NEVER)
    }

    /// Raises the call to a class. Returns false, and changes nothing, if it waits for a permit in a later class.
    fn raise_to(&self, class: Class) -> bool {
        let class = class as u8;
        let raised = self.lane.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |lane| match lane & WAITS {
            0 => Some(lane.min(class)),
            _ => (lane & !WAITS <= class).then_some(lane),
        });
        raised.is_ok()
    }
}

/// A request that may join a call.
#[derive(Debug, Clone, Copy)]
pub struct JoinRequest {
    /// Its class.
    pub class: Class,
    /// The fence: a call that was sent at that time or earlier is not joined.
    pub last_mark: Tick,
    /// Whether it may join a call that is sent.
    pub may_join_sent: bool,
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
    progress: Arc<Progress>,
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
    /// Returns the call that an equal request joins, if there is one.
    pub fn join(&self, key: &ReadKey, request: JoinRequest) -> Option<(&H, &Arc<Progress>)> {
        let JoinRequest { class, last_mark, may_join_sent } = request;
        let call = self.latest.get(key)?;
        let is_recent = call.progress.sent().is_none_or(|sent| may_join_sent && sent > last_mark);
        (is_recent && call.progress.raise_to(class)).then_some((&call.handle, &call.progress))
    }

    /// Adds a call that waits for its permit; `None` if there are [`CALLS_MAX`] already. [`SharedCalls::end`] must follow.
    pub fn start(&mut self, key: ReadKey, handle: H, progress: Arc<Progress>) -> Option<CallId> {
        if self.running >= CALLS_MAX {
            return None;
        }
        self.running += 1;
        self.next += 1;
        let id = CallId(self.next);
        self.latest.insert(key, SharedCall { id, progress, handle });
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

    fn waiting(class: Class) -> Arc<Progress> {
        Arc::new(Progress::new(class))
    }

    fn join(calls: &SharedCalls<char>, last_mark: u64, class: Class) -> Option<char> {
        let request = JoinRequest { class, last_mark: at(last_mark), may_join_sent: true };
        calls.join(&key(1), request).map(|(handle, _)| *handle)
    }

    #[test]
    fn request_joins_no_call_sent_before_a_mark() {
        let mut calls = SharedCalls::default();
        let progress = waiting(Class::Batch);
        let id = calls.start(key(1), 'a', Arc::clone(&progress)).expect("room");
        let fresh = |calls: &SharedCalls<char>| {
            let request = JoinRequest { class: Class::Batch, last_mark: at(9), may_join_sent: false };
            calls.join(&key(1), request).map(|(handle, _)| *handle)
        };
        assert_eq!(join(&calls, 99, Class::Batch), Some('a'), "it will be sent after any mark");
        assert_eq!(fresh(&calls), Some('a'));
        progress.record_sent(at(10));
        progress.record_sent(at(20));
        assert_eq!(progress.sent(), Some(at(10)), "the first time counts");
        assert_eq!(fresh(&calls), None, "it was sent before this request came");
        assert_eq!([9, 10, 11].map(|mark| join(&calls, mark, Class::Batch)), [Some('a'), None, None]);
        let other = JoinRequest { class: Class::Batch, last_mark: Tick::NEVER, may_join_sent: true };
        assert_eq!(calls.join(&key(2), other).map(|(handle, _)| *handle), None);
        calls.end(&key(1), id);
        assert!(join(&calls, 0, Class::Batch).is_none() && calls.is_empty());
    }

    #[test]
    fn call_waits_in_the_class_of_its_most_urgent_request() {
        let mut calls = SharedCalls::default();
        let progress = waiting(Class::Batch);
        calls.start(key(1), 'a', Arc::clone(&progress)).expect("room");
        assert_eq!(progress.wait_for_permit(), Class::Batch);
        assert_eq!(join(&calls, 9, Class::Interactive), None, "it may wait for long");
        progress.record_sent(at(10));
        assert_eq!(progress.wait_for_permit(), Class::Batch, "the request that did not join changes nothing");
        assert_eq!(join(&calls, 9, Class::Interactive), None, "it is tried again, and may wait for long");
        progress.record_sent(at(11));
        assert_eq!(join(&calls, 10, Class::Interactive), None, "it was sent before a write");
        assert_eq!(progress.wait_for_permit(), Class::Batch);
        progress.record_sent(at(12));
        assert_eq!(join(&calls, 9, Class::Interactive), Some('a'), "it waits for no permit now");
        assert_eq!(join(&calls, 9, Class::Batch), Some('a'));
        assert_eq!(progress.wait_for_permit(), Class::Interactive, "it is tried again for the interactive request");
        assert_eq!(join(&calls, 9, Class::Interactive), Some('a'));
    }

    #[test]
    fn replaced_call_ends_without_ending_its_successor() {
        let mut calls = SharedCalls::default();
        let first = calls.start(key(1), 'a', waiting(Class::Batch)).expect("room");
        let second = calls.start(key(1), 'b', waiting(Class::Interactive)).expect("room");
        calls.end(&key(1), first);
        assert_eq!(join(&calls, 0, Class::Interactive), Some('b'));
        assert_eq!(calls.len(), 1);
        calls.end(&key(1), second);
        assert!(calls.is_empty() && join(&calls, 0, Class::Interactive).is_none());
    }

    #[test]
    fn number_of_calls_is_bounded() {
        let mut calls = SharedCalls::default();
        // Half of them replace another one.
        let start = |calls: &mut SharedCalls<()>, number| calls.start(key(number), (), waiting(Class::Batch));
        let ids: Vec<_> = (0..CALLS_MAX).map(|n| start(&mut calls, n / 2).expect("room")).collect();
        assert_eq!(start(&mut calls, CALLS_MAX), None);
        calls.end(&key(0), ids[0]);
        assert!(start(&mut calls, CALLS_MAX).is_some());
        assert_eq!(calls.len(), CALLS_MAX);
    }
}
