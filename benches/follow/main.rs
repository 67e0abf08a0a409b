//! The number of calls to Chat that the gateway makes for its requests.
//!
//! `cargo bench --bench follow`. `benches/README.md` explains the output.

#![allow(clippy::print_stdout, reason = "it prints a table")]

mod chat;
mod gateway;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chatgate::clock;
use tokio::task::JoinSet;

use self::chat::Chat;
use self::gateway::{Client, Gateway, Outcome, percentile};

/// As in the program.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Chat's latency per call.
const LATENCY: Duration = Duration::from_millis(20);

fn main() {
    println!(
        "{:<44} {:>8} {:>8} {:>7} {:>6} {:>7} {:>9} {:>9} {:>8} {:>8} {:>8}",
        "scenario",
        "requests",
        "answered",
        "pairs",
        "calls",
        "/call",
        "/1k pairs",
        "/answered",
        "pairs/s",
        "p50 ms",
        "p99 ms"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        fans_at_once().await;
        fans_in_turn().await;
        for (times, creators) in [(1, 2000), (5, 2000), (5, 200)] {
            zipf(times, creators).await;
        }
        uniform("(c) random pairs, 0.8 x quota of 200/s", 160, 3).await;
        uniform("(c) random pairs, 2 x quota, 12 s of it", 400, 12).await;
        single_miss().await;
    });
}

/// (a) 500 simultaneous callers, each with one pair of a fan and one of five creators.
async fn fans_at_once() {
    let scene = Scene::new(20);
    let mut callers = JoinSet::new();
    for number in 0..500 {
        let client = Arc::clone(&scene.client);
        callers.spawn(async move { client.ask(&fan(number), &[creator(number % 5)]).await });
    }
    scene.report("(a) 500 fans of 5, at once, 20/s", callers.join_all().await);
}

/// (a) The same 500 callers, each sending the next request for a new fan right after the response.
async fn fans_in_turn() {
    let scene = Scene::new(20);
    let next = Arc::new(AtomicUsize::new(0));
    let mut callers = JoinSet::new();
    for number in 0..500 {
        let (client, next) = (Arc::clone(&scene.client), Arc::clone(&next));
        callers.spawn(async move {
            let mut outcomes = Vec::new();
            for turn in 0..20 {
                let fan = fan(next.fetch_add(1, Ordering::Relaxed));
                outcomes.push(client.ask(&fan, &[creator((number + turn) % 5)]).await);
            }
            outcomes
        });
    }
    let outcomes = callers.join_all().await.into_iter().flatten().collect();
    scene.report("(a) 500 fans of 5, again and again, 20/s", outcomes);
}

/// (b) Feeds of 30 distinct accounts. Viewers and creators follow Zipf's law.
async fn zipf(times: u32, creators: usize) {
    let scene = Scene::new(200);
    let (viewers, chosen) = (Zipf::new(10_000, 0.8), Zipf::new(creators, 1.0));
    let mut random = Random(7);
    let outcomes = open_loop(&scene.client, 200 * times, Duration::from_secs(5), || {
        let mut feed: Vec<usize> = Vec::with_capacity(30);
        while feed.len() < 30 {
            let one = chosen.choose(&mut random);
            if !feed.contains(&one) {
                feed.push(one);
            }
        }
        (fan(viewers.choose(&mut random)), feed.into_iter().map(creator).collect())
    });
    let outcomes = outcomes.await;
    scene.report(&format!("(b) feeds of 30 of {creators}, {times} x quota of 200/s"), outcomes);
}

/// (c) Random pairs without common users.
async fn uniform(name: &str, rate: u32, seconds: u64) {
    let scene = Scene::new(200);
    let mut random = Random(11);
    let outcomes = open_loop(&scene.client, rate, Duration::from_secs(seconds), || {
        (fan(random.below(1_000_000)), vec![creator(random.below(1_000_000))])
    });
    let outcomes = outcomes.await;
    scene.report(name, outcomes);
}

