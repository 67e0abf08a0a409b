//! Cached reads after writes, events, and admin actions: no later request gets a response from before them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::fleet::{await_connected, mode, replica};
use crate::reads::{GET, SET, gateway, get, profiles, serve_profiles, setup};
use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::hook;
use crate::support::redis::Redis;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;

/// Commands of several services that the tests cache.
const READS: [&str; 5] = [
    GET,
    "sns/friend_get_list",
    "follow/follow_get_info",
    "group_open_http_svc/get_role_in_group",
    "openim/query_online_status",
];

/// Returns whether a command is cached, without changing the cache.
async fn is_cached(gateway: &Gateway, command: &str) -> bool {
    let request = TestRequest::command(command).header("Cache-Control", "only-if-cached");
    let response = gateway.send(request).await;
    assert!(response.status == 200 || response.slug() == Some("not_cached"), "{response:?}");
    response.status == 200
}

/// Caches all of [`READS`], and returns those that `change` invalidates.
async fn invalidated(gateway: &Gateway, change: impl AsyncFnOnce()) -> Vec<&'static str> {
    for command in READS {
        gateway.call(command, "{}").await;
        assert!(is_cached(gateway, command).await, "{command}");
    }
    change().await;
    let mut found = Vec::new();
    for command in READS {
        if !is_cached(gateway, command).await {
            found.push(command);
        }
    }
    found
}

#[tokio::test]
async fn write_invalidates_the_reads_that_depend_on_its_service() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, &READS).start().await;
    let [profile, friends, follow, group, status] = READS;
    for (write, body, expected) in [
        (SET, "{}", vec![profile, friends]),
        ("sns/friend_add", "{}", vec![friends]),
        ("sns/friend_update", "not read", vec![friends]),
        ("group_open_http_svc/add_group_member", "{}", vec![group]),
        ("openim/sendmsg", "{}", vec![status]),
        ("im_open_login_svc/kick", "{}", vec![status]),
        ("im_open_login_svc/account_import", "{}", vec![profile, friends, status]),
        ("im_open_login_svc/multiaccount_import", "{}", vec![profile, friends, status]),
        ("im_open_login_svc/account_delete", r#"{"DeleteItem":[{"UserID":"ann"}]}"#, READS.to_vec()),
        ("follow/follow_add", r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#, vec![follow]),
        ("future/set", "{}", vec![]),
    ] {
        let body = if body == "not read" { r#"{"From_Account":7}"# } else { body };
        let found = invalidated(&gateway, async || drop(gateway.call(write, body).await)).await;
        assert_eq!(found, expected, "{write}");
    }
}

#[tokio::test]
async fn event_invalidates_the_reads_of_its_family() {
    let chat = FakeChat::start().await;
    let gateway = hook::listen(setup(&chat, &READS), &[MAIN]).start().await;
    let address = hook::address(&gateway).await;
    let [profile, friends, follow, group, status] = READS;
    for (event, expected) in [
        ("Profile.CallbackPortraitSet", vec![profile, friends]),
        ("Sns.CallbackFriendDelete", vec![friends]),
        ("Group.CallbackAfterMemberExit", vec![group]),
        ("State.StateChange", vec![status]),
        ("C2C.CallbackAfterSendMsg", vec![]),
    ] {
        let found = invalidated(&gateway, async || {
            hook::post_accepted(&address, &hook::signed(MAIN, event, "{}")).await;
        })
        .await;
        assert_eq!(found, expected, "{event}");
    }
    let found = invalidated(&gateway, async || {
        let body = hook::event(hook::ADDED, "ann", &["bob"]);
        hook::post_accepted(&address, &hook::signed(MAIN, hook::ADDED, &body)).await;
    })
    .await;
    assert_eq!(found, [follow]);
    let forged = hook::signed(MAIN, "Profile.CallbackPortraitSet", "{}").target("/hook?SdkAppid=1400000001");
    let found = invalidated(&gateway, async || assert_eq!(hook::post(&address, &forged).await.status, 401)).await;
    assert!(found.is_empty(), "{found:?}");
}

#[tokio::test]
async fn evict_of_an_app_covers_its_reads_and_of_a_user_does_not() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, &READS).start().await;
    for (body, expected) in [(r#"{"From_Account":"ann"}"#, vec![]), ("{}", READS.to_vec())] {
        let found = invalidated(&gateway, async || {
            let request = TestRequest::post("/cache/evict").body(body);
            assert_eq!(gateway.send_to_admin(request).await.status, 200);
        })
        .await;
        assert_eq!(found, expected, "{body}");
    }
}

#[tokio::test]
async fn request_after_a_write_joins_no_call_from_before_it() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let (version, gate, first) = (Arc::<AtomicU64>::default(), Gate::closed(), AtomicBool::new(true));
    chat.script({
        let (version, gate) = (Arc::clone(&version), gate.clone());
        move |call| {
            if call.command() == SET {
                version.fetch_add(1, Ordering::SeqCst);
            }
            let reply = || Reply::json(profiles(version.load(Ordering::SeqCst)));
            (call.command() == GET).then(|| match first.swap(false, Ordering::SeqCst) {
                true => reply().after(&gate),
                false => reply(),
            })
        }
    });
    let mut before = gateway.connect().await;
    before.send(TestRequest::command(GET).bytes()).await;
    chat.wait_for_calls(1).await;
    gateway.call(SET, "{}").await;
    gateway.call(GET, "{}").await.assert_relayed(200, profiles(1));
    gate.open();
    // It was sent before the write, so either state is right. It must not replace what is kept.
    before.read_response().await.assert_relayed(200, profiles(0));
    gateway.call(GET, "{}").await.assert_relayed(200, profiles(1));
    assert_eq!(chat.calls_of(GET).len(), 2);
}

