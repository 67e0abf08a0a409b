//! systemd integration: socket activation, state notifications, and the watchdog.

use std::io::Read as _;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::process::{Process, program};
use crate::support::setup::Setup;
use crate::support::{eventually, turn};

const CALL: &str = "openim/querystate";

/// Builds a command that activates chatgate with two sockets, as systemd does.
///
/// The sockets become descriptors 3 and 4, and `LISTEN_PID` holds the process's own id. A shell that gets the
/// sockets as its stdin and stdout sets this up.
fn with_sockets(first: impl Into<OwnedFd>, second: impl Into<OwnedFd>) -> Command {
    let script = "exec 3<&0 4<&1 0</dev/null 1>/dev/null; export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", program()]).env("LISTEN_FDNAMES", "one:two");
    command.stdin(Stdio::from(first.into())).stdout(Stdio::from(second.into()));
    command
}

/// Returns a listening TCP socket and its address.
fn tcp() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

#[tokio::test]
async fn activated_sockets_replace_their_addresses_and_outlive_the_process() {
    let chat = FakeChat::start().await;
    // Not the gateway's own directory, which is removed with the gateway.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("gate.sock");
    let file = UnixListener::bind(&path).expect("free");
    let (port, address) = tcp();
    // One socket is a data listener and one the admin listener. chatgate binds the third address itself.
    let listen = [format!("unix:{}", path.display()), "127.0.0.1:0".to_owned()];
    let setup = Setup::new(&chat).listen(&listen.each_ref().map(String::as_str));
    let setup = setup.set("server", &format!("admin = \"{address}\""));
    let command = with_sockets(file.try_clone().expect("descriptors"), port.try_clone().expect("descriptors"));
    let gateway = setup.start_with_command(command).await;
    assert_eq!((gateway.addresses()[0].as_str(), gateway.admin()), (listen[0].as_str(), address.as_str()));
    assert_eq!(gateway.admin_get("/readyz").await.status, 200);
    for address in gateway.addresses() {
        Conn::open(address).await.expect("accepted").request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    }
    let other = gateway.addresses()[1].clone();
    assert_eq!(gateway.stop().await, 0);
    assert!(path.exists(), "the socket file belongs to systemd");
    // New connections wait for the next process instead of being refused.
    Conn::open(&listen[0]).await.expect("the socket listens");
    Conn::open(&address).await.expect("the socket listens");
    assert!(Conn::open(&other).await.is_err(), "chatgate's own socket is closed");
    drop((file, port));
}

/// Runs chatgate with these sockets, expects exit code 1, and returns its stderr.
async fn failed_start(setup: &Setup, first: impl Into<OwnedFd>, second: impl Into<OwnedFd>) -> String {
    let mut command = with_sockets(first, second);
    command.args(["serve", "--config"]).arg(setup.write());
    let mut process = Process::spawn(command, setup.dir(), &[]);
    assert_eq!(process.exit_code().await, 1, "{}", process.stderr());
    process.stderr()
}

#[tokio::test]
async fn unmatched_or_non_listening_activated_sockets_are_named_errors() {
    let setup = Setup::without_apps().app(MAIN, "endpoint = \"http://127.0.0.1:9\"");
    let own = setup.dir().join("own.sock");
    let ((first, first_address), (second, second_address)) = (tcp(), tcp());
    let listen = [first_address, format!("unix:{}", own.display())];
    let setup = setup.listen(&listen.each_ref().map(String::as_str));
    let stderr = failed_start(&setup, first, second).await;
    assert!(stderr.contains(&second_address) && stderr.contains("server.listen"), "{stderr}");
    assert!(!own.exists(), "a socket file is left behind");
    let datagram = UnixDatagram::bind(setup.dir().join("datagram")).expect("free");
    let stderr = failed_start(&setup, tcp().0, datagram).await;
    assert!(stderr.contains("socket 4 (two)") && stderr.contains("ListenStream="), "{stderr}");
}

#[tokio::test]
async fn sockets_of_another_process_are_ignored() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).env("LISTEN_FDS", "2").env("LISTEN_PID", "1").start().await;
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
    assert_eq!(gateway.stop().await, 0);
}

/// A service manager that receives notifications on a datagram socket.
struct Manager {
    socket: tokio::net::UnixDatagram,
}

impl Manager {
    fn at(path: &Path) -> Manager {
        Manager { socket: tokio::net::UnixDatagram::bind(path).expect("free") }
    }

