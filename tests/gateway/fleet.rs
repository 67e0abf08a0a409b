//! Fleets: several gateways that share quota, cached pairs and invalidations through a real Redis.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::quota::{assert_relayed_or_rate_limited, max_calls_in, min_rate, one_second_window, send_from_callers};
use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::cpu_waits::CpuWaits;
use crate::support::gateway::Gateway;
use crate::support::hook;
use crate::support::redis::Redis;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;
use crate::support::{eventually, now, turn};

/// Returns the setup of a replica. Its cached pairs do not expire within a test.
pub(crate) fn setup(chat: &FakeChat, redis: SocketAddr) -> Setup {
    fleet_setup(chat, &[format!("redis = \"redis://{redis}\"")])
}

/// Returns the setup of a replica with these lines in `[fleet]`.
pub(crate) fn fleet_setup(chat: &FakeChat, lines: &[String]) -> Setup {
    let setup = Setup::new(chat).set("cache", r#"ttl = "1h""#).set("cache", r#"write_settle = "0s""#);
    lines.iter().fold(setup, |setup, line| setup.set("fleet", line))
}

/// Starts a replica and waits until it is connected.
pub(crate) async fn replica(setup: Setup) -> Gateway {
    let gateway = setup.start().await;
    await_connected(&gateway).await;
    gateway
}

pub(crate) async fn mode(gateway: &Gateway) -> String {
    let status = gateway.admin_get("/status").await.json();
    status["fleet"]["mode"].as_str().expect("a mode").to_owned()
}

pub(crate) async fn await_connected(gateway: &Gateway) {
    eventually("the replica is connected", async || (mode(gateway).await == "connected").then_some(())).await;
}

/// Returns the reason in `/status` why the replica is disconnected.
pub(crate) async fn cause(gateway: &Gateway) -> String {
    let status = gateway.admin_get("/status").await.json();
    status["fleet"]["cause"].as_str().unwrap_or_default().to_owned()
}

/// Whether the replica answers the pair from its cache or from Redis, without a call to Chat.
pub(crate) async fn has_cached(gateway: &Gateway, from: &str, to: &str) -> bool {
    let response = gateway.send(TestRequest::check(from, &[to]).header("Cache-Control", "only-if-cached")).await;
    assert!(response.status == 200 || response.slug() == Some("not_cached"), "{response:?}");
    response.status == 200
}

/// Fetches the pair through `one` until `two` has it. On a busy machine a replica may lose Redis for a moment, and
/// then it shares nothing.
pub(crate) async fn await_shared_pair(one: &Gateway, two: &Gateway, from: &str, to: &str) {
    eventually("a pair cached by another replica", async || {
        one.send(TestRequest::check(from, &[to]).header("Cache-Control", "no-cache")).await.items();
        has_cached(two, from, to).await.then_some(())
    })
    .await;
}

pub(crate) async fn await_invalidated(gateway: &Gateway, from: &str, to: &str) {
    eventually("the pair is invalidated", async || (!has_cached(gateway, from, to).await).then_some(())).await;
}

#[tokio::test]
async fn replicas_share_cached_pairs() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    chat.follow("ann", "bob");
    let one = replica(setup(&chat, redis.address())).await;
    assert_eq!(one.check("ann", &["bob", "cyd"]).await.follow_types(), [2, 0]);
    let two = replica(setup(&chat, redis.address())).await;
    await_shared_pair(&one, &two, "ann", "bob").await;
    await_shared_pair(&one, &two, "ann", "cyd").await;
    let calls = chat.call_count();
    let response = two.check("ann", &["bob", "cyd"]).await;
    assert_eq!((response.follow_types(), response.cache_status().counts()), (vec![2, 0], (2, 0, 0)));
    assert_eq!(two.check("bob", &["ann"]).await.follow_types(), [1], "the flipped pair");
    assert_eq!(chat.call_count(), calls, "no call to Chat");
    // `no-cache` bypasses the shared pairs.
    let three = replica(setup(&chat, redis.address())).await;
    three.send(TestRequest::check("ann", &["bob"]).header("Cache-Control", "no-cache")).await;
    assert_eq!(chat.call_count(), calls + 1);
}

/// The age of a pair counts from its lookup, no matter which replica made it.
#[tokio::test]
async fn shared_pairs_keep_their_age_across_replicas() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let one = replica(setup(&chat, redis.address())).await;
    let early = replica(setup(&chat, redis.address())).await;
    await_shared_pair(&one, &early, "ann", "bob").await;
    let fetched_at = now();
    eventually("the pair is three seconds old", async || (fetched_at.elapsed() > Duration::from_secs(3)).then_some(()))
        .await;
    // This replica starts long after the lookup.
    let two = replica(setup(&chat, redis.address())).await;
    let aged = |age: &str| TestRequest::check("ann", &["bob"]).header("Cache-Control", age);
    let response = two.send(aged("only-if-cached")).await;
    if response.status == 200 {
        assert!(response.age() >= 3, "{response:?}");
    }
    let calls = chat.call_count();
    assert_eq!(two.send(aged("max-age=2")).await.follow_types(), [0]);
    assert_eq!(chat.call_count(), calls + 1, "the pair exceeds max-age");
}

