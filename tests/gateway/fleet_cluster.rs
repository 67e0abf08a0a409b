//! A Redis Cluster: apps spread over its nodes, and follow their keys from node to node.

use chatgate::config::RedisForm;

use crate::fleet::{await_connected, await_shared_pair, cause, fleet_setup, has_cached, replica};
use crate::fleet_failover::{disconnects, permits_within_the_limit};
use crate::fleet_faults::Traffic;
use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::redis::{Redis, Server};
use crate::support::redis_sets::{RedisCluster, urls};
use crate::support::setup::Setup;
use crate::support::tls::Ca;
use crate::support::{eventually, secrets, turn};

fn setup(chat: &FakeChat, cluster: &RedisCluster) -> Setup {
    fleet_setup(chat, &[cluster.line()])
}

fn channel(sdkappid: u32) -> String {
    format!("chatgate:{{{sdkappid}}}:evictions")
}

/// Waits until this many replicas are subscribed to invalidations of the main app at `redis`.
async fn await_subscribers(redis: &Redis, count: usize) {
    let (line, expected) = (format!("PUBSUB SHARDNUMSUB {}", channel(MAIN.sdkappid)), format!(":{count}\r\n"));
    eventually("subscribers", async || redis.command(&line).await.ends_with(&expected).then_some(())).await;
}

