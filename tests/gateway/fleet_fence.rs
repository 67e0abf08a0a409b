//! The data in Redis after an invalidation, accessed through the fleet API of the program.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chatgate::clock;
use chatgate::config;
use chatgate::domain::chat::app::{SdkAppId, SecretKey};
use chatgate::domain::fleet::keys::FleetKeys;
use chatgate::domain::pairs::pair::Relation;
use chatgate::domain::pairs::scope::{Scope, UserPairs};
use chatgate::domain::relation::{FOLLOW, FRIEND, KINDS, RelationKind};
use chatgate::domain::tick::Tick;
use chatgate::fleet::{Connections, FetchedPairs, Fleet, FleetApp, LeaseRequest, Mode, OnInvalidation, Pace};

use crate::support::redis::Redis;
use crate::support::{eventually, now, within};

/// Counts invalidations, and notices that some may be missing.
#[derive(Default)]
struct CountInvalidations {
    received: AtomicUsize,
    missed: AtomicUsize,
}

impl OnInvalidation for CountInvalidations {
    fn invalidated(&self, _: SdkAppId, _: &[u8]) {
        self.received.fetch_add(1, Ordering::Relaxed);
    }

    fn missed(&self, _: Option<SdkAppId>) {
        self.missed.fetch_add(1, Ordering::Relaxed);
    }
}

async fn connect(redis: &Redis) -> Replica {
    connect_to(redis.address()).await
}

async fn connect_to(address: SocketAddr) -> Replica {
    let address = format!("redis://{address}").parse().expect("an address");
    Replica::connect(config::RedisForm::Primary(address)).await
}

/// One app's connection through the fleet API. Dropping it closes the connection.
pub(crate) struct Replica {
    fleet: Arc<Fleet>,
    counts: Arc<CountInvalidations>,
    _connections: Arc<Connections>,
}

impl std::ops::Deref for Replica {
    type Target = Arc<Fleet>;

    fn deref(&self) -> &Arc<Fleet> {
        &self.fleet
    }
}

impl Replica {
    pub(crate) async fn connect(redis: config::RedisForm) -> Replica {
        let connections = Connections::new(&config::Fleet::new(redis, "test", 0.5));
        let fleet = connections.of(SdkAppId::new(7).expect("not 0")).expect("random numbers");
        let counts = Arc::<CountInvalidations>::default();
        let subscriber = Arc::clone(&counts) as Arc<dyn OnInvalidation>;
        within(crate::support::PATIENCE, "a first attempt", connections.run(subscriber)).await;
        eventually("the replica is connected", async || (fleet.mode() == Mode::Connected).then_some(())).await;
        Replica { fleet, counts, _connections: connections }
    }
}

fn shared() -> FleetApp {
    let (secret, app) = (SecretKey::new("a secret").expect("not empty"), SdkAppId::new(7).expect("not 0"));
    let keys = Arc::new(FleetKeys::new(&secret, app, "chat"));
    FleetApp { app, keys, ttl: Duration::from_secs(3600) }
}

fn follow_type(number: i64) -> Relation {
    Relation::new(number).expect("0 to 3")
}

/// Stores and reads a last pair, so that all earlier stores are done.
async fn flush_stores(fleet: &Arc<Fleet>, shared: &FleetApp, name: &str) {
    eventually("a store", async || {
        let pairs = &[("last", name, follow_type(0))];
        fleet.store(shared, &FetchedPairs { kind: &FOLLOW, pairs, sent: clock::tick() });
        fleet.read(shared, &FOLLOW, "last", &[name]).await.first().copied().flatten()
    })
    .await;
}

#[tokio::test]
async fn store_sent_before_an_invalidation_is_rejected() {
    let redis = Redis::start().await;
    let (fleet, shared) = (connect(&redis).await, shared());
    // An invalidation concerns every relation.
    for kind in KINDS {
        reject_earlier_stores(kind, &fleet, &shared).await;
    }
}