#[tokio::test]
async fn failed_and_abandoned_writes_invalidate() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, &[GET]).timeout("2s").start().await;
    let version = serve_profiles(&chat);
    gateway.call(GET, "{}").await.assert_relayed(200, profiles(0));
    for (round, failure) in [
        Reply::status(500, "<html>"),
        Reply::reset(),
        Reply::hang(),
        Reply::json(r#"{"ActionStatus":"FAIL","ErrorCode":40006}"#),
    ]
    .into_iter()
    .enumerate()
    {
        let number = round as u64 + 1;
        chat.reply_once(failure);
        gateway.call(SET, "{}").await;
        // Chat carried out the write despite its response.
        version.store(number, Ordering::SeqCst);
        let script = Arc::clone(&version);
        chat.script(move |call| (call.command() == GET).then(|| Reply::json(profiles(script.load(Ordering::SeqCst)))));
        gateway.call(GET, "{}").await.assert_relayed(200, profiles(number));
    }
    let gate = Gate::closed();
    let script_gate = gate.clone();
    chat.script(move |call| match call.command() {
        SET => Some(Reply::from_graph().after(&script_gate)),
        GET => Some(Reply::json(profiles(99))),
        _ => None,
    });
    let writes = chat.calls_of(SET).len();
    let mut write = gateway.connect().await;
    write.send(TestRequest::command(SET).bytes()).await;
    eventually("the write is upstream", async || (chat.calls_of(SET).len() > writes).then_some(())).await;
    drop(write);
    gate.open();
    eventually("the write invalidates", async || (gateway.call(GET, "{}").await.text() == profiles(99)).then_some(()))
        .await;
}

#[tokio::test]
async fn response_from_before_a_write_in_flight_is_not_used() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.call(GET, "{}").await;
    assert!(is_cached(&gateway, GET).await);
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let mut write = gateway.connect().await;
    write.send(TestRequest::command(SET).bytes()).await;
    chat.wait_for_calls(2).await;
    assert!(!is_cached(&gateway, GET).await, "Chat may have applied the write, and may have reported it to others");
    gate.open();
    assert_eq!(write.read_response().await.status, 200);
}

