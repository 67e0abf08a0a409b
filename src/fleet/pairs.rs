//! Cached pairs in Redis.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Pipeline;

use super::link::Link;
use super::{Fleet, FleetApp};
use crate::clock;
use crate::domain::fleet::entry::{self, Entry};
use crate::domain::pairs::pair::{Pair, PairKey, Relation};
use crate::domain::relation::RelationKind;
use crate::domain::tick::Tick;

/// How long a request waits for pairs from Redis. Then it calls Chat.
const READ_TIMEOUT: Duration = Duration::from_millis(20);
/// Maximum number of pairs in one command, so that Redis serves other clients in between.
const PAIRS_PER_COMMAND: usize = 500;

/// A value in Redis, if the key exists.
type Value = Option<Vec<u8>>;

/// The pairs of one `MGET`.
struct ReadPairs<'a> {
    shared: &'a FleetApp,
    kind: &'a RelationKind,
    pairs: &'a [Pair],
}

/// The instants that decide whether an entry counts, on Redis' clock.
struct ReadTimes {
    /// When the read was sent, on our clock.
    sent_at: Tick,
    /// When Redis answered.
    redis_time: u64,
}

/// The pairs of one lookup.
pub struct FetchedPairs<'a> {
    /// The relation that was looked up.
    pub kind: &'static RelationKind,
    /// The user that the lookup was for, the other user, and the relation as the first one sees it.
    pub pairs: &'a [(&'a str, &'a str, Relation)],
    /// When the lookup was sent.
    pub sent: Tick,
}

impl Fleet {
    /// Returns the cached pairs of `from` with each of `to`, in order: the relation as `from` sees it, and when its
    /// lookup was sent on our own clock, if anything too early. The result is empty if Redis is slow or the replica is
    /// disconnected.
    pub async fn read(
        &self,
        shared: &FleetApp,
        kind: &RelationKind,
        from: &str,
        to: &[&str],
    ) -> Vec<Option<(Relation, Tick)>> {
        let Some(link) = self.link.load_full() else { return Vec::new() };
        let sent_at = clock::tick();
        let pairs: Vec<Pair> = to.iter().map(|to| shared.keys.pair(from, to)).collect();
        let command = self.read_command(shared, kind, from, to);
        let reading = self.query::<Vec<Vec<Value>>>(&link, &command);
        let Ok(read) = tokio::time::timeout(READ_TIMEOUT, reading).await else {
            self.note_slow(&link);
            return Vec::new();
        };
        let Some((replies, times)) = read else { return Vec::new() };
        self.counters.cache_lookups.fetch_add(to.len() as u64, Ordering::Relaxed);
        let Some((time, replies)) = replies.split_last() else { return Vec::new() };
        let Some(redis_time) = parse_time(time) else { return Vec::new() };
        link.watermarks.lock().note(times.received_at, redis_time);
        let times = ReadTimes { sent_at, redis_time };
        let mut found = Vec::with_capacity(to.len());
        for (reply, pairs) in replies.iter().zip(pairs.chunks(PAIRS_PER_COMMAND)) {
            let Some(entries) = read_entries(&ReadPairs { shared, kind, pairs }, reply, &times) else {
                return Vec::new();
            };
            found.extend(entries);
        }
        let hits = found.iter().flatten().count();
        self.counters.cache_hits.fetch_add(hits as u64, Ordering::Relaxed);
        found
    }

    fn read_command(&self, shared: &FleetApp, kind: &RelationKind, from: &str, to: &[&str]) -> Pipeline {
        let mut command = redis::pipe();
        let from_mark = self.user_mark(shared, from);
        for to in to.chunks(PAIRS_PER_COMMAND) {
            command.cmd("MGET").arg(self.since_key()).arg(self.app_mark(shared)).arg(&from_mark);
            for to in to {
                let pair = shared.keys.pair(from, to).key();
                command.arg(self.user_mark(shared, to)).arg(self.pair_key(shared, kind, pair));
            }
        }
        command.cmd("TIME");
        command
    }

    /// Stores the pairs of one lookup for the other replicas. Returns at once.
    ///
    /// Stores nothing if the replica is disconnected or was so when the lookup was sent.
    pub fn store(self: &Arc<Self>, shared: &FleetApp, fetched: &FetchedPairs<'_>) {
        let Some(link) = self.link.load_full() else { return };
        let Some(redis_time) = link.watermarks.lock().before(fetched.sent) else { return };
        let Some(guard) = self.stores.try_acquire(1) else { return };
        if fetched.pairs.is_empty() {
            return;
        }
        let command = |pairs| self.store_command(&link, shared, &FetchedPairs { pairs, ..*fetched }, redis_time);
        let commands: Vec<Pipeline> = fetched.pairs.chunks(PAIRS_PER_COMMAND).map(command).collect();
        let fleet = Arc::clone(self);
        tokio::spawn(async move {
            let _guard = guard;
            for command in commands {
                let _ = fleet.query::<(u64,)>(&link, &command).await;
            }
        });
    }

