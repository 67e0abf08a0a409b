//! The load: requests made beforehand, sent over connections that stay.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chatgate::clock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Largest answer: what is sent back for a whole megabyte is short.
const ANSWER_LEN_MAX: usize = 1 << 20;

/// Requests of one kind, as bytes on the wire, and what each answer must hold.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) requests: Arc<Vec<Vec<u8>>>,
    pub(crate) expected: &'static [u8],
}

/// What became of them.
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
    /// Each of them once, so that what can be known is.
    pub(crate) async fn warm(&self, address: SocketAddr) -> Outcome {
        let mut outcome = Outcome::default();
        let mut connection = Connection::open(address).await;
        for request in self.requests.iter() {
            connection.ask(request, self.expected, &mut outcome, clock::now()).await;
        }
        outcome
    }

    /// So many connections, each asking again as soon as it has its answer, for so long.
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

    /// So many requests a second, whatever becomes of them: one that has to wait for its connection has waited
    /// since the moment that it should have gone.
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

/// The timer is good to a millisecond; the rest is spent looking at the clock.
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

    /// Asks, reads the answer to its end, and notes how long it took since `begun`.
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
