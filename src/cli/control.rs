//! `chatgate healthcheck`, `wait`, and `stop`: clients of the admin listener of a gateway in another process.
//!
//! They serve images without a shell or curl: for probes, for start-up sequences, and for preStop hooks.

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

use super::output::{print, print_error};
use super::start::block_on;
use super::{USAGE, config_path, load};
use crate::clock;
use crate::config::{Env, ListenAddr, parse_duration, show_duration};
use crate::domain::caller::BearerToken;

/// Timeout of one response. A healthy listener answers within milliseconds.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two checks of a listener.
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum value of `--timeout`.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Maximum size of a response body in bytes. The admin listener sends one line.
const RESPONSE_LEN_MAX: usize = 64 * 1024;
/// Maximum number of characters of a response that are shown.
const SHOWN_MAX: usize = 200;

/// Options that locate the admin listener.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AdminArgs {
    /// Configuration file with the admin listener [default: $CHATGATE_CONFIG, else /etc/chatgate/chatgate.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Admin listener, HOST:PORT or unix:/path; the configuration is then read only if --config is given
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    admin: Option<AdminAddress>,
}

/// Options of `chatgate wait`.
#[derive(Debug, clap::Args)]
pub(super) struct WaitArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Timeout, up to 1h
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_timeout)]
    timeout: Duration,
}

/// Options of `chatgate stop`.
#[derive(Debug, clap::Args)]
pub(super) struct StopArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// Timeout, up to 1h; it should be longer than drain_delay and drain_timeout together
    #[arg(long, value_name = "DURATION", default_value = "40s", value_parser = parse_timeout)]
    timeout: Duration,
}

/// `chatgate healthcheck`: succeeds if the gateway is ready.
pub(super) fn healthcheck(args: AdminArgs) -> ExitCode {
    run(args, |admin| async move {
        admin
            .check_ready(clock::now() + RESPONSE_TIMEOUT)
            .await
            .map_err(|cause| format!("{}: {cause}", admin.address))?;
        Ok("ready\n")
    })
}

/// `chatgate wait`: waits until the gateway is ready.
pub(super) fn wait(args: WaitArgs) -> ExitCode {
    let deadline = clock::now() + args.timeout;
    run(args.admin, move |admin| async move {
        loop {
            // A process that accepts the connection and never responds may be another one that exits soon.
            match admin.check_ready(deadline.min(clock::now() + RESPONSE_TIMEOUT)).await {
                Ok(()) => return Ok("ready\n"),
                Err(cause) if clock::now() + POLL_INTERVAL >= deadline => {
                    let timeout = show_duration(args.timeout);
                    return Err(format!("{}: not ready after {timeout}: {cause}", admin.address));
                }
                Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
            }
        }
    })
}

