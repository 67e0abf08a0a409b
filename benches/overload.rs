//! What becomes of a gateway that is asked for more than fits, and of two that share a limit nobody told them.
//!
//! `cargo bench --bench overload`. How to read it stands in `benches/README.md`.

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
use self::gateway::{Asked, Client, Gateway, metrics, percentile};

/// As in the program.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What Chat takes for a call.
const LATENCY: Duration = Duration::from_millis(20);
/// Calls a second, as configured and as Chat allows by default.
const QUOTA: u32 = 200;
/// Requests a second that fit: each needs a call of its own.
const FITS: u32 = 180;
/// Users that the sandbox knows.
const SEEDED: u64 = 90_000;
/// How long each load lasts.
const SPAN: Duration = Duration::from_secs(8);
/// So many answers in a row, each within [`NORMAL`], are normal service.
const NORMAL_ROW: usize = 20;
const NORMAL: Duration = Duration::from_millis(100);

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        println!(
            "{:<6} {:>7} {:>7} {:>9} {:>9} {:>10} {:>10} {:>12} {:>12} {:>7} {:>12}",
            "load",
            "asked",
            "calls",
            "answered",
            "/s",
            "p50 ms",
            "p99 ms",
            "refused p50",
            "refused p99",
            "MiB",
            "normal after"
        );
        let (chat, mut random) = (Chat::start(LATENCY, None), Random(5));
        let gateway = Gateway::start(chat.address, QUOTA);
        let client = Arc::new(Client::new(gateway.address));
        for times in [1, 2, 5, 10] {
            overload(&client, &chat, times, &mut random).await;
        }
        two_that_do_not_know_of_each_other(&mut random).await;
    });
}

async fn overload(client: &Arc<Client>, chat: &Chat, times: u32, random: &mut Random) {
    let (before, begun) = (chat.counts().0, clock::now());
    let asked = open_loop(std::slice::from_ref(client), FITS * times, SPAN, random).await;
    let (ended, calls) = (clock::now(), chat.counts().0 - before);
    let mut row = 0;
    while row < NORMAL_ROW {
        let one = ask(client, random).await;
        row = if one.answered && one.took < NORMAL { row + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let normal_after = clock::now() - ended;
    let mut answered: Vec<Duration> = asked.iter().filter(|one| one.answered).map(|one| one.took).collect();
    let mut refused: Vec<Duration> = asked.iter().filter(|one| !one.answered).map(|one| one.took).collect();
    let millis = |times: &mut Vec<Duration>, share| percentile(times, share).as_secs_f64() * 1000.0;
    println!(
        "{:<6} {:>7} {calls:>7} {:>9} {:>9.0} {:>10.1} {:>10.1} {:>12.2} {:>12.2} {:>7} {:>10.0} ms",
        format!("{times} x"),
        asked.len(),
        answered.len(),
        answered.len() as f64 / (ended - begun).as_secs_f64(),
        millis(&mut answered, 0.5),
        millis(&mut answered, 0.99),
        millis(&mut refused, 0.5),
        millis(&mut refused, 0.99),
        resident_mib(),
        normal_after.as_secs_f64() * 1000.0,
    );
}

/// Two gateways, each told 200 calls a second, in front of a sandbox that takes 100 of both together.
async fn two_that_do_not_know_of_each_other(random: &mut Random) {
    const LIMIT: u32 = 100;
    const PHASES: u32 = 8;
    const PHASE: Duration = Duration::from_secs(10);
    let chat = Limited::start(LIMIT);
    let gateways = [0, 1].map(|_| Gateway::start(chat.address, QUOTA));
    let clients: Vec<_> = gateways.iter().map(|gateway| Arc::new(Client::new(gateway.address))).collect();
    println!("\ntwo gateways, {QUOTA}/s configured each, one limit of {LIMIT}/s, {} requests/s in all", 3 * LIMIT);
    println!("{:<12} {:>9} {:>10} {:>12}", "seconds", "taken/s", "refused/s", "of the limit");
    let mut before = counts(&gateways).await;
    let (begun, mut last) = (clock::now(), 0.0);
    for _ in 0..PHASES {
        open_loop(&clients, 3 * LIMIT, PHASE, random).await;
        let now = counts(&gateways).await;
        // Those that wait when a phase ends are still served: until then it lasts.
        let seconds = (clock::now() - begun).as_secs_f64();
        let per_second = |now: u64, before: u64| (now - before) as f64 / (seconds - last);
        let (taken, refused) = (per_second(now.0, before.0), per_second(now.1, before.1));
        println!(
            "{:<12} {taken:>9.1} {refused:>10.2} {:>10.0} %",
            format!("{last:.0} to {seconds:.0}"),
            taken * 100.0 / f64::from(LIMIT)
        );
        (before, last) = (now, seconds);
    }
}

/// Calls that Chat took, and that it refused for their rate, by the gateways' own metrics.
async fn counts(gateways: &[Gateway]) -> (u64, u64) {
    let (mut taken, mut refused) = (0, 0);
    for gateway in gateways {
        let text = metrics(gateway.admin).await.expect("the admin listener answers");
        for line in text.lines().filter(|line| line.starts_with("chatgate_upstream_calls_total{")) {
            let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0) as u64;
            match line {
                line if line.contains("error_code=\"0\"") => taken += value,
                line if line.contains("error_code=\"60007\"") => refused += value,
                _ => {}
            }
        }
    }
    (taken, refused)
}

/// The sandbox on a thread of its own, until it is dropped.
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
            seed_graph: Some(SeedGraph { users: (0..SEEDED).map(user).collect(), edges: Vec::new() }),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (stop, (tell, told)) = (CancellationToken::new(), std::sync::mpsc::channel());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let sandbox = Sandbox::bind(config).await.expect("a free port");
                tell.send(sandbox.address()).expect("somebody waits for it");
                sandbox.run(stopped).await;
            });
        });
        let address = told.recv().expect("it listens");
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

/// Asks all of `clients` in turn at a steady rate, whatever becomes of what was asked before.
async fn open_loop(clients: &[Arc<Client>], rate: u32, span: Duration, random: &mut Random) -> Vec<Asked> {
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

/// One request about a pair that nobody has asked for.
async fn ask(client: &Client, random: &mut Random) -> Asked {
    let (from, to) = random.pair();
    client.ask(&from, &[to]).await
}

/// Resident memory of this process: the gateway, the stand-in and the callers (proc(5), `statm`).
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
    /// Two users who are rarely asked about together, nor each of them at the same time as another.
    fn pair(&mut self) -> (String, String) {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            user((self.0 >> 33) % SEEDED)
        };
        (next(), next())
    }
}
