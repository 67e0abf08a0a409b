//! What replicas share through Redis, and how fast: calls of all together under one limit, what a cold replica
//! knows, and how long an eviction takes.
//!
//! `cargo bench --bench fleet`; needs `redis-server`. How to read it stands in `benches/README.md`.

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
use chatgate::config::Fleet;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use self::chat::Chat;
use self::gateway::{Client, Gateway, metrics, percentile};

/// As in the program.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What Chat takes for a call, where calls are what counts.
const LATENCY: Duration = Duration::from_millis(20);
/// Calls a second of all replicas together.
const QUOTA: u32 = 200;
/// Where time is taken nobody is to wait for quota.
const PLENTY: u32 = 1_000_000;
/// Requests a second to all of them, each of which needs a call: twice what fits.
const ASKED: u32 = 400;
/// How long they are asked.
const SPAN: Duration = Duration::from_secs(8);
/// The first of it, in which replicas find out who needs what, is not in the mean.
const BEGINNING: Duration = Duration::from_secs(2);
/// Requests of each kind whose time is taken, and evictions.
const TIMED: usize = 2000;
const EVICTIONS: usize = 300;
/// Feeds that a replica is asked for, and accounts in each.
const FEEDS: usize = 300;
const FEED_LEN: usize = 30;
/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let redis = Redis::start().await;
        println!("{:>8} {:>8} {:>10} {:>13} {:>14}", "replicas", "calls", "calls/s", "of the limit", "worst second");
        for replicas in [1, 2, 4, 8] {
            under_one_limit(&redis, replicas).await;
        }
        a_cold_one_beside_a_warm_one(&redis).await;
        how_long_hits_take(&redis).await;
        how_long_evictions_take(&redis).await;
    });
}

/// Replicas that are all asked for more than fits, about pairs that share nobody.
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

/// Most calls in any second.
fn worst_second(times: &[Instant]) -> usize {
    let second = Duration::from_secs(1);
    let within = |at: usize| times[at..].partition_point(|time| *time < times[at] + second);
    (0..times.len()).map(within).max().unwrap_or(0)
}

/// Feeds of the same people: first one replica is asked for some, then a new one for others.
async fn a_cold_one_beside_a_warm_one(redis: &Redis) {
    println!("\n{:<22} {:>8} {:>16} {:>12}", "a cold replica", "pairs", "asked of Chat", "known");
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
        let (all, asked) = (FEEDS * FEED_LEN, chat.counts().1 - before);
        let known = 100.0 * (all - asked.min(all)) as f64 / all as f64;
        println!("{:<22} {all:>8} {asked:>16} {known:>10.1} %", if shared { "beside a warm one" } else { "by itself" });
    }
}

/// One pair a request, one request after the other, and a Chat that takes no time.
async fn how_long_hits_take(redis: &Redis) {
    let chat = Chat::start(Duration::ZERO, None);
    let both = redis.replicas(&chat, "hits", 2).await;
    let (warm, cold) = (Client::new(both[0].address), Client::new(both[1].address));
    let gateway = Gateway::start(chat.address, PLENTY);
    let alone = Client::new(gateway.address);
    println!("\n{:<34} {:>8} {:>8} {:>8}", "one pair", "p50 ms", "p99 ms", "asked");
    let pairs: Vec<_> = (0..TIMED).map(|at| (format!("viewer-{at}"), [format!("account-{at}")])).collect();
    for (what, client, may_ask) in [
        ("not known, without a fleet", &alone, true),
        ("not known, first asked of Redis", &warm, true),
        ("known here", &warm, false),
        ("known in Redis", &cold, false),
    ] {
        let (before, mut times) = (chat.counts().0, Vec::with_capacity(TIMED));
        for (from, to) in &pairs {
            let asked = client.ask(from, to).await;
            assert!(asked.answered, "{what}");
            times.push(asked.took);
        }
        let asked = chat.counts().0 - before;
        assert!(may_ask || asked < TIMED / 20, "{what}: {asked} were asked of Chat");
        print_times(what, 34, &mut times, &[0.5, 0.99], asked);
    }
}

/// From the answer of the one that evicts until the other does not know any more.
async fn how_long_evictions_take(redis: &Redis) {
    let chat = Chat::start(Duration::ZERO, None);
    let both = redis.replicas(&chat, "evictions", 2).await;
    let (one, orders, other) = (Client::new(both[0].address), Client::new(both[0].admin), Client::new(both[1].address));
    let mut times = Vec::with_capacity(EVICTIONS);
    for at in 0..EVICTIONS {
        let (from, to) = (format!("viewer-{at}"), [format!("account-{at}")]);
        assert!(one.ask(&from, &to).await.answered && other.ask(&from, &to).await.answered);
        let body = serde_json::json!({"From_Account": from, "To_Account": to}).to_string();
        let order = async {
            assert!(orders.post("/cache/evict", "no-cache", body).await.answered);
            clock::now()
        };
        let forgotten = async {
            let begun = clock::now();
            while other.knows(&from, &to).await.answered {
                assert!(clock::now() - begun < PATIENCE, "it is never forgotten");
            }
            clock::now()
        };
        let (told, forgotten) = tokio::join!(order, forgotten);
        times.push(forgotten.saturating_duration_since(told));
    }
    println!("\n{:<34} {:>8} {:>8} {:>8} {:>8}", "an eviction", "p50 ms", "p99 ms", "max ms", "tried");
    print_times("heard by another replica", 34, &mut times, &[0.5, 0.99, 1.0], EVICTIONS);
}

fn print_times(what: &str, width: usize, times: &mut [Duration], shares: &[f64], last: usize) {
    print!("{what:<width$}");
    for share in shares {
        print!(" {:>8.2}", percentile(times, *share).as_secs_f64() * 1000.0);
    }
    println!(" {last:>8}");
}

/// `redis-server` on a port of its own, which keeps nothing on disk.
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

    /// So many replicas of a fleet of that name, which have found each other.
    async fn replicas(&self, chat: &Chat, name: &str, count: u32) -> Vec<Gateway> {
        let quota = if name.starts_with("limit") { QUOTA } else { PLENTY };
        let url = format!("redis://{}", self.address).parse().expect("an address");
        let fleet = Fleet::new(url, &format!("bench-{name}"), 1.0 / f64::from(count));
        let start = |_| Gateway::start_in(chat.address, quota, Some(fleet.clone()));
        let gateways: Vec<_> = (0..count).map(start).collect();
        for gateway in &gateways {
            let is_together = async || {
                let text = metrics(gateway.admin).await.unwrap_or_default();
                text.contains("\nchatgate_fleet_together 1\n")
            };
            until("replicas are together", is_together).await;
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

async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let begun = clock::now();
    while !is_so().await {
        assert!(clock::now() - begun < PATIENCE, "waited in vain: {what}");
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

    /// One of 50 viewers, and accounts of 400, a few of which everybody sees again and again.
    fn feed(&mut self) -> (String, Vec<String>) {
        let viewer = format!("viewer-{}", (self.next() * 50.0) as u32);
        let mut accounts = std::collections::BTreeSet::new();
        while accounts.len() < FEED_LEN {
            accounts.insert((self.next().powi(2) * 400.0) as u32);
        }
        (viewer, accounts.iter().map(|account| format!("account-{account}")).collect())
    }
}
