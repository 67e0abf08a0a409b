//! Redis failover: the primary fails, and its Redis replica is promoted behind the same address. Also a Redis that
//! accepts no writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chatgate::config::RedisForm;
use chatgate::domain::chat::app::SdkAppId;
use chatgate::fleet::{Fleet, LeaseRequest, Mode, Pace};
use tokio_util::sync::CancellationToken;

use crate::fleet::{await_connected, await_invalidated, await_shared_pair, cause, has_cached, mode, replica, setup};
use crate::fleet_faults::{Traffic, await_disconnected};
use crate::fleet_fence::Replica;
use crate::quota::{assert_relayed_or_rate_limited, max_calls_in, one_second_window, send_from_callers};
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::cpu_waits::CpuWaits;
use crate::support::gateway::Gateway;
use crate::support::link::{Link, NetworkState};
use crate::support::redis::Redis;
use crate::support::{PATIENCE, eventually, turn, within};

/// Starts a primary and its replica, and returns both with the address that leads to the primary.
async fn redis_pair() -> (Redis, Redis, Link) {
    let (primary, second, mut address) = (Redis::start().await, Redis::start().await, Link::new());
    second.replicate_from(primary.address()).await;
    address.relay_to(primary.address()).await;
    (primary, second, address)
}

/// Performs a failover: promotes the replica and leads the address to it.
async fn promote(second: &Redis, address: &mut Link) {
    second.command("REPLICAOF NO ONE").await;
    address.set(NetworkState::Refusing).await;
    address.relay_to(second.address()).await;
}

/// Returns the time in the format of Redis, which runs on this machine.
#[allow(clippy::disallowed_methods, reason = "tests measure the program with an independent clock")]
fn unix_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_micros() as u64
}

pub(crate) async fn disconnects(gateway: &Gateway) -> u64 {
    gateway.admin_get("/status").await.json()["fleet"]["disconnects"].as_u64().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_fails_no_request_and_replicas_reconnect() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let (mut primary, second, mut address) = redis_pair().await;
    let one = replica(setup(&chat, address.address())).await;
    let two = replica(setup(&chat, address.address())).await;
    let traffic = [Traffic::on(&one), Traffic::on(&two)];
    for traffic in &traffic {
        traffic.more_rounds().await;
    }
    primary.kill();
    await_disconnected(&one).await;
    await_disconnected(&two).await;
    for traffic in &traffic {
        traffic.more_rounds().await;
    }
    promote(&second, &mut address).await;
    await_connected(&one).await;
    await_connected(&two).await;
    await_shared_pair(&one, &two, "dan", "eve").await;
    for traffic in traffic {
        traffic.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_stay_within_share_limits_during_a_failover() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let (mut primary, second, mut address) = redis_pair().await;
    let setup = || {
        let setup = setup(&chat, address.address()).set("fleet", "share = 0.5");
        setup.set("app.quota", r#"per_command = "40/s""#)
    };
    let one = replica(setup()).await;
    let two = replica(setup()).await;
    let waits = CpuWaits::start(&one);
    let (request, span) = (TestRequest::command("openim/querystate"), Duration::from_secs(9));
    let failing_over = async {
        chat.wait_for_calls(60).await;
        primary.kill();
        await_disconnected(&one).await;
        await_disconnected(&two).await;
        let before = chat.call_count();
        chat.wait_for_calls(before + 20).await;
        promote(&second, &mut address).await;
        await_connected(&one).await;
        await_connected(&two).await;
        let before = chat.call_count();
        chat.wait_for_calls(before + 40).await;
    };
    let (first, other, ()) = tokio::join!(
        send_from_callers(&one, &request, 10, span),
        send_from_callers(&two, &request, 10, span),
        failing_over
    );
    assert_relayed_or_rate_limited(&first);
    assert_relayed_or_rate_limited(&other);
    assert!(first.iter().chain(&other).all(|response| response.status == 200), "a request failed");
    let times: Vec<Instant> = chat.calls().iter().map(|call| call.at).collect();
    let most = max_calls_in(one_second_window(&waits), &times);
    println!("40/s during a failover: peak second {most}, mean {:.1}", crate::quota::mean_rate(&times));
    // While only one replica has noticed the failure, the bound is the limit plus one share; see docs/fleet.md.
    assert!(most <= 60, "{most} calls in one second");
}

/// Measured by the clock of Redis, so load on this machine does not matter. The promoted replica lacks the last
/// permits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permits_stay_within_the_limit_during_a_failover() {
    let (mut primary, second, mut address) = (Redis::start().await, Redis::start().await, Link::new());
    let mut stream = Link::new();
    stream.relay_to(primary.address()).await;
    second.replicate_from(stream.address()).await;
    address.relay_to(primary.address()).await;
    let url = format!("redis://{}", address.address()).parse().expect("a URL");
    permits_within_the_limit(RedisForm::Primary(url), async |permits| {
        permits.more(300).await;
        stream.set(NetworkState::Stalled).await;
        permits.more(30).await;
        primary.kill();
        promote(&second, &mut address).await;
        permits.more(300).await;
    })
    .await;
}

/// The replicas that lease permits while a test disturbs Redis.
pub(crate) struct Permits {
    replicas: Vec<Arc<Fleet>>,
    granted: Arc<AtomicUsize>,
}

impl Permits {
    /// Waits until Redis has granted this many more permits.
    pub(crate) async fn more(&self, count: usize) {
        let wanted = self.granted.load(Ordering::Relaxed) + count;
        eventually("permits", async || (self.granted.load(Ordering::Relaxed) >= wanted).then_some(())).await;
    }

    /// Waits until every replica has lost its connection at least once, and has one.
    pub(crate) async fn after_reconnecting(&self) {
        let is_connected = |fleet: &Arc<Fleet>| fleet.mode() == Mode::Connected;
        let one_is_down = async || (!self.replicas.iter().all(is_connected)).then_some(());
        eventually("a replica is disconnected", one_is_down).await;
        eventually("all are connected", async || self.replicas.iter().all(is_connected).then_some(())).await;
    }
}

/// Leases permits in three replicas while `disturb` runs, and asserts that they stay within the limit in every second
/// by the clock of Redis. A call uses its permit within 40 ms after the permit's moment, and reaches the wire within
/// 50 ms.
#[allow(clippy::print_stdout, reason = "a test prints its figures")]
pub(crate) async fn permits_within_the_limit(form: RedisForm, disturb: impl AsyncFnOnce(&Permits)) {
    let (limit, burst) = (200, 4);
    let window = Duration::from_millis(1090);
    let pace = Pace { interval: window / (limit - burst + 1) + Duration::from_nanos(1), burst };
    let (granted, stop) = (Arc::<AtomicUsize>::default(), CancellationToken::new());
    let (mut replicas, mut leasing) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let replica = Replica::connect(form.clone()).await;
        let (fleet, granted, stop) = (Arc::clone(&replica), Arc::clone(&granted), stop.clone());
        leasing.push(tokio::spawn(async move { lease_until(&stop, &fleet, pace, &granted).await }));
        replicas.push(replica);
    }
    let permits = Permits { replicas: replicas.iter().map(|replica| Arc::clone(replica)).collect(), granted };
    disturb(&permits).await;
    stop.cancel();
    let mut moments = Vec::new();
    for leased in leasing {
        moments.extend(within(PATIENCE, "the last lease", leased).await.expect("no panic"));
    }
    moments.sort_unstable();
    let window = window.as_micros() as u64;
    let most = (0..moments.len()).map(|at| moments[at..].partition_point(|other| *other < moments[at] + window)).max();
    println!("{} permits, at most {most:?} in one second, limit {limit}", moments.len());
    assert!(most.is_some_and(|most| most <= limit as usize), "{most:?}");
}

