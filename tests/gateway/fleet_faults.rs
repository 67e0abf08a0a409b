//! Redis is killed, frozen, slow, emptied or cut off: no caller notices. What is slow and what is not is a matter
//! of 30 ms, so those with traffic have the machine for themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::fleet::{mode, replica, setup, together};
use crate::support::chat::FakeChat;
use crate::support::client::{Ask, Conn};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::redis::{Redis, Way};
use crate::support::turn;

const CALLERS: usize = 4;

/// Callers who go on and on: lookups of pairs that are new, pairs that are known, and other calls.
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
                    for ask in [
                        Ask::check(&new, &["bob"]),
                        Ask::check("ann", &["bob"]),
                        Ask::command("openim/querystate"),
                        Ask::command("follow/follow_add")
                            .body(format!(r#"{{"From_Account":"{new}","FollowItem":[{{"To_Account":"bob"}}]}}"#)),
                    ] {
                        let answer = conn.ask(&ask).await;
                        if answer.status != 200 {
                            failed.push(format!("{answer:?}"));
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

    /// Waits until everybody has asked for everything some more times.
    pub(crate) async fn some(&self) {
        let rounds = || self.rounds.iter().map(|round| round.load(Ordering::Relaxed)).collect::<Vec<_>>();
        let wanted: Vec<usize> = rounds().iter().map(|round| round + 3).collect();
        let enough = async || rounds().iter().zip(&wanted).all(|(now, wanted)| now >= wanted).then_some(());
        eventually("callers go on", enough).await;
    }

    /// How many requests failed. None may.
    pub(crate) async fn end(self) {
        self.some().await;
        self.stop.cancel();
        for task in self.tasks {
            let failed = task.await.expect("no panic");
            assert!(failed.is_empty(), "{} requests failed, the first: {}", failed.len(), failed[0]);
        }
    }
}

pub(crate) async fn alone(gateway: &Gateway) {
    eventually("it is alone", async || (mode(gateway).await == "alone").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_killed_and_comes_back() {
    let _alone = turn::alone().await;
    let (chat, mut redis) = (FakeChat::start().await, Redis::start().await);
    let gateway = replica(setup(&chat, redis.address())).await;
    let traffic = Traffic::on(&gateway);
    traffic.some().await;
    for _ in 0..2 {
        redis.kill();
        alone(&gateway).await;
        traffic.some().await;
        redis.start_again().await;
        together(&gateway).await;
    }
    traffic.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_frozen_and_thaws() {
    let _alone = turn::alone().await;
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let gateway = replica(setup(&chat, redis.address())).await;
    let traffic = Traffic::on(&gateway);
    traffic.some().await;
    redis.signal("STOP");
    alone(&gateway).await;
    traffic.some().await;
    redis.signal("CONT");
    together(&gateway).await;
    traffic.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_slow_for_a_while() {
    let _alone = turn::alone().await;
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let way = Way::to(&redis).await;
    let gateway = replica(setup(&chat, way.address())).await;
    let traffic = Traffic::on(&gateway);
    traffic.some().await;
    way.late(Duration::from_millis(50));
    alone(&gateway).await;
    traffic.some().await;
    way.late(Duration::ZERO);
    together(&gateway).await;
    traffic.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_way_to_redis_is_cut_and_mended() {
    let _alone = turn::alone().await;
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let way = Way::to(&redis).await;
    let gateway = replica(setup(&chat, way.address())).await;
    let traffic = Traffic::on(&gateway);
    traffic.some().await;
    way.cut(true);
    alone(&gateway).await;
    traffic.some().await;
    way.cut(false);
    together(&gateway).await;
    traffic.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_emptied() {
    let _alone = turn::alone().await;
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let gateway = replica(setup(&chat, redis.address())).await;
    let traffic = Traffic::on(&gateway);
    traffic.some().await;
    for _ in 0..3 {
        redis.say("FLUSHALL").await;
        redis.say("SCRIPT FLUSH").await;
        let since = async || redis.say("EXISTS chatgate:since").await.contains(":1").then_some(());
        eventually("Redis is in use again", since).await;
    }
    together(&gateway).await;
    traffic.end().await;
}

/// What it had may be from before an eviction that it did not hear of; and what it could not tell the
/// others, they hear when Redis is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_cut_off_forgets_and_makes_good_what_it_could_not_tell() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let way = Way::to(&redis).await;
    let far = replica(setup(&chat, way.address())).await;
    let near = replica(setup(&chat, redis.address())).await;
    far.check("ann", &["bob"]).await;
    near.check("ann", &["cyd"]).await;
    way.cut(true);
    alone(&far).await;
    let cached = |ask: Ask| ask.header("Cache-Control", "only-if-cached");
    let answer = far.ask(cached(Ask::check("ann", &["bob"]))).await;
    assert_eq!(answer.slug(), Some("not_cached"), "who hears nothing forgets");
    far.check("ann", &["bob"]).await;
    far.call("follow/follow_delete", r#"{"From_Account":"ann","To_Account":["cyd"]}"#).await;
    assert_eq!(near.ask(cached(Ask::check("ann", &["cyd"]))).await.status, 200, "it cannot know yet");
    way.cut(false);
    together(&far).await;
    let answer = far.ask(cached(Ask::check("ann", &["bob"]))).await;
    assert_eq!(answer.slug(), Some("not_cached"), "what was learned alone may be void");
    eventually("what was owed is heard", async || {
        let answer = near.ask(cached(Ask::check("ann", &["cyd"]))).await;
        (answer.slug() == Some("not_cached")).then_some(())
    })
    .await;
}

/// Callers are not kept waiting for a Redis that is long in answering. What they have it learn until then it
/// learned without hearing of evictions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_learned_before_redis_was_found_may_be_void_then() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let way = Way::to(&redis).await;
    let near = replica(setup(&chat, redis.address())).await;
    // Only the first answer, so that the first attempt succeeds.
    way.late(Duration::from_millis(600));
    let far = setup(&chat, way.address()).start().await;
    far.check("ann", &["bob"]).await.checked();
    near.call("follow/follow_delete", r#"{"From_Account":"ann","To_Account":["bob"]}"#).await;
    way.late(Duration::ZERO);
    together(&far).await;
    let answer = far.ask(Ask::check("ann", &["bob"]).header("Cache-Control", "only-if-cached")).await;
    assert_eq!(answer.slug(), Some("not_cached"));
}

#[tokio::test]
async fn a_gateway_starts_without_redis_and_has_its_share() {
    let (chat, mut redis) = (FakeChat::start().await, Redis::start().await);
    redis.kill();
    let gateway = setup(&chat, redis.address()).start().await;
    assert_eq!(gateway.check("ann", &["bob"]).await.types(), [0]);
    assert_eq!(mode(&gateway).await, "alone");
    redis.start_again().await;
    together(&gateway).await;
    let metrics = gateway.admin_get("/metrics").await.text();
    assert!(metrics.contains("\nchatgate_fleet_together 1\n"), "{metrics}");
}
