//! `healthcheck`, `wait` and `stop`: asking a gateway that runs elsewhere.

use std::path::Path;
use std::time::Duration;

use tokio::net::TcpListener;

use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::Ask;
use crate::support::eventually;
use crate::support::graph::OK;
use crate::support::process::{Finished, Process};
use crate::support::reply::{Gate, Reply};
use crate::support::setup::{Setup, gateway};
use crate::support::wire::free_address;
use crate::support::{now, secrets};

const CALL: &str = "openim/querystate";
const TOKEN: &str = "token-of-the-operators-of-control";

async fn run(dir: &Path, args: &[&str]) -> Finished {
    Process::run(args, dir, &[]).await
}

/// The words are on stderr, and nothing is on stdout.
fn assert_fails(outcome: &Finished, words: &str) {
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains(words) && outcome.stdout.is_empty(), "{words}: {outcome:?}");
}

#[tokio::test]
async fn a_gateway_that_is_ready_is_found_by_address_and_stopped() {
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
async fn over_a_unix_socket_by_its_configuration_with_its_token() {
    let chat = FakeChat::start().await;
    secrets::remember(TOKEN);
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
    assert_eq!(run(&dir, &["healthcheck", "--admin", &admin]).await.code, 0, "a refused order stops nothing");
    let outcome = run(&dir, &["stop", "--config", &file, "--admin", &admin]).await;
    assert_eq!((outcome.code, &*outcome.stdout), (0, "stopped\n"), "{outcome:?}");
    assert_eq!(gateway.exit_code_within(Duration::from_secs(5)).await, 0);
    assert_fails(&run(&dir, &["stop", "--config", &file]).await, "cannot connect");
}

#[tokio::test]
async fn stop_waits_for_the_drain_and_says_when_that_takes_too_long() {
    let chat = FakeChat::start().await;
    let mut gateway = gateway(&chat).await;
    let gate = Gate::closed();
    chat.always(Reply::model().held(&gate));
    let mut holding = gateway.connect().await;
    holding.send(Ask::command(CALL).bytes()).await;
    chat.seen(1).await;
    let (admin, dir) = (gateway.admin().to_owned(), gateway.dir().to_owned());
    let mut stop = Process::start(&["stop", "--admin", &admin], &dir, &[]);
    eventually("the order has come", async || (gateway.admin_get("/readyz").await.status == 503).then_some(())).await;
    assert_fails(&run(&dir, &["stop", "--admin", &admin, "--timeout", "300ms"]).await, "still listens");
    assert_fails(&run(&dir, &["healthcheck", "--admin", &admin]).await, "503");
    assert_fails(&run(&dir, &["wait", "--admin", &admin, "--timeout", "300ms"]).await, "draining");
    // It stays as long as the call does.
    assert_eq!(stop.try_exit(), None, "{}", stop.stderr());
    gate.open();
    holding.answer().await.assert_relayed(200, OK);
    assert_eq!(stop.exit_code_within(Duration::from_secs(10)).await, 0, "{}", stop.stderr());
    assert_eq!(gateway.exit_code_within(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn wait_outlasts_a_gateway_that_is_still_to_come() {
    let admin = free_address().to_string();
    let setup = Setup::without_apps().app(MAIN, &format!("endpoint = \"http://{}\"", free_address()));
    let setup = setup.set("server", &format!("admin = \"{admin}\""));
    let dir = setup.dir().to_owned();
    let file = setup.write().to_string_lossy().into_owned();
    let mut waiting = Process::start(&["wait", "--config", &file], &dir, &[]);
    assert_fails(&run(&dir, &["wait", "--config", &file, "--timeout", "200ms"]).await, "waited in vain");
    assert_eq!(waiting.try_exit(), None, "{}", waiting.stderr());
    let gateway = setup.start().await;
    assert_eq!(waiting.exit_code_within(Duration::from_secs(10)).await, 0, "{}", waiting.stderr());
    assert_eq!(gateway.stop().await, 0);
}

#[tokio::test]
async fn one_that_takes_the_connection_and_says_nothing_is_not_waited_for_for_ever() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let admin = silent.local_addr().expect("bound").to_string();
    let setup = Setup::without_apps();
    let begun = now();
    assert_fails(&run(setup.dir(), &["healthcheck", "--admin", &admin]).await, "no answer in time");
    assert_fails(&run(setup.dir(), &["stop", "--admin", &admin, "--timeout", "200ms"]).await, "no answer in time");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // One that hangs up is none either, and is told apart from one that has stopped.
    let hanging_up = tokio::spawn(async move { while silent.accept().await.is_ok() {} });
    assert_fails(&run(setup.dir(), &["healthcheck", "--admin", &admin]).await, "broke");
    assert_fails(&run(setup.dir(), &["stop", "--admin", &admin, "--timeout", "200ms"]).await, "still listens");
    hanging_up.abort();
}

#[tokio::test]
async fn wrong_usage_is_2_and_a_bad_configuration_78() {
    let setup = Setup::without_apps().app(MAIN, "region = \"tokyo\"");
    let file = setup.write().to_string_lossy().into_owned();
    let any_port = run(setup.dir(), &["healthcheck", "--config", &file]).await;
    assert_eq!(any_port.code, 2, "{any_port:?}");
    assert!(any_port.stderr.contains("--admin"), "{any_port:?}");
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
    let gone = run(setup.dir(), &["healthcheck", "--admin", "unix:/none"]).await;
    assert_fails(&gone, "cannot connect");
}
