//! What refreshes save: five simulated minutes of feeds, with and without `cache.stale_while_revalidate`.
//!
//! The simulation drives [`CheckSession`], [`LookupScheduler`], and [`PairCache`], as the gateway does, in front of a Chat
//! with a fixed latency. Permits come one interval apart. `cargo test --lib refreshes_save -- --nocapture`
//! prints a table.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::super::cache::PairCache;
use super::super::check::{CheckOptions, CheckSession, CheckStep, PairView};
use super::super::directives::CacheDirectives;
use super::super::fence::Fence;
use super::super::item::{Item, Items};
use super::super::pair::{Relation, UserHasher};
use super::*;
use crate::domain::policy::stale_gate::StaleGate;

const TTL: Duration = Duration::from_secs(30);
const LATENCY: Duration = Duration::from_millis(20);
/// Permits come at 20 per second, a tenth of Chat's limit, for a tenth of the viewers.
const INTERVAL: Duration = Duration::from_millis(50);
/// A request gives up after this time, as with the default `upstream.timeout`.
const PATIENCE: Duration = Duration::from_millis(4750);
/// Accounts in the feeds. Each viewer has a feed of its own. Viewers and accounts follow Zipf's law.
const ACCOUNTS: usize = 2000;
const FEED: usize = 30;
/// The first minute fills the cache and is not counted.
const WARM_UP: Duration = Duration::from_secs(60);
const SPAN: Duration = Duration::from_secs(300);

/// A load, and what became of it after the warm-up.
#[derive(Debug, Default)]
struct Run {
    requests: usize,
    /// Requests that waited for Chat.
    waited: usize,
    /// Requests that gave up.
    late: usize,
    calls: usize,
    refresh_calls: usize,
    /// Answers past their ttl.
    stale: usize,
}

/// Zipf's law over numbers below a bound.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(count: usize, exponent: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=count).map(|rank| {
            sum += 1.0 / (rank as f64).powf(exponent);
            sum
        });
        Self(sums.collect())
    }

    fn draw(&self, random: &mut u64) -> usize {
        let wanted = unit(random) * self.0[self.0.len() - 1];
        self.0.partition_point(|sum| *sum < wanted).min(self.0.len() - 1)
    }
}

/// Returns the next random number from 0 to 1.
fn unit(random: &mut u64) -> f64 {
    *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*random >> 11) as f64 / (1_u64 << 53) as f64
}

struct Simulation {
    now: Tick,
    revalidate: Duration,
    scheduler: LookupScheduler,
    cache: PairCache,
    fence: Fence,
    stale_gate: StaleGate,
    viewers: Vec<(String, UserKey)>,
    accounts: Vec<(String, UserKey)>,
    feeds: Vec<Vec<usize>>,
    /// Requests in the order of arrival, and how many pairs each still waits for.
    waiting: VecDeque<(Tick, Ticket)>,
    missing: HashMap<Ticket, usize>,
    calls: VecDeque<(Tick, Batch)>,
    next_permit: Tick,
    counts: Run,
}

impl Simulation {
    fn new(viewers: usize, revalidate: Duration) -> Self {
        let (hasher, mut random) = (UserHasher::new(&[5; 16]), 7);
        let user = |name: String| {
            let key = hasher.user(&name);
            (name, key)
        };
        let popular = Zipf::new(ACCOUNTS, 1.0);
        let mut feed = |_| {
            let mut feed: Vec<usize> = Vec::with_capacity(FEED);
            while feed.len() < FEED {
                let account = popular.draw(&mut random);
                if !feed.contains(&account) {
                    feed.push(account);
                }
            }
            feed
        };
        Self {
            now: Tick::from_micros(1),
            revalidate,
            scheduler: LookupScheduler::new(true, 100),
            cache: PairCache::new(1_000_000),
            fence: Fence::with_slots(64, 64),
            stale_gate: StaleGate::default(),
            feeds: (0..viewers).map(&mut feed).collect(),
            viewers: (0..viewers).map(|number| user(format!("viewer{number}"))).collect(),
            accounts: (0..ACCOUNTS).map(|number| user(format!("account{number}"))).collect(),
            waiting: VecDeque::new(),
            missing: HashMap::new(),
            calls: VecDeque::new(),
            next_permit: Tick::NEVER,
            counts: Run::default(),
        }
    }

    /// Runs requests at random times, on average this many per second.
    fn run(mut self, per_second: f64) -> Run {
        let (mut random, viewers) = (11, Zipf::new(self.viewers.len(), 0.8));
        let end = self.now.after(WARM_UP + SPAN);
        let warm = self.now.after(WARM_UP);
        let mut arrival = self.now;
        let mut is_warm = false;
        while self.now < end {
            let answered = self.calls.front().map_or(Tick::LAST, |(at, _)| *at);
            let has_queued = self.scheduler.has_queued_at(Class::Refresh, self.now);
            let permit = if has_queued { self.next_permit.max(self.now) } else { Tick::LAST };
            self.now = arrival.min(answered).min(permit);
            if self.now >= warm && !is_warm {
                (is_warm, self.counts) = (true, Run::default());
            }
            self.give_up();
            if self.now == answered {
                self.answer();
            } else if self.now == arrival {
                self.request(viewers.draw(&mut random));
                arrival = arrival.after(Duration::from_secs_f64(-unit(&mut random).max(1e-9).ln() / per_second));
            } else {
                self.send();
            }
        }
        self.counts
    }

