//! The load: prepared requests over persistent connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatgate::clock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Largest response in bytes. Requests of 1 MiB have short responses, too.
const ANSWER_LEN_MAX: usize = 1 << 20;

/// Requests of one kind as bytes on the wire, and the bytes that each response must contain.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) requests: Arc<Vec<Vec<u8>>>,
    pub(crate) expected: &'static [u8],
}

/// The outcome of the requests.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) took: Vec<Duration>,
    pub(crate) failed: usize,
}

impl Outcome {
    fn add(&mut self, other: Self) {
        self.took.extend(other.took);
        self.failed += other.failed;
    }
}

impl Load {
    /// Sends each request once, to fill the cache.
    pub(crate) async fn warm(&self, address: SocketAddr) -> Outcome {
        let mut outcome = Outcome::default();
        let mut connection = Connection::open(address).await;
        for request in self.requests.iter() {
            connection.ask(request, self.expected, &mut outcome, clock::now()).await;
        }
        outcome
    }

    /// Sends `count` requests, one after the other over one connection.
    pub(crate) async fn sequence(&self, address: SocketAddr, count: usize) -> Outcome {
        let mut outcome = Outcome::default();
        let mut connection = Connection::open(address).await;
        for request in self.requests.iter().cycle().take(count) {
            connection.ask(request, self.expected, &mut outcome, clock::now()).await;
        }
        outcome
    }

    /// Sends requests for `span` over `connections` connections, each right after the previous response.
    pub(crate) async fn closed(&self, address: SocketAddr, connections: usize, span: Duration) -> Outcome {
        let until = clock::now() + span;
        let mut tasks = JoinSet::new();
        for number in 0..connections {
            let load = self.clone();
            tasks.spawn(async move {
                let (mut outcome, mut connection) = (Outcome::default(), Connection::open(address).await);
                let mut at = number * load.requests.len() / connections;
                while clock::now() < until {
                    at = (at + 1) % load.requests.len();
                    connection.ask(&load.requests[at], load.expected, &mut outcome, clock::now()).await;
                }
                outcome
            });
        }
        gathered(tasks).await
    }

    /// Sends `per_second` requests per second for `span`, regardless of earlier responses. If a request waits for its
    /// connection, its time starts at the scheduled moment.
    pub(crate) async fn open(&self, address: SocketAddr, per_second: f64, span: Duration) -> Outcome {
        const CONNECTIONS: usize = 16;
        let begun = clock::now() + Duration::from_millis(50);
        let every = Duration::from_secs_f64(1.0 / per_second);
        let mut tasks = JoinSet::new();
        for number in 0..CONNECTIONS {
            let load = self.clone();
            tasks.spawn(async move {
                let (mut outcome, mut connection) = (Outcome::default(), Connection::open(address).await);
                for turn in (number..).step_by(CONNECTIONS) {
                    let due = begun + every * turn as u32;
                    if due > begun + span {
                        break;
                    }
                    wait_until(due).await;
                    let request = &load.requests[turn % load.requests.len()];
                    connection.ask(request, load.expected, &mut outcome, due).await;
                }
                outcome
            });
        }
        gathered(tasks).await
    }
}

/// Waits with the timer, which has a resolution of 1 ms, and then polls the clock.
async fn wait_until(due: Instant) {
    let early = due.checked_sub(Duration::from_micros(1500)).unwrap_or(due);
    tokio::time::sleep_until(early.into()).await;
    while clock::now() < due {
        tokio::task::yield_now().await;
    }
}

async fn gathered(tasks: JoinSet<Outcome>) -> Outcome {
    let mut all = Outcome::default();
    for outcome in tasks.join_all().await {
        all.add(outcome);
    }
    all
}

struct Connection {
    address: SocketAddr,
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("the target listens");
        stream.set_nodelay(true).expect("a socket");
        Self { address, stream, buffer: Vec::with_capacity(64 * 1024) }
    }

    /// Sends a request, reads the complete response, and records the time since `begun`.
    async fn ask(&mut self, request: &[u8], expected: &[u8], outcome: &mut Outcome, begun: Instant) {
        match self.exchange(request, expected).await {
            Ok(true) => outcome.took.push(clock::now() - begun),
            Ok(false) => outcome.failed += 1,
            Err(_) => {
                outcome.failed += 1;
                *self = Self::open(self.address).await;
            }
        }
    }

    async fn exchange(&mut self, request: &[u8], expected: &[u8]) -> std::io::Result<bool> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 || self.buffer.len() > ANSWER_LEN_MAX {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let Some(head) = memchr::memmem::find(&self.buffer, b"\r\n\r\n") else { continue };
            let (head, body) = self.buffer.split_at(head + 4);
            let Some(length) = content_length(head) else { return Err(std::io::ErrorKind::InvalidData.into()) };
            if body.len() >= length {
                return Ok(head.starts_with(b"HTTP/1.1 200") && memchr::memmem::find(body, expected).is_some());
            }
        }
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    let head = std::str::from_utf8(head).ok()?;
    let value = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    };
    head.lines().find_map(value)
}
