//! `chatgate demo` with several replicas.

use std::time::Duration;

use tempfile::tempdir;

use crate::support::client::{Conn, TestRequest};
use crate::support::process::Process;
use crate::support::redis::Redis;
use crate::support::response::Response;
use crate::support::{eventually, turn, within};

/// Parses the data and admin addresses of all replicas from the output of the demo.
fn addresses(printed: &str) -> Vec<(String, String)> {
    let first = printed.lines().find_map(|line| line.strip_prefix("# chatgate is listening on "));
    let first = first.and_then(|line| line.split(',').next()).map(str::to_owned);
    let admin = printed.lines().find_map(|line| line.strip_prefix("curl -s http://")?.strip_suffix("/readyz"));
    let others = printed.lines().filter_map(|line| {
        let (data, admin) = line.strip_prefix("# Another replica: ")?.split_once(", admin listener ")?;
        Some((data.to_owned(), admin.to_owned()))
    });
    first.zip(admin.map(str::to_owned)).into_iter().chain(others).collect()
}

async fn send(address: &str, request: TestRequest) -> Response {
    let mut conn = Conn::open(address).await.expect("a listening gateway");
    within(crate::support::PATIENCE, "a response", conn.request(&request)).await
}

#[tokio::test]
async fn replicas_share_cached_pairs_and_stop_cleanly() {
    let _turn = turn::shared().await;
    let (redis, dir) = (Redis::start().await, tempdir().expect("a temporary directory"));
    let url = format!("redis://{}", redis.address());
    let any = "127.0.0.1:0";
    let args = ["demo", "--listen", any, "--admin", any, "--replicas", "3", "--redis", &url];
    let mut demo = Process::start(&args, dir.path(), &[]);
    let gateways = eventually("three gateways", async || {
        assert_eq!(demo.try_exit(), None, "{}", demo.stderr());
        Some(addresses(&demo.stdout())).filter(|gateways| gateways.len() == 3)
    })
    .await;
    for (_, admin) in &gateways {
        eventually("the replica is connected", async || {
            let status = send(admin, TestRequest::new("GET", "/status")).await.json();
            (status["fleet"]["mode"] == "connected").then_some(())
        })
        .await;
    }
    let check =
        |directive: &str| TestRequest::check("alice", &["bob", "carol", "dave"]).header("Cache-Control", directive);
    let first = send(&gateways[0].0, check("no-cache")).await;
    assert_eq!(first.follow_types(), [3, 2, 1]);
    for (data, _) in &gateways[1..] {
        // On a busy machine a replica may lose its connection to Redis for a moment.
        let response = eventually("a pair cached by another replica", async || {
            let response = send(data, check("only-if-cached")).await;
            if response.status != 200 {
                send(&gateways[0].0, check("no-cache")).await.items();
            }
            (response.status == 200).then_some(response)
        })
        .await;
        assert_eq!(response.follow_types(), [3, 2, 1]);
    }
    let body = r#"{"From_Account":"alice","To_Account":["bob"]}"#;
    assert_eq!(send(&gateways[2].0, TestRequest::command("follow/follow_delete").body(body)).await.status, 200);
    for (data, _) in &gateways {
        eventually("an invalidation by another replica", async || {
            (send(data, TestRequest::check("alice", &["bob"])).await.follow_types() == [1]).then_some(())
        })
        .await;
    }
    demo.signal("TERM");
    assert_eq!(demo.exit_code_within(Duration::from_secs(20)).await, 0, "{}", demo.stderr());
    for (data, admin) in &gateways {
        for address in [data, admin] {
            assert!(Conn::open(address).await.is_err(), "{address} still listens");
        }
    }
}

#[tokio::test]
async fn replicas_without_redis_are_rejected() {
    let outcome = Process::run(&["demo", "--replicas", "2"], std::path::Path::new("/"), &[]).await;
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("--redis"), "{}", outcome.stderr);
}
