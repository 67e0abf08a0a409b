//! A real Redis on its own port, and a proxy for it that can fail.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::tls::{Ca, Pem};
use super::wall_clock::WallClock;
use super::wire::free_address;
use super::{eventually, within};

/// The program of a Redis, and its wall clock.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) program: PathBuf,
    /// `None`: the clock of this machine.
    pub(crate) clock: Option<WallClock>,
}

impl Default for Server {
    /// Returns the installed program.
    fn default() -> Server {
        Server::new("redis-server")
    }
}

impl Server {
    pub(crate) fn new(program: impl Into<PathBuf>) -> Server {
        Server { program: program.into(), clock: None }
    }
}

/// A `redis-server` without persistence, a node of a Redis Cluster, or a sentinel. Dropping it kills the process.
pub(crate) struct Redis {
    child: Option<Child>,
    server: Server,
    address: SocketAddr,
    /// The TLS address.
    tls: Option<SocketAddr>,
    /// The password of the default user.
    password: Option<String>,
    arguments: Vec<String>,
    /// The port of the bus of a Redis Cluster, if this is a node of one.
    bus_port: Option<u16>,
    dir: TempDir,
}

impl Redis {
    /// Starts Redis and waits until it answers.
    pub(crate) async fn start() -> Redis {
        Redis::start_server(&Server::default()).await
    }