#[tokio::test]
async fn response_is_not_kept_until_a_write_has_settled() {
    let chat = FakeChat::start().await;
    serve_profiles(&chat);
    let gateway = setup(&chat, &[GET]).set("cache", r#"write_settle = "5m""#).start().await;
    gateway.call(GET, "{}").await;
    assert!(is_cached(&gateway, GET).await);
    gateway.call(SET, "{}").await;
    gateway.call(GET, "{}").await.assert_relayed(200, profiles(1));
    assert!(!is_cached(&gateway, GET).await);
}

#[tokio::test]
async fn commands_of_a_reload_are_cached_after_earlier_writes_have_ended() {
    let chat = FakeChat::start().await;
    serve_profiles(&chat);
    let plain = Setup::new(&chat).timeout("500ms").set("cache", r#"write_settle = "0s""#);
    let plain = plain.set("server", r#"body_timeout = "500ms""#);
    let cached = Setup::new(&chat).timeout("500ms").set("cache", r#"write_settle = "0s""#);
    let cached = cached.set("cache", &format!("commands = {{ \"{GET}\" = \"1h\" }}"));
    let gateway = plain.start().await;
    assert_eq!(gateway.call(GET, "{}").await.header("cache-status"), None);
    // Relative names in the new configuration start at the directory of the old one.
    let text = cached.text();
    std::fs::write(gateway.dir().join("chatgate.toml"), text).expect("own directory");
    assert_eq!(gateway.send_to_admin(TestRequest::post("/reload")).await.status, 200);
    gateway.call(GET, "{}").await.cache_status();
    assert!(!is_cached(&gateway, GET).await, "a write could still be in flight");
    eventually("it is kept", async || {
        gateway.call(GET, "{}").await;
        is_cached(&gateway, GET).await.then_some(())
    })
    .await;
}

#[tokio::test]
async fn responses_of_another_endpoint_are_not_used() {
    let (chat, other) = (FakeChat::start().await, FakeChat::start().await);
    serve_profiles(&chat);
    serve_profiles(&other).store(7, Ordering::SeqCst);
    let gateway = gateway(&chat).await;
    gateway.call(GET, "{}").await.assert_relayed(200, profiles(0));
    let next = setup(&other, &[GET]);
    std::fs::write(gateway.dir().join("chatgate.toml"), next.text()).expect("own directory");
    assert_eq!(gateway.send_to_admin(TestRequest::post("/reload")).await.status, 200);
    gateway.call(GET, "{}").await.assert_relayed(200, profiles(7));
    gateway.call(GET, "{}").await.assert_relayed(200, profiles(7));
    assert_eq!((chat.call_count(), other.call_count()), (1, 1));
}

#[tokio::test]
async fn writes_and_events_of_another_replica_invalidate() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    serve_profiles(&chat);
    let replica_of =
        |redis: &Redis| setup(&chat, &READS).set("fleet", &format!("redis = \"redis://{}\"", redis.address()));
    let one = replica(hook::listen(replica_of(&redis), &[MAIN])).await;
    let two = replica(replica_of(&redis)).await;
    let address = hook::address(&one).await;
    let [profile, friends, ..] = READS;
    let mut expected = vec![profile, friends];
    for round in 0..3 {
        await_connected(&one).await;
        await_connected(&two).await;
        for command in READS {
            two.call(command, "{}").await;
        }
        match round {
            0 => drop(one.call(SET, "{}").await),
            1 => hook::post_accepted(&address, &hook::signed(MAIN, "Profile.CallbackPortraitSet", "{}")).await,
            _ => {
                expected = READS.to_vec();
                one.call("im_open_login_svc/account_delete", r#"{"DeleteItem":[{"UserID":"ann"}]}"#).await;
            }
        }
        for command in &expected {
            eventually("the other replica invalidates", async || (!is_cached(&two, command).await).then_some(())).await;
        }
    }
}

#[tokio::test]
async fn replica_that_loses_its_subscription_forgets_its_reads() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    serve_profiles(&chat);
    let setup = setup(&chat, &[GET]).set("fleet", &format!("redis = \"redis://{}\"", redis.address()));
    let gateway = replica(setup).await;
    gateway.call(GET, "{}").await;
    drop(redis);
    eventually("the replica is disconnected", async || (mode(&gateway).await == "disconnected").then_some(())).await;
    assert!(!is_cached(&gateway, GET).await);
    gateway.call(GET, "{}").await;
    assert!(is_cached(&gateway, GET).await, "it serves its local cache");
}

/// Reads, writes, events, and failures at random, on connections of their own: no response is older than the latest
/// change that was acknowledged before its request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_response_is_from_before_an_acknowledged_change() {
    let chat = FakeChat::start().await;
    let gateway = hook::listen(setup(&chat, &[GET]), &[MAIN]).timeout("5s").start().await;
    let address = hook::address(&gateway).await;
    let version = Arc::<AtomicU64>::default();
    let (script, number) = (Arc::clone(&version), AtomicU64::default());
    chat.script(move |call| {
        let number = number.fetch_add(1, Ordering::SeqCst);
        match call.command() {
            SET => {
                script.fetch_add(1, Ordering::SeqCst);
                (number % 5 == 0).then(Reply::reset)
            }
            // A failure of every seventh read.
            GET if number % 7 == 0 => Some(Reply::reset()),
            GET => Some(Reply::json(profiles(script.load(Ordering::SeqCst)))),
            _ => None,
        }
    });
    let acknowledged = Arc::<AtomicU64>::default();
    let (mut answered, mut hits) = (0, 0);
    let mut random = fastrand::Rng::with_seed(11);
    for _ in 0..150 {
        let mut conns = Vec::new();
        let (writes, drops) = (random.bool(), random.usize(..3));
        if writes {
            let mut conn = gateway.connect().await;
            conn.send(TestRequest::command(SET).bytes()).await;
            conns.push((conn, None));
        }
        for index in 0..4 {
            let mut conn = gateway.connect().await;
            let floor = acknowledged.load(Ordering::SeqCst);
            let control = ["", "", "no-cache", "max-stale=5"][random.usize(..4)];
            conn.send(get(control).body(format!("{{\"n\":{}}}", random.usize(..2))).bytes()).await;
            if index >= drops {
                conns.push((conn, Some(floor)));
            }
        }
        for (mut conn, floor) in conns {
            let response = conn.read_response().await;
            let Some(floor) = floor else {
                // The write has been applied, whatever its response says.
                acknowledged.fetch_max(version.load(Ordering::SeqCst), Ordering::SeqCst);
                continue;
            };
            if response.status == 200 {
                let seen =
                    response.json()["UserProfileItem"][0]["ProfileItem"][0]["Value"].as_u64().expect("a version");
                assert!(seen >= floor, "{seen} instead of {floor}: {response:?}");
                answered += 1;
                hits += u64::from(response.cache_status().hit > 0);
            }
        }
        if random.u8(..8) == 0 {
            let changed = version.fetch_add(1, Ordering::SeqCst) + 1;
            hook::post_accepted(&address, &hook::signed(MAIN, "Profile.CallbackPortraitSet", "{}")).await;
            acknowledged.fetch_max(changed, Ordering::SeqCst);
        }
    }
    assert!(answered > 200 && hits > 50, "{answered} answered, {hits} hits");
}
