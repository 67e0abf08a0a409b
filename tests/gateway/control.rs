//! `healthcheck`, `wait` and `stop`: subcommands that control a gateway in another process.

use std::path::Path;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::eventually;
use crate::support::graph::OK;
use crate::support::process::{Process, ProcessOutput};
use crate::support::reply::{Gate, Reply};
use crate::support::setup::{Setup, gateway};
use crate::support::wire::free_address;
use crate::support::{now, secrets};

const CALL: &str = "openim/querystate";
const TOKEN: &str = "token-of-the-operators-of-control";

async fn run(dir: &Path, args: &[&str]) -> ProcessOutput {
    Process::run(args, dir, &[]).await
}

/// Asserts that the command failed with this text on stderr and nothing on stdout.
fn assert_fails(outcome: &ProcessOutput, text: &str) {
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains(text) && outcome.stdout.is_empty(), "{text}: {outcome:?}");
}

#[tokio::test]
async fn ready_gateway_is_checked_and_stopped_by_address() {
    let chat = FakeChat::start().await;
    let mut gateway = gateway(&chat).await;
    let admin = gateway.admin().to_owned();
    let dir = gateway.dir().to_owned();
    let port = admin.rsplit_once(':').expect("a port").1;
    for address in [&admin, &format!("localhost:{port}"), &format!("0.0.0.0:{port}")] {
        for command in ["healthcheck", "wait"] {
            let outcome = run(&dir, &[command, "--admin", address]).await;
            assert_eq!((outcome.code, &*outcome.stdout, &*outcome.stderr), (0, "ready\n", ""), "{command} {address}");
        }
    }
    let outcome = run(&dir, &["stop", "--admin", &admin]).await;
    assert_eq!((outcome.code, &*outcome.stdout), (0, "stopped\n"), "{outcome:?}");
    assert_eq!(gateway.exit_code_within(Duration::from_secs(5)).await, 0);
    for command in ["healthcheck", "stop"] {
        assert_fails(&run(&dir, &[command, "--admin", &admin]).await, "cannot connect");
    }
}

#[tokio::test]
async fn unix_socket_and_token_are_read_from_the_configuration() {
    let chat = FakeChat::start().await;
    secrets::add(TOKEN);
    let setup = Setup::new(&chat);
    let token = setup.file("operators.token", TOKEN);
    let admin = format!("unix:{}", setup.dir().join("admin.sock").display());
    let setup = setup.set("server", &format!("admin = \"{admin}\""));
    let setup = setup.set("server", &format!("admin_token_file = '{}'", token.display()));
    let file = setup.write().to_string_lossy().into_owned();
    let mut gateway = setup.start().await;
    let dir = gateway.dir().to_owned();
    assert_eq!(run(&dir, &["healthcheck", "--config", &file]).await.code, 0);
    let named = Process::run(&["healthcheck"], &dir, &[("CHATGATE_CONFIG", &file)]).await;
    assert_eq!(named.code, 0, "{named:?}");
    assert_fails(&run(&dir, &["stop", "--admin", &admin]).await, "401");
    assert_eq!(run(&dir, &["healthcheck", "--admin", &admin]).await.code, 0, "a rejected stop has no effect");
    let outcome = run(&dir, &["stop", "--config", &file, "--admin", &admin]).await;
    assert_eq!((outcome.code, &*outcome.stdout), (0, "stopped\n"), "{outcome:?}");
    assert_eq!(gateway.exit_code_within(Duration::from_secs(5)).await, 0);
    assert_fails(&run(&dir, &["stop", "--config", &file]).await, "cannot connect");
}

