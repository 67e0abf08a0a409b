//! Exhausted system resources: only work that needs the resource fails, and the gateway recovers.

use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::process::program;
use crate::support::setup::Setup;
use crate::support::wire::free_address;
use crate::support::{eventually, now, turn};

const CALL: &str = "openim/querystate";

/// Sets the limit on open files of the gateway.
fn limit_files(gateway: &Gateway, limit: Rlimit) {
    let pid = Pid::from_raw(i32::try_from(gateway.pid()).expect("a pid")).expect("not 0");
    prlimit(Some(pid), Resource::Nofile, limit).expect("a child process");
}

#[tokio::test]
async fn exhausted_descriptors_keep_connections_served_without_a_busy_loop() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).start().await;
    let mut held = gateway.connect().await;
    held.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    // A child inherits the limits of its parent.
    let before = getrlimit(Resource::Nofile);
    limit_files(&gateway, Rlimit { current: Some(48), ..before });
    // The kernel accepts connections while its backlog has room. The gateway accepts those it has descriptors for.
    let mut waiting = Vec::new();
    for _ in 0..100 {
        let mut conn = gateway.connect().await;
        conn.send(TestRequest::command("no/such/path").bytes()).await;
        waiting.push(conn);
    }
    eventually("an accept fails", async || gateway.log().contains("cannot accept a connection").then_some(())).await;
    for _ in 0..20 {
        held.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    }
    // One tick is 10 ms. A busy loop would use 100 ticks per second; with the pauses between attempts, few are used.
    let (started, ticks) = (now(), gateway.cpu_ticks());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (elapsed, used) = (started.elapsed(), gateway.cpu_ticks() - ticks);
    assert!(used < 30, "{used} ticks in {elapsed:?}");
    let lines = gateway.log().matches("cannot accept a connection").count();
    assert!(lines < 200, "{lines} lines");
    assert!(gateway.log().len() < 1 << 20);
    // After the limit is raised, connections in the backlog are served, and so is a new one.
    limit_files(&gateway, before);
    for conn in &mut waiting {
        conn.read_response().await.assert_error(404, "not_found", 60009);
    }
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
    assert_eq!(gateway.admin_get("/livez").await.status, 200);
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn requests_are_served_when_the_log_cannot_be_written() {
    let chat = FakeChat::start().await;
    let (data, admin) = (free_address().to_string(), free_address().to_string());
    let setup = Setup::new(&chat).set("log", r#"level = "trace""#).listen(&[&data]);
    let setup = setup.set("server", &format!("admin = \"{admin}\""));
    let file = setup.write();
    // Every write to this device fails with ENOSPC (full(4)).
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("a Linux system");
    let mut child = std::process::Command::new(program())
        .args(["serve", "--config", &file.to_string_lossy()])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(full)
        .spawn()
        .expect("the binary starts");
    let mut conn = eventually("the gateway listens", async || Conn::open(&data).await.ok()).await;
    for _ in 0..50 {
        conn.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    }
    let mut operator = eventually("the gateway listens", async || Conn::open(&admin).await.ok()).await;
    assert_eq!(operator.request(&TestRequest::new("GET", "/metrics")).await.status, 200);
    let line = format!("kill -s TERM {}", child.id());
    assert!(std::process::Command::new("sh").args(["-c", &line]).status().expect("a shell").success());
    let code = eventually("the gateway exits", async || child.try_wait().expect("a child process")).await;
    assert_eq!(code.code(), Some(0));
}
