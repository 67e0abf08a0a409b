//! A real Redis on its own port, and a proxy for it that can fail.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::tls::Pem;
use super::wire::free_address;
use super::{eventually, within};

/// A `redis-server` without persistence. Dropping it kills the process.
pub(crate) struct Redis {
    child: Option<Child>,
    address: SocketAddr,
    /// The TLS address, and the arguments for TLS.
    tls: Option<(SocketAddr, Vec<String>)>,
    dir: TempDir,
}

impl Redis {
    /// Starts Redis and waits until it answers.
    pub(crate) async fn start() -> Redis {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut redis = Redis { child: None, address: free_address(), tls: None, dir };
        redis.restart().await;
        redis
    }

    /// Starts Redis with an additional TLS address. If `clients` is a CA certificate, clients must present a
    /// certificate of that CA.
    pub(crate) async fn start_tls(pem: &Pem, clients: Option<&str>) -> Redis {
        let mut redis = Redis::start().await;
        redis.kill();
        let dir = redis.dir.path();
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let auth_clients = if clients.is_some() { "yes" } else { "no" };
        let mut arguments = vec!["--tls-cert-file".to_owned(), path("cert.pem"), "--tls-key-file".to_owned()];
        arguments.extend([path("key.pem"), "--tls-ca-cert-file".to_owned(), path("ca.pem")]);
        arguments.extend(["--tls-auth-clients".to_owned(), auth_clients.to_owned()]);
        // Redis reads this file even if it does not request client certificates.
        std::fs::write(dir.join("ca.pem"), clients.unwrap_or(&pem.certificate)).expect("own directory");
        redis.tls = Some((free_address(), arguments));
        redis.set_certificate(pem).await;
        redis
    }

    /// Restarts Redis with this certificate.
    pub(crate) async fn set_certificate(&mut self, pem: &Pem) {
        self.kill();
        std::fs::write(self.dir.path().join("cert.pem"), &pem.certificate).expect("own directory");
        std::fs::write(self.dir.path().join("key.pem"), &pem.key).expect("own directory");
        self.restart().await;
    }

    /// Starts Redis at the same address, without data.
    pub(crate) async fn restart(&mut self) {
        let port = self.address.port().to_string();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        // Fills replicas without a file and without a delay.
        command.args(["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]);
        if let Some((address, arguments)) = &self.tls {
            command.args(["--tls-port", &address.port().to_string()]).args(arguments);
        }
        command.current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("redis-server is installed; see tests/run"));
        eventually("Redis answers", async || (self.try_command("PING").await? == "+PONG\r\n").then_some(())).await;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the TLS address.
    pub(crate) fn tls_address(&self) -> SocketAddr {
        self.tls.as_ref().expect("TLS is configured").0
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

    async fn try_command(&self, line: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).await.ok()?;
        stream.write_all(format!("{line}\r\nQUIT\r\n").as_bytes()).await.ok()?;
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.ok()?;
        let text = String::from_utf8_lossy(&response).into_owned();
        text.strip_suffix("+OK\r\n").map(str::to_owned)
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
