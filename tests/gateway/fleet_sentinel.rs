//! Redis with sentinels: replicas follow the primary that the sentinels name, without a restart.

use chatgate::config::{RedisForm, RedisLogin};

use crate::fleet::{await_connected, await_shared_pair, cause, fleet_setup, has_cached, mode, replica};
use crate::fleet_failover::permits_within_the_limit;
use crate::fleet_faults::Traffic;
use crate::support::chat::FakeChat;
use crate::support::gateway::Gateway;
use crate::support::redis::{Redis, Server};
use crate::support::redis_sets::{SentinelSet, monitor, start_sentinel};
use crate::support::setup::Setup;
use crate::support::tls::Ca;
use crate::support::{eventually, secrets, turn};

fn setup(chat: &FakeChat, set: &SentinelSet) -> Setup {
    fleet_setup(chat, &set.lines())
}

/// Waits until this many replicas are subscribed to invalidations at `redis`. A sentinel closes the connections to the
/// Redis that it promotes.
async fn await_subscribers(redis: &Redis, count: usize) {
    let expected = format!(":{count}\r\n");
    let subscribers = async || redis.try_command("PUBSUB NUMSUB chatgate:evictions").await;
    eventually("subscribers", async || subscribers().await?.ends_with(&expected).then_some(())).await;
}

async fn await_follow_type(gateway: &Gateway, from: &str, to: &str, follow_type: u8) {
    eventually("the state after the write", async || {
        (gateway.check(from, &[to]).await.follow_types()[0] == follow_type).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_follow_a_failover_under_load_without_failed_requests() {
    let _exclusive = turn::exclusive().await;
    let (chat, mut set) = (FakeChat::start().await, SentinelSet::start().await);
    let one = replica(setup(&chat, &set)).await;
    let two = replica(setup(&chat, &set)).await;
    await_subscribers(&set.primary, 2).await;
    let traffic = [Traffic::on(&one), Traffic::on(&two)];
    for traffic in &traffic {
        traffic.more_rounds().await;
    }
    set.primary.kill();
    await_subscribers(&set.replica, 2).await;
    await_connected(&one).await;
    await_connected(&two).await;
    await_shared_pair(&one, &two, "dan", "eve").await;
    one.call("follow/follow_add", r#"{"From_Account":"dan","FollowItem":[{"To_Account":"eve"}]}"#).await;
    await_follow_type(&two, "dan", "eve", 2).await;
    for traffic in traffic {
        traffic.end().await;
    }
}

/// The old primary stays a primary for seconds after a failover that an operator requests. A replica that stayed there
/// would miss the invalidations of the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_leave_the_old_primary_as_soon_as_a_sentinel_names_another() {
    let (chat, set) = (FakeChat::start().await, SentinelSet::start().await);
    let one = replica(setup(&chat, &set)).await;
    let two = replica(setup(&chat, &set)).await;
    await_subscribers(&set.primary, 2).await;
    assert_eq!(set.sentinels[0].command("SENTINEL FAILOVER chat").await, "+OK\r\n");
    await_subscribers(&set.replica, 2).await;
    await_subscribers(&set.primary, 0).await;
    assert!(set.primary.command("INFO replication").await.contains("role:master"), "it was demoted before");
    await_connected(&one).await;
    await_connected(&two).await;
    await_shared_pair(&one, &two, "ann", "bob").await;
}

/// Measured by the clock of Redis: both run on this machine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn permits_stay_within_the_limit_when_sentinels_fail_over() {
    let mut set = SentinelSet::start().await;
    let sentinels = set.sentinels.iter().map(|redis| format!("redis://{}", redis.address()).parse().expect("a URL"));
    let (master, login) = ("chat".to_owned(), RedisLogin::default());
    let form = RedisForm::Sentinel { sentinels: sentinels.collect(), master, login };
    permits_within_the_limit(form, async |permits| {
        permits.more(200).await;
        set.primary.kill();
        permits.after_reconnecting().await;
        permits.more(200).await;
    })
    .await;
}

#[tokio::test]
async fn passwords_and_tls_apply_to_sentinels_and_redis() {
    let (chat, ca) = (FakeChat::start().await, Ca::new());
    let pem = ca.issue("127.0.0.1", std::time::Duration::from_secs(24 * 3600));
    let (password, sentinel_password) = ("password-of-redis-marked", "password-of-sentinel-marked");
    for password in [password, sentinel_password] {
        secrets::add(password);
    }
    let mut primary = Redis::new(&Server::default(), &["--save", "", "--appendonly", "no"]);
    primary.require_password(password);
    primary.add_tls_with_peers(&pem, &ca);
    primary.restart().await;
    let mut sentinel = Redis::new(&Server::default(), &["--sentinel"]);
    sentinel.add_tls_with_peers(&pem, &ca);
    sentinel.require_password(sentinel_password);
    sentinel.restart().await;
    monitor(&sentinel, primary.tls_address(), 1).await;
    assert_eq!(sentinel.command(&format!("SENTINEL SET chat auth-pass {password}")).await, "+OK\r\n");
    let setup = || {
        let port = sentinel.tls_address().port();
        let lines = [format!("sentinels = ['rediss://127.0.0.1:{port}']"), "master = 'chat'".to_owned()];
        let mut setup = fleet_setup(&chat, &lines);
        for (key, name, text) in [
            ("ca_file", "redis-ca.pem", &*ca.pem()),
            ("password_file", "password", password),
            ("sentinel_password_file", "sentinel-password", sentinel_password),
        ] {
            let file = setup.file(name, text);
            setup = setup.set("fleet", &format!("{key} = '{}'", file.display()));
        }
        setup
    };
    let one = replica(setup()).await;
    let two = replica(setup()).await;
    await_shared_pair(&one, &two, "ann", "bob").await;
    let wrong = setup();
    let file = wrong.file("wrong", "another");
    let wrong = wrong.set("fleet", &format!("password_file = '{}'", file.display())).start().await;
    eventually("the reason", async || cause(&wrong).await.contains("WRONGPASS").then_some(())).await;
    assert!(!has_cached(&wrong, "ann", "bob").await);
}

#[tokio::test]
async fn missing_primary_and_sentinels_are_named_as_the_cause() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let mut sentinel = start_sentinel(redis.address(), 1).await;
    let lines =
        |master: &str| vec![format!("sentinels = ['redis://{}']", sentinel.address()), format!("master = '{master}'")];
    let gateway = fleet_setup(&chat, &lines("other")).start().await;
    eventually("the reason", async || cause(&gateway).await.contains("fleet.master").then_some(())).await;
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
    let gateway = replica(fleet_setup(&chat, &lines("chat"))).await;
    // Without sentinels, the connection to the primary stays.
    sentinel.kill();
    gateway.round_trips().await;
    assert_eq!(mode(&gateway).await, "connected");
}
