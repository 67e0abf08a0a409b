//! Slow effects: stalls, memory under churn, and several CPUs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chatgate::clock;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::chat::Chat;
use super::load::{Load, Outcome};
use super::process::{cpu_nanos, resident_kib};
use super::targets::{Running, Setup, Target};
use super::work::Work;

/// Requests per second of the steady load to each of the two targets.
const RATE: f64 = 2_500.0;
const SCRAPED_EVERY: Duration = Duration::from_secs(1);
const RELOADED_EVERY: Duration = Duration::from_secs(10);
/// Shortest response time that counts as a stall.
const STALL: Duration = Duration::from_millis(10);
/// A table that fills up within 2 s, and enough pairs to fill it ten times before a pair repeats.
const CHURN_MAX_PAIRS: usize = 200_000;
const CHURN_REQUESTS: usize = 20_000;

/// Runs all parts: the steady load for `seconds`, the rest in proportion.
pub(crate) async fn run(seconds: u64) {
    steady(Duration::from_secs(seconds)).await;
    churn(Duration::from_secs(seconds / 5)).await;
    cpus(Duration::from_secs((seconds / 60).max(2))).await;
}

/// Sends hits at a fixed rate to chatgate and to a bare server at the same time, while cached pairs expire, signatures
/// are renewed, metrics are scraped, and the configuration is reloaded. A stall of both comes from the machine.
async fn steady(span: Duration) {
    let (work, chat) = (Work::HitsOpen, Chat::start(Duration::ZERO, None));
    let answer = work.answer();
    let plain = Setup::new(chat.address, None, &answer);
    let gateway = Target::Chatgate.start(Setup { ttl: "10s", usersig_lifetime: "60s", ..plain });
    let bare = Target::Bare.start(plain);
    let at = |running: &Running| (work.load(running.address), running.address);
    let ((asked, address), (bare_asked, bare_address)) = (at(&gateway), at(&bare));
    asked.warm(address).await;
    let before = resident_kib(gateway.pid()).0;
    let (own, others, (scrapes, reloads)) = tokio::join!(
        asked.open(address, RATE, span),
        bare_asked.open(bare_address, RATE, span),
        scrape_and_reload(&gateway, span)
    );
    println!("\n{RATE} requests per second with 10 cached accounts for {} s, ttl 10 s", span.as_secs());
    println!("{scrapes} scrapes of metrics, {reloads} reloads, {} calls to Chat", chat.counts().0);
    println!(
        "{:<12} {:>9} {:>7} {:>8} {:>8} {:>9} {:>9} {:>12}",
        "target", "answered", "failed", "p50 µs", "p99 µs", "p99.9 µs", "most ms", "over 10 ms"
    );
    for (name, mut outcome) in [("chatgate", own), ("bare hyper", others)] {
        outcome.took.sort_unstable();
        let stalls = outcome.took.iter().filter(|took| **took > STALL).count();
        println!(
            "{name:<12} {:>9} {:>7} {:>8.0} {:>8.0} {:>9.0} {:>9.1} {:>12}",
            outcome.took.len(),
            outcome.failed,
            micros(&outcome, 0.5),
            micros(&outcome, 0.99),
            micros(&outcome, 0.999),
            micros(&outcome, 1.0) / 1000.0,
            stalls,
        );
    }
    println!("resident: {before} KiB before, {} after", resident_kib(gateway.pid()).0);
}

/// Scrapes a gateway every second and reloads it every 10 s. Returns both counts.
async fn scrape_and_reload(gateway: &Running, span: Duration) -> (usize, usize) {
    let (until, pid) = (clock::now() + span, Pid::from_raw(gateway.pid() as i32).expect("not 0"));
    let (mut scrapes, mut reloads, mut reload_at) = (0, 0, clock::now() + RELOADED_EVERY);
    while clock::now() < until {
        tokio::time::sleep(SCRAPED_EVERY).await;
        scrapes += usize::from(scrape(&gateway.admin()).await);
        if clock::now() >= reload_at {
            kill_process(pid, Signal::HUP).expect("the gateway is running");
            reload_at += RELOADED_EVERY;
            reloads += 1;
        }
    }
    (scrapes, reloads)
}

