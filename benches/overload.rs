//! A gateway under more load than its quota allows, and two gateways that share a limit without knowing of each other.
//!
//! `cargo bench --bench overload`. `benches/README.md` explains the output.

#![allow(clippy::print_stdout, reason = "it prints a table")]

#[path = "follow/chat.rs"]
mod chat;
#[path = "follow/gateway.rs"]
mod gateway;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use chatgate::clock;
use chatgate::domain::chat::app::{SdkAppId, SecretKey};
use chatgate::sandbox::{Sandbox, SandboxConfig, SandboxTls, SeedGraph};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::chat::Chat;
use self::gateway::{Client, Gateway, Outcome, metrics, percentile};

/// As in the program.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Chat's latency per call.
const LATENCY: Duration = Duration::from_millis(20);
/// Calls per second, as configured and as allowed by Chat by default.
const QUOTA: u32 = 200;
/// Requests per second that fit: each needs a separate call.
const FITS: u32 = 180;
/// Users in the simulator.
const SEEDED: u64 = 90_000;
/// Duration of each load.
const SPAN: Duration = Duration::from_secs(8);
/// Consecutive responses, each within [`NORMAL`], that count as normal service.
const NORMAL_ROW: usize = 20;
const NORMAL: Duration = Duration::from_millis(100);

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        println!(
            "{:<6} {:>8} {:>7} {:>9} {:>9} {:>10} {:>10} {:>12} {:>12} {:>7} {:>12}",
            "load",
            "requests",
            "calls",
            "answered",
            "/s",
            "p50 ms",
            "p99 ms",
            "rejected p50",
            "rejected p99",
            "MiB",
            "normal after"
        );
        let (chat, mut random) = (Chat::start(LATENCY, None), Random(5));
        let gateway = Gateway::start(chat.address, QUOTA);
        let client = Arc::new(Client::new(gateway.address));
        for times in [1, 2, 5, 10] {
            overload(&client, &chat, times, &mut random).await;
        }
        independent_gateways(&mut random).await;
    });
}

