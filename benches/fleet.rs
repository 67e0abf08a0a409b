//! Replicas that share state through Redis: calls of all replicas under one limit, hits of a cold replica, and the
//! latency of an invalidation.
//!
//! `cargo bench --bench fleet`; needs `redis-server`. `benches/README.md` explains the output.

#![allow(clippy::print_stdout, reason = "it prints tables")]

#[path = "follow/chat.rs"]
mod chat;
#[path = "follow/gateway.rs"]
mod gateway;

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatgate::clock;
use chatgate::config::{Fleet, RedisForm};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use self::chat::Chat;
use self::gateway::{Client, Gateway, metrics, percentile};

/// As in the program.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Chat's latency per call, where calls are counted.
const LATENCY: Duration = Duration::from_millis(20);
/// Calls per second of all replicas together.
const QUOTA: u32 = 200;
/// Quota where latency is measured, so that no request waits for it.
const PLENTY: u32 = 1_000_000;
/// Requests per second to all replicas, each of which needs a call: twice the quota.
const ASKED: u32 = 400;
/// Duration of the load.
const SPAN: Duration = Duration::from_secs(8);
/// The start of the load, in which the replicas learn each other's demand. It is excluded from the mean.
const BEGINNING: Duration = Duration::from_secs(2);
/// Timed requests of each kind, and timed invalidations.
const TIMED: usize = 2000;
const EVICTIONS: usize = 300;
/// Feeds requested from a replica, and accounts in each.
const FEEDS: usize = 300;
const FEED_LEN: usize = 30;
/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let redis = Redis::start().await;
        println!("{:>8} {:>8} {:>10} {:>13} {:>14}", "replicas", "calls", "calls/s", "of the limit", "worst second");
        for replicas in [1, 2, 4, 8] {
            under_one_limit(&redis, replicas).await;
        }
        cold_replica(&redis).await;
        hit_latency(&redis).await;
        invalidation_latency(&redis).await;
    });
}

/// Sends more requests than the quota allows to all replicas, for pairs without common users.
async fn under_one_limit(redis: &Redis, replicas: u32) {
    let chat = Chat::start(LATENCY, None);
    let gateways = redis.replicas(&chat, &format!("limit-{replicas}"), replicas).await;
    let clients: Vec<_> = gateways.iter().map(|gateway| Arc::new(Client::new(gateway.address))).collect();
    let (begun, mut callers) = (clock::now(), JoinSet::new());
    for at in 0..SPAN.as_secs() as u32 * ASKED {
        tokio::time::sleep_until((begun + Duration::from_secs(1) * at / ASKED).into()).await;
        let client = Arc::clone(&clients[at as usize % clients.len()]);
        callers.spawn(async move { client.ask(&format!("from-{at}"), &[format!("to-{at}")]).await });
    }
    let until = clock::now();
    let mut times = chat.times();
    times.retain(|time| *time < until);
    times.sort_unstable();
    let counted = times.iter().filter(|time| **time >= begun + BEGINNING).count();
    let rate = counted as f64 / (until - begun - BEGINNING).as_secs_f64();
    println!(
        "{replicas:>8} {:>8} {rate:>10.1} {:>11.0} % {:>14}",
        times.len(),
        rate * 100.0 / f64::from(QUOTA),
        worst_second(&times)
    );
    callers.join_all().await;
}

/// Returns the most calls in any second.
fn worst_second(times: &[Instant]) -> usize {
    let second = Duration::from_secs(1);
    let within = |at: usize| times[at..].partition_point(|time| *time < times[at] + second);
    (0..times.len()).map(within).max().unwrap_or(0)
}

/// Requests feeds of the same users from one replica, then from a new one.
async fn cold_replica(redis: &Redis) {
    println!("\n{:<22} {:>8} {:>16} {:>12}", "a cold replica", "pairs", "fetched", "cached");
    for shared in [true, false] {
        let (chat, mut random) = (Chat::start(Duration::ZERO, None), Random(11));
        let first = redis.replicas(&chat, "warm", 1).await;
        let second = redis.replicas(&chat, if shared { "warm" } else { "cold" }, 1).await;
        let (warm, cold) = (Client::new(first[0].address), Client::new(second[0].address));
        let feed = async |client: &Client, random: &mut Random| {
            let (viewer, accounts) = random.feed();
            client.ask(&viewer, &accounts).await;
        };
        for _ in 0..FEEDS {
            feed(&warm, &mut random).await;
        }
        let before = chat.counts().1;
        for _ in 0..FEEDS {
            feed(&cold, &mut random).await;
        }
        let (all, fetched) = (FEEDS * FEED_LEN, chat.counts().1 - before);
        let cached = 100.0 * (all - fetched.min(all)) as f64 / all as f64;
        println!(
            "{:<22} {all:>8} {fetched:>16} {cached:>10.1} %",
            if shared { "with a warm replica" } else { "alone" }
        );
    }
}

