//! What a replica asks of Redis.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Pipeline;

use super::Fleet;
use super::link::Link;
use crate::clock;
use crate::domain::chat::app::SdkAppId;
use crate::domain::fleet::entry::{self, Entry};
use crate::domain::fleet::keys::FleetKeys;
use crate::domain::fleet::lease::AHEAD;
use crate::domain::fleet::message;
use crate::domain::pairs::pair::Relation;
use crate::domain::pairs::scope::Scope;
use crate::domain::tick::Tick;

/// A request waits no longer for what others may have learned: then it asks Chat.
const READ_PATIENCE: Duration = Duration::from_millis(20);
/// Pairs of one command, so that others have their turn in between.
const PAIRS_READ_AT_ONCE: usize = 500;
/// Marks stay for so much longer than facts, so that no store outlives them.
const MARKS_STAY: Duration = Duration::from_secs(60);

/// One app's part of the fleet.
#[derive(Debug)]
pub struct FleetApp {
    /// Its number.
    pub app: SdkAppId,
    /// Its keys.
    pub keys: Arc<FleetKeys>,
    /// How long facts are kept.
    pub ttl: Duration,
}

/// The pace of a quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// From one permit to the next.
    pub interval: Duration,
    /// How many at once after a rest, at least 1.
    pub burst: u32,
}

/// What permits are wanted.
#[derive(Debug, Clone, Copy)]
pub struct LeaseRequest<'a> {
    /// The app.
    pub app: SdkAppId,
    /// The command, or another name of what has a quota of its own.
    pub name: &'a str,
    /// How many.
    pub wanted: usize,
    /// How fast.
    pub pace: Pace,
    /// How fast all of the app together, if that is bounded.
    pub total: Option<Pace>,
}

/// What permits there are.
#[derive(Debug)]
pub struct Granted {
    /// When they were asked for.
    pub asked: Tick,
    /// When they were heard of.
    pub heard: Tick,
    /// When Redis answered, by its clock, in microseconds since 1970.
    pub moment: u64,
    /// Their moments, as distances from when Redis answered.
    pub moments: Vec<Duration>,
    /// If there is none: when to ask again.
    pub again: Duration,
}

impl Fleet {
    /// Leases permits. `None`: Redis is away.
    pub async fn lease(&self, order: LeaseRequest<'_>) -> Option<Granted> {
        let link = self.link.load_full()?;
        let name = |what: &str| format!("{}:{}:q:{what}", self.prefix, order.app.get());
        let mut what = redis::pipe();
        what.cmd("EVALSHA").arg(&link.lease).arg(2 + usize::from(order.total.is_some()));
        what.arg(self.since()).arg(name(order.name));
        if order.total.is_some() {
            what.arg(name("*"));
        }
        what.arg(order.wanted).arg(micros(AHEAD));
        for pace in [order.pace].into_iter().chain(order.total) {
            // Rounded up: never faster than the pace.
            let interval = pace.interval.as_nanos().div_ceil(1000) as u64;
            what.arg(interval).arg(interval.saturating_mul(u64::from(pace.burst.max(1) - 1)));
        }
        let ((answer,), times): ((Vec<u64>,), _) = self.ask(&link, &what).await?;
        let [moment, again, moments @ ..] = &answer[..] else { return None };
        link.stamps().note(times.heard, *moment);
        self.figures.permits.fetch_add(moments.len() as u64, Ordering::Relaxed);
        Some(Granted {
            asked: times.asked,
            heard: times.heard,
            moment: *moment,
            moments: moments.iter().map(|micros| Duration::from_micros(*micros)).collect(),
            again: Duration::from_micros(*again).max(Duration::from_millis(1)),
        })
    }

    /// Evicts a scope everywhere else, and what Redis holds of it. Returns when Redis has done so, or when it is
    /// clear that it does not: then it is made good once Redis is back.
    pub async fn evict(&self, shared: &FleetApp, scope: &Scope) {
        if !self.try_evict(shared, scope).await {
            self.owed().insert(shared.app, Arc::clone(&shared.keys));
        }
    }