async fn overload(client: &Arc<Client>, chat: &Chat, times: u32, random: &mut Random) {
    let (before, begun) = (chat.counts().0, clock::now());
    let outcomes = open_loop(std::slice::from_ref(client), FITS * times, SPAN, random).await;
    let (ended, calls) = (clock::now(), chat.counts().0 - before);
    let mut row = 0;
    while row < NORMAL_ROW {
        let one = ask(client, random).await;
        row = if one.answered && one.took < NORMAL { row + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let normal_after = clock::now() - ended;
    let mut answered: Vec<Duration> = outcomes.iter().filter(|one| one.answered).map(|one| one.took).collect();
    let mut rejected: Vec<Duration> = outcomes.iter().filter(|one| !one.answered).map(|one| one.took).collect();
    let millis = |times: &mut Vec<Duration>, share| percentile(times, share).as_secs_f64() * 1000.0;
    println!(
        "{:<6} {:>8} {calls:>7} {:>9} {:>9.0} {:>10.1} {:>10.1} {:>12.2} {:>12.2} {:>7} {:>10.0} ms",
        format!("{times} x"),
        outcomes.len(),
        answered.len(),
        answered.len() as f64 / (ended - begun).as_secs_f64(),
        millis(&mut answered, 0.5),
        millis(&mut answered, 0.99),
        millis(&mut rejected, 0.5),
        millis(&mut rejected, 0.99),
        resident_mib(),
        normal_after.as_secs_f64() * 1000.0,
    );
}

/// Runs two gateways, each configured for 200 calls per second, in front of a simulator that accepts 100 in total.
async fn independent_gateways(random: &mut Random) {
    const LIMIT: u32 = 100;
    const PHASES: u32 = 8;
    const PHASE: Duration = Duration::from_secs(10);
    let chat = Limited::start(LIMIT);
    let gateways = [0, 1].map(|_| Gateway::start(chat.address, QUOTA));
    let clients: Vec<_> = gateways.iter().map(|gateway| Arc::new(Client::new(gateway.address))).collect();
    println!("\ntwo gateways, {QUOTA}/s configured each, one limit of {LIMIT}/s, {} requests/s in all", 3 * LIMIT);
    println!("{:<12} {:>10} {:>11} {:>12}", "seconds", "accepted/s", "throttled/s", "of the limit");
    let mut before = counts(&gateways).await;
    let (begun, mut last) = (clock::now(), 0.0);
    for _ in 0..PHASES {
        open_loop(&clients, 3 * LIMIT, PHASE, random).await;
        let now = counts(&gateways).await;
        // A phase lasts until the requests that wait at its end are answered.
        let seconds = (clock::now() - begun).as_secs_f64();
        let per_second = |now: u64, before: u64| (now - before) as f64 / (seconds - last);
        let (accepted, throttled) = (per_second(now.0, before.0), per_second(now.1, before.1));
        println!(
            "{:<12} {accepted:>10.1} {throttled:>11.2} {:>10.0} %",
            format!("{last:.0} to {seconds:.0}"),
            accepted * 100.0 / f64::from(LIMIT)
        );
        (before, last) = (now, seconds);
    }
}

/// Returns the calls that Chat accepted and the calls that it throttled, by the gateways' metrics.
async fn counts(gateways: &[Gateway]) -> (u64, u64) {
    let (mut accepted, mut throttled) = (0, 0);
    for gateway in gateways {
        let text = metrics(gateway.admin).await.expect("the admin listener answers");
        for line in text.lines().filter(|line| line.starts_with("chatgate_upstream_calls_total{")) {
            let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0) as u64;
            match line {
                line if line.contains("error_code=\"0\"") => accepted += value,
                line if line.contains("error_code=\"60007\"") => throttled += value,
                _ => {}
            }
        }
    }
    (accepted, throttled)
}

/// A simulator on a separate thread. Dropping it stops the thread.
struct Limited {
    address: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Limited {
    fn start(qps: u32) -> Self {
        let config = SandboxConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            sdkappid: SdkAppId::new(1_400_000_001).expect("not 0"),
            identifier: "administrator".parse().expect("a name"),
            secret_key: SecretKey::new("bench").expect("not empty"),
            tls: SandboxTls::Off,
            qps: NonZeroU32::new(qps).expect("not 0"),
            latency: LATENCY,
            webhook: None,
            seed_graph: Some(SeedGraph { users: (0..SEEDED).map(user).collect(), ..SeedGraph::default() }),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (stop, (tx, rx)) = (CancellationToken::new(), std::sync::mpsc::channel());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let sandbox = Sandbox::bind(config).await.expect("a free port");
                tx.send(sandbox.address()).expect("the receiver waits");
                sandbox.run(stopped).await;
            });
        });
        let address = rx.recv().expect("the simulator listens");
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends requests to all `clients` in turn at a steady rate, regardless of earlier responses.
async fn open_loop(clients: &[Arc<Client>], rate: u32, span: Duration, random: &mut Random) -> Vec<Outcome> {
    let mut callers = JoinSet::new();
    let begun = clock::now();
    for at in 0..span.as_secs() as u32 * rate {
        tokio::time::sleep_until((begun + Duration::from_secs(1) * at / rate).into()).await;
        let client = Arc::clone(&clients[at as usize % clients.len()]);
        let (from, to) = random.pair();
        callers.spawn(async move { client.ask(&from, &[to]).await });
    }
    callers.join_all().await
}

/// Sends one request for a new pair.
async fn ask(client: &Client, random: &mut Random) -> Outcome {
    let (from, to) = random.pair();
    client.ask(&from, &[to]).await
}

/// Returns the resident memory of this process: the gateway, the simulator and the callers (proc(5), `statm`).
fn resident_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
    pages * 4 / 1024
}

fn user(number: u64) -> String {
    format!("u{number:011}")
}

/// A sequence that looks random and is the same in every run.
struct Random(u64);

impl Random {
    /// Returns two random users, so that pairs and users rarely repeat.
    fn pair(&mut self) -> (String, String) {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            user((self.0 >> 33) % SEEDED)
        };
        (next(), next())
    }
}
