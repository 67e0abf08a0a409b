//! A real Redis on a port of its own, and a way to it that can be spoilt.

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

/// `redis-server`, which keeps nothing on disk. Dropping it kills it.
pub(crate) struct Redis {
    child: Option<Child>,
    address: SocketAddr,
    /// Where it speaks TLS, and what it is told of that.
    tls: Option<(SocketAddr, Vec<String>)>,
    dir: TempDir,
}

impl Redis {
    /// Starts it and waits until it answers.
    pub(crate) async fn start() -> Redis {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut redis = Redis { child: None, address: free_address(), tls: None, dir };
        redis.start_again().await;
        redis
    }

    /// The same with TLS at an address of its own. If `clients` is the certificate of an authority, it wants one of
    /// that.
    pub(crate) async fn start_tls(shows: &Pem, clients: Option<&str>) -> Redis {
        let mut redis = Redis::start().await;
        redis.kill();
        let dir = redis.dir.path();
        let path = |name: &str| dir.join(name).to_string_lossy().into_owned();
        let asks = if clients.is_some() { "yes" } else { "no" };
        let mut words = vec!["--tls-cert-file".to_owned(), path("cert.pem"), "--tls-key-file".to_owned()];
        words.extend([path("key.pem"), "--tls-ca-cert-file".to_owned(), path("ca.pem")]);
        words.extend(["--tls-auth-clients".to_owned(), asks.to_owned()]);
        // One that asks nobody reads this file all the same.
        std::fs::write(dir.join("ca.pem"), clients.unwrap_or(&shows.certificate)).expect("own directory");
        redis.tls = Some((free_address(), words));
        redis.show(shows).await;
        redis
    }

    /// Starts it again with this certificate.
    pub(crate) async fn show(&mut self, shows: &Pem) {
        self.kill();
        std::fs::write(self.dir.path().join("cert.pem"), &shows.certificate).expect("own directory");
        std::fs::write(self.dir.path().join("key.pem"), &shows.key).expect("own directory");
        self.start_again().await;
    }

    /// Starts it where it was before, with nothing in it.
    pub(crate) async fn start_again(&mut self) {
        let port = self.address.port().to_string();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        // A replica is filled without a file and without a pause.
        command.args(["--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0"]);
        if let Some((address, words)) = &self.tls {
            command.args(["--tls-port", &address.port().to_string()]).args(words);
        }
        command.current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().expect("redis-server is installed; see tests/run"));
        eventually("Redis answers", async || (self.try_say("PING").await? == "+PONG\r\n").then_some(())).await;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it speaks TLS.
    pub(crate) fn tls_address(&self) -> SocketAddr {
        self.tls.as_ref().expect("it speaks TLS").0
    }

    /// From now on it is a replica of what is there, and has all that that has.
    pub(crate) async fn follow(&self, primary: SocketAddr) {
        self.say(&format!("REPLICAOF {} {}", primary.ip(), primary.port())).await;
        let up = async || self.say("INFO replication").await.contains("master_link_status:up").then_some(());
        eventually("the replica is in step", up).await;
    }

    /// Sends a signal, for instance `"STOP"`.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id();
        let status = Command::new("sh").args(["-c", &format!("kill -s {name} {pid}")]).status().expect("a shell");
        assert!(status.success());
    }

    /// SIGKILL, and its end.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// One command in a line, and the beginning of its answer.
    pub(crate) async fn say(&self, line: &str) -> String {
        within(super::PATIENCE, "Redis answers", self.try_say(line)).await.expect("Redis answers")
    }

    async fn try_say(&self, line: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.address).await.ok()?;
        stream.write_all(format!("{line}\r\nQUIT\r\n").as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.ok()?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        text.strip_suffix("+OK\r\n").map(str::to_owned)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A way to Redis on another port, on which answers are late or do not come at all.
pub(crate) struct Way {
    address: SocketAddr,
    spoilt: Arc<Spoilt>,
    stop: CancellationToken,
}

#[derive(Default)]
struct Spoilt {
    late_ms: AtomicU64,
    cut: AtomicBool,
}

impl Way {
    pub(crate) async fn to(redis: &Redis) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (address, target) = (listener.local_addr().expect("bound"), redis.address);
        let (spoilt, stop) = (Arc::new(Spoilt::default()), CancellationToken::new());
        let shared = Arc::clone(&spoilt);
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            while let Ok((near, _)) = listener.accept().await {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let (_, _) = (near.set_nodelay(true), far.set_nodelay(true));
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::join!(carry(near_in, far_out, &shared, false), carry(far_in, near_out, &shared, true));
                });
            }
        }));
        Way { address, spoilt, stop }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on every answer is so late.
    pub(crate) fn late(&self, span: Duration) {
        self.spoilt.late_ms.store(span.as_millis() as u64, Ordering::Relaxed);
    }

    /// Nothing comes through any more, in either direction, and nobody is told; or it does again.
    pub(crate) fn cut(&self, cut: bool) {
        self.spoilt.cut.store(cut, Ordering::Relaxed);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn carry(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    spoilt: &Spoilt,
    answers: bool,
) {
    let mut chunk = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        let late = spoilt.late_ms.load(Ordering::Relaxed);
        if answers && late > 0 {
            tokio::time::sleep(Duration::from_millis(late)).await;
        }
        // What is lost is lost: a partition that heals brings nothing of it.
        if spoilt.cut.load(Ordering::Relaxed) {
            continue;
        }
        if to.write_all(&chunk[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
