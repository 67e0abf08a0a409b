//! A gateway in front of the fake Chat, and its callers.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use chatgate::clock;
use chatgate::config::{
    Access, App, Cache, Config, Endpoint, Fleet, ListenAddr, Log, Quota, Relation, Server, Upstream,
};
use chatgate::domain::chat::app::{SdkAppId, SecretKey};
use chatgate::domain::chat::command::DeclaredReads;
use chatgate::runtime::serve;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// A gateway on its worker threads. Dropping it stops them.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    /// Address of the admin listener.
    #[allow(dead_code, reason = "not every bench uses it")]
    pub(crate) admin: SocketAddr,
    quit: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Starts a gateway with the default configuration except for the quota.
    #[allow(dead_code, reason = "not every bench uses it")]
    pub(crate) fn start(chat: SocketAddr, per_second: u32) -> Self {
        Self::start_in(chat, per_second, None)
    }

    /// Starts a gateway as a replica.
    pub(crate) fn start_in(chat: SocketAddr, per_second: u32, fleet: Option<Fleet>) -> Self {
        Self::start_with(chat, per_second, |config| config.fleet = fleet)
    }

    /// Starts a gateway with a changed configuration.
    pub(crate) fn start_with(chat: SocketAddr, per_second: u32, change: impl FnOnce(&mut Config)) -> Self {
        let any = || ListenAddr::Tcp(([127, 0, 0, 1], 0).into());
        let app = App {
            name: "bench".parse().expect("a name"),
            sdkappid: SdkAppId::new(1_400_000_001).expect("not 0"),
            region: None,
            endpoint: Endpoint { tls: false, host: chat.ip().to_string(), port: chat.port() },
            standby: None,
            extra_roots: Vec::new(),
            identifier: "administrator".parse().expect("a name"),
            secret_key: SecretKey::new("bench").expect("not empty"),
            usersig_lifetime: Duration::from_secs(24 * 60 * 60),
            default: true,
            reads: DeclaredReads::default(),
            quota: Quota { per_command: NonZeroU32::new(per_second).expect("not 0"), ..Quota::default() },
        };
        let mut config = Config {
            callers: Vec::new(),
            server: Server { listen: vec![any()], admin: any(), max_connections: 20_000, ..Server::default() },
            apps: vec![app],
            access: Access::default(),
            cache: Cache::default(),
            relation: Relation::default(),
            upstream: Upstream::default(),
            log: Log::default(),
            trace: None,
            webhook: None,
            fleet: None,
            warnings: Vec::new(),
            source: Default::default(),
        };
        change(&mut config);
        Self::start_config(config)
    }

    /// Starts a gateway with any configuration.
    pub(crate) fn start_config(config: Config) -> Self {
        let server = serve::Server::bind(config, None).expect("free ports");
        let address = server.addresses()[0].parse().expect("an address");
        let admin = server.admin_address().parse().expect("an address");
        let quit = server.quit();
        let thread = std::thread::spawn(move || {
            server.run().expect("threads can be created");
        });
        Self { address, admin, quit, thread: Some(thread) }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.quit.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A client with as many connections to one address as it has concurrent requests.
pub(crate) struct Client {
    address: SocketAddr,
    /// The value of `Authorization`, if it sends one.
    authorization: Option<String>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

/// The outcome of a request.
#[allow(dead_code, reason = "not every bench uses it")]
pub(crate) struct Outcome {
    pub(crate) answered: bool,
    pub(crate) took: Duration,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, authorization: None, idle: Mutex::default() }
    }

    /// Returns a client that authenticates as a caller.
    #[allow(dead_code, reason = "not every bench uses it")]
    pub(crate) fn with_token(address: SocketAddr, token: &str) -> Self {
        Self { authorization: Some(format!("Bearer {token}")), ..Self::new(address) }
    }

    /// Sends a `follow_check` and reads the complete response.
    #[allow(dead_code, reason = "not every bench uses it")]
    pub(crate) async fn ask(&self, from: &str, to: &[String]) -> Outcome {
        self.post("/v4/follow/follow_check", "max-stale=0", question(from, to)).await
    }

    /// Asks only the cache, with `only-if-cached`.
    #[allow(dead_code, reason = "not every bench uses it")]
    pub(crate) async fn ask_cache(&self, from: &str, to: &[String]) -> Outcome {
        self.post("/v4/follow/follow_check", "only-if-cached", question(from, to)).await
    }

    /// Posts any body.
    pub(crate) async fn post(&self, path: &str, freshness: &str, body: String) -> Outcome {
        let begun = clock::now();
        let answered = self.send(path, freshness, body).await.is_ok_and(|(answered, _)| answered);
        Outcome { answered, took: clock::now() - begun }
    }

    /// Posts any body, and returns that of a successful response.
    #[allow(dead_code, reason = "not every bench uses it")]
    pub(crate) async fn fetch(&self, path: &str, body: String) -> Option<Bytes> {
        let sent = self.send(path, "max-stale=0", body).await;
        sent.ok().and_then(|(answered, body)| answered.then_some(body))
    }

    async fn send(
        &self,
        path: &str,
        freshness: &str,
        body: String,
    ) -> Result<(bool, Bytes), Box<dyn std::error::Error + Send + Sync>> {
        let idle = self.idle.lock().expect("no panic under it").pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) = handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                sender
            }
        };
        connection.ready().await?;
        let mut request = Request::post(path)
            .header("host", self.address.to_string())
            .header("cache-control", freshness)
            .body(Full::new(Bytes::from(body)))?;
        if let Some(authorization) = &self.authorization {
            request.headers_mut().insert("authorization", authorization.parse()?);
        }
        let response = connection.send_request(request).await?;
        let answered = response.status() == 200;
        let body = response.into_body().collect().await?.to_bytes();
        self.idle.lock().expect("no panic under it").push(connection);
        Ok((answered, body))
    }
}

fn question(from: &str, to: &[String]) -> String {
    serde_json::json!({"From_Account": from, "To_Account": to}).to_string()
}

/// Returns the metrics of an admin listener as text.
#[allow(dead_code, reason = "not every bench uses it")]
pub(crate) async fn metrics(admin: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Returns the duration within which this share of the requests ended.
pub(crate) fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let at = (times.len() as f64 * share) as usize;
    times.get(at.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