    /// Receives the next message that is not a watchdog notification.
    async fn next(&self) -> String {
        loop {
            let message = self.any().await;
            if message != "WATCHDOG=1" {
                return message;
            }
        }
    }

    /// Discards the pending messages and returns whether there were any.
    fn drain(&self) -> bool {
        let mut any = false;
        while self.socket.try_recv(&mut [0; 512]).is_ok() {
            any = true;
        }
        any
    }

    async fn any(&self) -> String {
        let mut bytes = [0; 512];
        let received = crate::support::within(crate::support::PATIENCE, "a message", self.socket.recv(&mut bytes));
        let len = received.await.expect("an own socket");
        String::from_utf8_lossy(&bytes[..len]).into_owned()
    }
}

async fn reload(admin: &str) -> u16 {
    Conn::open(admin).await.expect("accepted").request(&TestRequest::post("/reload")).await.status
}

#[tokio::test]
async fn service_manager_is_notified_of_every_state_change() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let path = setup.dir().join("notify.sock");
    let manager = Manager::at(&path);
    let gateway = setup.env("NOTIFY_SOCKET", &path.display().to_string()).start().await;
    assert_eq!(manager.next().await, "READY=1");
    assert_eq!(gateway.admin_get("/readyz").await.status, 200, "READY=1 came before the gateway was ready");
    // By signal, by admin action, and with an invalid configuration.
    gateway.signal("HUP");
    let assert_reload = async || {
        let message = manager.next().await;
        let micros = message.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{message}"));
        assert!(micros.parse::<u64>().expect("a number") > 0, "{message}");
        assert_eq!(manager.next().await, "READY=1");
    };
    assert_reload().await;
    assert_eq!(reload(gateway.admin()).await, 200);
    assert_reload().await;
    std::fs::write(gateway.dir().join("chatgate.toml"), "[server").expect("own directory");
    assert_eq!(reload(gateway.admin()).await, 400);
    assert_reload().await;
    assert_eq!(gateway.stop().await, 0);
    assert_eq!(manager.next().await, "STOPPING=1");
}

#[tokio::test]
async fn watchdog_notifications_arrive_while_all_threads_respond() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let path = setup.dir().join("notify.sock");
    let manager = Manager::at(&path);
    let setup = setup.env("NOTIFY_SOCKET", &path.display().to_string());
    let gateway = setup.env("WATCHDOG_USEC", "400000").start().await;
    for _ in 0..3 {
        while manager.any().await != "WATCHDOG=1" {}
    }
    // A stop is announced too.
    assert_eq!(gateway.stop().await, 0);
    assert_eq!(manager.next().await, "STOPPING=1");
}

/// A script that stops one thread with ptrace(2) until its stdin ends.
const HOLD: &str = r#"
import ctypes, os, sys
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
ptrace.argtypes = [ctypes.c_long] * 4
thread, SEIZE, INTERRUPT, WALL = int(sys.argv[1]), 0x4206, 0x4207, 0x40000000
for request in SEIZE, INTERRUPT:
    if ptrace(request, thread, 0, 0) != 0:
        sys.exit("ptrace: " + os.strerror(ctypes.get_errno()))
os.waitpid(thread, WALL)
print("held", flush=True)
sys.stdin.read()
"#;

/// A guard that stops a thread. On drop the tracing process is killed and the thread continues.
struct StoppedThread(Child);

impl StoppedThread {
    fn thread(gateway: &Gateway, name: &str, is_root: bool) -> StoppedThread {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).expect("the gateway runs").flatten();
        let has_name =
            |path: &PathBuf| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
        let thread = tasks.map(|task| task.path()).find(has_name).expect("a thread of that name");
        let thread = thread.file_name().expect("a number").to_owned();
        // chatgate is protected from tracing by its own user. Root and the root of its user namespace may trace it.
        let mut command = Command::new(if is_root { "python3" } else { "nsenter" });
        if !is_root {
            command.args(["--user", "--preserve-credentials", "--target", &gateway.pid().to_string(), "python3"]);
        }
        command.args(["-c", HOLD]).arg(thread).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("Python 3 is installed; see tests/run");
        let mut printed = [0; 5];
        let read = child.stdout.take().expect("piped").read_exact(&mut printed);
        assert!(read.is_ok() && printed == *b"held\n", "the thread cannot be stopped");
        StoppedThread(child)
    }
}