#[tokio::test]
async fn stop_waits_for_the_drain_until_its_timeout() {
    let chat = FakeChat::start().await;
    let mut gateway = gateway(&chat).await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let mut holding = gateway.connect().await;
    holding.send(TestRequest::command(CALL).bytes()).await;
    chat.wait_for_calls(1).await;
    let (admin, dir) = (gateway.admin().to_owned(), gateway.dir().to_owned());
    let mut stop = Process::start(&["stop", "--admin", &admin], &dir, &[]);
    eventually("the gateway drains", async || (gateway.admin_get("/readyz").await.status == 503).then_some(())).await;
    assert_fails(&run(&dir, &["stop", "--admin", &admin, "--timeout", "300ms"]).await, "still listens");
    assert_fails(&run(&dir, &["healthcheck", "--admin", &admin]).await, "503");
    assert_fails(&run(&dir, &["wait", "--admin", &admin, "--timeout", "300ms"]).await, "draining");
    // `stop` waits as long as the call is in flight.
    assert_eq!(stop.try_exit(), None, "{}", stop.stderr());
    gate.open();
    holding.read_response().await.assert_relayed(200, OK);
    assert_eq!(stop.exit_code_within(Duration::from_secs(10)).await, 0, "{}", stop.stderr());
    assert_eq!(gateway.exit_code_within(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn wait_succeeds_when_the_gateway_starts_later() {
    let admin = free_address().to_string();
    let setup = Setup::without_apps().app(MAIN, &format!("endpoint = \"http://{}\"", free_address()));
    let setup = setup.set("server", &format!("admin = \"{admin}\""));
    let dir = setup.dir().to_owned();
    let file = setup.write().to_string_lossy().into_owned();
    let mut waiting = Process::start(&["wait", "--config", &file], &dir, &[]);
    assert_fails(&run(&dir, &["wait", "--config", &file, "--timeout", "200ms"]).await, "not ready after 200ms");
    assert_eq!(waiting.try_exit(), None, "{}", waiting.stderr());
    let gateway = setup.start().await;
    assert_eq!(waiting.exit_code_within(Duration::from_secs(10)).await, 0, "{}", waiting.stderr());
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn control_commands_time_out_when_admin_listener_is_silent() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let admin = silent.local_addr().expect("bound").to_string();
    let setup = Setup::without_apps();
    let started = now();
    assert_fails(&run(setup.dir(), &["healthcheck", "--admin", &admin]).await, "no response in time");
    assert_fails(&run(setup.dir(), &["stop", "--admin", &admin, "--timeout", "200ms"]).await, "no response in time");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    // A listener that closes every connection is not ready either, and has not received the request to stop.
    let closing = tokio::spawn(async move { while silent.accept().await.is_ok() {} });
    assert_fails(&run(setup.dir(), &["healthcheck", "--admin", &admin]).await, "connection closed");
    assert_fails(&run(setup.dir(), &["stop", "--admin", &admin, "--timeout", "200ms"]).await, "connection closed");
    closing.abort();
}

#[tokio::test]
async fn wrong_usage_exits_2_and_a_bad_configuration_78() {
    let setup = Setup::without_apps().app(MAIN, "region = \"tokyo\"");
    let file = setup.write().to_string_lossy().into_owned();
    let outcome = run(setup.dir(), &["healthcheck", "--config", &file]).await;
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("--admin"), "{outcome:?}");
    for args in [
        &["healthcheck", "--admin", "nowhere"][..],
        &["stop", "--admin", "unix:relative"],
        &["wait", "--admin", "127.0.0.1:1", "--timeout", "soon"],
        &["wait", "--admin", "127.0.0.1:1", "--timeout", "2h"],
        &["stop", "extra"],
    ] {
        let outcome = run(setup.dir(), args).await;
        assert_eq!(outcome.code, 2, "{args:?}: {outcome:?}");
    }
    setup.file("bad.toml", "[server]\nadmin = 'nowhere'\n");
    for command in ["healthcheck", "wait", "stop"] {
        for file in ["bad.toml", "missing.toml"] {
            let outcome = run(setup.dir(), &[command, "--config", file]).await;
            assert_eq!(outcome.code, 78, "{command} {file}: {outcome:?}");
            assert!(outcome.stderr.contains(file), "{outcome:?}");
        }
    }
    let unreachable = run(setup.dir(), &["healthcheck", "--admin", "unix:/none"]).await;
    assert_fails(&unreachable, "cannot connect");
}