    /// Starts this program, as [`Redis::start`] does.
    pub(crate) async fn start_server(server: &Server) -> Redis {
        let mut redis = Redis::new(server, &["--save", "", "--appendonly", "no"]);
        // Fills replicas without a file and without a delay.
        redis.add_arguments(&["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]);
        redis.restart().await;
        redis
    }

    /// Returns a Redis that does not run yet, at a free address.
    pub(crate) fn new(server: &Server, arguments: &[&str]) -> Redis {
        let (address, dir) = (free_address(), tempfile::tempdir().expect("a temporary directory"));
        let server = server.clone();
        let (child, tls, password, bus_port) = (None, None, None, None);
        let mut redis = Redis { child, server, address, tls, password, arguments: Vec::new(), bus_port, dir };
        redis.add_arguments(arguments);
        redis
    }

    /// Returns a node of a Redis Cluster that does not run yet.
    pub(crate) fn cluster_node(server: &Server) -> Redis {
        let mut node = Redis::new(server, &["--save", "", "--appendonly", "no", "--cluster-enabled", "yes"]);
        let bus_port = free_address().port();
        node.bus_port = Some(bus_port);
        node.add_arguments(&["--cluster-port", &bus_port.to_string(), "--cluster-node-timeout", "1000"]);
        node.add_arguments(&["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]);
        // A node whose peer is down serves its own slots.
        node.add_arguments(&["--cluster-require-full-coverage", "no", "--cluster-allow-replica-migration", "no"]);
        node
    }

    /// Returns the port by which other nodes of a Redis Cluster know this one.
    pub(crate) fn peer_port(&self) -> u16 {
        self.tls.unwrap_or(self.address).port()
    }

    /// Returns the port of the bus of a Redis Cluster.
    pub(crate) fn bus_port(&self) -> u16 {
        self.bus_port.expect("a node of a Redis Cluster")
    }

    /// Adds arguments for the next start.
    pub(crate) fn add_arguments(&mut self, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    }

    /// Requires this password from the next start on.
    pub(crate) fn require_password(&mut self, password: &str) {
        self.add_arguments(&["--requirepass", password, "--masterauth", password]);
        self.password = Some(password.to_owned());
    }

    /// Starts Redis with an additional TLS address. If `clients` is a CA certificate, clients must present a
    /// certificate of that CA.
    pub(crate) async fn start_tls(pem: &Pem, clients: Option<&str>) -> Redis {
        let mut redis = Redis::start().await;
        redis.kill();
        redis.add_tls(pem, clients);
        redis.restart().await;
        redis
    }

    /// Adds a TLS address for the next start, as [`Redis::start_tls`] does.
    pub(crate) fn add_tls(&mut self, pem: &Pem, clients: Option<&str>) {
        let dir = self.dir.path().to_owned();
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let address = free_address();
        let auth_clients = if clients.is_some() { "yes" } else { "no" };
        self.add_arguments(&["--tls-port", &address.port().to_string(), "--tls-auth-clients", auth_clients]);
        self.add_arguments(&["--tls-cert-file", &path("cert.pem"), "--tls-key-file", &path("key.pem")]);
        self.add_arguments(&["--tls-ca-cert-file", &path("ca.pem")]);
        // Redis reads this file even if it does not request client certificates.
        std::fs::write(path("ca.pem"), clients.unwrap_or(&pem.certificate)).expect("own directory");
        self.tls = Some(address);
        self.write_certificate(pem);
    }

    /// Adds a TLS address for the next start, and uses TLS for connections to other Redis and between cluster nodes too.
    pub(crate) fn add_tls_with_peers(&mut self, pem: &Pem, ca: &Ca) {
        self.add_tls(pem, None);
        std::fs::write(self.dir.path().join("peers.pem"), ca.pem()).expect("own directory");
        self.add_arguments(&["--tls-ca-cert-file", "peers.pem", "--tls-replication", "yes"]);
        if self.bus_port.is_some() {
            self.add_arguments(&["--tls-cluster", "yes"]);
        }
    }

    fn write_certificate(&self, pem: &Pem) {
        std::fs::write(self.dir.path().join("cert.pem"), &pem.certificate).expect("own directory");
        std::fs::write(self.dir.path().join("key.pem"), &pem.key).expect("own directory");
    }

    /// Restarts Redis with this certificate.
    pub(crate) async fn set_certificate(&mut self, pem: &Pem) {
        self.kill();
        self.write_certificate(pem);
        self.restart().await;
    }

    /// Starts Redis at the same address, without data.
    pub(crate) async fn restart(&mut self) {
        let mut command = Command::new(&self.server.program);
        // A configuration file must exist and be writable for a sentinel.
        let file = self.dir.path().join("redis.conf");
        std::fs::write(&file, format!("port {}\nbind 127.0.0.1\n", self.address.port())).expect("own directory");
        command.arg(&file).args(&self.arguments).envs(self.server.clock.iter().flat_map(WallClock::variables));
        command.current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("redis-server is installed; see tests/run"));
        eventually("Redis answers", async || (self.try_command("PING").await? == "+PONG\r\n").then_some(())).await;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the TLS address.
    pub(crate) fn tls_address(&self) -> SocketAddr {
        self.tls.expect("TLS is configured")
    }

    /// Makes this Redis a replica of `primary`, and waits until it has synchronized.
    pub(crate) async fn replicate_from(&self, primary: SocketAddr) {
        self.command(&format!("REPLICAOF {} {}", primary.ip(), primary.port())).await;
        let up = async || self.command("INFO replication").await.contains("master_link_status:up").then_some(());
        eventually("the replica has synchronized", up).await;
    }

    /// Sends a signal, such as `"STOP"`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("Redis is running").id();
        let status = Command::new("sh").args(["-c", &format!("kill -s {name} {pid}")]).status().expect("a shell");
        assert!(status.success());
    }

    /// Sends SIGKILL and waits for the exit.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends one inline command and returns its reply.
    pub(crate) async fn command(&self, line: &str) -> String {
        within(super::PATIENCE, "Redis answers", self.try_command(line)).await.expect("Redis answers")
    }

    /// Sends one inline command and returns its reply, if Redis is up.
    pub(crate) async fn try_command(&self, line: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).await.ok()?;
        let login = self.password.as_ref().map(|password| format!("AUTH {password}\r\n"));
        let login = login.unwrap_or_default();
        stream.write_all(format!("{login}{line}\r\nQUIT\r\n").as_bytes()).await.ok()?;
        // Sentinels of some versions do not know QUIT; they close the connection at its end.
        stream.shutdown().await.ok()?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.ok()?;
        let text = String::from_utf8_lossy(&response).into_owned();
        let text = if login.is_empty() { &*text } else { text.strip_prefix("+OK\r\n")? };
        let unknown = || text.rsplit_once("-ERR unknown command").map(|(before, _)| before);
        text.strip_suffix("+OK\r\n").or_else(unknown).map(str::to_owned)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A proxy for Redis on another port that can delay replies or drop everything.
pub(crate) struct RedisProxy {
    address: SocketAddr,
    faults: Arc<Faults>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Faults {
    delay_ms: AtomicU64,
    partitioned: AtomicBool,
}

impl RedisProxy {
    pub(crate) async fn start(redis: &Redis) -> RedisProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (address, target) = (listener.local_addr().expect("bound"), redis.address);
        let (faults, stop) = (Arc::new(Faults::default()), CancellationToken::new());
        let shared = Arc::clone(&faults);
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok((near, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let (_, _) = (near.set_nodelay(true), far.set_nodelay(true));
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::join!(relay(near_in, far_out, &shared, false), relay(far_in, near_out, &shared, true));
                });
            }
        }));
        RedisProxy { address, faults, stop }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Delays every reply by `delay` from now on.
    pub(crate) fn set_delay(&self, delay: Duration) {
        self.faults.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// Drops everything in both directions while `partitioned` is true, without closing the connections.
    pub(crate) fn set_partitioned(&self, partitioned: bool) {
        self.faults.partitioned.store(partitioned, Ordering::Relaxed);
    }
}

impl Drop for RedisProxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn relay(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    faults: &Faults,
    is_reply: bool,
) {
    let mut chunk = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        let delay_ms = faults.delay_ms.load(Ordering::Relaxed);
        if is_reply && delay_ms > 0 {
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        }
        // Bytes dropped during a partition stay lost after it ends.
        if faults.partitioned.load(Ordering::Relaxed) {
            continue;
        }
        if to.write_all(&chunk[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