    async fn try_evict(&self, shared: &FleetApp, scope: &Scope) -> bool {
        let (Some(link), Ok(random)) = (self.link.load_full(), clock::os_random()) else { return false };
        let scope = message::bounded(scope);
        let mut marked = Vec::new();
        let user = |name: &String| self.name(shared, b'u', &shared.keys.user_name(name));
        match &scope {
            Scope::All => marked.push(self.mark_of_app(shared).into_bytes()),
            Scope::Users(users) => marked.extend(users.iter().map(user)),
            Scope::Pairs { from, to } => {
                marked.extend(to.iter().map(|to| self.pair_name(shared, from, to)));
            }
        }
        let mut nonce = [0; 12];
        nonce.copy_from_slice(&random[..12]);
        let app = shared.app.get().to_be_bytes();
        let message = [&self.me[..], &app, &message::seal(&shared.keys, &scope, nonce)].concat();
        let mut what = redis::pipe();
        what.cmd("EVALSHA").arg(&link.evict).arg(marked.len());
        marked.iter().for_each(|name| {
            what.arg(name);
        });
        let stay = shared.ttl + MARKS_STAY;
        what.arg(stay.as_millis() as u64).arg(self.channel()).arg(message);
        let told = self.ask::<(u64,)>(&link, &what).await.is_some();
        if told {
            self.figures.told.fetch_add(1, Ordering::Relaxed);
        }
        told
    }

    /// Makes good what could not be told.
    pub(super) async fn flush_unsent(&self) {
        let owed = std::mem::take(&mut *self.owed());
        for (app, keys) in owed {
            // Longer than any fact is kept.
            let shared = FleetApp { app, keys, ttl: Duration::from_secs(24 * 60 * 60) };
            self.evict(&shared, &Scope::All).await;
        }
    }

    /// What others have learned of these pairs, in their order: the relation as `from` sees it, and when it was
    /// asked for on our own clock, rather too early than too late. Nothing if Redis is away or slow.
    pub async fn read(&self, shared: &FleetApp, from: &str, to: &[&str]) -> Vec<Option<(Relation, Tick)>> {
        let Some(link) = self.link.load_full() else { return Vec::new() };
        let asked = clock::tick();
        let pairs: Vec<_> = to.iter().map(|to| shared.keys.pair(from, to)).collect();
        let mut what = redis::pipe();
        let from_mark = self.name(shared, b'u', &shared.keys.user_name(from));
        for (pairs, to) in pairs.chunks(PAIRS_READ_AT_ONCE).zip(to.chunks(PAIRS_READ_AT_ONCE)) {
            what.cmd("MGET").arg(self.since()).arg(self.mark_of_app(shared)).arg(&from_mark);
            for (pair, to) in pairs.iter().zip(to) {
                what.arg(self.name(shared, b'u', &shared.keys.user_name(to)));
                what.arg(self.name(shared, b'p', &shared.keys.pair_name(pair.key())));
            }
        }
        what.cmd("TIME");
        let reading = self.ask::<Vec<Vec<Option<Vec<u8>>>>>(&link, &what);
        let Ok(read) = tokio::time::timeout(READ_PATIENCE, reading).await else {
            self.note_slow(&link);
            return Vec::new();
        };
        let Some((answers, times)) = read else { return Vec::new() };
        self.figures.pairs_read.fetch_add(to.len() as u64, Ordering::Relaxed);
        let Some((time, answers)) = answers.split_last() else { return Vec::new() };
        let Some(now) = time_of(time) else { return Vec::new() };
        link.stamps().note(times.heard, now);
        let mut facts = Vec::with_capacity(to.len());
        for (answer, pairs) in answers.iter().zip(pairs.chunks(PAIRS_READ_AT_ONCE)) {
            let [since, app, from, rest @ ..] = &answer[..] else { return Vec::new() };
            let Some(since) = since.as_deref().and_then(entry::parse_digits) else { return Vec::new() };
            let latest = since.max(marked(app)).max(marked(from));
            for (answer, pair) in rest.chunks(2).zip(pairs) {
                let [user, kept] = answer else { return Vec::new() };
                let entry = kept.as_deref().and_then(|kept| entry::read(&shared.keys, pair.key(), kept));
                facts.push(match entry {
                    // One from the future was stored under another clock.
                    Some(Entry::Cached { stored, sent }) if sent > latest.max(marked(user)) && sent <= now => {
                        let age = now - sent;
                        let sent = Tick::from_micros(asked.micros().saturating_sub(age));
                        Some((pair.seen_from(stored), sent))
                    }
                    _ => None,
                });
            }
        }
        let found = facts.iter().flatten().count();
        self.figures.pairs_found.fetch_add(found as u64, Ordering::Relaxed);
        facts
    }

