//! The primary dies and its replica takes its place behind the same address; or what is there takes no writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use chatgate::domain::chat::app::SdkAppId;
use chatgate::fleet::{Fleet, LeaseRequest, Pace};
use tokio_util::sync::CancellationToken;

use crate::fleet::{cause, knows, learns, mode, replica, setup, together};
use crate::fleet_faults::{Traffic, alone};
use crate::fleet_marks::member_at;
use crate::quota::{a_second, all_sound, most_in, press};
use crate::support::chat::FakeChat;
use crate::support::client::Ask;
use crate::support::gateway::Gateway;
use crate::support::link::{Link, Weather};
use crate::support::redis::Redis;
use crate::support::stalls::Stalls;
use crate::support::{PATIENCE, eventually, turn, within};

/// A primary, its replica, and the address behind which the primary is.
async fn pair() -> (Redis, Redis, Link) {
    let (primary, second, mut address) = (Redis::start().await, Redis::start().await, Link::new());
    second.follow(primary.address()).await;
    address.lead_to(primary.address()).await;
    (primary, second, address)
}

/// What a failover does: the replica is promoted, and the address leads to it.
async fn promote(second: &Redis, address: &mut Link) {
    second.say("REPLICAOF NO ONE").await;
    address.set(Weather::Closed).await;
    address.lead_to(second.address()).await;
}

/// As Redis has it: all of them are on this machine.
#[allow(clippy::disallowed_methods, reason = "tests measure the program with a clock of their own")]
fn unix_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_micros() as u64
}

