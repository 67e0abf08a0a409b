//! `chatgate healthcheck`, `wait` and `stop`: one question to the admin listener of a gateway that runs
//! elsewhere. They are for images without a shell or curl: probes, start-up orders, and preStop hooks.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::output::{complain, print};
use super::{USAGE, config_path, load};
use crate::clock;
use crate::config::{Env, ListenAddr, parse_duration};
use crate::domain::caller::BearerToken;

/// How long `healthcheck` waits for its answer. A listener that is well answers in milliseconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Between two looks at a listener.
const PAUSE: Duration = Duration::from_millis(50);
/// Longest wait that may be asked for.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Most of an answer that is read. The admin listener's have a line.
const ANSWER_LEN_MAX: usize = 64 * 1024;
/// Most characters of it that are shown.
const SHOWN_MAX: usize = 200;

/// Where the admin listener is.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AdminArgs {
    /// Configuration that names the admin listener [default: $CHATGATE_CONFIG, or /etc/chatgate/chatgate.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The admin listener itself, HOST:PORT or unix:/path; no configuration is then read unless --config names one
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    admin: Option<Address>,
}

/// Options of `chatgate wait`.
#[derive(Debug, clap::Args)]
pub(super) struct WaitArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How long to wait, up to 1h
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = timeout)]
    timeout: Duration,
}

/// Options of `chatgate stop`.
#[derive(Debug, clap::Args)]
pub(super) struct StopArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How long to wait for the end, up to 1h; drain_delay and drain_timeout should fit into it
    #[arg(long, value_name = "DURATION", default_value = "40s", value_parser = timeout)]
    timeout: Duration,
}

/// `chatgate healthcheck`: whether the gateway is ready now.
pub(super) fn healthcheck(args: AdminArgs) -> ExitCode {
    run(args, |admin| async move {
        let answer = admin.ask(Method::GET, "/readyz", clock::now() + ANSWER_TIMEOUT).await;
        judge_ready(answer).map_err(|why| format!("{}: {why}", admin.address))?;
        Ok("ready\n")
    })
}

