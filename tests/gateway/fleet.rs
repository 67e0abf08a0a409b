//! Several gateways that share quota, facts and evictions through a real Redis.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::quota::{a_second, all_sound, most_in, press, used};
use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::{Ask, Conn};
use crate::support::gateway::Gateway;
use crate::support::hook;
use crate::support::redis::Redis;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;
use crate::support::stalls::Stalls;
use crate::support::{eventually, now, turn};

/// What every replica is told: facts that do not age within a test.
pub(crate) fn setup(chat: &FakeChat, redis: SocketAddr) -> Setup {
    let setup = Setup::new(chat).set("cache", r#"ttl = "1h""#).set("cache", r#"write_settle = "0s""#);
    setup.set("fleet", &format!("redis = \"redis://{redis}\""))
}

/// A replica, once it is together with the others.
pub(crate) async fn replica(setup: Setup) -> Gateway {
    let gateway = setup.start().await;
    together(&gateway).await;
    gateway
}

pub(crate) async fn mode(gateway: &Gateway) -> String {
    let status = gateway.admin_get("/status").await.json();
    status["fleet"]["mode"].as_str().expect("a mode").to_owned()
}

pub(crate) async fn together(gateway: &Gateway) {
    eventually("it is together", async || (mode(gateway).await == "together").then_some(())).await;
}

/// Why it is alone, in its own words.
pub(crate) async fn cause(gateway: &Gateway) -> String {
    let status = gateway.admin_get("/status").await.json();
    status["fleet"]["cause"].as_str().unwrap_or_default().to_owned()
}

/// Whether a pair is known without asking Chat, here or in Redis.
pub(crate) async fn knows(gateway: &Gateway, from: &str, to: &str) -> bool {
    let answer = gateway.ask(Ask::check(from, &[to]).header("Cache-Control", "only-if-cached")).await;
    assert!(answer.status == 200 || answer.slug() == Some("not_cached"), "{answer:?}");
    answer.status == 200
}

/// `one` asks Chat until `two` knows of it: a busy machine may take Redis for lost, and then nothing is shared.
pub(crate) async fn learns(one: &Gateway, two: &Gateway, from: &str, to: &str) {
    eventually("what another has learned", async || {
        one.ask(Ask::check(from, &[to]).header("Cache-Control", "no-cache")).await.checked();
        knows(two, from, to).await.then_some(())
    })
    .await;
}

async fn forgets(gateway: &Gateway, from: &str, to: &str) {
    eventually("it is forgotten", async || (!knows(gateway, from, to).await).then_some(())).await;
}

#[tokio::test]
async fn what_one_replica_has_learned_the_others_know() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    chat.follow("ann", "bob");
    let one = replica(setup(&chat, redis.address())).await;
    assert_eq!(one.check("ann", &["bob", "cyd"]).await.types(), [2, 0]);
    let two = replica(setup(&chat, redis.address())).await;
    learns(&one, &two, "ann", "bob").await;
    learns(&one, &two, "ann", "cyd").await;
    let calls = chat.count();
    let answer = two.check("ann", &["bob", "cyd"]).await;
    assert_eq!((answer.types(), answer.cache().counts()), (vec![2, 0], (2, 0, 0)));
    assert_eq!(two.check("bob", &["ann"]).await.types(), [1], "the other side of it");
    assert_eq!(chat.count(), calls, "Chat is not asked again");
    // Who wants to know how things are now is not answered from there.
    let three = replica(setup(&chat, redis.address())).await;
    three.ask(Ask::check("ann", &["bob"]).header("Cache-Control", "no-cache")).await;
    assert_eq!(chat.count(), calls + 1);
}

/// A fact's age counts from when it was asked for, wherever that was.
#[tokio::test]
async fn what_comes_from_another_replica_is_as_old_as_it_is() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let one = replica(setup(&chat, redis.address())).await;
    let before = replica(setup(&chat, redis.address())).await;
    learns(&one, &before, "ann", "bob").await;
    let learned = now();
    eventually("it is some seconds old", async || (learned.elapsed() > Duration::from_secs(3)).then_some(())).await;
    // This one began long after.
    let two = replica(setup(&chat, redis.address())).await;
    let aged = |age: &str| Ask::check("ann", &["bob"]).header("Cache-Control", age);
    let answer = two.ask(aged("only-if-cached")).await;
    if answer.status == 200 {
        assert!(answer.age() >= 3, "{answer:?}");
    }
    let calls = chat.count();
    assert_eq!(two.ask(aged("max-age=2")).await.types(), [0]);
    assert_eq!(chat.count(), calls + 1, "too old for this one");
}