#[tokio::test]
async fn redis_holds_no_user_ids_and_forgeries_are_ignored() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let one = replica(setup(&chat, redis.address())).await;
    let two = replica(setup(&chat, redis.address())).await;
    await_shared_pair(&one, &two, "some-user-name", "another-user-name").await;
    let keys = redis.command("KEYS *").await;
    assert!(keys.contains(":p:") && !keys.contains("user-name"), "{keys}");
    // Every pair is replaced by a forged value of the right length.
    let forge =
        "EVAL \"for _,k in ipairs(redis.call('KEYS','*:p:*')) do redis.call('SET',k,string.rep('A',16)) end\" 0";
    redis.command(forge).await;
    let three = replica(setup(&chat, redis.address())).await;
    assert!(!has_cached(&three, "some-user-name", "another-user-name").await);
}

#[tokio::test]
async fn writes_webhooks_and_evictions_invalidate_pairs_on_other_replicas() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let one = replica(hook::listen(setup(&chat, redis.address()), &[MAIN])).await;
    let two = replica(setup(&chat, redis.address())).await;
    let webhook = hook::address(&one).await;
    let event = hook::event("Follow.CallbackAfterFollowAdd", "ann", &["bob"]);
    let event = hook::signed(MAIN, "Follow.CallbackAfterFollowAdd", &event);
    let add = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#;
    for round in 0..5 {
        two.check("ann", &["bob", "cyd"]).await;
        assert!(has_cached(&two, "ann", "bob").await && has_cached(&two, "ann", "cyd").await);
        let others_remain = match round {
            0 => {
                assert_eq!(one.call("follow/follow_add", add).await.status, 200);
                true
            }
            1 => {
                hook::post_accepted(&webhook, &event).await;
                true
            }
            2 => {
                evict(&one, r#"{"From_Account":"bob","To_Account":["ann"]}"#).await;
                true
            }
            3 => {
                one.call("im_open_login_svc/account_delete", r#"{"DeleteItem":[{"UserID":"ann"}]}"#).await;
                false
            }
            _ => {
                evict(&one, "{}").await;
                false
            }
        };
        let answered = now();
        await_invalidated(&two, "ann", "bob").await;
        println!("round {round}: invalidated {:?} after the response", answered.elapsed());
        assert_eq!(has_cached(&two, "ann", "cyd").await, others_remain, "round {round}");
    }
}

async fn evict(gateway: &Gateway, body: &str) {
    let request = TestRequest::post("/cache/evict").body(body);
    let response = gateway.send_to_admin(request).await;
    assert_eq!(response.status, 200, "{response:?}");
}

#[tokio::test]
async fn write_on_one_replica_refetches_lookups_on_another() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let one = replica(setup(&chat, redis.address())).await;
    let two = replica(setup(&chat, redis.address())).await;
    let gate = Gate::closed();
    chat.reply_once(Reply::from_graph().after(&gate));
    let mut lookup = two.connect().await;
    lookup.send(TestRequest::check("ann", &["bob"]).bytes()).await;
    chat.wait_for_calls(1).await;
    let received = async || two.admin_get("/status").await.json()["fleet"]["invalidations_received"].as_u64();
    assert_eq!(received().await, Some(0));
    one.call("follow/follow_add", r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#).await;
    eventually("the invalidation is received", async || (received().await == Some(1)).then_some(())).await;
    gate.open();
    assert_eq!(lookup.read_response().await.follow_types(), [2], "the state after the write");
    assert_eq!(chat.calls_of("follow/follow_check").len(), 2);
}

#[tokio::test]
async fn invalidation_under_another_key_drops_all_pairs() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let new_key = "another-key-of-the-same-app";
    chat.accept_key(new_key);
    let one = replica(setup(&chat, redis.address())).await;
    let other = crate::support::app::TestApp { key: new_key, ..MAIN };
    let lines = chat.app_lines();
    let two = Setup::without_apps().app(other, &lines).set("cache", r#"ttl = "1h""#);
    let two = replica(two.set("fleet", &format!("redis = \"redis://{}\"", redis.address()))).await;
    one.check("ann", &["bob"]).await;
    two.call("follow/follow_add", r#"{"From_Account":"eve","FollowItem":[{"To_Account":"dan"}]}"#).await;
    await_invalidated(&one, "ann", "bob").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fleet_shares_one_quota_and_uses_idle_capacity() {
    let _exclusive = turn::exclusive().await;
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let quota = |setup: Setup| setup.set("app.quota", r#"per_command = "50/s""#);
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(replica(quota(setup(&chat, redis.address()))).await);
    }
    let waits = CpuWaits::start(&replicas[0]);
    let request = TestRequest::command("openim/querystate");
    let span = Duration::from_secs(4);
    // The third replica is idle.
    let (one, two) = tokio::join!(
        send_from_callers(&replicas[0], &request, 20, span),
        send_from_callers(&replicas[1], &request, 20, span)
    );
    assert_relayed_or_rate_limited(&one);
    assert_relayed_or_rate_limited(&two);
    let times: Vec<Instant> = chat.calls().iter().map(|call| call.at).collect();
    let most = max_calls_in(one_second_window(&waits), &times);
    let mean = crate::quota::mean_rate(&times);
    println!("50/s, 2 of 3 replicas busy: {mean:.1} per second, peak second {most}");
    assert!(most <= 50, "{most} calls in one second");
    for replica in &replicas {
        assert_eq!(mode(replica).await, "connected", "{}", replica.log());
    }
    assert!(mean >= min_rate(50.0, &waits) * 0.95, "only {mean:.1} per second");
}
