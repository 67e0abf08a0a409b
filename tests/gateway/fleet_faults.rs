//! Redis is killed, frozen, slow, emptied or cut off, and no request fails. The threshold for a slow Redis is 30 ms,
//! so tests with traffic run exclusively.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::fleet::{await_connected, mode, replica, setup};
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::redis::{Redis, RedisProxy};
use crate::support::turn;

const CALLERS: usize = 4;

/// Callers that send requests until stopped: checks of new pairs, checks of a cached pair, and other commands.
pub(crate) struct Traffic {
    rounds: Arc<[AtomicUsize; CALLERS]>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<Vec<String>>>,
}

impl Traffic {
    pub(crate) fn on(gateway: &Gateway) -> Traffic {
        let stop = CancellationToken::new();
        let rounds: Arc<[AtomicUsize; CALLERS]> = Arc::default();
        let tasks = (0..CALLERS).map(|caller| {
            let (address, stop, rounds) = (gateway.address().to_owned(), stop.clone(), rounds.clone());
            tokio::spawn(async move {
                let (mut failed, mut round) = (Vec::new(), 0);
                while !stop.is_cancelled() {
                    let mut conn = Conn::open(&address).await.expect("accepted");
                    let new = format!("user-{caller}-{round}");
                    for request in [
                        TestRequest::check(&new, &["bob"]),
                        TestRequest::check("ann", &["bob"]),
                        TestRequest::command("openim/querystate"),
                        TestRequest::command("follow/follow_add")
                            .body(format!(r#"{{"From_Account":"{new}","FollowItem":[{{"To_Account":"bob"}}]}}"#)),
                    ] {
                        let response = conn.request(&request).await;
                        if response.status != 200 {
                            failed.push(format!("{response:?}"));
                        }
                    }
                    round += 1;
                    rounds[caller].store(round, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                failed
            })
        });
        Traffic { tasks: tasks.collect(), stop, rounds }
    }

    /// Waits until every caller has finished at least two more full rounds.
    pub(crate) async fn more_rounds(&self) {
        let rounds = || self.rounds.iter().map(|round| round.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let wanted: Vec<usize> = rounds().iter().map(|round| round + 3).collect();
        let enough = async || rounds().iter().zip(&wanted).all(|(now, wanted)| now >= wanted).then_some(());
        eventually("callers finish more rounds", enough).await;
    }

    /// Stops the callers and asserts that no request failed.
    pub(crate) async fn end(self) {
        self.more_rounds().await;
        self.stop.cancel();
        for task in self.tasks {
            let failed = task.await.expect("no panic");
            assert!(failed.is_empty(), "{} requests failed, the first: {}", failed.len(), failed[0]);
        }
    }
}

pub(crate) async fn await_disconnected(gateway: &Gateway) {
    eventually("the replica is disconnected", async || (mode(gateway).await == "disconnected").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_redis_fails_no_request() {
    let _exclusive = turn::exclusive().await;
    let (chat, mut redis) = (FakeChat::start().await, Redis::start().await);
    let gateway = replica(setup(&chat, redis.address())).await;
    let traffic = Traffic::on(&gateway);
    traffic.more_rounds().await;
    for _ in 0..2 {
        redis.kill();
        await_disconnected(&gateway).await;
        traffic.more_rounds().await;
        redis.restart().await;
        await_connected(&gateway).await;
    }
    traffic.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frozen_redis_fails_no_request() {
    let _exclusive = turn::exclusive().await;
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let gateway = replica(setup(&chat, redis.address())).await;
    let traffic = Traffic::on(&gateway);
    traffic.more_rounds().await;
    redis.signal("STOP");
    await_disconnected(&gateway).await;
    traffic.more_rounds().await;
    redis.signal("CONT");
    await_connected(&gateway).await;
    traffic.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_redis_fails_no_request() {
    let _exclusive = turn::exclusive().await;
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let route = RedisProxy::start(&redis).await;
    let gateway = replica(setup(&chat, route.address())).await;
    let traffic = Traffic::on(&gateway);
    traffic.more_rounds().await;
    route.set_delay(Duration::from_millis(50));
    await_disconnected(&gateway).await;
    traffic.more_rounds().await;
    route.set_delay(Duration::ZERO);
    await_connected(&gateway).await;
    traffic.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn network_partition_from_redis_fails_no_request() {
    let _exclusive = turn::exclusive().await;
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let route = RedisProxy::start(&redis).await;
    let gateway = replica(setup(&chat, route.address())).await;
    let traffic = Traffic::on(&gateway);
    traffic.more_rounds().await;
    route.set_partitioned(true);
    await_disconnected(&gateway).await;
    traffic.more_rounds().await;
    route.set_partitioned(false);
    await_connected(&gateway).await;
    traffic.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_redis_fails_no_request() {
    let _exclusive = turn::exclusive().await;
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let gateway = replica(setup(&chat, redis.address())).await;
    let traffic = Traffic::on(&gateway);
    traffic.more_rounds().await;
    for _ in 0..3 {
        redis.command("FLUSHALL").await;
        redis.command("SCRIPT FLUSH").await;
        let since = async || redis.command("EXISTS chatgate:since").await.contains(":1").then_some(());
        eventually("Redis is in use again", since).await;
    }
    await_connected(&gateway).await;
    traffic.end().await;
}

/// Its cached pairs may predate an invalidation that it missed, so it drops them. The invalidations that it could not
/// send reach the others once Redis is reachable again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disconnected_replica_drops_pairs_and_sends_invalidations_later() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let route = RedisProxy::start(&redis).await;
    let far = replica(setup(&chat, route.address())).await;
    let near = replica(setup(&chat, redis.address())).await;
    far.check("ann", &["bob"]).await;
    near.check("ann", &["cyd"]).await;
    route.set_partitioned(true);
    await_disconnected(&far).await;
    let cached = |request: TestRequest| request.header("Cache-Control", "only-if-cached");
    let response = far.send(cached(TestRequest::check("ann", &["bob"]))).await;
    assert_eq!(response.slug(), Some("not_cached"), "a disconnected replica must drop its pairs");
    far.check("ann", &["bob"]).await;
    far.call("follow/follow_delete", r#"{"From_Account":"ann","To_Account":["cyd"]}"#).await;
    assert_eq!(
        near.send(cached(TestRequest::check("ann", &["cyd"]))).await.status,
        200,
        "the invalidation cannot have arrived yet"
    );
    route.set_partitioned(false);
    await_connected(&far).await;
    let response = far.send(cached(TestRequest::check("ann", &["bob"]))).await;
    assert_eq!(response.slug(), Some("not_cached"), "a pair cached while disconnected may be invalid");
    eventually("the delayed invalidation is received", async || {
        let response = near.send(cached(TestRequest::check("ann", &["cyd"]))).await;
        (response.slug() == Some("not_cached")).then_some(())
    })
    .await;
}

/// Requests do not wait for a Redis that responds slowly. Pairs cached before the first connection may have missed
/// invalidations.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pairs_cached_before_connecting_are_dropped_on_connect() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let route = RedisProxy::start(&redis).await;
    let near = replica(setup(&chat, redis.address())).await;
    // Only the first response is delayed, so that the first attempt succeeds.
    route.set_delay(Duration::from_millis(600));
    let far = setup(&chat, route.address()).start().await;
    far.check("ann", &["bob"]).await.items();
    near.call("follow/follow_delete", r#"{"From_Account":"ann","To_Account":["bob"]}"#).await;
    route.set_delay(Duration::ZERO);
    await_connected(&far).await;
    let response = far.send(TestRequest::check("ann", &["bob"]).header("Cache-Control", "only-if-cached")).await;
    assert_eq!(response.slug(), Some("not_cached"));
}

#[tokio::test]
async fn gateway_starts_without_redis_and_connects_later() {
    let (chat, mut redis) = (FakeChat::start().await, Redis::start().await);
    redis.kill();
    let gateway = setup(&chat, redis.address()).start().await;
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
    assert_eq!(mode(&gateway).await, "disconnected");
    redis.restart().await;
    await_connected(&gateway).await;
    let metrics = gateway.admin_get("/metrics").await.text();
    assert!(metrics.contains("\nchatgate_fleet_connected 1\n"), "{metrics}");
}