#[tokio::test]
async fn redis_holds_no_name_and_what_is_forged_there_is_not_believed() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let one = replica(setup(&chat, redis.address())).await;
    let two = replica(setup(&chat, redis.address())).await;
    learns(&one, &two, "some-user-name", "another-user-name").await;
    let keys = redis.say("KEYS *").await;
    assert!(keys.contains(":p:") && !keys.contains("user-name"), "{keys}");
    // Every fact is replaced by another one of the right form.
    let forge =
        "EVAL \"for _,k in ipairs(redis.call('KEYS','*:p:*')) do redis.call('SET',k,string.rep('A',16)) end\" 0";
    redis.say(forge).await;
    let three = replica(setup(&chat, redis.address())).await;
    assert!(!knows(&three, "some-user-name", "another-user-name").await);
}

#[tokio::test]
async fn a_write_an_event_and_an_order_here_are_heard_there() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let one = replica(hook::listen(setup(&chat, redis.address()), &[MAIN])).await;
    let two = replica(setup(&chat, redis.address())).await;
    let webhook = hook::address(&one).await;
    let event = hook::event("Follow.CallbackAfterFollowAdd", "ann", &["bob"]);
    let event = hook::signed(MAIN, "Follow.CallbackAfterFollowAdd", &event);
    let add = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#;
    for round in 0..5 {
        two.check("ann", &["bob", "cyd"]).await;
        assert!(knows(&two, "ann", "bob").await && knows(&two, "ann", "cyd").await);
        let others_stay = match round {
            0 => {
                assert_eq!(one.call("follow/follow_add", add).await.status, 200);
                true
            }
            1 => {
                hook::taken(&webhook, &event).await;
                true
            }
            2 => {
                order(&one, r#"{"From_Account":"bob","To_Account":["ann"]}"#).await;
                true
            }
            3 => {
                one.call("im_open_login_svc/account_delete", r#"{"DeleteItem":[{"UserID":"ann"}]}"#).await;
                false
            }
            _ => {
                order(&one, "{}").await;
                false
            }
        };
        let told = now();
        forgets(&two, "ann", "bob").await;
        println!("round {round}: heard {:?} after the answer", told.elapsed());
        assert_eq!(knows(&two, "ann", "cyd").await, others_stay, "round {round}");
    }
}

async fn order(gateway: &Gateway, body: &str) {
    let ask = Ask::post("/cache/evict").body(body);
    let answer = Conn::open(gateway.admin()).await.expect("the admin listener accepts").ask(&ask).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn a_lookup_there_that_was_under_way_over_a_write_here_is_asked_again() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let one = replica(setup(&chat, redis.address())).await;
    let two = replica(setup(&chat, redis.address())).await;
    let gate = Gate::closed();
    chat.once(Reply::model().held(&gate));
    let mut lookup = two.connect().await;
    lookup.send(Ask::check("ann", &["bob"]).bytes()).await;
    chat.seen(1).await;
    let heard = async || two.admin_get("/status").await.json()["fleet"]["evictions_heard"].as_u64();
    assert_eq!(heard().await, Some(0));
    one.call("follow/follow_add", r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#).await;
    eventually("the eviction is heard", async || (heard().await == Some(1)).then_some(())).await;
    gate.open();
    assert_eq!(lookup.answer().await.types(), [2], "from after the write");
    assert_eq!(chat.calls_of("follow/follow_check").len(), 2);
}

#[tokio::test]
async fn with_another_key_everything_is_forgotten_rather_than_nothing() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let new_key = "another-key-of-the-same-app";
    chat.also_takes(new_key);
    let one = replica(setup(&chat, redis.address())).await;
    let other = crate::support::app::TestApp { key: new_key, ..MAIN };
    let lines = chat.app_lines();
    let two = Setup::without_apps().app(other, &lines).set("cache", r#"ttl = "1h""#);
    let two = replica(two.set("fleet", &format!("redis = \"redis://{}\"", redis.address()))).await;
    one.check("ann", &["bob"]).await;
    two.call("follow/follow_add", r#"{"From_Account":"eve","FollowItem":[{"To_Account":"dan"}]}"#).await;
    forgets(&one, "ann", "bob").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn together_they_keep_one_quota_and_an_idle_one_leaves_its_part_to_the_others() {
    let _alone = turn::alone().await;
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let quota = |setup: Setup| setup.set("app.quota", r#"per_command = "50/s""#);
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(replica(quota(setup(&chat, redis.address()))).await);
    }
    let stalls = Stalls::watch(&replicas[0]);
    let ask = Ask::command("openim/querystate");
    let span = Duration::from_secs(4);
    // The third has nothing to do.
    let (one, two) = tokio::join!(press(&replicas[0], &ask, 20, span), press(&replicas[1], &ask, 20, span));
    all_sound(&one);
    all_sound(&two);
    let times: Vec<Instant> = chat.calls().iter().map(|call| call.at).collect();
    let most = most_in(a_second(&stalls), &times);
    let mean = crate::quota::mean(&times);
    println!("50/s, 2 busy of 3: {mean:.1} a second, worst second {most}");
    assert!(most <= 50, "{most} calls in one second");
    for replica in &replicas {
        assert_eq!(mode(replica).await, "together", "{}", replica.log());
    }
    assert!(mean >= used(50.0, &stalls) * 0.95, "only {mean:.1} a second");
}