    fn store_command(
        &self,
        link: &Link,
        shared: &FleetApp,
        FetchedPairs { kind, pairs, .. }: &FetchedPairs<'_>,
        redis_time: u64,
    ) -> Pipeline {
        let mut command = redis::pipe();
        command.cmd("EVALSHA").arg(&link.scripts.store).arg(2 + 3 * pairs.len());
        command.arg(self.since_key()).arg(self.app_mark(shared));
        let mut entries = Vec::with_capacity(pairs.len());
        for (from, to, seen) in *pairs {
            let pair = shared.keys.pair(from, to);
            command.arg(self.user_mark(shared, from)).arg(self.user_mark(shared, to));
            command.arg(self.pair_key(shared, kind, pair.key()));
            entries.push(entry::write(&shared.keys, kind, pair.key(), pair.stored_as(*seen), redis_time));
        }
        command.arg(redis_time).arg(shared.ttl.as_millis() as u64);
        entries.iter().for_each(|entry| {
            command.arg(&entry[..]);
        });
        command
    }

    /// Returns the key of the mark that invalidates a whole app.
    pub(super) fn app_mark(&self, shared: &FleetApp) -> String {
        format!("{}:{}:a", self.prefix, shared.app.get())
    }

    /// Returns the key of the mark that invalidates all pairs of a user.
    pub(super) fn user_mark(&self, shared: &FleetApp, user: &str) -> Vec<u8> {
        self.hashed_key(shared, b'u', &shared.keys.user_name(user))
    }

    /// Returns the key of a pair's relation, which holds its entry or the mark that invalidates it.
    pub(super) fn pair_key(&self, shared: &FleetApp, kind: &RelationKind, pair: PairKey) -> Vec<u8> {
        self.hashed_key(shared, kind.fleet_letter, &shared.keys.pair_name(pair))
    }

    /// Returns `PREFIX:SDKAPPID:u:`, or the letter of a relation instead of `u`, followed by the 16 bytes of the hash.
    fn hashed_key(&self, shared: &FleetApp, letter: u8, hash: &[u8; 16]) -> Vec<u8> {
        let mut key = format!("{}:{}:", self.prefix, shared.app.get()).into_bytes();
        key.extend([letter, b':']);
        key.extend(hash);
        key
    }
}

/// Parses the reply to one `MGET`. Returns `None` if it is malformed or Redis has lost its data.
fn read_entries(
    ReadPairs { shared, kind, pairs }: &ReadPairs<'_>,
    reply: &[Value],
    times: &ReadTimes,
) -> Option<Vec<Option<(Relation, Tick)>>> {
    let [since, app, from, rest @ ..] = reply else { return None };
    let since = entry::parse_digits(since.as_deref()?)?;
    let invalidated_at = since.max(mark_time(app)).max(mark_time(from));
    let read_entry = |(values, pair): (&[Value], &Pair)| {
        let [user_mark, entry] = values else { return None };
        let entry = entry.as_deref().and_then(|bytes| entry::read(&shared.keys, kind, pair.key(), bytes));
        Some(match entry {
            // An entry from the future was stored under another clock.
            Some(Entry::Cached { stored, sent })
                if sent > invalidated_at.max(mark_time(user_mark)) && sent <= times.redis_time =>
            {
                let age = times.redis_time - sent;
                let sent = Tick::from_micros(times.sent_at.micros().saturating_sub(age));
                Some((pair.seen_from(stored), sent))
            }
            _ => None,
        })
    };
    rest.chunks(2).zip(*pairs).map(read_entry).collect()
}

/// Returns the time of a mark; 0 if there is none.
fn mark_time(value: &Value) -> u64 {
    value.as_deref().and_then(|value| value.strip_prefix(b"!")).and_then(entry::parse_digits).unwrap_or(0)
}

/// Parses the reply to `TIME`, seconds and microseconds, into microseconds.
fn parse_time(parts: &[Value]) -> Option<u64> {
    let [Some(seconds), Some(micros)] = parts else { return None };
    entry::parse_digits(seconds)?.checked_mul(1_000_000)?.checked_add(entry::parse_digits(micros)?)
}