/// Leases permits, and returns the moments of those that a replica may have used.
async fn lease_until(stop: &CancellationToken, fleet: &Arc<Fleet>, pace: Pace, granted: &AtomicUsize) -> Vec<u64> {
    let app = SdkAppId::new(7).expect("not 0");
    let request = LeaseRequest { app, name: "a/b", wanted: 8, pace, total: None };
    let mut moments = Vec::new();
    while !stop.is_cancelled() {
        let Some(grant) = fleet.lease(request).await else {
            // A replica that loses Redis drops its unused permits.
            let now = unix_micros();
            moments.retain(|moment| *moment <= now);
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        moments.extend(grant.moments.iter().map(|moment| grant.redis_time + moment.as_micros() as u64));
        granted.fetch_add(grant.moments.len(), Ordering::Relaxed);
        if grant.moments.is_empty() {
            tokio::time::sleep(grant.retry_after).await;
        }
    }
    moments
}

/// Replication is asynchronous, so a promoted replica may lack the fence of an invalidation that was already
/// acknowledged to a caller.
#[tokio::test]
async fn pairs_from_before_a_failover_are_not_served() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let (mut primary, second, mut address) = (Redis::start().await, Redis::start().await, Link::new());
    let mut stream = Link::new();
    stream.relay_to(primary.address()).await;
    second.replicate_from(stream.address()).await;
    address.relay_to(primary.address()).await;
    let one = replica(setup(&chat, address.address())).await;
    let two = replica(setup(&chat, address.address())).await;
    await_shared_pair(&one, &two, "ann", "bob").await;
    let cached_pairs = |text: String| text.matches(":p:").count();
    let replicated = async || (cached_pairs(second.command("KEYS *").await) > 0).then_some(());
    eventually("the pair is replicated", replicated).await;
    stream.set(NetworkState::Stalled).await;
    let deleted = one.call("follow/follow_delete", r#"{"From_Account":"ann","To_Account":["bob"]}"#).await;
    assert_eq!(deleted.status, 200);
    primary.kill();
    promote(&second, &mut address).await;
    assert!(
        cached_pairs(second.command("KEYS *").await) > 0,
        "the pair is gone from the promoted replica, so the test proves nothing"
    );
    await_connected(&one).await;
    await_connected(&two).await;
    let three = replica(setup(&chat, address.address())).await;
    for gateway in [&one, &two, &three] {
        assert!(!has_cached(gateway, "ann", "bob").await, "a response that predates the write");
    }
    assert_eq!(three.check("ann", &["bob"]).await.follow_types(), [0]);
}

/// Replicas follow a failover one after another. The old primary accepts invalidations until the last one has left it,
/// and those that have left do not receive them.
#[tokio::test]
async fn invalidation_accepted_by_the_old_primary_reaches_replicas_at_the_new_one() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let (old, new) = (Redis::start().await, Redis::start().await);
    let (mut late, mut early) = (Link::new(), Link::new());
    new.replicate_from(old.address()).await;
    for route in [&mut late, &mut early] {
        route.relay_to(old.address()).await;
    }
    let one = replica(setup(&chat, late.address())).await;
    let two = replica(setup(&chat, early.address())).await;
    promote(&new, &mut early).await;
    let subscribers = async |count: usize| {
        let answer = async || new.command("PUBSUB NUMSUB chatgate:evictions").await;
        let expected = format!(":{count}\r\n");
        eventually("subscribers", async || answer().await.ends_with(&expected).then_some(())).await;
    };
    subscribers(1).await;
    await_connected(&two).await;
    assert_eq!(two.check("ann", &["bob"]).await.follow_types(), [2]);
    let deleted = one.call("follow/follow_delete", r#"{"From_Account":"ann","To_Account":["bob"]}"#).await;
    assert_eq!(deleted.status, 200);
    assert_eq!(mode(&one).await, "connected", "the old primary did not accept the invalidation");
    assert!(
        has_cached(&two, "ann", "bob").await,
        "the invalidation reached the new primary, so the test proves nothing"
    );
    late.set(NetworkState::Refusing).await;
    late.relay_to(new.address()).await;
    subscribers(2).await;
    await_invalidated(&two, "ann", "bob").await;
    assert_eq!(two.check("ann", &["bob"]).await.follow_types(), [0]);
}

#[tokio::test]
async fn redis_replica_is_never_used() {
    let chat = FakeChat::start().await;
    let (primary, second, _address) = redis_pair().await;
    let other = replica(setup(&chat, primary.address())).await;
    other.check("ann", &["cyd"]).await.items();
    for writable in ["yes", "no"] {
        second.command(&format!("CONFIG SET replica-read-only {writable}")).await;
        let gateway = setup(&chat, second.address()).start().await;
        let reason = async || cause(&gateway).await.contains("replica of another").then_some(());
        eventually("the reason", reason).await;
        assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
        assert_eq!((mode(&gateway).await.as_str(), disconnects(&gateway).await), ("disconnected", 0));
        second.command("REPLICAOF NO ONE").await;
        await_connected(&gateway).await;
        second.replicate_from(primary.address()).await;
    }
}

/// A demoted primary closes no connection, keeps its data and still answers reads, so the gateway itself must notice.
#[tokio::test]
async fn demoted_primary_is_abandoned_until_promoted_again() {
    demote_and_promote("yes").await;
}

/// Its writes succeed, and are lost.
#[tokio::test]
async fn demoted_primary_that_accepts_writes_is_abandoned_too() {
    demote_and_promote("no").await;
}

async fn demote_and_promote(is_read_only: &str) {
    let chat = FakeChat::start().await;
    let (first, second, _address) = redis_pair().await;
    assert_eq!(first.command(&format!("CONFIG SET replica-read-only {is_read_only}")).await, "+OK\r\n");
    let gateway = replica(setup(&chat, first.address())).await;
    let before = disconnects(&gateway).await;
    let same = async || second.command("GET chatgate:run").await == first.command("GET chatgate:run").await;
    eventually("the run id is replicated", async || same().await.then_some(())).await;
    second.command("REPLICAOF NO ONE").await;
    first.replicate_from(second.address()).await;
    // The gateway must notice without any request.
    let reason = async || cause(&gateway).await.contains("replica of another").then_some(());
    eventually("the reason", reason).await;
    let attempts = async || {
        let stats = first.command("INFO commandstats").await;
        let hellos = stats.lines().find_map(|line| line.strip_prefix("cmdstat_hello:calls="))?;
        hellos.split(',').next()?.parse::<u64>().ok()
    };
    let started = attempts().await.expect("at least one connection");
    let more = async || (attempts().await? >= started + 3).then_some(());
    eventually("the gateway retries the connection", more).await;
    assert_eq!((mode(&gateway).await.as_str(), disconnects(&gateway).await), ("disconnected", before + 1));
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
    first.command("REPLICAOF NO ONE").await;
    await_connected(&gateway).await;
}