#[tokio::test]
async fn entry_of_one_relation_answers_no_other() {
    let redis = Redis::start().await;
    let (fleet, shared) = (connect(&redis).await, shared());
    flush_stores(&fleet, &shared, "before").await;
    let pairs = &[("ann", "bob", follow_type(1))];
    fleet.store(&shared, &FetchedPairs { kind: &FRIEND, pairs, sent: clock::tick() });
    flush_stores(&fleet, &shared, "after").await;
    for kind in KINDS {
        let found = fleet.read(&shared, kind, "ann", &["bob"]).await.first().copied().flatten();
        assert_eq!(found.is_some(), *kind == FRIEND, "{}", kind.name);
    }
}

async fn reject_earlier_stores(kind: &'static RelationKind, fleet: &Arc<Fleet>, shared: &FleetApp) {
    let listed = |from: &str, to: &str| UserPairs { from: from.to_owned(), to: vec![to.to_owned()] };
    let scopes = [
        Scope::pairs_of("ann", &["bob"]),
        Scope::pairs_of("bob", &["ann"]),
        Scope::Pairs(vec![listed("eve", "ann"), listed("bob", "ann")]),
        Scope::Users(vec!["bob".into()]),
        Scope::Users(vec!["ann".into()]),
        Scope::All,
    ];
    let store = |pairs: &[(&str, &str, Relation)], sent: Tick| fleet.store(shared, &FetchedPairs { kind, pairs, sent });
    for (round, scope) in scopes.iter().enumerate() {
        flush_stores(fleet, shared, &format!("before-{}-{round}", kind.name)).await;
        let sent = clock::tick();
        store(&[("ann", "bob", follow_type(1)), ("cyd", "dan", follow_type(3))], sent);
        let cached = async || fleet.read(shared, kind, "bob", &["ann"]).await.first().copied().flatten();
        // The pair of the previous round has another relation.
        let stored = async || cached().await.filter(|(relation, _)| *relation != follow_type(0));
        let (relation, looked_up) = eventually("the pair is stored", stored).await;
        assert_eq!(relation, follow_type(2), "the flipped relation");
        assert!(looked_up <= sent, "a pair is never newer than its lookup");
        fleet.invalidate(shared, scope).await;
        assert_eq!(cached().await, None, "{scope:?}");
        store(&[("ann", "bob", follow_type(1))], sent);
        flush_stores(fleet, shared, &format!("after-{}-{round}", kind.name)).await;
        assert_eq!(cached().await, None, "{scope:?}: a store sent earlier");
        let others = fleet.read(shared, kind, "cyd", &["dan"]).await.first().copied().flatten();
        assert_eq!(others.is_some(), *scope != Scope::All, "{scope:?}");
        // A pair looked up after the invalidation is stored again.
        eventually("the pair is stored again", async || {
            store(&[("ann", "bob", follow_type(0))], clock::tick());
            cached().await
        })
        .await;
    }
}