/// `chatgate stop`: makes the gateway drain, and waits until it no longer listens.
pub(super) fn stop(args: StopArgs) -> ExitCode {
    let deadline = clock::now() + args.timeout;
    run(args.admin, move |admin| async move {
        let mut is_lost = false;
        loop {
            match admin.send(Method::POST, "/quit", deadline).await {
                Ok((StatusCode::OK, _)) => break,
                Ok((status, text)) => return Err(format!("{}: response {status}: {text}", admin.address)),
                // The request is lost, or the gateway has exited before it responded. Stopping twice changes nothing.
                Err(AdminError::Broken(_)) if clock::now() + POLL_INTERVAL < deadline => is_lost = true,
                Err(AdminError::Connect(error)) if is_lost && is_not_listening(&error) => return Ok("stopped\n"),
                Err(error) => return Err(format!("{}: {error}", admin.address)),
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        loop {
            let connecting = tokio::time::timeout_at(deadline.into(), admin.address.connect());
            if matches!(&connecting.await, Ok(Err(error)) if is_not_listening(error)) {
                return Ok("stopped\n");
            }
            if clock::now() + POLL_INTERVAL >= deadline {
                let timeout = show_duration(args.timeout);
                return Err(format!("{}: still listens after {timeout}; raise --timeout", admin.address));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    })
}

/// Locates the admin listener and runs the task. Prints its result on stdout, or its error on stderr.
fn run<F>(args: AdminArgs, task: impl FnOnce(AdminClient) -> F) -> ExitCode
where
    F: Future<Output = Result<&'static str, String>>,
{
    let admin = match AdminClient::locate(args) {
        Ok(admin) => admin,
        Err(code) => return code,
    };
    match block_on(task(admin)) {
        Err(code) => code,
        Ok(Ok(text)) => print(text),
        Ok(Err(message)) => {
            print_error(message);
            ExitCode::FAILURE
        }
    }
}

/// A client of the admin listener.
struct AdminClient {
    address: AdminAddress,
    /// Token for admin actions.
    token: Option<BearerToken>,
}

/// The reason why there is no response.
#[derive(Debug, thiserror::Error)]
enum AdminError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("connection closed before the complete response arrived: {0}")]
    Broken(Box<dyn std::error::Error + Send + Sync>),
    #[error("no response in time")]
    Timeout,
}

impl AdminClient {
    /// Locates the admin listener. On failure, prints a message and returns the exit code.
    fn locate(args: AdminArgs) -> Result<Self, ExitCode> {
        let AdminArgs { config, admin } = args;
        if let (None, Some(address)) = (&config, &admin) {
            return Ok(Self { address: address.clone(), token: None });
        }
        let server = load(&config_path(config), &Env::of_process())?.server;
        let address = match (admin, server.admin) {
            (Some(address), _) => address,
            (None, ListenAddr::Unix(path)) => AdminAddress::Unix(path),
            (None, ListenAddr::Tcp(address)) if address.port() == 0 => {
                print_error("server.admin has port 0, so the system chose it; set --admin to the address in the log");
                return Err(ExitCode::from(USAGE));
            }
            (None, ListenAddr::Tcp(address)) => AdminAddress::of_listener(address),
        };
        Ok(Self { address, token: server.admin_token })
    }

    /// Checks once whether the gateway is ready.
    async fn check_ready(&self, deadline: Instant) -> Result<(), String> {
        match self.send(Method::GET, "/readyz", deadline).await {
            Ok((StatusCode::OK, _)) => Ok(()),
            Ok((status, text)) => Err(format!("response {status}: {text}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Sends a request. Returns the status and the first line of the response.
    async fn send(
        &self,
        method: Method,
        path: &'static str,
        deadline: Instant,
    ) -> Result<(StatusCode, String), AdminError> {
        let exchange = async {
            let stream = self.address.connect().await.map_err(AdminError::Connect)?;
            send_request(stream, self.request(method, path)).await.map_err(AdminError::Broken)
        };
        tokio::time::timeout_at(deadline.into(), exchange).await.unwrap_or(Err(AdminError::Timeout))
    }

    /// Builds a request. Only admin actions have the token. Every gateway accepts the host name `localhost`.
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

/// Sends one request over its own connection.
async fn send_request<S>(
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
        let body = Limited::new(body, RESPONSE_LEN_MAX).collect().await?.to_bytes();
        Ok((head.status, first_line(&body)))
    };
    let outcome = outcome.await;
    connection.abort();
    outcome
}

/// Returns the first line of a response, shortened and without control characters, so that it is safe for a terminal.
fn first_line(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    text.lines().next().unwrap_or_default().chars().filter(|char| !char.is_control()).take(SHOWN_MAX).collect()
}

/// Returns whether a connection error means that nothing listens at the address.
fn is_not_listening(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound)
}

/// The address of an admin listener.
#[derive(Debug, Clone, PartialEq, Eq)]
enum AdminAddress {
    /// Name or IP address (IPv6 without brackets), and port.
    Tcp(String, u16),
    Unix(PathBuf),
}

/// A connection over TCP or a Unix socket.
trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> ByteStream for T {}

impl AdminAddress {
    /// Returns the address of a listener on this machine. For a listener on all addresses, this is loopback.
    fn of_listener(address: SocketAddr) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        AdminAddress::Tcp(ip.to_string(), address.port())
    }

    async fn connect(&self) -> io::Result<Box<dyn ByteStream>> {
        Ok(match self {
            AdminAddress::Tcp(host, port) => Box::new(TcpStream::connect((host.as_str(), *port)).await?),
            AdminAddress::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdminAddress::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            AdminAddress::Tcp(host, port) => write!(f, "{host}:{port}"),
            AdminAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Parses `--admin`.
fn parse_address(text: &str) -> Result<AdminAddress, String> {
    if text.starts_with("unix:") {
        return match text.parse() {
            Ok(ListenAddr::Unix(path)) => Ok(AdminAddress::Unix(path)),
            Ok(ListenAddr::Tcp(address)) => Ok(AdminAddress::of_listener(address)),
            Err(error) => Err(error.to_string()),
        };
    }
    if let Ok(address) = text.parse::<SocketAddr>()
        && address.port() != 0
    {
        return Ok(AdminAddress::of_listener(address));
    }
    if text.contains("://") {
        return Err("must be an address without a scheme; leave the scheme out, as in 127.0.0.1:8701".to_owned());
    }
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    match text.split_once(':') {
        Some((host, port)) if !host.is_empty() && host.bytes().all(is_name_byte) => match port.parse() {
            Ok(port @ 1..) => Ok(AdminAddress::Tcp(host.to_owned(), port)),
            _ => Err("no valid port; use HOST:PORT".to_owned()),
        },
        _ => Err("not an address; use HOST:PORT as in 127.0.0.1:8701, or unix:/path".to_owned()),
    }
}

/// Parses `--timeout`.
fn parse_timeout(text: &str) -> Result<Duration, String> {
    let timeout = parse_duration(text).ok_or("not a duration; use for example 30s")?;
    if timeout <= TIMEOUT_MAX { Ok(timeout) } else { Err("exceeds 1h; use at most 1h".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_names_ips_or_unix_sockets() {
        for (text, shown) in [
            ("127.0.0.1:8701", "127.0.0.1:8701"),
            ("0.0.0.0:8701", "127.0.0.1:8701"),
            ("[::]:8701", "[::1]:8701"),
            ("[::1]:8701", "[::1]:8701"),
            ("gate-1.internal:1", "gate-1.internal:1"),
            ("unix:/run/x.sock", "unix:/run/x.sock"),
        ] {
            assert_eq!(parse_address(text).expect(text).to_string(), shown);
        }
        for text in
            ["", "8701", ":8701", "localhost", "localhost:0", "127.0.0.1:0", "a:b", "a/b:1", "http://a:1", "unix:x"]
        {
            assert!(parse_address(text).is_err(), "{text}");
        }
        let scheme = parse_address("http://127.0.0.1:8701/").expect_err("a URL");
        assert!(scheme.contains("leave the scheme out"), "{scheme}");
    }

    #[test]
    fn only_admin_actions_have_the_token() {
        let token = BearerToken::new("the-token-of-operators").expect("good");
        let admin = AdminClient { address: AdminAddress::Unix("/x".into()), token: Some(token) };
        let sent = |method| admin.request(method, "/x").headers().get(AUTHORIZATION).cloned();
        assert_eq!(sent(Method::GET), None);
        assert_eq!(sent(Method::POST).expect("sent"), "Bearer the-token-of-operators");
    }

    #[test]
    fn shown_response_has_no_terminal_escapes() {
        assert_eq!(first_line(b"not ready\x1b[2J: starting\nmore"), "not ready[2J: starting");
        assert_eq!(first_line(&[b'x'; 1000]).len(), SHOWN_MAX);
        assert_eq!(first_line(b""), "");
    }
}
