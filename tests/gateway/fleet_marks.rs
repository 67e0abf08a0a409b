//! What Redis keeps after an eviction, asked by the program's own commands.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use chatgate::clock;
use chatgate::config;
use chatgate::domain::chat::app::{SdkAppId, SecretKey};
use chatgate::domain::fleet::keys::FleetKeys;
use chatgate::domain::follow::writes::Scope;
use chatgate::domain::pairs::pair::FollowType;
use chatgate::fleet::{Fleet, FleetApp, LeaseRequest, Mode, OnInvalidation, Pace};

use crate::support::redis::Redis;
use crate::support::{eventually, within};

struct Deaf;

impl OnInvalidation for Deaf {
    fn invalidated(&self, _: SdkAppId, _: &[u8]) {}
    fn missed(&self) {}
}

async fn member(redis: &Redis) -> Arc<Fleet> {
    member_at(redis.address()).await
}

pub(crate) async fn member_at(address: SocketAddr) -> Arc<Fleet> {
    let address = format!("redis://{address}").parse().expect("an address");
    let config = config::Fleet::new(address, "test", 0.5);
    let fleet = Fleet::new(&config).expect("random numbers");
    let (tried, first) = tokio::sync::oneshot::channel();
    tokio::spawn(Arc::clone(&fleet).run(Arc::new(Deaf), tried));
    within(crate::support::PATIENCE, "a first attempt", first).await.expect("it tells");
    eventually("it is together", async || (fleet.mode() == Mode::Connected).then_some(())).await;
    fleet
}

fn shared() -> FleetApp {
    let (secret, app) = (SecretKey::new("a secret").expect("not empty"), SdkAppId::new(7).expect("not 0"));
    let keys = Arc::new(FleetKeys::new(&secret, app, "chat"));
    FleetApp { app, keys, ttl: Duration::from_secs(3600) }
}

fn seen(number: i64) -> FollowType {
    FollowType::new(number).expect("0 to 3")
}

/// Waits for what is stored after everything else was.
async fn settled(fleet: &Arc<Fleet>, shared: &FleetApp, name: &str) {
    eventually("a store", async || {
        fleet.store(shared, &[("last", name, seen(0))], clock::tick());
        fleet.read(shared, "last", &[name]).await.first().copied().flatten()
    })
    .await;
}

#[tokio::test]
async fn a_store_that_began_before_an_eviction_is_refused() {
    let redis = Redis::start().await;
    let (fleet, shared) = (member(&redis).await, shared());
    let pairs = |from: &str, to: &str| Scope::Pairs { from: from.to_owned(), to: vec![to.to_owned()] };
    let scopes = [
        pairs("ann", "bob"),
        pairs("bob", "ann"),
        Scope::Users(vec!["bob".into()]),
        Scope::Users(vec!["ann".into()]),
        Scope::All,
    ];
    for (round, scope) in scopes.iter().enumerate() {
        settled(&fleet, &shared, &format!("before-{round}")).await;
        let sent = clock::tick();
        fleet.store(&shared, &[("ann", "bob", seen(1)), ("cyd", "dan", seen(3))], sent);
        let known = async || fleet.read(&shared, "bob", &["ann"]).await.first().copied().flatten();
        // What was stored in the round before has another relation.
        let stored = async || known().await.filter(|(relation, _)| *relation != seen(0));
        let (relation, asked) = eventually("it is stored", stored).await;
        assert_eq!(relation, seen(2), "as the other side sees it");
        assert!(asked <= sent, "never younger than it is");
        fleet.evict(&shared, scope).await;
        assert_eq!(known().await, None, "{scope:?}");
        fleet.store(&shared, &[("ann", "bob", seen(1))], sent);
        settled(&fleet, &shared, &format!("after-{round}")).await;
        assert_eq!(known().await, None, "{scope:?}: a late store");
        let others = fleet.read(&shared, "cyd", &["dan"]).await.first().copied().flatten();
        assert_eq!(others.is_some(), *scope != Scope::All, "{scope:?}");
        // What was asked for after it is stored again.
        eventually("it is stored again", async || {
            fleet.store(&shared, &[("ann", "bob", seen(0))], clock::tick());
            known().await
        })
        .await;
    }
}