/// Returns how often Redis has published.
async fn publications(redis: &Redis) -> u64 {
    let stats = redis.command("INFO commandstats").await;
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_publish:calls="));
    calls.and_then(|calls| calls.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalidations_arrive_in_batches_and_none_is_lost() {
    let redis = Redis::start().await;
    let (writer, reader, shared) = (connect(&redis).await, connect(&redis).await, shared());
    let received = || reader.counts.received.load(Ordering::Relaxed);
    let begun = now();
    // Names of the maximum length: a few of these fill a batch before it is due.
    let to: Vec<String> = (0..500).map(|n| format!("{n:032}")).collect();
    let large = Scope::pairs_of("ann", &to.iter().map(String::as_str).collect::<Vec<_>>());
    let mut sent = 0;
    for n in 0..300 {
        let scope = if n % 100 == 99 { large.clone() } else { Scope::Users(vec![format!("user-{n}")]) };
        writer.invalidate(&shared, &scope).await;
        sent += 1;
        let waiting = redis.command("STRLEN test:pending").await;
        let waiting: usize = waiting.trim_matches([':', '\r', '\n']).parse().expect("a length");
        assert!(waiting < 32 * 1024, "{waiting} bytes wait");
    }
    // On a busy machine a replica may lose Redis for a moment. It then counts everything as missed.
    let missed = || [&writer, &reader].iter().any(|replica| replica.counts.missed.load(Ordering::Relaxed) > 0);
    eventually("all invalidations", async || (received() == sent || missed()).then_some(())).await;
    // One in 50 ms, the first one, and those that fill a batch.
    let most = begun.elapsed().as_millis() as u64 / 50 + 1 + 2 * 3;
    let published = publications(&redis).await;
    println!("{sent} invalidations in {published} messages");
    assert!(published <= most.min(sent as u64 - 1), "{published} messages");
}

/// The heartbeats of the other replicas publish what a replica that has ended left behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_invalidations_of_an_ended_replica_arrive() {
    let redis = Redis::start().await;
    let (writer, reader, shared) = (connect(&redis).await, connect(&redis).await, shared());
    let sent = invalidate_until_one_waits(&redis, &writer, &shared).await;
    drop(writer);
    let all = async || (reader.counts.received.load(Ordering::Relaxed) == sent).then_some(());
    eventually("all invalidations", all).await;
}

/// Returns the number of invalidations. The first one is published at once; one of the next ones waits.
async fn invalidate_until_one_waits(redis: &Redis, writer: &Replica, shared: &FleetApp) -> usize {
    let mut sent = 0;
    while redis.command("EXISTS test:pending").await != ":1\r\n" {
        writer.invalidate(shared, &Scope::Users(vec!["ann".to_owned()])).await;
        sent += 1;
    }
    sent
}

/// No replica may keep pairs of which an invalidation was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_redis_counts_as_missed_invalidations() {
    let redis = Redis::start().await;
    let (writer, reader, shared) = (connect(&redis).await, connect(&redis).await, shared());
    let missed = |replica: &Replica| replica.counts.missed.load(Ordering::Relaxed);
    assert_eq!((missed(&writer), missed(&reader)), (0, 0));
    invalidate_until_one_waits(&redis, &writer, &shared).await;
    redis.command("FLUSHALL").await;
    for replica in [&writer, &reader] {
        eventually("missed invalidations", async || (missed(replica) > 0).then_some(())).await;
    }
    assert_eq!((writer.mode(), reader.mode()), (Mode::Connected, Mode::Connected));
}

#[tokio::test]
async fn emptied_redis_grants_no_burst() {
    let redis = Redis::start().await;
    let fleet = connect(&redis).await;
    let pace = Pace { interval: Duration::from_millis(20), burst: 4 };
    let app = SdkAppId::new(7).expect("not 0");
    let request = LeaseRequest { app, name: "a/b", wanted: 8, pace, total: None };
    for _ in 0..2 {
        redis.command("FLUSHALL").await;
        let granted = fleet.lease(request).await.expect("a connection to Redis");
        let moments = granted.moments;
        assert_eq!(moments.len(), 8);
        assert!(moments[0] >= pace.interval, "{moments:?}");
        assert!(moments.windows(2).all(|two| two[1] - two[0] == pace.interval), "{moments:?}");
    }
    // No permit is granted further ahead than 250 ms, and none if the total quota is exhausted.
    let granted = fleet.lease(request).await.expect("a connection to Redis");
    assert!(granted.moments.iter().all(|moment| *moment <= Duration::from_millis(250)), "{granted:?}");
    let total = Some(Pace { interval: Duration::from_secs(10), burst: 1 });
    let other_request = LeaseRequest { name: "c/d", total, ..request };
    for _ in 0..2 {
        let granted = fleet.lease(other_request).await.expect("a connection to Redis");
        assert!(granted.moments.is_empty(), "{granted:?}");
        assert!(granted.retry_after >= Duration::from_millis(1));
    }
}

