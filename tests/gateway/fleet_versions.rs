//! The oldest and the newest Redis and Valkey, in each form. `tests/run` installs them and names them in
//! `CHATGATE_TEST_REDIS`, separated by colons; without it, only the installed `redis-server` is tested.

use std::path::PathBuf;

use crate::fleet::{await_invalidated, await_shared_pair, cause, fleet_setup, replica};
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::eventually;
use crate::support::redis::{Redis, Server};
use crate::support::redis_sets::{RedisCluster, monitor};

pub(crate) fn programs() -> Vec<PathBuf> {
    let named = std::env::var_os("CHATGATE_TEST_REDIS").unwrap_or_default();
    let named = std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()).collect::<Vec<_>>();
    [PathBuf::from("redis-server")].into_iter().chain(named).collect()
}

/// Two replicas share a pair, an invalidation, and the permits of a call.
async fn assert_shared(chat: &FakeChat, lines: &[String]) {
    let one = replica(fleet_setup(chat, lines)).await;
    let two = replica(fleet_setup(chat, lines)).await;
    await_shared_pair(&one, &two, "ann", "bob").await;
    let write = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#;
    assert_eq!(one.call("follow/follow_add", write).await.status, 200);
    await_invalidated(&two, "ann", "bob").await;
    assert_eq!(two.send(TestRequest::command("openim/querystate")).await.status, 200);
    let status = two.admin_get("/status").await.json();
    assert!(status["fleet"]["permits"].as_u64() > Some(0), "{status}");
}

/// Returns the version, such as `redis 7.0.15`.
async fn version(redis: &Redis) -> (String, u32) {
    let info = redis.command("INFO server").await;
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
    let name = field("server_name:").unwrap_or_else(|| "redis".to_owned());
    let version = field("valkey_version:").or_else(|| field("redis_version:")).expect("a version");
    let major = version.split('.').next().and_then(|major| major.parse().ok()).expect("a number");
    (format!("{name} {version}"), major)
}

async fn start_cluster(server: &Server) -> RedisCluster {
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let mut node = Redis::cluster_node(server);
        node.restart().await;
        nodes.push(node);
    }
    RedisCluster::form(nodes).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_version_works_in_each_form() {
    let chat = FakeChat::start().await;
    for server in programs().into_iter().map(Server::new) {
        let redis = Redis::start_server(&server).await;
        let (version, major) = version(&redis).await;
        println!("{version}");
        let url = format!("redis://{}", redis.address());
        assert_shared(&chat, &[format!("redis = '{url}'")]).await;

        let mut sentinel = Redis::new(&server, &["--sentinel"]);
        sentinel.restart().await;
        monitor(&sentinel, redis.address(), 1).await;
        let sentinels = format!("sentinels = ['redis://{}']", sentinel.address());
        assert_shared(&chat, &[sentinels, "master = 'chat'".to_owned()]).await;

        if major >= 7 {
            let cluster = start_cluster(&server).await;
            assert_shared(&chat, &[cluster.line()]).await;
        } else {
            let gateway = fleet_setup(&chat, &[format!("redis = ['{url}']")]).start().await;
            eventually("the reason", async || cause(&gateway).await.contains("Redis 7").then_some(())).await;
        }
    }
}