#[tokio::test]
async fn a_redis_that_has_lost_what_it_had_grants_no_burst() {
    let redis = Redis::start().await;
    let fleet = member(&redis).await;
    let pace = Pace { interval: Duration::from_millis(20), burst: 4 };
    let app = SdkAppId::new(7).expect("not 0");
    let order = LeaseRequest { app, name: "a/b", wanted: 8, pace, total: None };
    for _ in 0..2 {
        redis.say("FLUSHALL").await;
        let granted = fleet.lease(order).await.expect("Redis is there");
        let moments = granted.moments;
        assert_eq!(moments.len(), 8);
        assert!(moments[0] >= pace.interval, "{moments:?}");
        assert!(moments.windows(2).all(|two| two[1] - two[0] == pace.interval), "{moments:?}");
    }
    // Never further ahead than is right, and never for a total that is used up.
    let granted = fleet.lease(order).await.expect("Redis is there");
    assert!(granted.moments.iter().all(|moment| *moment <= Duration::from_millis(250)), "{granted:?}");
    let total = Some(Pace { interval: Duration::from_secs(10), burst: 1 });
    let other = LeaseRequest { name: "c/d", total, ..order };
    for _ in 0..2 {
        let granted = fleet.lease(other).await.expect("Redis is there");
        assert!(granted.moments.is_empty(), "{granted:?}");
        assert!(granted.again >= Duration::from_millis(1));
    }
}

/// After a failover the last moments that were granted may be missing, and with them what had been spent.
#[tokio::test]
async fn another_run_of_redis_grants_no_burst_by_what_an_earlier_one_kept() {
    let redis = Redis::start().await;
    let fleet = member(&redis).await;
    let pace = Pace { interval: Duration::from_millis(20), burst: 4 };
    let order = LeaseRequest { app: SdkAppId::new(7).expect("not 0"), name: "a/b", wanted: 4, pace, total: None };
    let granted = fleet.lease(order).await.expect("Redis is there");
    let rested = granted.moment + 1_000_000;
    let granted = eventually("it has rested", async || {
        let order = LeaseRequest { name: "c/d", ..order };
        fleet.lease(order).await.filter(|granted| granted.moment > rested)
    })
    .await;
    redis.say("SET test:run another").await;
    let since = async || redis.say("GET test:since").await.lines().nth(1)?.trim().parse::<u64>().ok();
    let since = eventually("it is noticed", async || since().await.filter(|since| *since > granted.moment)).await;
    let granted = fleet.lease(order).await.expect("Redis is there");
    let since = Duration::from_micros(granted.moment - since);
    assert_eq!(granted.moments.len(), 4);
    assert!(granted.moments[3] + since >= pace.interval * 3, "{granted:?}, {since:?} after the other run began");
}

/// Moments on the clock of Redis, whatever this machine is busy with. A permit is used within 40 ms after its
/// moment, and reaches the wire within 50 ms.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_lease_no_second_has_more_than_the_limit_and_hardly_anything_is_left() {
    let redis = Redis::start().await;
    let (limit, burst) = (200, 4);
    let window = Duration::from_millis(1090);
    let pace = Pace { interval: window / (limit - burst + 1) + Duration::from_nanos(1), burst };
    let leasing: Vec<_> = {
        let mut members = Vec::new();
        for _ in 0..4 {
            members.push(member(&redis).await);
        }
        let lease = |fleet: Arc<Fleet>| async move {
            let order =
                LeaseRequest { app: SdkAppId::new(7).expect("not 0"), name: "a/b", wanted: 8, pace, total: None };
            let (mut moments, mut first) = (Vec::new(), None);
            loop {
                // One that is busy may take Redis for lost for a moment.
                let Some(granted) = fleet.lease(order).await else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let at = |moment: &Duration| granted.moment + moment.as_micros() as u64;
                moments.extend(granted.moments.iter().map(at));
                if granted.moment - *first.get_or_insert(granted.moment) > 3_000_000 {
                    return moments;
                }
                if granted.moments.is_empty() {
                    tokio::time::sleep(granted.again).await;
                }
            }
        };
        members.into_iter().map(|fleet| tokio::spawn(lease(fleet))).collect()
    };
    let mut moments = Vec::new();
    for leased in leasing {
        moments.extend(within(crate::support::PATIENCE, "three seconds", leased).await.expect("no panic"));
    }
    moments.sort_unstable();
    let window = window.as_micros() as u64;
    for (first, moment) in moments.iter().enumerate() {
        let within = moments[first..].partition_point(|other| *other < moment + window);
        assert!(within <= limit as usize, "{within} permits in a second");
    }
    let span = (moments[moments.len() - 1] - moments[0]) as f64 / 1e6;
    let mean = moments.len() as f64 / span;
    println!("{mean:.1} permits a second of {limit}");
    assert!(mean >= 0.85 * f64::from(limit), "{mean}");
}