/// After a failover the last granted moments may be missing, and with them the record of used permits.
#[tokio::test]
async fn new_redis_run_grants_no_burst_from_older_state() {
    let redis = Redis::start().await;
    let fleet = connect(&redis).await;
    let pace = Pace { interval: Duration::from_millis(20), burst: 4 };
    let request = LeaseRequest { app: SdkAppId::new(7).expect("not 0"), name: "a/b", wanted: 4, pace, total: None };
    let granted = fleet.lease(request).await.expect("a connection to Redis");
    let rest_end = granted.redis_time + 1_000_000;
    let granted = eventually("one second has passed", async || {
        let request = LeaseRequest { name: "c/d", ..request };
        fleet.lease(request).await.filter(|granted| granted.redis_time > rest_end)
    })
    .await;
    redis.command("SET test:run another").await;
    let since = async || redis.command("GET test:since").await.lines().nth(1)?.trim().parse::<u64>().ok();
    let since =
        eventually("the new run is noticed", async || since().await.filter(|since| *since > granted.redis_time)).await;
    let mut moments = Vec::new();
    eventually("four permits", async || {
        let granted = fleet.lease(request).await?;
        moments.extend(granted.moments.iter().map(|moment| granted.redis_time + moment.as_micros() as u64));
        (moments.len() >= 4).then_some(())
    })
    .await;
    let interval = pace.interval.as_micros() as u64;
    assert!(moments[3] >= since + interval * 3, "{moments:?}, the new run began at {since}");
}

/// The clock of the new primary may be behind that of the old one, whose data it has.
#[tokio::test]
async fn data_of_another_run_is_void_a_little_past_its_last_heartbeat() {
    let redis = Redis::start().await;
    let time = async || {
        let reply = redis.command("TIME").await;
        let parts: Vec<u64> = reply.lines().filter_map(|line| line.parse().ok()).collect();
        let [seconds, micros] = parts[..] else { panic!("{reply}") };
        seconds * 1_000_000 + micros
    };
    let since = async || {
        let reply = redis.command("GET test:since").await;
        reply.lines().nth(1).and_then(|since| since.parse::<u64>().ok()).expect("a time")
    };
    let before = time().await;
    let first = connect(&redis).await;
    let begun = since().await;
    assert!(begun >= before && begun <= time().await, "an empty Redis has no data to void");
    drop(first);
    for last_heartbeat in [-1_000_000, 300_000] {
        let before = time().await;
        let last_heartbeat = before.saturating_add_signed(last_heartbeat);
        assert_eq!(redis.command(&format!("MSET test:run another test:beat {last_heartbeat}")).await, "+OK\r\n");
        let _next = connect(&redis).await;
        assert!(since().await >= last_heartbeat.max(before) + 500_000);
    }
}

/// Measured by the clock of Redis, so load on this machine does not matter. A call uses its permit within 40 ms after
/// the permit's moment, and reaches the wire within 50 ms.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_leases_stay_within_and_near_the_limit() {
    let redis = Redis::start().await;
    let (limit, burst) = (200, 4);
    let window = Duration::from_millis(1090);
    let pace = Pace { interval: window / (limit - burst + 1) + Duration::from_nanos(1), burst };
    let leasing: Vec<_> = {
        let mut replicas = Vec::new();
        for _ in 0..4 {
            replicas.push(connect(&redis).await);
        }
        let lease = |fleet: Replica| async move {
            let request =
                LeaseRequest { app: SdkAppId::new(7).expect("not 0"), name: "a/b", wanted: 8, pace, total: None };
            let (mut moments, mut first) = (Vec::new(), None);
            loop {
                // On a busy machine the connection to Redis may be lost for a moment.
                let Some(granted) = fleet.lease(request).await else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let at = |moment: &Duration| granted.redis_time + moment.as_micros() as u64;
                moments.extend(granted.moments.iter().map(at));
                if granted.redis_time - *first.get_or_insert(granted.redis_time) > 3_000_000 {
                    return moments;
                }
                if granted.moments.is_empty() {
                    tokio::time::sleep(granted.retry_after).await;
                }
            }
        };
        replicas.into_iter().map(|fleet| tokio::spawn(lease(fleet))).collect()
    };
    let mut moments = Vec::new();
    for leased in leasing {
        moments.extend(within(crate::support::PATIENCE, "three seconds", leased).await.expect("no panic"));
    }
    moments.sort_unstable();
    let window = window.as_micros() as u64;
    for (first, moment) in moments.iter().enumerate() {
        let within = moments[first..].partition_point(|other| *other < moment + window);
        assert!(within <= limit as usize, "{within} permits in one second");
    }
    let span = (moments[moments.len() - 1] - moments[0]) as f64 / 1e6;
    let mean = moments.len() as f64 / span;
    println!("{mean:.1} permits per second, limit {limit}");
    assert!(mean >= 0.85 * f64::from(limit), "{mean}");
}
