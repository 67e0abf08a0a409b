//! What invalidations cost: one replica invalidates pairs, and up to hundreds of subscribers receive it through one Redis,
//! in batches as replicas send them, and for comparison each in a message of its own.
//!
//! `cargo bench --bench fan_out [-- WRITES SUBSCRIBERS...]`; needs `redis-server`. `benches/README.md` explains the
//! output.

#![allow(clippy::print_stdout, reason = "it prints tables")]

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatgate::clock;
use chatgate::config::{self, RedisForm};
use chatgate::domain::chat::app::{SdkAppId, SecretKey};
use chatgate::domain::fleet::keys::FleetKeys;
use chatgate::domain::pairs::scope::Scope;
use chatgate::fleet::{Connections, FleetApp, Mode, OnInvalidation};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncCommands as _, AsyncConnectionConfig, FromRedisValue, PushInfo, PushKind};

/// Invalidations per second, unless the first argument says otherwise.
const WRITES: u32 = 100;
/// Subscribers, unless the other arguments say otherwise.
const SUBSCRIBERS: [usize; 5] = [10, 50, 100, 200, 400];
/// Duration of each measurement.
const SPAN: Duration = Duration::from_secs(6);
/// Longest wait for a condition.
const PATIENCE: Duration = Duration::from_secs(60);
/// The channel of the fleet with this prefix.
const PREFIX: &str = "bench";
const CHANNEL: &str = "bench:evictions";
/// Bytes of an invalidation of one pair in its own message, with names as long as here.
const MESSAGE_LEN: usize = 137;

/// How invalidations are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    Batches,
    Each,
}

/// What one subscriber has received.
#[derive(Default)]
struct Received {
    messages: usize,
    late: Vec<Duration>,
}

/// When each invalidation was sent.
type Sent = Arc<Mutex<Vec<Instant>>>;

/// The subscriber of the replica that sends.
struct Ignore;

impl OnInvalidation for Ignore {
    fn invalidated(&self, _: SdkAppId, _: &[u8]) {}
    fn missed(&self, _: Option<SdkAppId>) {}
}

/// Counters of Redis.
#[derive(Clone, Copy)]
struct Counters {
    bytes: f64,
    cpu: f64,
}

fn main() {
    let numbers: Vec<usize> = std::env::args().skip(1).filter_map(|argument| argument.parse().ok()).collect();
    let writes = numbers.first().map_or(WRITES, |writes| *writes as u32);
    let subscribers = if numbers.len() > 1 { numbers[1..].to_vec() } else { SUBSCRIBERS.to_vec() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let columns =
            ["subscribers", "sent", "bytes/s", "messages/s", "Redis CPU %", "p50 ms", "p99 ms", "max ms", "lost"];
        println!("{}", columns.map(|column| format!("{column:>12}")).join(""));
        for count in subscribers {
            measure(count, writes, Sending::Each).await;
            measure(count, writes, Sending::Batches).await;
        }
    });
}

async fn measure(count: usize, writes: u32, sending: Sending) {
    let redis = Server::start().await;
    let (sent, mut subscribers) = (Sent::default(), Vec::new());
    for _ in 0..count {
        subscribers.push(redis.subscribe(&sent, sending).await);
    }
    let replica = redis.join().await;
    let fleet = replica.of(app()).expect("random numbers");
    let keys = FleetKeys::new(&SecretKey::new("a secret").expect("not empty"), app(), "chat");
    let shared = FleetApp { app: app(), keys: Arc::new(keys), ttl: Duration::from_secs(30) };
    let before = redis.counters().await;
    let begun = clock::now();
    for n in 0..SPAN.as_secs() as u32 * writes {
        tokio::time::sleep_until((begun + Duration::from_secs(1) * n / writes).into()).await;
        sent.lock().push(clock::now());
        if sending == Sending::Each {
            let () = redis.connection.clone().publish(CHANNEL, &[0; MESSAGE_LEN][..]).await.expect("published");
        } else {
            let name = |kind: &str| format!("{kind}-user-with-a-usual-name-{n:06}");
            fleet.invalidate(&shared, &Scope::pairs_of(&name("from"), &[&name("to")])).await;
        }
    }
    tokio::time::sleep_until((begun + SPAN).into()).await;
    let (after, took) = (redis.counters().await, begun.elapsed().as_secs_f64());
    let total = sent.lock().len() * count;
    let received = || subscribers.iter().map(|(_, received)| received.lock().late.len()).sum::<usize>();
    let waiting = clock::now();
    while received() < total && waiting.elapsed() < PATIENCE / 10 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut late: Vec<Duration> = Vec::with_capacity(total);
    let mut messages = 0;
    for (_, received) in &subscribers {
        let received = received.lock();
        late.extend(&received.late);
        messages += received.messages;
    }
    late.sort_unstable();
    let at = |percent: usize| late.get(late.len().saturating_sub(1) * percent / 100).map_or(0.0, millis);
    println!(
        "{count:>12}{:>12}{:>12.0}{:>12.1}{:>12.1}{:>12.1}{:>12.1}{:>12.1}{:>12}",
        format!("{sending:?}"),
        (after.bytes - before.bytes) / took / count as f64,
        messages as f64 / took / count as f64,
        100.0 * (after.cpu - before.cpu) / took,
        at(50),
        at(99),
        at(100),
        total.saturating_sub(received()),
    );
    let disconnects = replica.stats().disconnects;
    if disconnects > 0 {
        println!("{disconnects} disconnects of the sending replica");
    }
}