    fn request(&mut self, viewer: usize) {
        self.counts.requests += 1;
        let ((from, key), feed) = (&self.viewers[viewer], &self.feeds[viewer]);
        let options = CheckOptions {
            directives: CacheDirectives::default(),
            ttl: TTL,
            stale_if_error: Duration::ZERO,
            stale_while_revalidate: self.revalidate,
            partial: false,
            sides: Sides::Both,
        };
        let pairs = feed.iter().map(|account| Pair { from: *key, to: self.accounts[*account].1 });
        let mut session = CheckSession::new(pairs, options);
        let view = PairView { cache: &self.cache, fence: &self.fence, stale_gate: &self.stale_gate };
        session.scan(view, self.now);
        let name = |account: usize| self.accounts[feed[account]].0.as_str();
        let last_mark = |pair| self.fence.last_mark(pair);
        if session.has_due() {
            self.counts.stale += session.summary().sources.stale;
            let due = session.take_due(&self.cache, from, name);
            let refresh = Refresh { until: self.now.after(self.revalidate), caused_by: QueueKey(viewer as u64) };
            self.scheduler.refresh(&due, refresh, last_mark);
        }
        if session.next(view) == CheckStep::Respond {
            return;
        }
        self.counts.waited += 1;
        let wanted = session.wanted(from, name);
        let join = session.join_options(CallerQueue::interactive(QueueKey(viewer as u64)));
        let Ok((ticket, _)) = self.scheduler.enqueue(join, &wanted, last_mark) else { return self.counts.late += 1 };
        self.missing.insert(ticket, wanted.len());
        self.waiting.push_back((self.now, ticket));
    }

    /// Requests that have waited too long leave.
    fn give_up(&mut self) {
        while let Some((begun, ticket)) = self.waiting.front().copied() {
            let is_open = self.missing.contains_key(&ticket);
            if is_open && self.now.since(begun) < PATIENCE {
                return;
            }
            self.waiting.pop_front();
            self.counts.late += usize::from(is_open);
            self.missing.remove(&ticket);
            self.scheduler.cancel(ticket);
        }
    }

    /// A permit is used, for the first class that has pairs.
    fn send(&mut self) {
        self.next_permit = self.now.after(INTERVAL);
        if let Some(batch) = self.scheduler.next_batch(Class::Refresh, self.now) {
            self.counts.calls += 1;
            self.counts.refresh_calls += usize::from(batch.queue.class == Class::Refresh);
            self.calls.push_back((self.now.after(LATENCY), batch));
        }
    }

    fn answer(&mut self) {
        let Some((_, batch)) = self.calls.pop_front() else { return };
        let known = Item::Known(Relation::new(0).expect("two bits"));
        let mut items = Items::with_capacity(batch.to.len());
        batch.to.iter().for_each(|to| items.add(to.to_string().into(), known.clone()));
        let Completion { results, cacheable, .. } =
            self.scheduler.complete(batch.id, &BatchOutcome::Answered(&items), |pair| self.fence.last_mark(pair));
        for pair in cacheable {
            pair.store(&self.cache, &self.fence, Duration::ZERO);
        }
        for WaiterResult { ticket, .. } in results {
            if let Some(missing) = self.missing.get_mut(&ticket) {
                *missing -= 1;
                if *missing == 0 {
                    self.missing.remove(&ticket);
                    self.scheduler.cancel(ticket);
                }
            }
        }
    }
}

/// Runs a load and prints its row.
fn run(name: &str, load: Load, revalidate: u64) -> Run {
    let run = Simulation::new(load.viewers, Duration::from_secs(revalidate)).run(load.per_second);
    let Run { requests, waited, late, calls, refresh_calls, stale } = run;
    let name = format!("{name}, {revalidate} s");
    println!("{name:<24} {requests:>8} {waited:>8} {late:>8} {calls:>8} {refresh_calls:>8} {stale:>10}");
    run
}

#[derive(Clone, Copy)]
struct Load {
    viewers: usize,
    /// Requests per second.
    per_second: f64,
}

#[test]
fn refreshes_save_most_waits_at_half_the_quota_and_change_nothing_beyond_it() {
    println!("{:<24} requests   waited     late    calls  refresh      stale", "load and window");
    let half = Load { viewers: 500, per_second: 60.0 };
    let [off, short, long] = [0, 10, 30].map(|revalidate| run("half the quota", half, revalidate));
    let half = SPAN.as_secs_f64() / INTERVAL.as_secs_f64() / 2.0;
    assert!((off.calls as f64 - half).abs() < 0.1 * half, "{} calls are not half the quota", off.calls);
    assert!(long.waited * 5 <= off.waited && short.waited < off.waited, "{} of {} wait", long.waited, off.waited);
    assert!(long.calls * 20 <= off.calls * 21, "{} calls instead of {}", long.calls, off.calls);
    let twice = Load { viewers: 3000, per_second: 120.0 };
    let [off, long] = [0, 30].map(|revalidate| run("twice the quota", twice, revalidate));
    assert!(off.late > 0, "the quota suffices");
    assert!(long.late <= off.late && long.calls * 100 <= off.calls * 101, "{long:?} instead of {off:?}");
}