async fn losses(gateway: &Gateway) -> u64 {
    gateway.admin_get("/status").await.json()["fleet"]["losses"].as_u64().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_costs_no_request_and_all_are_together_again_by_themselves() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let (mut primary, second, mut address) = pair().await;
    let one = replica(setup(&chat, address.address())).await;
    let two = replica(setup(&chat, address.address())).await;
    let traffic = [Traffic::on(&one), Traffic::on(&two)];
    for traffic in &traffic {
        traffic.some().await;
    }
    primary.kill();
    alone(&one).await;
    alone(&two).await;
    for traffic in &traffic {
        traffic.some().await;
    }
    promote(&second, &mut address).await;
    together(&one).await;
    together(&two).await;
    learns(&one, &two, "dan", "eve").await;
    for traffic in traffic {
        traffic.end().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_failover_no_second_has_more_calls_than_the_limit() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let (mut primary, second, mut address) = pair().await;
    let setup = || {
        let setup = setup(&chat, address.address()).set("fleet", "share = 0.5");
        setup.set("app.quota", r#"per_command = "40/s""#)
    };
    let one = replica(setup()).await;
    let two = replica(setup()).await;
    let stalls = Stalls::watch(&one);
    let (ask, span) = (Ask::command("openim/querystate"), Duration::from_secs(9));
    let failing_over = async {
        chat.seen(60).await;
        primary.kill();
        alone(&one).await;
        alone(&two).await;
        let before = chat.count();
        chat.seen(before + 20).await;
        promote(&second, &mut address).await;
        together(&one).await;
        together(&two).await;
        let before = chat.count();
        chat.seen(before + 40).await;
    };
    let (first, other, ()) = tokio::join!(press(&one, &ask, 10, span), press(&two, &ask, 10, span), failing_over);
    all_sound(&first);
    all_sound(&other);
    assert!(first.iter().chain(&other).all(|answer| answer.status == 200), "none had to be refused");
    let times: Vec<Instant> = chat.calls().iter().map(|call| call.at).collect();
    let most = most_in(a_second(&stalls), &times);
    println!("40/s over a failover: worst second {most}, mean {:.1}", crate::quota::mean(&times));
    // While one has heard of it and the other has not: the limit and a share, see docs/fleet.md.
    assert!(most <= 60, "{most} calls in one second");
}

/// By the clock of Redis, whatever this machine is busy with, and with a replica that has not heard of the last permits.
/// A permit is used within 40 ms after its moment, and reaches the wire within 50 ms.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_a_failover_no_second_has_more_permits_than_the_limit() {
    let (mut primary, second, mut address) = (Redis::start().await, Redis::start().await, Link::new());
    let mut stream = Link::new();
    stream.lead_to(primary.address()).await;
    second.follow(stream.address()).await;
    address.lead_to(primary.address()).await;
    let (limit, burst) = (200, 4);
    let window = Duration::from_millis(1090);
    let pace = Pace { interval: window / (limit - burst + 1) + Duration::from_nanos(1), burst };
    let granted = Arc::new(AtomicUsize::new(0));
    let stop = CancellationToken::new();
    let lease = |fleet: Arc<Fleet>| {
        let (granted, stop) = (Arc::clone(&granted), stop.clone());
        async move {
            let order =
                LeaseRequest { app: SdkAppId::new(7).expect("not 0"), name: "a/b", wanted: 8, pace, total: None };
            let mut moments = Vec::new();
            while !stop.is_cancelled() {
                let Some(answer) = fleet.lease(order).await else {
                    // Who loses Redis gives up what it has.
                    let now = unix_micros();
                    moments.retain(|moment| *moment <= now);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                moments.extend(answer.moments.iter().map(|moment| answer.moment + moment.as_micros() as u64));
                granted.fetch_add(answer.moments.len(), Ordering::Relaxed);
                if answer.moments.is_empty() {
                    tokio::time::sleep(answer.again).await;
                }
            }
            moments
        }
    };
    let mut leasing = Vec::new();
    for _ in 0..3 {
        leasing.push(tokio::spawn(lease(member_at(address.address()).await)));
    }
    let more = async |count: usize| {
        let wanted = granted.load(Ordering::Relaxed) + count;
        eventually("permits", async || (granted.load(Ordering::Relaxed) >= wanted).then_some(())).await;
    };
    more(300).await;
    stream.set(Weather::Silent).await;
    more(30).await;
    primary.kill();
    promote(&second, &mut address).await;
    more(300).await;
    stop.cancel();
    let mut moments = Vec::new();
    for leased in leasing {
        moments.extend(within(PATIENCE, "the last lease", leased).await.expect("no panic"));
    }
    moments.sort_unstable();
    let window = window.as_micros() as u64;
    let most = (0..moments.len()).map(|at| moments[at..].partition_point(|other| *other < moments[at] + window)).max();
    println!("{} permits, at most {most:?} in one second of {limit}", moments.len());
    assert!(most.is_some_and(|most| most <= limit as usize), "{most:?}");
}

/// Replication is late by nature, so what is promoted may lack the mark of an eviction that a caller was told of.
#[tokio::test]
async fn what_a_lost_primary_had_marked_is_not_answered_from_its_replica() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let (mut primary, second, mut address) = (Redis::start().await, Redis::start().await, Link::new());
    let mut stream = Link::new();
    stream.lead_to(primary.address()).await;
    second.follow(stream.address()).await;
    address.lead_to(primary.address()).await;
    let one = replica(setup(&chat, address.address())).await;
    let two = replica(setup(&chat, address.address())).await;
    learns(&one, &two, "ann", "bob").await;
    let facts = |text: String| text.matches(":p:").count();
    let there = async || (facts(second.say("KEYS *").await) > 0).then_some(());
    eventually("the fact is replicated", there).await;
    stream.set(Weather::Silent).await;
    let deleted = one.call("follow/follow_delete", r#"{"From_Account":"ann","To_Account":["bob"]}"#).await;
    assert_eq!(deleted.status, 200);
    primary.kill();
    promote(&second, &mut address).await;
    assert!(facts(second.say("KEYS *").await) > 0, "the fact is there, and no mark of its end");
    together(&one).await;
    together(&two).await;
    let three = replica(setup(&chat, address.address())).await;
    for gateway in [&one, &two, &three] {
        assert!(!knows(gateway, "ann", "bob").await, "an answer from before the write");
    }
    assert_eq!(three.check("ann", &["bob"]).await.types(), [0]);
}

#[tokio::test]
async fn a_replica_that_takes_no_writes_is_as_good_as_none() {
    let chat = FakeChat::start().await;
    let (primary, second, _address) = pair().await;
    let other = replica(setup(&chat, primary.address())).await;
    other.check("ann", &["cyd"]).await.checked();
    for writable in ["yes", "no"] {
        second.say(&format!("CONFIG SET replica-read-only {writable}")).await;
        let gateway = setup(&chat, second.address()).start().await;
        let reason = async || cause(&gateway).await.contains("replica of another").then_some(());
        eventually("the reason", reason).await;
        assert_eq!(gateway.check("ann", &["bob"]).await.types(), [0]);
        assert_eq!((mode(&gateway).await.as_str(), losses(&gateway).await), ("alone", 0));
        second.say("REPLICAOF NO ONE").await;
        together(&gateway).await;
        second.follow(primary.address()).await;
    }
}

/// Nobody breaks the connection to a primary that was demoted, which has all that it had, and reads go on as before.
#[tokio::test]
async fn a_primary_that_becomes_a_replica_is_left_once_and_for_all() {
    let chat = FakeChat::start().await;
    let (first, second, _address) = pair().await;
    let gateway = replica(setup(&chat, first.address())).await;
    let before = losses(&gateway).await;
    let same = async || second.say("GET chatgate:run").await == first.say("GET chatgate:run").await;
    eventually("it is replicated", async || same().await.then_some(())).await;
    second.say("REPLICAOF NO ONE").await;
    first.follow(second.address()).await;
    // Nobody asks for anything: it finds out by itself.
    let reason = async || cause(&gateway).await.contains("replica of another").then_some(());
    eventually("the reason", reason).await;
    let attempts = async || {
        let stats = first.say("INFO commandstats").await;
        let hellos = stats.lines().find_map(|line| line.strip_prefix("cmdstat_hello:calls="))?;
        hellos.split(',').next()?.parse::<u64>().ok()
    };
    let begun = attempts().await.expect("it has been greeted");
    let more = async || (attempts().await? >= begun + 3).then_some(());
    eventually("it is looked for again", more).await;
    assert_eq!((mode(&gateway).await.as_str(), losses(&gateway).await), ("alone", before + 1));
    assert_eq!(gateway.check("ann", &["bob"]).await.types(), [0]);
    first.say("REPLICAOF NO ONE").await;
    together(&gateway).await;
}
