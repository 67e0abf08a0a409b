//! Under systemd: sockets that it has opened, and what it is told.

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
use crate::support::client::{Ask, Conn};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::process::Process;
use crate::support::setup::Setup;
use crate::support::{eventually, turn};

const CALL: &str = "openim/querystate";

/// What systemd does for a service with two sockets: they become descriptors 3 and 4 of a process that is told so
/// by its own number. A shell does it here, which gets them as its stdin and stdout.
fn passing(first: impl Into<OwnedFd>, second: impl Into<OwnedFd>) -> Command {
    let script = "exec 3<&0 4<&1 0</dev/null 1>/dev/null; export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", env!("CARGO_BIN_EXE_chatgate")]).env("LISTEN_FDNAMES", "one:two");
    command.stdin(Stdio::from(first.into())).stdout(Stdio::from(second.into()));
    command
}

/// A listening TCP socket and its address.
fn tcp() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    (listener, address)
}

#[tokio::test]
async fn sockets_of_systemd_take_the_place_of_their_addresses_and_outlive_the_process() {
    let chat = FakeChat::start().await;
    // Not the gateway's own directory, which goes with it.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("gate.sock");
    let file = UnixListener::bind(&path).expect("free");
    let (port, address) = tcp();
    // One is among the data listeners, one is that of operators; a third address is bound as ever.
    let listen = [format!("unix:{}", path.display()), "127.0.0.1:0".to_owned()];
    let setup = Setup::new(&chat).listen(&listen.each_ref().map(String::as_str));
    let setup = setup.set("server", &format!("admin = \"{address}\""));
    let command = passing(file.try_clone().expect("descriptors"), port.try_clone().expect("descriptors"));
    let gateway = setup.start_by(command).await;
    assert_eq!((gateway.addresses()[0].as_str(), gateway.admin()), (listen[0].as_str(), address.as_str()));
    assert_eq!(gateway.admin_get("/readyz").await.status, 200);
    for address in gateway.addresses() {
        Conn::open(address).await.expect("accepted").ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    }
    let other = gateway.addresses()[1].clone();
    assert_eq!(gateway.stop().await, 0);
    assert!(path.exists(), "its file is systemd's");
    // Who connects now waits for the next process instead of being refused.
    Conn::open(&listen[0]).await.expect("it listens");
    Conn::open(&address).await.expect("it listens");
    assert!(Conn::open(&other).await.is_err(), "our own is gone");
    drop((file, port));
}

/// Runs it with these sockets, which must end by itself with 1.
async fn refused(setup: &Setup, first: impl Into<OwnedFd>, second: impl Into<OwnedFd>) -> String {
    let mut command = passing(first, second);
    command.args(["serve", "--config"]).arg(setup.write());
    let mut process = Process::spawn(command, setup.dir(), &[]);
    assert_eq!(process.exit_code().await, 1, "{}", process.stderr());
    process.stderr()
}

#[tokio::test]
async fn a_socket_that_has_no_place_or_that_nobody_can_connect_to_is_an_error_that_says_so() {
    let setup = Setup::without_apps().app(MAIN, "endpoint = \"http://127.0.0.1:9\"");
    let own = setup.dir().join("own.sock");
    let ((first, first_address), (second, second_address)) = (tcp(), tcp());
    let listen = [first_address, format!("unix:{}", own.display())];
    let setup = setup.listen(&listen.each_ref().map(String::as_str));
    let told = refused(&setup, first, second).await;
    assert!(told.contains(&second_address) && told.contains("server.listen"), "{told}");
    assert!(!own.exists(), "it leaves nothing behind");
    let datagram = UnixDatagram::bind(setup.dir().join("datagram")).expect("free");
    let told = refused(&setup, tcp().0, datagram).await;
    assert!(told.contains("socket 4 (two)") && told.contains("ListenStream="), "{told}");
}

#[tokio::test]
async fn sockets_of_another_process_are_left_alone() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).env("LISTEN_FDS", "2").env("LISTEN_PID", "1").start().await;
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
    assert_eq!(gateway.stop().await, 0);
}

/// A service manager: where it is told, and what it was told.
struct Manager {
    socket: tokio::net::UnixDatagram,
}

impl Manager {
    fn at(path: &Path) -> Manager {
        Manager { socket: tokio::net::UnixDatagram::bind(path).expect("free") }
    }

    /// The next message that is no sign of life.
    async fn next(&self) -> String {
        loop {
            let message = self.any().await;
            if message != "WATCHDOG=1" {
                return message;
            }
        }
    }

    /// Forgets what has come so far. Whether there was anything.
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
    Conn::open(admin).await.expect("accepted").ask(&Ask::post("/reload")).await.status
}

#[tokio::test]
async fn the_service_manager_hears_of_every_state() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let path = setup.dir().join("notify.sock");
    let manager = Manager::at(&path);
    let gateway = setup.env("NOTIFY_SOCKET", &path.display().to_string()).start().await;
    assert_eq!(manager.next().await, "READY=1");
    assert_eq!(gateway.admin_get("/readyz").await.status, 200, "it was true");
    // By signal, by order, and one that is refused.
    gateway.signal("HUP");
    let assert_reload = async || {
        let begun = manager.next().await;
        let micros = begun.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap_or_else(|| panic!("{begun}"));
        assert!(micros.parse::<u64>().expect("a number") > 0, "{begun}");
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
async fn signs_of_life_come_while_all_threads_answer() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let path = setup.dir().join("notify.sock");
    let manager = Manager::at(&path);
    let setup = setup.env("NOTIFY_SOCKET", &path.display().to_string());
    let gateway = setup.env("WATCHDOG_USEC", "400000").start().await;
    for _ in 0..3 {
        while manager.any().await != "WATCHDOG=1" {}
    }
    // One that stops hears of it, and of its life until the end.
    assert_eq!(gateway.stop().await, 0);
    assert_eq!(manager.next().await, "STOPPING=1");
}

