//! Profiles at five times the quota, with and without the cache of other reads, and the memory of its entries.
//!
//! `cargo bench --bench reads`. `benches/README.md` explains the output.

#![allow(clippy::print_stdout, reason = "it prints tables")]

#[path = "follow/gateway.rs"]
mod gateway;

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use chatgate::clock;
use chatgate::domain::chat::command::{CommandName, CommandPattern};
use chatgate::domain::reads::cache::{ENTRY_OVERHEAD, KeptResponse, ReadCache, ReadKey};
use chatgate::domain::reads::rules::{CachedRead, CachedReads};
use chatgate::domain::tick::Tick;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use self::gateway::{Client, Gateway, percentile};

/// As in the program.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const GET: &str = "/v4/profile/portrait_get";
const SET: &str = "/v4/profile/portrait_set";
/// Chat's latency per call.
const LATENCY: Duration = Duration::from_millis(20);
/// Calls per second, as Chat allows by default.
const QUOTA: u32 = 200;
/// Requests per second.
const RATE: u32 = 5 * QUOTA;
/// Duration of each load, after a second of warming up.
const SPAN: Duration = Duration::from_secs(20);
const WARM_UP: Duration = Duration::from_secs(1);
const PROFILES: usize = 10_000;
/// How long a response is kept.
const TTL: Duration = Duration::from_secs(10);

fn main() {
    memory();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        println!(
            "{:<28} {:>8} {:>9} {:>9} {:>7} {:>7} {:>8} {:>8} {:>7} {:>6}",
            "cache", "requests", "answered", "of all", "calls", "hit %", "p50 ms", "p99 ms", "writes", "stale"
        );
        load("off", None, None).await;
        load("10s", Some(TTL), None).await;
        load("10s, a write every 10 s", Some(TTL), Some(Duration::from_secs(10))).await;
        load("10s, a write every 2 s", Some(TTL), Some(Duration::from_secs(2))).await;
        load("10s, 2 writes every second", Some(TTL), Some(Duration::from_millis(500))).await;
    });
}

/// Prints the resident memory of entries without request and response.
fn memory() {
    const ENTRIES: usize = 200_000;
    let cache = ReadCache::new(1 << 30);
    let (app, command) = (cache.add_app(), Arc::<str>::from("profile/portrait_get"));
    let body = Bytes::from(vec![b'x'; 256]);
    let before = resident();
    for number in 0..ENTRIES {
        let request = Bytes::from(format!("{number:064}"));
        let key = ReadKey { app, command: Arc::clone(&command), request };
        let content_type = Some(Bytes::from_static(b"application/json"));
        cache.insert(&key, &KeptResponse { content_type, body: body.clone(), sent: Tick::from_micros(1) });
    }
    assert_eq!(cache.len(), ENTRIES as u64);
    let per_entry = (resident() - before) as f64 / ENTRIES as f64;
    println!("bytes per entry besides request and response: {:.0}, counted as {ENTRY_OVERHEAD}\n", per_entry - 320.0);
}

/// The profiles at Chat, and what callers know of them.
#[derive(Default)]
struct World {
    /// The version of each profile; absent: 0.
    versions: Mutex<HashMap<String, u64>>,
    /// The latest version whose write was acknowledged.
    acknowledged: Mutex<HashMap<String, u64>>,
    reads: AtomicUsize,
    stale: AtomicUsize,
}

/// What one request brought.
struct Answered {
    ok: bool,
    took: Duration,
}

async fn load(name: &str, ttl: Option<Duration>, write_every: Option<Duration>) {
    let world = Arc::<World>::default();
    let gateway = Gateway::start_with(serve(&world).await, QUOTA, |config| {
        config.access.allow = vec![CommandPattern::Any];
        let mut reads = CachedReads::default();
        if let Some(ttl) = ttl {
            let name = CommandName::parse("profile/portrait_get").expect("a name");
            reads.add(CachedRead::new(name, ttl).expect("cacheable"));
        }
        config.cache.commands = Arc::new(reads);
    });
    let client = Arc::new(Client::new(gateway.address));
    let zipf = Zipf::new(PROFILES);
    let mut random = Random(7);
    open_loop(&client, &world, WARM_UP, None, &zipf, &mut random).await;
    let before = world.reads.load(Ordering::Relaxed);
    let (answers, writes) = open_loop(&client, &world, SPAN, write_every, &zipf, &mut random).await;
    let calls = world.reads.load(Ordering::Relaxed) - before;
    let mut took: Vec<Duration> = answers.iter().filter(|answer| answer.ok).map(|answer| answer.took).collect();
    let answered = took.len();
    let share = |part: usize, all: usize| 100.0 * part as f64 / all.max(1) as f64;
    let millis = |took: &mut Vec<Duration>, share| percentile(took, share).as_secs_f64() * 1000.0;
    println!(
        "{name:<28} {:>8} {answered:>9} {:>7.1} % {calls:>7} {:>7.1} {:>8.1} {:>8.1} {writes:>7} {:>6}",
        answers.len(),
        share(answered, answers.len()),
        share(answered.saturating_sub(calls), answered),
        millis(&mut took, 0.5),
        millis(&mut took, 0.99),
        world.stale.load(Ordering::Relaxed),
    );
}