impl Drop for StoppedThread {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn watchdog_notifications_stop_while_one_thread_hangs() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let path = setup.dir().join("notify.sock");
    let manager = Manager::at(&path);
    let setup = setup.env("NOTIFY_SOCKET", &path.display().to_string()).env("WATCHDOG_USEC", "400000");
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let command = if is_root {
        Command::new(program())
    } else {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", program()]);
        command
    };
    let gateway = setup.start_with_command(command).await;
    while manager.any().await != "WATCHDOG=1" {}
    let warnings = || gateway.log().matches("worker thread is unresponsive").count();
    let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
    for thread in ["worker-0".to_owned(), format!("worker-{last}")] {
        let before = warnings();
        let stopped = StoppedThread::thread(&gateway, &thread, is_root);
        let more = async |count: usize| {
            eventually("the hang is logged", async || (warnings() >= before + count).then_some(())).await;
        };
        more(1).await;
        manager.drain();
        more(5).await;
        assert!(!manager.drain(), "a watchdog notification arrived while {thread} hangs");
        // Another thread serves the admin listener.
        assert_eq!(gateway.admin_get("/livez").await.status, 200);
        drop(stopped);
        while manager.any().await != "WATCHDOG=1" {}
        gateway.call(CALL, "{}").await.assert_relayed(200, OK);
    }
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn sighup_right_after_listening_causes_a_reload() {
    let chat = FakeChat::start().await;
    for _ in 0..3 {
        let setup = Setup::new(&chat);
        let (file, dir) = (setup.write(), setup.dir().to_owned());
        let mut process = Process::start(&["serve", "--config", &file.to_string_lossy()], &dir, &[]);
        let line = async || process.stderr().contains("\"listening\"").then_some(());
        eventually("the first listener is logged", line).await;
        process.signal("HUP");
        let reloaded = async || process.stderr().contains("\"reloaded\"").then_some(());
        eventually("the reload is logged", reloaded).await;
        process.signal("TERM");
        assert_eq!(process.exit_code().await, 0);
    }
}

/// Returns the socket files in the directory.
fn sockets(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("own directory").map(|entry| entry.expect("own directory").path());
    entries.filter(|path| path.to_string_lossy().contains(".sock")).collect()
}

#[tokio::test]
async fn failed_start_at_any_point_leaves_no_socket_behind() {
    let _exclusive = turn::exclusive().await;
    let setup = Setup::without_apps().app(MAIN, "endpoint = \"http://127.0.0.1:9\"");
    let address = |name: &str| format!("unix:{}", setup.dir().join(name).display());
    let (data, admin) = (address("data.sock"), address("admin.sock"));
    let setup = setup.listen(&[&data]).set("server", &format!("admin = \"{admin}\""));
    let file = setup.write();
    // Each attempt has one descriptor more than the previous one, so it fails later, until one succeeds.
    let (mut failures, mut after_binding) = (0, 0);
    for limit in 8..64 {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {limit} || exit 99; exec \"$@\"");
        command.args(["-c", &script, "sh", program(), "serve", "--config"]).arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = Process::spawn(command, setup.dir(), &[]);
        let up = async || {
            let ended = process.try_exit();
            (ended.is_some() || process.stderr().contains("\"admin\"")).then_some(ended)
        };
        match eventually("the gateway listens or exits", up).await {
            Some(code) => {
                // tokio panics without a descriptor for its signals. That must leave no socket behind either.
                assert!([1, 101].contains(&code), "{code}\n{}", process.stderr());
                failures += 1;
                after_binding += usize::from(process.stderr().contains("cannot start"));
                assert!(sockets(setup.dir()).is_empty(), "{limit} descriptors\n{}", process.stderr());
            }
            None => {
                process.signal("TERM");
                process.exit_code().await;
                assert!(sockets(setup.dir()).is_empty(), "{limit} descriptors\n{}", process.stderr());
                assert!(
                    failures > 0 && after_binding > 0,
                    "{failures} failures, {after_binding} of them after binding"
                );
                return;
            }
        }
    }
    panic!("the gateway never started");
}

#[tokio::test]
async fn full_notify_socket_does_not_delay_a_stop() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let path = setup.dir().join("notify.sock");
    // The socket exists, but is never read.
    let _manager = UnixDatagram::bind(&path).expect("free");
    let setup = setup.env("NOTIFY_SOCKET", &path.display().to_string()).env("WATCHDOG_USEC", "20000");
    let mut gateway = setup.start().await;
    let full = async || gateway.log().contains("cannot notify systemd").then_some(());
    eventually("the notify socket is full", full).await;
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
    gateway.signal("TERM");
    assert_eq!(gateway.exit_code_within(Duration::from_secs(8)).await, 0);
}
