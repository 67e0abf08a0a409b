//! Start, health checks, listening sockets, and shutdown.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::process::{Process, ProcessOutput, program};
use crate::support::reply::{Gate, Reply};
use crate::support::setup::{Setup, gateway};
use crate::support::wire::free_address;
use crate::support::{eventually, now, turn};

const CALL: &str = "openim/querystate";

async fn wait_until_draining(gateway: &Gateway) {
    eventually("the gateway is draining", async || (gateway.admin_get("/readyz").await.status == 503).then_some(()))
        .await;
}

/// Runs `serve` with this configuration and waits for it to exit.
async fn run_serve(setup: &Setup) -> ProcessOutput {
    let file = setup.write();
    Process::run(&["serve", "--config", &file.to_string_lossy()], setup.dir(), &[]).await
}

#[tokio::test]
async fn liveness_and_readiness_do_not_call_upstream() {
    let gateway = Setup::without_apps().app(MAIN, &format!("endpoint = \"http://{}\"", free_address())).start().await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(gateway.admin_get(path).await.status, 200, "{path}");
    }
    for path in ["/live", "/livez/", "/v4/openim/querystate", "/..", "/%6civez"] {
        assert_eq!(gateway.admin_get(path).await.status, 404, "{path}");
    }
    // The data listener serves no health checks, and the admin listener relays nothing.
    gateway.send(TestRequest::new("GET", "/livez")).await.assert_error(404, "not_found", 60009);
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn sigterm_finishes_requests_in_flight_and_exits_cleanly() {
    let chat = FakeChat::start().await;
    let mut gateway = gateway(&chat).await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let (mut relay, mut check) = (gateway.connect().await, gateway.connect().await);
    relay.send(TestRequest::command(CALL).bytes()).await;
    check.send(TestRequest::check("ann", &["bob"]).bytes()).await;
    chat.wait_for_calls(2).await;
    gateway.signal("TERM");
    wait_until_draining(&gateway).await;
    assert_eq!(gateway.admin_get("/livez").await.status, 200, "alive while draining");
    eventually("no new connection is served", async || (!gateway.is_accepting().await).then_some(())).await;
    gate.open();
    relay.read_response().await.assert_relayed(200, OK);
    assert_eq!(check.read_response().await.follow_types(), [0]);
    relay.assert_closed().await;
    assert_eq!(gateway.exit_code_within(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn keep_alive_connection_closes_after_a_response_while_draining() {
    // An idle connection stays open for only one second.
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let mut gateway = gateway(&chat).await;
    let mut kept = gateway.connect().await;
    kept.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    let gate = Gate::closed();
    let script_gate = gate.clone();
    chat.script(move |call| (call.command() == "openim/held").then(|| Reply::from_graph().after(&script_gate)));
    let mut holding = gateway.connect().await;
    holding.send(TestRequest::command("openim/held").bytes()).await;
    chat.wait_for_calls(2).await;
    gateway.signal("TERM");
    wait_until_draining(&gateway).await;
    // Readiness fails first. Responses carry `Connection: close` shortly after.
    let mut closing = false;
    for _ in 0..1000 {
        let response = kept.request(&TestRequest::command(CALL)).await;
        response.assert_relayed(200, OK);
        closing = response.header("connection") == Some("close");
        if closing {
            break;
        }
    }
    assert!(closing, "no response carries `Connection: close`");
    kept.assert_closed().await;
    gate.open();
    holding.read_response().await.assert_relayed(200, OK);
    assert_eq!(gateway.exit_code_within(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn admin_listener_answers_until_the_drain_has_ended() {
    let chat = FakeChat::start().await;
    let mut gateway = gateway(&chat).await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let mut holding = gateway.connect().await;
    holding.send(TestRequest::command(CALL).bytes()).await;
    chat.wait_for_calls(1).await;
    let mut kept = Conn::open(gateway.admin()).await.expect("accepted");
    let response = kept.request(&TestRequest::new("GET", "/readyz")).await;
    assert_eq!((response.status, response.header("connection")), (200, None));
    let mut idle = Conn::open(gateway.admin()).await.expect("accepted");
    assert_eq!(idle.request(&TestRequest::new("GET", "/livez")).await.status, 200);
    gateway.signal("TERM");
    eventually("no new connection is served", async || (!gateway.is_accepting().await).then_some(())).await;
    let response = kept.request(&TestRequest::new("GET", "/livez")).await;
    assert_eq!((response.status, response.header("connection")), (200, Some("close")));
    kept.assert_closed().await;
    assert_eq!(gateway.admin_get("/readyz").await.status, 503);
    gate.open();
    holding.read_response().await.assert_relayed(200, OK);
    idle.assert_closed().await;
    assert_eq!(gateway.exit_code_within(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn idle_gateway_stops_at_once_despite_idle_connections() {
    let chat = FakeChat::start().await;
    let mut gateway = gateway(&chat).await;
    let mut idle = gateway.connect().await;
    idle.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    let _silent = gateway.connect().await;
    gateway.signal("TERM");
    assert_eq!(gateway.exit_code_within(Duration::from_secs(5)).await, 0);
    idle.assert_closed().await;
}

#[tokio::test]
async fn requests_are_served_as_usual_during_drain_delay() {
    let chat = FakeChat::start().await;
    let mut gateway = Setup::new(&chat).set("server", r#"drain_delay = "2s""#).start().await;
    let start = now();
    gateway.signal("TERM");
    while start.elapsed() < Duration::from_millis(1500) {
        gateway.call(CALL, "{}").await.assert_relayed(200, OK);
        assert_eq!(gateway.admin_get("/livez").await.status, 200);
    }
    assert_eq!(gateway.exit_code_within(Duration::from_secs(6)).await, 0);
    assert!(start.elapsed() >= Duration::from_millis(1900), "{:?}", start.elapsed());
}

#[tokio::test]
async fn drain_timeout_forces_the_stop_with_exit_code_1() {
    let chat = FakeChat::start().await;
    let mut gateway = Setup::new(&chat).set("server", r#"drain_timeout = "1s""#).timeout("15s").start().await;
    chat.reply_always(Reply::hang());
    let mut stuck = gateway.connect().await;
    stuck.send(TestRequest::command(CALL).bytes()).await;
    chat.wait_for_calls(1).await;
    gateway.signal("TERM");
    assert_eq!(gateway.exit_code_within(Duration::from_secs(4)).await, 1);
}

#[tokio::test]
async fn second_sigterm_stops_at_once() {
    let chat = FakeChat::start().await;
    let mut gateway = Setup::new(&chat).timeout("15s").start().await;
    chat.reply_always(Reply::hang());
    let mut stuck = gateway.connect().await;
    stuck.send(TestRequest::command(CALL).bytes()).await;
    chat.wait_for_calls(1).await;
    gateway.signal("TERM");
    wait_until_draining(&gateway).await;
    gateway.signal("TERM");
    assert_ne!(gateway.exit_code_within(Duration::from_secs(3)).await, 0);
}

#[tokio::test]
async fn abandoned_write_in_flight_finishes_before_the_exit() {
    let chat = FakeChat::start().await;
    let mut gateway = gateway(&chat).await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let mut write = gateway.connect().await;
    let body = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#;
    write.send(TestRequest::command("follow/follow_add").body(body).bytes()).await;
    chat.wait_for_calls(1).await;
    drop(write);
    gateway.wait_for_no_connections().await;
    gateway.signal("TERM");
    wait_until_draining(&gateway).await;
    gate.open();
    assert_eq!(gateway.exit_code_within(Duration::from_secs(5)).await, 0);
    assert_eq!(chat.graph().follow_type(MAIN.sdkappid, "ann", "bob"), 2);
}

fn socket(dir: &Path) -> (std::path::PathBuf, String) {
    let path = dir.join("chatgate.sock");
    let address = format!("unix:{}", path.display());
    (path, address)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("a socket").permissions().mode() & 0o777
}

#[tokio::test]
async fn unix_socket_serves_next_to_tcp_with_configured_mode() {
    let chat = FakeChat::start().await;
    for (line, expected) in
        [(None, 0o660), (Some(r#"unix_mode = "0600""#), 0o600), (Some(r#"unix_mode = "0666""#), 0o666)]
    {
        let mut setup = Setup::new(&chat);
        let (path, address) = socket(setup.dir());
        if let Some(line) = line {
            setup = setup.set("server", line);
        }
        let gateway = setup.listen(&["127.0.0.1:0", &address]).start().await;
        assert_eq!(mode(&path), expected);
        assert!(gateway.addresses().contains(&address), "{:?}", gateway.addresses());
        for address in gateway.addresses() {
            let mut conn = crate::support::client::Conn::open(address).await.expect("accepted");
            conn.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
            // No browser connects to a Unix socket, so the Host does not matter there.
            for host in ["evil.example", "unix", "%2Frun%2Fgate.sock", ""] {
                let mut conn = crate::support::client::Conn::open(address).await.expect("accepted");
                let response = conn.request(&TestRequest::command(CALL).host(host)).await;
                match address.starts_with("unix:") {
                    true => response.assert_relayed(200, OK),
                    // A percent-encoded path is no name at all.
                    false if host.contains('%') => response.assert_error(400, "bad_request", 60002),
                    false => response.assert_error(403, "forbidden", 129_403),
                }
            }
        }
        assert_eq!(gateway.stop().await, 0);
    }
}

#[tokio::test]
async fn admin_listener_accepts_a_unix_socket_address() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let (_, address) = socket(setup.dir());
    let gateway = setup.set("server", &format!("admin = \"{address}\"")).start().await;
    assert_eq!(gateway.admin(), address);
    assert_eq!(gateway.admin_get("/readyz").await.status, 200);
}

#[tokio::test]
async fn stale_socket_is_replaced() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let (path, address) = socket(setup.dir());
    drop(UnixListener::bind(&path).expect("bound"));
    assert!(path.exists(), "left behind, as by a killed process");
    let gateway = setup.listen(&[&address]).start().await;
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
    let dir = gateway.dir().to_owned();
    assert!(dir.exists());
    gateway.kill().await;
}

#[tokio::test]
async fn socket_in_use_is_an_error_and_is_kept() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let (path, address) = socket(setup.dir());
    let other = UnixListener::bind(&path).expect("bound");
    let setup = setup.listen(&[&address]);
    let outcome = run_serve(&setup).await;
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("chatgate.sock"), "the error names the socket: {}", outcome.stderr);
    other.set_nonblocking(true).expect("own socket");
    std::os::unix::net::UnixStream::connect(&path).expect("the other socket still listens");
}

#[tokio::test]
async fn non_socket_file_at_the_socket_path_is_kept() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat);
    let (path, address) = socket(setup.dir());
    std::fs::write(&path, "precious").expect("own directory");
    let setup = setup.listen(&[&address]);
    let outcome = run_serve(&setup).await;
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert_eq!(std::fs::read_to_string(&path).expect("still there"), "precious");
}

#[tokio::test]
async fn port_in_use_is_an_error() {
    let chat = FakeChat::start().await;
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = other.local_addr().expect("bound").to_string();
    let data = Setup::new(&chat).listen(&[&address]);
    let admin = Setup::new(&chat).set("server", &format!("admin = \"{address}\""));
    for setup in [data, admin] {
        let outcome = run_serve(&setup).await;
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(outcome.stderr.contains(&address), "the error names the address: {}", outcome.stderr);
    }
}

#[tokio::test]
async fn killed_gateway_restarts_at_once_on_the_same_address() {
    let chat = FakeChat::start().await;
    let address = free_address().to_string();
    for _ in 0..3 {
        let start = now();
        let gateway = Setup::new(&chat).listen(&[&address]).start().await;
        gateway.call(CALL, "{}").await.assert_relayed(200, OK);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        gateway.kill().await;
    }
}

#[tokio::test]
async fn invalid_config_exits_78_without_listening() {
    let setup = Setup::without_apps();
    let file = setup.file("chatgate.toml", "[server]\nlisten = \"127.0.0.1:0\"\nlisen = 1\n");
    let outcome = Process::run(&["serve", "--config", &file.to_string_lossy()], setup.dir(), &[]).await;
    assert_eq!(outcome.code, 78, "{outcome:?}");
    assert!(!outcome.stderr.contains("listening"), "{}", outcome.stderr);
    let outcome = Process::run(&["serve", "--config", "no-such-file.toml"], setup.dir(), &[]).await;
    assert_eq!(outcome.code, 78, "{outcome:?}");
}

#[tokio::test]
async fn unread_log_delays_no_request() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("log", r#"level = "trace""#);
    let (data, admin) = (free_address().to_string(), free_address().to_string());
    let setup = setup.listen(&[&data]).set("server", &format!("admin = \"{admin}\""));
    let file = setup.write();
    // A pipe that is never read holds 64 KiB, far less than these requests log.
    let mut child = std::process::Command::new(program())
        .args(["serve", "--config", &file.to_string_lossy()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut conn =
        eventually("the gateway listens", async || crate::support::client::Conn::open(&data).await.ok()).await;
    let id = "x".repeat(128);
    for _ in 0..1500 {
        conn.request(&TestRequest::command(CALL).header("X-Request-Id", &id)).await.assert_relayed(200, OK);
    }
    child.kill().expect("own child");
    child.wait().expect("own child");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn process_memory_is_excluded_from_core_dumps_and_proc() {
    use std::os::unix::fs::MetadataExt;
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let proc = |name: &str| format!("/proc/{}/{name}", gateway.pid());
    let limits = std::fs::read_to_string(proc("limits")).expect("limits is world-readable");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a line for core files");
    let words: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core}");
    // In /proc, root owns the files of a process that is not dumpable, regardless of its user (proc(5)). If root
    // runs the tests, root owns them anyway, and only the test in src/platform/linux.rs can fail.
    assert_eq!(std::fs::metadata(proc("environ")).expect("the file exists").uid(), 0);
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn failed_start_leaves_no_socket_behind() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().map(|address| (address, taken)).expect("bound");
    let setup = Setup::without_apps().app(MAIN, "region = \"tokyo\"");
    let socket = setup.dir().join("gate.sock");
    let unix = format!("unix:{}", socket.display());
    let setup = setup.listen(&[&unix, &taken.0.to_string()]);
    let outcome = run_serve(&setup).await;
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains(&taken.0.to_string()), "{outcome:?}");
    assert!(!socket.exists(), "a socket without a listener");
}