    /// Gives others what was learned by one lookup, which was sent at `sent`: who asked for whom, and the relation
    /// as that user sees it. Left out if Redis is away, or was not there when the lookup was sent.
    pub fn store(self: &Arc<Self>, shared: &FleetApp, learned: &[(&str, &str, Relation)], sent: Tick) {
        let Some(link) = self.link.load_full() else { return };
        let Some(moment) = link.stamps().before(sent) else { return };
        let Some(place) = self.stores.try_acquire(1) else { return };
        if learned.is_empty() {
            return;
        }
        let what = self.store_command(&link, shared, learned, moment);
        let fleet = Arc::clone(self);
        tokio::spawn(async move {
            let _place = place;
            let _ = fleet.ask::<(u64,)>(&link, &what).await;
        });
    }

    fn store_command(
        &self,
        link: &Link,
        shared: &FleetApp,
        learned: &[(&str, &str, Relation)],
        moment: u64,
    ) -> Pipeline {
        let mut what = redis::pipe();
        what.cmd("EVALSHA").arg(&link.store).arg(2 + 3 * learned.len());
        what.arg(self.since()).arg(self.mark_of_app(shared));
        let mut entries = Vec::with_capacity(learned.len());
        for (from, to, seen) in learned {
            let pair = shared.keys.pair(from, to);
            for user in [from, to] {
                what.arg(self.name(shared, b'u', &shared.keys.user_name(user)));
            }
            what.arg(self.name(shared, b'p', &shared.keys.pair_name(pair.key())));
            entries.push(entry::write(&shared.keys, pair.key(), pair.stored_as(*seen), moment));
        }
        what.arg(moment).arg(shared.ttl.as_millis() as u64);
        entries.iter().for_each(|entry| {
            what.arg(&entry[..]);
        });
        what
    }

    fn mark_of_app(&self, shared: &FleetApp) -> String {
        format!("{}:{}:a", self.prefix, shared.app.get())
    }

    fn pair_name(&self, shared: &FleetApp, from: &str, to: &str) -> Vec<u8> {
        self.name(shared, b'p', &shared.keys.pair_name(shared.keys.pair(from, to).key()))
    }

    /// `PREFIX:SDKAPPID:p:` or `:u:` and 16 bytes.
    fn name(&self, shared: &FleetApp, kind: u8, hash: &[u8; 16]) -> Vec<u8> {
        let mut name = format!("{}:{}:", self.prefix, shared.app.get()).into_bytes();
        name.extend([kind, b':']);
        name.extend(hash);
        name
    }
}

/// The moment of a mark; 0 if there is none.
fn marked(value: &Option<Vec<u8>>) -> u64 {
    value.as_deref().and_then(|value| value.strip_prefix(b"!")).and_then(entry::parse_digits).unwrap_or(0)
}

/// `TIME`: seconds and microseconds.
fn time_of(parts: &[Option<Vec<u8>>]) -> Option<u64> {
    let [Some(seconds), Some(micros)] = parts else { return None };
    entry::parse_digits(seconds)?.checked_mul(1_000_000)?.checked_add(entry::parse_digits(micros)?)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