/// Sends requests at a steady rate, regardless of earlier responses, and a write now and then.
async fn open_loop(
    client: &Arc<Client>,
    world: &Arc<World>,
    span: Duration,
    write_every: Option<Duration>,
    zipf: &Zipf,
    random: &mut Random,
) -> (Vec<Answered>, usize) {
    let (mut reads, mut writes, begun) = (JoinSet::new(), JoinSet::new(), clock::now());
    let mut next_write = write_every.map(|every| begun + every);
    for at in 0..span.as_secs() as u32 * RATE {
        tokio::time::sleep_until((begun + Duration::from_secs(1) * at / RATE).into()).await;
        let user = format!("u{:05}", zipf.draw(random.next()));
        if let (Some(due), Some(every)) = (next_write, write_every)
            && clock::now() >= due
        {
            next_write = Some(due + every);
            writes.spawn(write(Arc::clone(client), Arc::clone(world), format!("u{:05}", zipf.draw(random.next()))));
        }
        reads.spawn(read(Arc::clone(client), Arc::clone(world), user));
    }
    (reads.join_all().await, writes.join_all().await.len())
}

async fn read(client: Arc<Client>, world: Arc<World>, user: String) -> Answered {
    let floor = world.acknowledged.lock().expect("no panic under it").get(&user).copied().unwrap_or(0);
    let begun = clock::now();
    let body = client.fetch(GET, format!(r#"{{"To_Account":["{user}"]}}"#)).await;
    let took = clock::now() - begun;
    if let Some(body) = &body {
        let json: serde_json::Value = serde_json::from_slice(body).expect("JSON");
        let seen = json["UserProfileItem"][0]["ProfileItem"][0]["Value"].as_u64().expect("a version");
        world.stale.fetch_add(usize::from(seen < floor), Ordering::Relaxed);
    }
    Answered { ok: body.is_some(), took }
}

async fn write(client: Arc<Client>, world: Arc<World>, user: String) {
    if let Some(body) = client.fetch(SET, format!(r#"{{"From_Account":"{user}","ProfileItem":[]}}"#)).await {
        let json: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let made = json["Version"].as_u64().expect("a version");
        let mut acknowledged = world.acknowledged.lock().expect("no panic under it");
        let known = acknowledged.entry(user).or_default();
        *known = made.max(*known);
    }
}

/// Starts a fake Chat in this runtime. Returns its address.
async fn serve(world: &Arc<World>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let world = Arc::clone(world);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            let world = Arc::clone(&world);
            let service = service_fn(move |request| answer(request, Arc::clone(&world)));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

async fn answer(request: Request<Incoming>, world: Arc<World>) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_write = request.uri().path() == SET;
    let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let json: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    let user = json["From_Account"].as_str().or_else(|| json["To_Account"][0].as_str()).unwrap_or_default().to_owned();
    let version = {
        let mut versions = world.versions.lock().expect("no panic under it");
        let version = versions.entry(user.clone()).or_default();
        *version += u64::from(is_write);
        *version
    };
    world.reads.fetch_add(usize::from(!is_write), Ordering::Relaxed);
    tokio::time::sleep(LATENCY).await;
    let item = format!(
        r#"{{"To_Account":"{user}","ProfileItem":[{{"Tag":"v","Value":{version}}}],"ResultCode":0,"ResultInfo":""}}"#
    );
    let body = format!(
        r#"{{"UserProfileItem":[{item}],"Version":{version},"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":""}}"#
    );
    let mut response = Response::new(Full::new(Bytes::from(body)));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}

/// Zipf's law with exponent 1.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(count: usize) -> Self {
        let mut sum = 0.0;
        let sums = (1..=count).map(|rank| {
            sum += 1.0 / rank as f64;
            sum
        });
        Self(sums.collect())
    }

    /// Returns a rank from 0. `random` is from 0 to 1.
    fn draw(&self, random: f64) -> usize {
        let at = random * self.0.last().expect("not empty");
        self.0.partition_point(|sum| *sum < at)
    }
}

/// A sequence that looks random and is the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// Returns the resident memory of this process, in bytes (proc(5), `statm`).
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}