#[tokio::test]
async fn apps_spread_over_nodes_and_each_has_one_hash_tag() {
    let (chat, cluster) = (FakeChat::start().await, RedisCluster::start(3).await);
    let (main, other) = (cluster.primary_of(MAIN.sdkappid).await, cluster.primary_of(OTHER.sdkappid).await);
    assert_ne!(main, other, "both apps are on one node, so the test proves nothing");
    let start = async || replica(setup(&chat, &cluster).app(OTHER, &chat.app_lines())).await;
    let (one, two) = (start().await, start().await);
    let of = |app: &str, from: &str| TestRequest::check(from, &["bob"]).header("Chatgate-App", app);
    for app in ["main", "other"] {
        eventually("a pair cached by another replica", async || {
            one.send(of(app, "ann").header("Cache-Control", "no-cache")).await.items();
            let cached = two.send(of(app, "ann").header("Cache-Control", "only-if-cached")).await;
            (cached.status == 200).then_some(())
        })
        .await;
    }
    for (at, app) in [(main, MAIN), (other, OTHER)] {
        let keys = cluster.nodes[at].command("KEYS chatgate:*").await;
        let names: Vec<&str> = keys.lines().filter(|line| line.starts_with("chatgate:")).collect();
        let tag = format!("chatgate:{{{}}}:", app.sdkappid);
        assert!(keys.contains(":p:") && names.iter().all(|name| name.starts_with(&tag)), "{keys}");
    }
    let write = TestRequest::command("follow/follow_add")
        .body(r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#)
        .header("Chatgate-App", "other");
    assert_eq!(one.send(write).await.status, 200);
    eventually("the pair is invalidated", async || {
        let cached = two.send(of("other", "ann").header("Cache-Control", "only-if-cached")).await;
        (cached.slug() == Some("not_cached")).then_some(())
    })
    .await;
    let cached = two.send(of("main", "ann").header("Cache-Control", "only-if-cached")).await;
    assert_eq!(cached.status, 200, "an invalidation of another app");
}

/// The slot moves to a node that was added later, which no configuration names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn resharding_to_an_added_node_fails_no_request() {
    let _exclusive = turn::exclusive().await;
    let (chat, mut cluster) = (FakeChat::start().await, RedisCluster::start(2).await);
    let one = replica(setup(&chat, &cluster)).await;
    let two = replica(setup(&chat, &cluster)).await;
    let old = cluster.primary_of(MAIN.sdkappid).await;
    await_subscribers(&cluster.nodes[old], 2).await;
    let traffic = [Traffic::on(&one), Traffic::on(&two)];
    for traffic in &traffic {
        traffic.more_rounds().await;
    }
    await_shared_pair(&one, &two, "ann", "bob").await;
    cluster.add_node().await;
    let moving = cluster.start_move(MAIN.sdkappid, 2).await;
    assert!(moving.move_keys(1).await > 0);
    for gateway in [&one, &two] {
        eventually("the reason", async || cause(gateway).await.contains("are being moved").then_some(())).await;
    }
    // Both replicas see each other's writes only after the move, but neither fails.
    for traffic in &traffic {
        traffic.more_rounds().await;
    }
    moving.finish().await;
    await_connected(&one).await;
    await_connected(&two).await;
    await_subscribers(&cluster.nodes[2], 2).await;
    assert!(!has_cached(&two, "never", "asked").await);
    await_shared_pair(&one, &two, "dan", "eve").await;
    one.call("follow/follow_add", r#"{"From_Account":"dan","FollowItem":[{"To_Account":"eve"}]}"#).await;
    eventually("the pair is invalidated", async || (!has_cached(&two, "dan", "eve").await).then_some(())).await;
    for traffic in traffic {
        traffic.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_node_fails_no_request_and_its_replica_takes_over() {
    let _exclusive = turn::exclusive().await;
    let (chat, mut cluster) = (FakeChat::start().await, RedisCluster::start(3).await);
    let old = cluster.primary_of(MAIN.sdkappid).await;
    cluster.add_replica_of(old).await;
    let one = replica(setup(&chat, &cluster)).await;
    let two = replica(setup(&chat, &cluster)).await;
    let traffic = [Traffic::on(&one), Traffic::on(&two)];
    for traffic in &traffic {
        traffic.more_rounds().await;
    }
    cluster.nodes[old].kill();
    await_subscribers(&cluster.nodes[3], 2).await;
    await_connected(&one).await;
    await_connected(&two).await;
    await_shared_pair(&one, &two, "dan", "eve").await;
    for traffic in traffic {
        traffic.end().await;
    }
}

/// Measured by the clock of Redis: all nodes run on this machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permits_stay_within_the_limit_while_a_slot_moves() {
    let cluster = RedisCluster::start(2).await;
    let nodes = urls(&cluster.nodes).iter().map(|url| url.parse().expect("a URL")).collect();
    permits_within_the_limit(RedisForm::Cluster(nodes), async |permits| {
        permits.more(200).await;
        for _ in 0..2 {
            let to = 1 - cluster.primary_of(7).await;
            let moving = cluster.start_move(7, to).await;
            moving.move_keys(1).await;
            moving.finish().await;
            permits.after_reconnecting().await;
            permits.more(200).await;
        }
    })
    .await;
}

#[tokio::test]
async fn password_and_tls_apply_to_every_node() {
    let (chat, ca) = (FakeChat::start().await, Ca::new());
    let pem = ca.issue("127.0.0.1", std::time::Duration::from_secs(24 * 3600));
    let password = "password-of-cluster-marked";
    secrets::add(password);
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let mut node = Redis::cluster_node(&Server::default());
        node.require_password(password);
        node.add_tls_with_peers(&pem, &ca);
        node.restart().await;
        nodes.push(node);
    }
    let cluster = RedisCluster::form(nodes).await;
    let ports: Vec<String> =
        cluster.nodes.iter().map(|node| format!("rediss://127.0.0.1:{}", node.tls_address().port())).collect();
    let setup = || {
        let setup = fleet_setup(&chat, &[format!("redis = {ports:?}")]).app(OTHER, &chat.app_lines());
        let (ca, password) = (setup.file("redis-ca.pem", &ca.pem()), setup.file("password", password));
        let setup = setup.set("fleet", &format!("ca_file = '{}'", ca.display()));
        setup.set("fleet", &format!("password_file = '{}'", password.display()))
    };
    let one = replica(setup()).await;
    let two = replica(setup()).await;
    for app in ["main", "other"] {
        let check = || TestRequest::check("ann", &["bob"]).header("Chatgate-App", app);
        eventually("a pair cached by another replica", async || {
            one.send(check().header("Cache-Control", "no-cache")).await.items();
            (two.send(check().header("Cache-Control", "only-if-cached")).await.status == 200).then_some(())
        })
        .await;
    }
}

/// A cluster node without the slots of the app must not be taken for a primary of all keys.
#[tokio::test]
async fn single_url_of_a_cluster_node_is_rejected_with_the_remedy() {
    let (chat, cluster) = (FakeChat::start().await, RedisCluster::start(1).await);
    let gateway = fleet_setup(&chat, &[format!("redis = 'redis://{}'", cluster.nodes[0].address())]).start().await;
    eventually("the reason", async || cause(&gateway).await.contains("a list of nodes").then_some(())).await;
}

#[tokio::test]
async fn lost_node_clears_only_the_caches_of_its_apps() {
    let (chat, mut cluster) = (FakeChat::start().await, RedisCluster::start(3).await);
    let (main, other) = (cluster.primary_of(MAIN.sdkappid).await, cluster.primary_of(OTHER.sdkappid).await);
    assert_ne!(main, other, "both apps are on one node, so the test proves nothing");
    let gateway = replica(setup(&chat, &cluster).app(OTHER, &chat.app_lines())).await;
    let before = disconnects(&gateway).await;
    let check = |app: &str| TestRequest::check("ann", &["bob"]).header("Chatgate-App", app);
    for app in ["main", "other"] {
        gateway.send(check(app)).await.items();
    }
    cluster.nodes[other].kill();
    let is_cached = async |app| gateway.send(check(app).header("Cache-Control", "only-if-cached")).await.status == 200;
    eventually("the cache of the lost node's app is cleared", async || (!is_cached("other").await).then_some(())).await;
    // On a busy machine the other connection may be lost too.
    assert!(is_cached("main").await || disconnects(&gateway).await > before + 1);
}

#[tokio::test]
async fn app_added_by_a_reload_gets_its_connection() {
    let (chat, cluster) = (FakeChat::start().await, RedisCluster::start(1).await);
    let gateway = replica(setup(&chat, &cluster)).await;
    let subscribers = async |app: u32| {
        let line = format!("PUBSUB SHARDNUMSUB {}", channel(app));
        cluster.nodes[0].command(&line).await
    };
    let reload = async |setup: &Setup| {
        std::fs::write(gateway.dir().join("chatgate.toml"), setup.text()).expect("a writable directory");
        let response = gateway.send_to_admin(TestRequest::post("/reload")).await;
        assert_eq!(response.status, 200, "{response:?}");
    };
    let (with_other, without) = (setup(&chat, &cluster).app(OTHER, &chat.app_lines()), setup(&chat, &cluster));
    reload(&with_other).await;
    eventually("the added app is connected", async || {
        subscribers(OTHER.sdkappid).await.ends_with(":1\r\n").then_some(())
    })
    .await;
    let sent = async || gateway.admin_get("/status").await.json()["fleet"]["invalidations_sent"].as_u64();
    let write = || {
        let write = TestRequest::command("follow/follow_delete").header("Chatgate-App", "other");
        write.body(r#"{"From_Account":"ann","To_Account":["bob"]}"#)
    };
    eventually("a sent invalidation", async || {
        assert_eq!(gateway.send(write()).await.status, 200);
        sent().await.filter(|sent| *sent > 0)
    })
    .await;
    reload(&without).await;
    assert!(sent().await.is_some_and(|sent| sent > 0), "a counter has fallen");
    eventually("the removed app is disconnected", async || {
        subscribers(OTHER.sdkappid).await.ends_with(":0\r\n").then_some(())
    })
    .await;
    await_connected(&gateway).await;
}
