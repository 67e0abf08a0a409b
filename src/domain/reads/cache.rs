//! The kept responses of all apps, bounded by bytes.
//!
//! The table is moka's: it evicts by frequency and recency, so a burst of rare requests does not push out popular ones.
//! The bytes of an entry are its request, its response, and [`ENTRY_OVERHEAD`]. Entries do not expire here: readers check
//! the age and the [fence](super::fence), so that `max-stale` finds an old response.
//!
//! The key is the whole request, so two requests never share a response by a collision of hashes.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use moka::sync::Cache;

use crate::domain::tick::Tick;

/// Memory of an entry besides request and response, in bytes: the nodes and buffers of the table, measured by
/// `benches/reads` and rounded up.
pub const ENTRY_OVERHEAD: usize = 512;
/// Longest response that is kept, in bytes. One entry must not take the room of thousands.
pub const RESPONSE_LEN_MAX: usize = 1024 * 1024;

/// What a response is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReadKey {
    /// The app: see [`ReadCache::add_app`].
    pub app: AppNumber,
    /// `service/command`
    pub command: Arc<str>,
    /// The exact body of the request.
    pub request: Bytes,
}

/// A number that no other app has, nor the same app after it was removed and added again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AppNumber(u64);

/// A kept response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptResponse {
    /// The value of `Content-Type`, if Chat sent one.
    pub content_type: Option<Bytes>,
    /// The body.
    pub body: Bytes,
    /// When its call was sent. The age counts from this time.
    pub sent: Tick,
}

/// The table; the module documentation describes it.
#[derive(Debug)]
pub struct ReadCache {
    entries: Cache<ReadKey, Arc<KeptResponse>>,
    max_bytes: usize,
    apps: AtomicU64,
}

impl ReadCache {
    /// Creates a table for entries of at most `max_bytes` in total.
    pub fn new(max_bytes: usize) -> Self {
        let weigh = |key: &ReadKey, kept: &Arc<KeptResponse>| u32::try_from(weight(key, kept)).unwrap_or(u32::MAX);
        let entries = Cache::builder().max_capacity(max_bytes as u64).weigher(weigh).build();
        Self { entries, max_bytes, apps: AtomicU64::new(0) }
    }

    /// Returns the number of another app.
    pub fn add_app(&self) -> AppNumber {
        AppNumber(self.apps.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns the kept response, of any age.
    pub fn get(&self, key: &ReadKey) -> Option<Arc<KeptResponse>> {
        self.entries.get(key)
    }

    /// Keeps a response, unless one that was sent later is kept. A response that is too long is not kept. The caller
    /// inserts responses of one key one after the other.
    ///
    /// Request and response are copied: they may be parts of larger buffers, which would stay allocated.
    pub fn insert(&self, key: &ReadKey, response: &KeptResponse) {
        if response.body.len() > RESPONSE_LEN_MAX || weight(key, response) > self.max_bytes {
            return;
        }
        if self.entries.get(key).is_some_and(|kept| kept.sent > response.sent) {
            return;
        }
        let key = ReadKey { request: Bytes::copy_from_slice(&key.request), ..key.clone() };
        let kept = KeptResponse { body: Bytes::copy_from_slice(&response.body), ..response.clone() };
        self.entries.insert(key, Arc::new(kept));
        // Without this, some hundred insertions would wait for their turn to evict, in addition to the maximum.
        self.entries.run_pending_tasks();
    }

    /// Returns the bytes of all entries, expired ones included.
    pub fn bytes(&self) -> u64 {
        self.entries.weighted_size()
    }

    /// Returns the maximum of [`ReadCache::bytes`].
    pub fn max_bytes(&self) -> usize {
        self.max_bytes
    }

    /// Returns the number of entries, expired ones included.
    pub fn len(&self) -> u64 {
        self.entries.entry_count()
    }

    /// Returns whether it has no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn weight(key: &ReadKey, kept: &KeptResponse) -> usize {
    let content_type = kept.content_type.as_ref().map_or(0, Bytes::len);
    key.request.len() + kept.body.len() + content_type + ENTRY_OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(app: AppNumber, command: &str, request: &str) -> ReadKey {
        ReadKey { app, command: command.into(), request: Bytes::copy_from_slice(request.as_bytes()) }
    }

    fn response(body: impl Into<Bytes>, sent: u64) -> KeptResponse {
        KeptResponse { content_type: None, body: body.into(), sent: Tick::from_micros(sent) }
    }

    #[test]
    fn response_is_known_by_app_command_and_exact_request() {
        let cache = ReadCache::new(1 << 20);
        let (one, two) = (cache.add_app(), cache.add_app());
        let known = key(one, "a/b", "{}");
        cache.insert(&known, &response("x", 1));
        assert_eq!(*cache.get(&known).expect("kept"), response("x", 1));
        for other in [key(two, "a/b", "{}"), key(one, "a/c", "{}"), key(one, "a/b", "{ }"), key(one, "a/b", "")] {
            assert_eq!(cache.get(&other), None);
        }
        cache.insert(&known, &response("y", 2));
        assert_eq!((*cache.get(&known).expect("kept")).clone(), response("y", 2));
        assert_eq!(cache.len(), 1);
        cache.insert(&known, &response("x", 1));
        assert_eq!((*cache.get(&known).expect("kept")).clone(), response("y", 2), "it was sent later");
    }

    #[test]
    fn entries_never_exceed_the_maximum_of_bytes() {
        const MAX: usize = 100_000;
        let cache = ReadCache::new(MAX);
        let app = cache.add_app();
        for number in 0..2000 {
            cache.insert(&key(app, "a/b", &format!("{number:01000}")), &response(vec![b'x'; number], 1));
            assert!(cache.bytes() <= MAX as u64, "{} after {number}", cache.bytes());
        }
        assert!(cache.len() > 10, "it is in use");
        let entry = (1000 + ENTRY_OVERHEAD) as u64;
        assert!(cache.bytes() >= cache.len() * entry, "request and overhead count");
    }

    #[test]
    fn long_response_is_not_kept() {
        let cache = ReadCache::new(16 << 20);
        let key = key(cache.add_app(), "a/b", "{}");
        cache.insert(&key, &response(vec![b'x'; RESPONSE_LEN_MAX + 1], 1));
        assert!(cache.is_empty());
        cache.insert(&key, &response(vec![b'x'; RESPONSE_LEN_MAX], 1));
        assert_eq!(cache.len(), 1);
        let small = ReadCache::new(1000);
        small.insert(&key, &response(vec![b'x'; 600], 1));
        assert!(small.is_empty());
    }

    #[test]
    fn kept_bytes_are_copies() {
        let cache = ReadCache::new(1 << 20);
        let large = Bytes::from(vec![b'x'; 4096]);
        let key = ReadKey { app: cache.add_app(), command: "a/b".into(), request: large.slice(..2) };
        cache.insert(&key, &response(large.slice(2..4), 1));
        let kept = cache.get(&key).expect("kept");
        assert!(!large.as_ptr_range().contains(&kept.body.as_ptr()));
    }
}