async fn scrape(admin: &Path) -> bool {
    let mut stream = UnixStream::connect(admin).await.expect("the gateway listens");
    let request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.expect("the gateway reads");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("the gateway answers");
    answer.starts_with(b"HTTP/1.1 200")
}

fn micros(outcome: &Outcome, share: f64) -> f64 {
    let at = ((outcome.took.len() as f64 * share) as usize).min(outcome.took.len().saturating_sub(1));
    outcome.took.get(at).map_or(0.0, |took| took.as_secs_f64() * 1e6)
}

/// Sends requests for new pairs as fast as the gateway answers, with a table that is soon full.
async fn churn(span: Duration) {
    let chat = Chat::start(Duration::ZERO, None);
    let setup = Setup { max_pairs: CHURN_MAX_PAIRS, ..Setup::new(chat.address, None, "") };
    let gateway = Target::Chatgate.start(setup);
    let load = distinct_pairs(gateway.address.to_string().as_str());
    let steps = 6;
    println!("\nall new: requests with 100 pairs for {} s, at most {CHURN_MAX_PAIRS} cached pairs", span.as_secs());
    println!("{:>7} {:>12} {:>8} {:>10}", "s", "pairs", "failed", "KiB");
    println!("{:>7} {:>12} {:>8} {:>10}", 0, 0, 0, resident_kib(gateway.pid()).0);
    let (mut answered, mut failed) = (0, 0);
    for step in 1..=steps {
        let outcome = load.closed(gateway.address, 64, span / steps).await;
        (answered, failed) = (answered + outcome.took.len(), failed + outcome.failed);
        let seconds = (span / steps * step).as_secs();
        println!("{seconds:>7} {:>12} {failed:>8} {:>10}", answered * 100, resident_kib(gateway.pid()).0);
    }
}

/// Returns requests without common pairs.
fn distinct_pairs(host: &str) -> Load {
    let request = |number: usize| {
        let to: Vec<String> = (0..100).map(|at| format!("\"{:012}\"", number * 100 + at)).collect();
        let body = format!(r#"{{"From_Account":"asker{number}","To_Account":[{}]}}"#, to.join(","));
        let head = format!("POST /v4/follow/follow_check HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}", body.len());
        format!("{head}\r\n\r\n{body}").into_bytes()
    };
    Load { requests: Arc::new((0..CHURN_REQUESTS).map(request).collect()), expected: b"\"ErrorCode\":0" }
}

/// Runs the same load on one CPU and on all CPUs. Callers need CPUs too, so requests per second say little; the cost
/// per request shows whether threads contend.
async fn cpus(span: Duration) {
    let work = Work::Hits(10);
    println!("\nfollow_check of 10 accounts, all cached");
    println!("{:<16} {:>9} {:>12}", "CPUs", "req/s", "CPU µs/req");
    for _ in 0..3 {
        for pinned in [true, false] {
            let chat = Chat::start(Duration::ZERO, None);
            let gateway = Target::Chatgate.start(Setup { pinned, ..Setup::new(chat.address, None, "") });
            let load = work.load(gateway.address);
            load.warm(gateway.address).await;
            load.closed(gateway.address, work.connections(), span / 4).await;
            let (cpu, begun) = (cpu_nanos(gateway.pid()), clock::now());
            let outcome = load.closed(gateway.address, work.connections(), span).await;
            let (seconds, answered) = ((clock::now() - begun).as_secs_f64(), outcome.took.len() as f64);
            let cost = (cpu_nanos(gateway.pid()) - cpu) as f64 / 1000.0 / answered;
            let name = if pinned { "one" } else { "all" };
            println!("{name:<16} {:>9.0} {cost:>12.1}", answered / seconds);
        }
    }
}