fn millis(duration: &Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn app() -> SdkAppId {
    SdkAppId::new(7).expect("not 0")
}

/// Counts the invalidations of a message: in a batch, each has its length before it.
fn count_invalidations(mut message: &[u8], sending: Sending) -> usize {
    if sending == Sending::Each {
        return 1;
    }
    let mut count = 0;
    while let Some((len, rest)) = message.split_first_chunk::<4>() {
        message = &rest[u32::from_be_bytes(*len) as usize..];
        count += 1;
    }
    count
}

/// A `redis-server` without persistence. Dropping it kills the process.
struct Server {
    child: Child,
    url: String,
    connection: MultiplexedConnection,
}

impl Server {
    async fn start() -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("a free port").port().to_string();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.current_dir(std::env::temp_dir()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let (child, url) = (command.spawn().expect("redis-server is installed"), format!("redis://127.0.0.1:{port}"));
        let client = redis::Client::open(&*url).expect("a URL");
        let begun = clock::now();
        loop {
            if let Ok(connection) = client.get_multiplexed_async_connection().await {
                return Self { child, url, connection };
            }
            assert!(begun.elapsed() < PATIENCE, "redis-server does not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Connects the replica that sends, and waits for the connection.
    async fn join(&self) -> Arc<Connections> {
        let form = RedisForm::Primary(self.url.parse().expect("a URL"));
        let connections = Connections::new(&config::Fleet::new(form, PREFIX, 0.5));
        let _ = connections.of(app()).expect("random numbers");
        connections.run(Arc::new(Ignore)).await;
        let begun = clock::now();
        while connections.stats().mode != Mode::Connected {
            assert!(begun.elapsed() < PATIENCE, "the replica does not connect");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        connections
    }

    /// Connects a subscriber, which notes what it receives.
    async fn subscribe(&self, sent: &Sent, sending: Sending) -> (MultiplexedConnection, Arc<Mutex<Received>>) {
        let (sent, received) = (Arc::clone(sent), Arc::<Mutex<Received>>::default());
        let noted = Arc::clone(&received);
        let config = AsyncConnectionConfig::new().set_push_sender(move |push: PushInfo| {
            if push.kind == PushKind::Message {
                let payload = push.data.get(1).and_then(|payload| Vec::<u8>::from_redis_value_ref(payload).ok());
                let (mut noted, now, sent) = (noted.lock(), clock::now(), sent.lock());
                noted.messages += 1;
                for _ in 0..count_invalidations(&payload.unwrap_or_default(), sending) {
                    // One replica sends all of them, so they arrive in its order.
                    let at = noted.late.len();
                    noted.late.push(sent.get(at).map_or(Duration::ZERO, |sent| now - *sent));
                }
            }
            Ok::<(), redis::aio::SendError>(())
        });
        let client = redis::Client::open(format!("{}?protocol=resp3", self.url)).expect("a URL");
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = connecting.await.expect("Redis accepts");
        connection.subscribe(CHANNEL).await.expect("a subscription");
        (connection, received)
    }

    async fn counters(&self) -> Counters {
        let mut connection = self.connection.clone();
        let info: redis::InfoDict =
            redis::cmd("INFO").arg("everything").query_async(&mut connection).await.expect("INFO");
        let number = |name: &str| info.get::<f64>(name).expect("a number");
        let cpu = number("used_cpu_sys") + number("used_cpu_user");
        Counters { bytes: number("total_net_output_bytes"), cpu }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