/// Sends single misses to an idle gateway, and the same requests directly to the fake Chat.
async fn single_miss() {
    let chat = Chat::start(Duration::ZERO, None);
    let gateway = Gateway::start(chat.address, 200);
    let (through, direct) = (Client::new(gateway.address), Client::new(chat.address));
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for number in 0..150 {
        // Longer than the quota's interval, so that no request waits.
        tokio::time::sleep(Duration::from_millis(15)).await;
        with.push(through.ask(&fan(number), &[creator(number)]).await.took);
        without.push(direct.ask(&fan(number), &[creator(number)]).await.took);
    }
    let micros = |times: &mut Vec<Duration>, share| percentile(times, share).as_micros();
    println!("\na single miss on an idle gateway, in µs");
    for share in [0.5, 0.99] {
        let (with, without) = (micros(&mut with, share), micros(&mut without, share));
        let added = with.saturating_sub(without);
        println!("  p{:<3} direct {without:>6}  through {with:>6}  added {added:>6}", share * 100.0);
    }
}

/// A fake Chat, a gateway in front of it, and its callers.
struct Scene {
    client: Arc<Client>,
    _gateway: Gateway,
    chat: Chat,
    begun: std::time::Instant,
}

impl Scene {
    fn new(per_second: u32) -> Self {
        let chat = Chat::start(LATENCY, None);
        let gateway = Gateway::start(chat.address, per_second);
        let client = Arc::new(Client::new(gateway.address));
        Self { client, _gateway: gateway, chat, begun: clock::now() }
    }

    fn report(&self, name: &str, outcomes: Vec<Outcome>) {
        let span = (clock::now() - self.begun).as_secs_f64();
        let (calls, pairs) = self.chat.counts();
        let mut waits: Vec<Duration> = outcomes.iter().filter(|one| one.answered).map(|one| one.took).collect();
        let ratio = |a: usize, b: usize| a as f64 / b.max(1) as f64;
        println!(
            "{name:<44} {:>8} {:>8} {pairs:>7} {calls:>6} {:>7.1} {:>9.1} {:>9.3} {:>8.0} {:>8.0} {:>8.0}",
            outcomes.len(),
            waits.len(),
            ratio(pairs, calls),
            1000.0 * ratio(calls, pairs),
            ratio(calls, waits.len()),
            pairs as f64 / span,
            percentile(&mut waits, 0.5).as_secs_f64() * 1000.0,
            percentile(&mut waits, 0.99).as_secs_f64() * 1000.0,
        );
    }
}

/// Sends requests at a steady rate, regardless of earlier responses.
async fn open_loop(
    client: &Arc<Client>,
    rate: u32,
    span: Duration,
    mut question: impl FnMut() -> (String, Vec<String>),
) -> Vec<Outcome> {
    let mut callers = JoinSet::new();
    let begun = clock::now();
    let number = span.as_secs() as u32 * rate;
    for at in 0..number {
        let due = begun + Duration::from_secs(1) * at / rate;
        tokio::time::sleep_until(due.into()).await;
        let (from, to) = question();
        let client = Arc::clone(client);
        callers.spawn(async move { client.ask(&from, &to).await });
    }
    callers.join_all().await
}

fn fan(number: usize) -> String {
    format!("f{number:011}")
}

fn creator(number: usize) -> String {
    format!("c{number:011}")
}

/// A sequence that looks random and is the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// A distribution over n numbers in which number k has the weight 1 / k^s.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(n: usize, s: f64) -> Self {
        let mut sum = 0.0;
        Self(
            (1..=n)
                .map(|k| {
                    sum += (k as f64).powf(-s);
                    sum
                })
                .collect(),
        )
    }

    fn choose(&self, random: &mut Random) -> usize {
        let all = self.0.last().copied().unwrap_or(0.0);
        let at = random.next() as f64 / u64::MAX as f64 * all;
        self.0.partition_point(|sum| *sum < at).min(self.0.len() - 1)
    }
}