/// Sends requests with one pair, one after the other, in front of a Chat without latency.
async fn hit_latency(redis: &Redis) {
    let chat = Chat::start(Duration::ZERO, None);
    let both = redis.replicas(&chat, "hits", 2).await;
    let (warm, cold) = (Client::new(both[0].address), Client::new(both[1].address));
    let gateway = Gateway::start(chat.address, PLENTY);
    let standalone = Client::new(gateway.address);
    println!("\n{:<34} {:>8} {:>8} {:>8}", "one pair", "p50 ms", "p99 ms", "calls");
    let pairs: Vec<_> = (0..TIMED).map(|at| (format!("viewer-{at}"), [format!("account-{at}")])).collect();
    for (what, client, may_call) in [
        ("miss without a fleet", &standalone, true),
        ("miss after a Redis lookup", &warm, true),
        ("local hit", &warm, false),
        ("hit in Redis", &cold, false),
    ] {
        let (before, mut times) = (chat.counts().0, Vec::with_capacity(TIMED));
        for (from, to) in &pairs {
            let outcome = client.ask(from, to).await;
            assert!(outcome.answered, "{what}");
            times.push(outcome.took);
        }
        let calls = chat.counts().0 - before;
        assert!(may_call || calls < TIMED / 20, "{what}: {calls} calls to Chat");
        print_times(what, 34, &mut times, &[0.5, 0.99], calls);
    }
}

/// Measures from the response of the invalidating replica until the other replica no longer has the pair.
async fn invalidation_latency(redis: &Redis) {
    let chat = Chat::start(Duration::ZERO, None);
    let both = redis.replicas(&chat, "evictions", 2).await;
    let (one, admin, other) = (Client::new(both[0].address), Client::new(both[0].admin), Client::new(both[1].address));
    let mut times = Vec::with_capacity(EVICTIONS);
    for at in 0..EVICTIONS {
        let (from, to) = (format!("viewer-{at}"), [format!("account-{at}")]);
        assert!(one.ask(&from, &to).await.answered && other.ask(&from, &to).await.answered);
        let body = serde_json::json!({"From_Account": from, "To_Account": to}).to_string();
        let invalidated = async {
            assert!(admin.post("/cache/evict", "no-cache", body).await.answered);
            clock::now()
        };
        let dropped = async {
            let begun = clock::now();
            while other.ask_cache(&from, &to).await.answered {
                assert!(clock::now() - begun < PATIENCE, "the other replica keeps the pair");
            }
            clock::now()
        };
        let (invalidated, dropped) = tokio::join!(invalidated, dropped);
        times.push(dropped.saturating_duration_since(invalidated));
    }
    println!("\n{:<34} {:>8} {:>8} {:>8} {:>8}", "an invalidation", "p50 ms", "p99 ms", "max ms", "count");
    print_times("applied by another replica", 34, &mut times, &[0.5, 0.99, 1.0], EVICTIONS);
}

fn print_times(what: &str, width: usize, times: &mut [Duration], shares: &[f64], last: usize) {
    print!("{what:<width$}");
    for share in shares {
        print!(" {:>8.2}", percentile(times, *share).as_secs_f64() * 1000.0);
    }
    println!(" {last:>8}");
}

/// A `redis-server` on a free port, without persistence.
struct Redis {
    child: Child,
    address: SocketAddr,
}

impl Redis {
    async fn start() -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.expect("a free port");
        let port = address.port().to_string();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.current_dir(std::env::temp_dir()).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().expect("redis-server is installed");
        let redis = Self { child, address };
        until("Redis listens", async || TcpStream::connect(address).await.is_ok()).await;
        redis
    }

    /// Starts `count` replicas of the fleet `name`, and waits until all are connected.
    async fn replicas(&self, chat: &Chat, name: &str, count: u32) -> Vec<Gateway> {
        let quota = if name.starts_with("limit") { QUOTA } else { PLENTY };
        let url = format!("redis://{}", self.address).parse().expect("an address");
        let fleet = Fleet::new(RedisForm::Primary(url), &format!("bench-{name}"), 1.0 / f64::from(count));
        let start = |_| Gateway::start_in(chat.address, quota, Some(fleet.clone()));
        let gateways: Vec<_> = (0..count).map(start).collect();
        for gateway in &gateways {
            let is_connected = async || {
                let text = metrics(gateway.admin).await.unwrap_or_default();
                text.contains("\nchatgate_fleet_connected 1\n")
            };
            until("replicas are connected", is_connected).await;
        }
        gateways
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let begun = clock::now();
    while !condition().await {
        assert!(clock::now() - begun < PATIENCE, "waited without success for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A sequence that looks random and is the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as f64 / (1_u64 << 31) as f64
    }

    /// Returns one of 50 viewers, and some of 400 accounts, a few of which occur in most feeds.
    fn feed(&mut self) -> (String, Vec<String>) {
        let viewer = format!("viewer-{}", (self.next() * 50.0) as u32);
        let mut accounts = std::collections::BTreeSet::new();
        while accounts.len() < FEED_LEN {
            accounts.insert((self.next().powi(2) * 400.0) as u32);
        }
        (viewer, accounts.iter().map(|account| format!("account-{account}")).collect())
    }
}