/// Stops one thread as a debugger does, until its stdin ends (ptrace(2)).
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

/// A thread that is held, until this is dropped: then whoever holds it is gone, and it goes on.
struct Held(Child);

impl Held {
    fn thread(gateway: &Gateway, name: &str, is_root: bool) -> Held {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", gateway.pid())).expect("it runs").flatten();
        let has_name =
            |path: &PathBuf| std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name);
        let thread = tasks.map(|task| task.path()).find(has_name).expect("a thread of that name");
        let thread = thread.file_name().expect("a number").to_owned();
        // chatgate keeps its memory from others of its user; over it are root, and root of its namespace.
        let mut command = Command::new(if is_root { "python3" } else { "nsenter" });
        if !is_root {
            command.args(["--user", "--preserve-credentials", "--target", &gateway.pid().to_string(), "python3"]);
        }
        command.args(["-c", HOLD]).arg(thread).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("Python 3 is installed; see tests/run");
        let mut said = [0; 5];
        let read = child.stdout.take().expect("piped").read_exact(&mut said);
        assert!(read.is_ok() && said == *b"held\n", "the thread cannot be held");
        Held(child)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn while_one_thread_hangs_there_is_no_sign_of_life() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let path = setup.dir().join("notify.sock");
    let manager = Manager::at(&path);
    let setup = setup.env("NOTIFY_SOCKET", &path.display().to_string()).env("WATCHDOG_USEC", "400000");
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    let command = if is_root {
        Command::new(env!("CARGO_BIN_EXE_chatgate"))
    } else {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", env!("CARGO_BIN_EXE_chatgate")]);
        command
    };
    let gateway = setup.start_by(command).await;
    while manager.any().await != "WATCHDOG=1" {}
    let complaints = || gateway.log().matches("a thread does not answer").count();
    let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
    for thread in ["worker-0".to_owned(), format!("worker-{last}")] {
        let before = complaints();
        let held = Held::thread(&gateway, &thread, is_root);
        let more = async |count: usize| {
            eventually("it is noticed", async || (complaints() >= before + count).then_some(())).await;
        };
        more(1).await;
        manager.drain();
        more(5).await;
        assert!(!manager.drain(), "{thread} hangs, and a sign of life came");
        // Operators are served by another thread.
        assert_eq!(gateway.admin_get("/livez").await.status, 200);
        drop(held);
        while manager.any().await != "WATCHDOG=1" {}
        gateway.call(CALL, "{}").await.assert_relayed(200, OK);
    }
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn a_hangup_as_soon_as_it_listens_is_a_reload() {
    let chat = FakeChat::start().await;
    for _ in 0..3 {
        let setup = Setup::new(&chat);
        let (file, dir) = (setup.write(), setup.dir().to_owned());
        let mut process = Process::start(&["serve", "--config", &file.to_string_lossy()], &dir, &[]);
        let line = async || process.stderr().contains("\"listening\"").then_some(());
        eventually("the first listener is told of", line).await;
        process.signal("HUP");
        let reloaded = async || process.stderr().contains("\"reloaded\"").then_some(());
        eventually("a reload", reloaded).await;
        process.signal("TERM");
        assert_eq!(process.exit_code().await, 0);
    }
}

/// Files of sockets in the directory.
fn sockets(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).expect("own directory").map(|entry| entry.expect("own directory").path());
    entries.filter(|path| path.to_string_lossy().contains(".sock")).collect()
}

#[tokio::test]
async fn a_start_that_fails_at_any_point_leaves_no_socket_behind() {
    let _alone = turn::alone().await;
    let setup = Setup::without_apps().app(MAIN, "endpoint = \"http://127.0.0.1:9\"");
    let address = |name: &str| format!("unix:{}", setup.dir().join(name).display());
    let (data, admin) = (address("data.sock"), address("admin.sock"));
    let setup = setup.listen(&[&data]).set("server", &format!("admin = \"{admin}\""));
    let file = setup.write();
    // Each try has one descriptor more than the one before, so each fails a little later, until one succeeds.
    let (mut failures, mut after_binding) = (0, 0);
    for limit in 8..64 {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {limit} || exit 99; exec \"$@\"");
        command.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_chatgate"), "serve", "--config"]).arg(&file);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut process = Process::spawn(command, setup.dir(), &[]);
        let up = async || {
            let ended = process.try_exit();
            (ended.is_some() || process.stderr().contains("\"admin\"")).then_some(ended)
        };
        match eventually("it listens or it fails", up).await {
            Some(code) => {
                // tokio panics where there is no descriptor for its signals, which must leave nothing behind either.
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
    panic!("it never came up");
}

#[tokio::test]
async fn a_stop_while_nobody_reads_what_the_manager_is_told_takes_no_longer() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let path = setup.dir().join("notify.sock");
    // It is there, and nobody ever reads it.
    let _manager = UnixDatagram::bind(&path).expect("free");
    let setup = setup.env("NOTIFY_SOCKET", &path.display().to_string()).env("WATCHDOG_USEC", "20000");
    let mut gateway = setup.start().await;
    let full = async || gateway.log().contains("the service manager could not be told").then_some(());
    eventually("no more room for messages", full).await;
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
    gateway.signal("TERM");
    assert_eq!(gateway.exit_code_within(Duration::from_secs(8)).await, 0);
}
