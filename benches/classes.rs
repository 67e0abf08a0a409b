//! A batch caller far above the quota, and an interactive caller next to it.
//!
//! `cargo bench --bench classes`. `benches/README.md` explains the output.

#![allow(clippy::print_stdout, reason = "it prints a table")]

#[path = "follow/chat.rs"]
mod chat;
#[path = "follow/gateway.rs"]
mod gateway;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chatgate::clock;
use chatgate::config::{Env, load_text};
use tokio::task::JoinSet;

use self::chat::Chat;
use self::gateway::{Client, Gateway, Outcome, metrics, percentile};

/// As in the program.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Chat's latency per call.
const LATENCY: Duration = Duration::from_millis(20);
/// Calls per second.
const QUOTA: u32 = 50;
/// Requests per second of the interactive caller: 20 % of the quota. Each needs a separate call.
const INTERACTIVE: u32 = 10;
/// Requests per second of the batch caller: 10 times the quota.
const BATCH: u32 = 500;
/// Duration of each load.
const SPAN: Duration = Duration::from_secs(30);
const FEED: &str = "token-of-the-feed";
const JOB: &str = "token-of-the-backfill";

fn main() {
    println!(
        "{:<10} {:<13} {:>8} {:>9} {:>8} {:>8} {:>8} {:>13} {:>12}",
        "reserve", "load", "requests", "answered", "p50 ms", "p90 ms", "p99 ms", "feed calls/s", "job calls/s"
    );
    let mut pace = None;
    for reserve in ["", "5/s"] {
        let chat = Chat::start(LATENCY, None);
        let gateway = start(chat.address, reserve);
        let bench = Bench { address: gateway.address, admin: gateway.admin, reserve };
        let feed_alone = bench.run("feed alone", INTERACTIVE, 0);
        let job_alone = bench.run("job alone", 0, BATCH);
        let both = bench.run("feed and job", INTERACTIVE, BATCH);
        // What the quota really grants, by the run without a reserve.
        let pace = *pace.get_or_insert(job_alone.job);
        let rest = job_alone.job.min(pace - both.feed);
        let later = both.p99.saturating_sub(feed_alone.p99).as_secs_f64() * pace;
        println!(
            "feed: p99 is {later:.2} call intervals later; job: {:.1} % of the {rest:.1} calls/s that are left",
            both.job * 100.0 / rest
        );
    }
}

/// Starts a gateway with an interactive caller `feed` and a batch caller `job`.
fn start(chat: SocketAddr, reserve: &str) -> Gateway {
    let reserve = if reserve.is_empty() { String::new() } else { format!("quota.reserve = '{reserve}'\n") };
    let text = format!(
        "[server]\nlisten = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nmax_connections = 20000\n\
         [log]\nlevel = 'error'\n\
         [[app]]\nname = 'main'\nsdkappid = 1400000001\nendpoint = 'http://{chat}'\nsecret_key_env = 'KEY'\n\
         quota.per_command = '{QUOTA}/s'\n{reserve}\
         [[caller]]\nname = 'feed'\ntoken_env = 'FEED'\n\
         [[caller]]\nname = 'job'\ntoken_env = 'JOB'\nclass = 'batch'\n"
    );
    let env: Env = [("KEY", "bench"), ("FEED", FEED), ("JOB", JOB)].into_iter().collect();
    let config = load_text(Path::new("chatgate.toml"), text, &env).unwrap_or_else(|problems| panic!("{problems}"));
    Gateway::start_config(config)
}

struct Bench {
    address: SocketAddr,
    admin: SocketAddr,
    reserve: &'static str,
}

/// One load.
struct Row {
    /// Of the feed's answered requests.
    p99: Duration,
    /// Calls per second that each caller caused.
    feed: f64,
    job: f64,
}

impl Bench {
    /// Sends requests of both callers at these rates, each caller on a thread of its own. Prints a row.
    fn run(&self, name: &str, feed: u32, job: u32) -> Row {
        let (before, begun) = (self.calls(), clock::now());
        let load = |token: &'static str, rate: u32, seed: u64| {
            let address = self.address;
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                runtime.block_on(open_loop(Arc::new(Client::with_token(address, token)), rate, Random(seed)))
            })
        };
        // Other users in each load, so that no pair is cached.
        let seed = clock::unix_now().as_nanos() as u64;
        let [feed, job] = [load(FEED, feed, seed), load(JOB, job, seed + 1)];
        let (feed, job) = (feed.join().expect("no panic"), job.join().expect("no panic"));
        let seconds = (clock::now() - begun).as_secs_f64();
        let after = self.calls();
        let shown = if feed.is_empty() { &job } else { &feed };
        let mut times: Vec<Duration> = shown.iter().filter(|one| one.answered).map(|one| one.took).collect();
        let [p50, p90, p99] = [0.5, 0.9, 0.99].map(|share| percentile(&mut times, share));
        let millis = |time: Duration| time.as_secs_f64() * 1000.0;
        let row = Row { p99, feed: (after.0 - before.0) / seconds, job: (after.1 - before.1) / seconds };
        println!(
            "{:<10} {name:<13} {:>8} {:>9} {:>8.1} {:>8.1} {:>8.1} {:>13.1} {:>12.1}",
            self.reserve,
            shown.len(),
            times.len(),
            millis(p50),
            millis(p90),
            millis(p99),
            row.feed,
            row.job
        );
        row
    }

    /// Returns how many calls the feed and the job have caused.
    fn calls(&self) -> (f64, f64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let text = runtime.block_on(metrics(self.admin)).expect("the admin listener answers");
        let calls = |caller: &str| {
            let sample = format!("chatgate_caller_calls_total{{app=\"main\",caller=\"{caller}\"}} ");
            let value = text.lines().find_map(|line| line.strip_prefix(&sample));
            value.and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0)
        };
        (calls("feed"), calls("job"))
    }
}

/// Sends requests for new pairs at a steady rate, regardless of earlier responses.
async fn open_loop(client: Arc<Client>, rate: u32, mut random: Random) -> Vec<Outcome> {
    let mut requests = JoinSet::new();
    let begun = clock::now();
    for at in 0..SPAN.as_secs() as u32 * rate {
        tokio::time::sleep_until((begun + Duration::from_secs(1) * at / rate).into()).await;
        let (client, from, to) = (Arc::clone(&client), random.user(), random.user());
        requests.spawn(async move { client.ask(&from, &[to]).await });
    }
    requests.join_all().await
}

/// Users that rarely repeat.
struct Random(u64);

impl Random {
    fn user(&mut self) -> String {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        format!("u{:016x}", self.0)
    }
}