/// `chatgate wait`: until the gateway is ready.
pub(super) fn wait(args: WaitArgs) -> ExitCode {
    let until = clock::now() + args.timeout;
    run(args.admin, move |admin| async move {
        loop {
            // One that takes a connection and never answers may be another process, soon to be gone.
            let answer = admin.ask(Method::GET, "/readyz", until.min(clock::now() + ANSWER_TIMEOUT)).await;
            match judge_ready(answer) {
                Ok(()) => return Ok("ready\n"),
                Err(why) if clock::now() + PAUSE >= until => {
                    return Err(format!("{}: waited in vain: {why}", admin.address));
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    })
}

/// `chatgate stop`: tells the gateway to drain, and waits until nobody listens any more.
pub(super) fn stop(args: StopArgs) -> ExitCode {
    let until = clock::now() + args.timeout;
    run(args.admin, move |admin| async move {
        match admin.ask(Method::POST, "/quit", until).await {
            Ok((StatusCode::OK, _)) => {}
            Ok((status, text)) => return Err(format!("{}: answered {status}: {text}", admin.address)),
            // It may have ended before its answer was out; whether it has is seen below.
            Err(AdminError::Broken(_)) => {}
            Err(error) => return Err(format!("{}: {error}", admin.address)),
        }
        loop {
            let connecting = tokio::time::timeout_at(until.into(), admin.address.connect());
            if matches!(&connecting.await, Ok(Err(error)) if nobody_listens(error)) {
                return Ok("stopped\n");
            }
            if clock::now() + PAUSE >= until {
                return Err(format!("{}: was told to stop and still listens", admin.address));
            }
            tokio::time::sleep(PAUSE).await;
        }
    })
}

/// Finds the listener and does the work: says on stdout what came of it, or on stderr why nothing did.
fn run<F>(args: AdminArgs, work: impl FnOnce(Admin) -> F) -> ExitCode
where
    F: Future<Output = Result<&'static str, String>>,
{
    let admin = match Admin::find(args) {
        Ok(admin) => admin,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(format_args!("cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(work(admin));
    // A name that is still being looked up must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(done) => print(done),
        Err(why) => {
            complain(why);
            ExitCode::FAILURE
        }
    }
}

fn judge_ready(answer: Result<(StatusCode, String), AdminError>) -> Result<(), String> {
    match answer {
        Ok((StatusCode::OK, _)) => Ok(()),
        Ok((status, text)) => Err(format!("answered {status}: {text}")),
        Err(error) => Err(error.to_string()),
    }
}

/// The admin listener, and what it wants to see with an order.
struct Admin {
    address: Address,
    token: Option<BearerToken>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum AdminError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("the connection broke before the answer: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
    #[error("no answer in time")]
    Timeout,
}

impl Admin {
    /// By the flags; the exit code if that comes to nothing.
    fn find(args: AdminArgs) -> Result<Self, ExitCode> {
        let AdminArgs { config, admin } = args;
        if let (None, Some(address)) = (&config, &admin) {
            return Ok(Self { address: address.clone(), token: None });
        }
        let server = load(&config_path(config), &Env::of_process())?.server;
        let address = match (admin, server.admin) {
            (Some(address), _) => address,
            (None, ListenAddr::Unix(path)) => Address::Unix(path),
            (None, ListenAddr::Tcp(address)) if address.port() == 0 => {
                complain("server.admin has port 0, so the system chose one; name it with --admin (the log has it)");
                return Err(ExitCode::from(USAGE));
            }
            (None, ListenAddr::Tcp(address)) => Address::of_listener(address),
        };
        Ok(Self { address, token: server.admin_token })
    }

    /// Asks once. Gives the status and what may be shown of the answer.
    async fn ask(
        &self,
        method: Method,
        path: &'static str,
        until: Instant,
    ) -> Result<(StatusCode, String), AdminError> {
        let asking = async {
            let stream = self.address.connect().await.map_err(AdminError::Connect)?;
            exchange(stream, self.request(method, path)).await.map_err(AdminError::Broken)
        };
        tokio::time::timeout_at(until.into(), asking).await.unwrap_or(Err(AdminError::Timeout))
    }

    /// A request. Only an order carries the token, and every gateway answers to the name `localhost`.
    fn request(&self, method: Method, path: &'static str) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = http::Uri::from_static(path);
        request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
        if let Some(token) = self.token.as_ref().filter(|_| method == Method::POST) {
            let value = zeroize::Zeroizing::new(format!("Bearer {}", token.expose()));
            let mut value = HeaderValue::from_str(&value).expect("a token is visible ASCII");
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        *request.method_mut() = method;
        request
    }
}

async fn exchange<S>(
    stream: S,
    request: Request<Empty<Bytes>>,
) -> Result<(StatusCode, String), Box<dyn std::error::Error + Send + Sync>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let outcome = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, ANSWER_LEN_MAX).collect().await?.to_bytes();
        Ok((head.status, first_line(&body)))
    };
    let outcome = outcome.await;
    connection.abort();
    outcome
}

/// What of an answer can be shown on a terminal, whoever sent it.
fn first_line(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.lines().next().unwrap_or_default().chars().filter(|char| !char.is_control()).take(SHOWN_MAX).collect()
}

/// Whether the error of a connect says that there is no listener.
fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    /// A name or an IP address (IPv6 without brackets), and a port.
    Tcp(String, u16),
    Unix(PathBuf),
}

/// A byte stream, whatever carries it.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Address {
    /// How to reach who listens here: who listens on every address is met on this machine's own.
    fn of_listener(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Address::Tcp(ip.to_string(), address.port())
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Address::Tcp(host, port) => Box::new(TcpStream::connect((host.as_str(), *port)).await?),
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Reads `--admin`.
fn address(text: &str) -> Result<Address, String> {
    if text.starts_with("unix:") {
        return match text.parse() {
            Ok(ListenAddr::Unix(path)) => Ok(Address::Unix(path)),
            Ok(ListenAddr::Tcp(address)) => Ok(Address::of_listener(address)),
            Err(error) => Err(error.to_string()),
        };
    }
    if let Ok(address) = text.parse::<SocketAddr>()
        && address.port() != 0
    {
        return Ok(Address::of_listener(address));
    }
    let name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    match text.split_once(':') {
        Some((host, port)) if !host.is_empty() && host.bytes().all(name) => match port.parse() {
            Ok(port @ 1..) => Ok(Address::Tcp(host.to_owned(), port)),
            _ => Err("has no port; write HOST:PORT".to_owned()),
        },
        _ => Err("is not an address; write HOST:PORT as in 127.0.0.1:8701, or unix:/path".to_owned()),
    }
}

/// Reads `--timeout`.
fn timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_duration(text).ok_or("is not a duration; write \"30s\"")?;
    if timeout <= TIMEOUT_MAX { Ok(timeout) } else { Err("is more than 1h".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_names_numbers_or_sockets() {
        for (text, shown) in [
            ("127.0.0.1:8701", "127.0.0.1:8701"),
            ("0.0.0.0:8701", "127.0.0.1:8701"),
            ("[::]:8701", "[::1]:8701"),
            ("[::1]:8701", "[::1]:8701"),
            ("gate-1.internal:1", "gate-1.internal:1"),
            ("unix:/run/x.sock", "unix:/run/x.sock"),
        ] {
            assert_eq!(address(text).expect(text).to_string(), shown);
        }
        for text in
            ["", "8701", ":8701", "localhost", "localhost:0", "127.0.0.1:0", "a:b", "a/b:1", "http://a:1", "unix:x"]
        {
            assert!(address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_token_goes_with_orders_only() {
        let token = BearerToken::new("the-token-of-operators").expect("good");
        let admin = Admin { address: Address::Unix("/x".into()), token: Some(token) };
        let sent = |method| admin.request(method, "/x").headers().get(AUTHORIZATION).cloned();
        assert_eq!(sent(Method::GET), None);
        assert_eq!(sent(Method::POST).expect("sent"), "Bearer the-token-of-operators");
    }

    #[test]
    fn what_is_shown_of_an_answer_cannot_play_with_the_terminal() {
        assert_eq!(first_line(b"not ready\x1b[2J: starting\nmore"), "not ready[2J: starting");
        assert_eq!(first_line(&[b'x'; 1000]).len(), SHOWN_MAX);
        assert_eq!(first_line(b""), "");
    }
}
