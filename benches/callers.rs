//! The cost of `/metrics` and `/status` with many configured callers, and of a cached response that is counted by caller.
//!
//! `cargo bench --bench callers`. `benches/README.md` explains the output. It fails if a document takes longer than
//! [`DOCUMENT_MAX`].

#![allow(clippy::print_stdout, reason = "it prints a table")]

#[path = "follow/chat.rs"]
#[allow(dead_code, reason = "other benches use the rest")]
mod chat;

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use chatgate::clock;
use chatgate::config::{CALLERS_MAX, Env, load_text};
use chatgate::runtime::serve::Server;

use self::chat::Chat;

/// As in the program.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measurements of each document.
const ROUNDS: usize = 31;
/// Maximum median time of a document. A scrape must not hold up the listener.
const DOCUMENT_MAX: Duration = Duration::from_millis(50);
/// Cached requests that are measured.
const REQUESTS: usize = 5000;

fn main() {
    let head = ["callers", "metrics KiB", "metrics ms", "status KiB", "status ms", "cached µs"];
    println!("{}", head.map(|name| format!("{name:>12}")).concat());
    for callers in [0, 1, 100, CALLERS_MAX] {
        measure(callers);
    }
}

/// Starts a gateway with this number of callers, lets each send three requests, and prints a row.
fn measure(callers: usize) {
    let chat = Chat::start(Duration::ZERO, None);
    let mut text = format!(
        "[server]\nlisten = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n[[app]]\nname = 'main'\nsdkappid = 1400000001\n\
         endpoint = 'http://{}'\nsecret_key_env = 'KEY'\nquota.per_command = '100000/s'\n",
        chat.address
    );
    let names: Vec<String> = (0..callers).map(|number| format!("TOKEN_{number}")).collect();
    let tokens: Vec<String> = (0..callers).map(|number| format!("token-of-caller-{number:08}")).collect();
    for (number, name) in names.iter().enumerate() {
        let _ = writeln!(text, "[[caller]]\nname = 'caller-{number}'\ntoken_env = '{name}'");
    }
    let env: Env =
        names.iter().map(String::as_str).zip(tokens.iter().map(String::as_str)).chain([("KEY", "bench")]).collect();
    let config = load_text(Path::new("chatgate.toml"), text, &env).unwrap_or_else(|problems| panic!("{problems}"));
    let server = Server::bind(config, None).expect("free ports");
    let (data, admin, quit) = (server.addresses().remove(0), server.admin_address(), server.quit());
    let thread = std::thread::spawn(move || server.run().expect("threads can be created"));

    let mut data = Client::connect(&data);
    let body = r#"{"From_Account":"ann","To_Account":["bob"]}"#;
    let check = |token: Option<&String>, freshness: &str| {
        let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let length = body.len();
        format!(
            "POST /v4/follow/follow_check HTTP/1.1\r\nHost: localhost\r\n{token}Cache-Control: {freshness}\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
    };
    // A call, a hit, and a rejection for each.
    for token in &tokens {
        for freshness in ["no-cache", "max-age=60", "max-age=0, only-if-cached"] {
            data.exchange(&check(Some(token), freshness));
        }
    }
    let mut admin = Client::connect(&admin);
    let mut row = vec![callers.to_string()];
    for path in ["/metrics", "/status"] {
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let len = admin.exchange(&request);
        row.push(format!("{:.0}", len as f64 / 1024.0));
        let took = median(ROUNDS, || admin.exchange(&request));
        assert!(took <= DOCUMENT_MAX, "{path} takes {took:?} with {callers} callers");
        row.push(format!("{:.2}", took.as_secs_f64() * 1e3));
    }
    let request = check(tokens.last(), "max-age=60");
    row.push(format!("{:.1}", median(REQUESTS, || data.exchange(&request)).as_secs_f64() * 1e6));
    println!("{}", row.iter().map(|cell| format!("{cell:>12}")).collect::<String>());
    quit.cancel();
    thread.join().expect("no panic");
}

fn median<T>(rounds: usize, mut piece: impl FnMut() -> T) -> Duration {
    let mut times: Vec<Duration> = (0..rounds)
        .map(|_| {
            let begun = clock::now();
            black_box(piece());
            clock::now() - begun
        })
        .collect();
    times.sort_unstable();
    times[rounds / 2]
}

/// A connection that is kept.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("an open socket");
        Self(BufReader::new(stream))
    }

    /// Sends a request and returns the length of the response's body.
    fn exchange(&mut self, request: &str) -> usize {
        self.0.get_mut().write_all(request.as_bytes()).expect("an open connection");
        let mut length = 0;
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("an open connection");
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length: ") {
                length = value.trim().parse().expect("a length");
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("a complete response");
        length
    }
}
