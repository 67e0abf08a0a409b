//! Checks of friends and blocklists: answered like `follow_check`, with the vendor's own texts.
//!
//! The gateway's ttl is 1 h in these tests, so a pair that is fetched again was invalidated.

use serde_json::{Value, json};

use crate::fleet;
use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::graph::{List, OK, list_item};
use crate::support::hook;
use crate::support::redis::Redis;
use crate::support::reply::{Gate, Reply};
use crate::support::response::Response;
use crate::support::setup::Setup;

pub(crate) const FOLLOW: &str = "follow/follow_check";
pub(crate) const FRIEND: &str = "sns/friend_check";
pub(crate) const BLOCK: &str = "sns/black_list_check";
pub(crate) const ALL: &str = r#"kinds = ["follow", "friend", "blacklist"]"#;

pub(crate) fn setup(chat: &FakeChat, kinds: &str) -> Setup {
    let setup = Setup::new(chat).set("cache", r#"ttl = "1h""#).set("cache", r#"write_settle = "0s""#);
    setup.set("relation", kinds)
}

/// Returns the body of a check. `check_type` is `Both` or `Single`, and means nothing to `follow_check`.
pub(crate) fn body(command: &str, check_type: &str, from: &str, to: &[&str]) -> String {
    let mut body = json!({"From_Account": from, "To_Account": to});
    match command {
        FRIEND => body["CheckType"] = format!("CheckResult_Type_{check_type}").into(),
        BLOCK => body["CheckType"] = format!("BlackCheckResult_Type_{check_type}").into(),
        _ => {}
    }
    body.to_string()
}

pub(crate) async fn check(gateway: &Gateway, command: &str, check_type: &str, from: &str, to: &[&str]) -> Response {
    gateway.call(command, body(command, check_type, from, to)).await
}

/// Returns whether the pair is cached, without changing the cache.
async fn is_cached(gateway: &Gateway, command: &str, from: &str, to: &str) -> bool {
    let request = TestRequest::command(command).body(body(command, "Both", from, &[to]));
    let response = gateway.send(request.header("Cache-Control", "only-if-cached")).await;
    assert!(response.status == 200 || response.slug() == Some("not_cached"), "{response:?}");
    response.status == 200
}

fn list_of(command: &str) -> List {
    if command == BLOCK { List::Blocks } else { List::Friends }
}

#[tokio::test]
async fn one_lookup_answers_both_check_types_from_both_sides() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, ALL).start().await;
    let names = ["bob", "cyd", "dan", "eve"];
    for command in [FRIEND, BLOCK] {
        let list = list_of(command);
        for (from, to) in [("ann", "bob"), ("cyd", "ann"), ("ann", "dan"), ("dan", "ann")] {
            chat.graph().add(list, MAIN.sdkappid, from, to);
        }
        let expected = |check_type: &str, from: &str, to: &[&str]| {
            chat.graph().respond(MAIN.sdkappid, command, body(command, check_type, from, to).as_bytes())
        };
        // The first request asks for less than the call.
        let response = check(&gateway, command, "Single", "ann", &names).await;
        response.assert_relayed(200, expected("Single", "ann", &names));
        let calls = chat.calls_of(command);
        assert_eq!(calls.len(), 1);
        assert!(
            calls[0].json()["CheckType"].as_str().is_some_and(|text| text.ends_with("Both")),
            "{:?}",
            calls[0].json()
        );
        for check_type in ["Both", "Single"] {
            let repeated = ["dan", "bob", "dan", "eve", "cyd"];
            let response = check(&gateway, command, check_type, "ann", &repeated).await;
            response.assert_relayed(200, expected(check_type, "ann", &repeated));
            assert_eq!(response.cache_status().outcome, "hit");
            assert!(response.header("age").is_some());
            for name in names {
                let response = check(&gateway, command, check_type, name, &["ann"]).await;
                response.assert_relayed(200, expected(check_type, name, &["ann"]));
            }
        }
        assert_eq!(chat.calls_of(command).len(), 1, "everything else is a hit");
    }
    // Pairs of other relations answer no follow.
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
    assert_eq!(chat.calls_of(FOLLOW).len(), 1);
}

/// Chat fails the reverse direction of one account: items of calls for both directions fail, others do not.
fn fail_both(chat: &FakeChat, command: &'static str, account: &'static str) {
    let graph = chat.graph().clone();
    chat.script(move |call| {
        let asked = call.json();
        if call.command() != command || !asked["CheckType"].as_str()?.ends_with("Both") {
            return None;
        }
        let answer: Value = serde_json::from_str(&graph.respond(call.app(), command, &call.body)).expect("our own");
        let (list, none) = if command == FRIEND {
            ("InfoItem", "CheckResult_Type_NoRelation")
        } else {
            ("BlackListCheckItem", "BlackCheckResult_Type_NO")
        };
        let items = answer[list].as_array().expect("items").iter().map(|item| {
            let name = item["To_Account"].as_str().expect("a name");
            let fails = name == account || asked["From_Account"] == account;
            let relation = item["Relation"].as_str().expect("a text");
            list_item(name, if fails { none } else { relation }, if fails { 30007 } else { 0 })
        });
        let items: Vec<String> = items.collect();
        Some(Reply::json(format!(r#"{{"{list}":[{}],"Fail_Account":["{account}"],{}"#, items.join(","), &OK[1..])))
    });
}

#[tokio::test]
async fn failed_item_is_asked_again_as_its_caller_put_it_and_not_kept() {
    for (command, list, texts) in
        [(FRIEND, "InfoItem", "CheckResult_Type_"), (BLOCK, "BlackListCheckItem", "BlackCheckResult_Type_")]
    {
        let chat = FakeChat::start().await;
        let gateway = setup(&chat, ALL).start().await;
        for to in ["bob", "cyd"] {
            chat.graph().add(list_of(command), MAIN.sdkappid, "ann", to);
        }
        fail_both(&chat, command, "cyd");
        let sent = || -> Vec<(String, Vec<String>)> {
            let calls = chat.calls_of(command);
            calls
                .iter()
                .map(|call| (call.json()["CheckType"].as_str().expect("a text").replace(texts, ""), call.to_accounts()))
                .collect()
        };
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let response = check(&gateway, command, "Single", "ann", &["bob", "cyd"]).await;
        let first = |to: &str| list_item(to, &format!("{texts}AWithB"), 0);
        response.assert_relayed(200, format!(r#"{{"{list}":[{},{}],{}"#, first("bob"), first("cyd"), &OK[1..]));
        let expected = [("Both".to_owned(), names(&["bob", "cyd"])), ("Single".to_owned(), names(&["cyd"]))];
        assert_eq!(sent(), expected);
        // What a call for one direction said is not kept, for either question.
        let response = check(&gateway, command, "Single", "ann", &["cyd", "bob"]).await;
        response.assert_relayed(200, format!(r#"{{"{list}":[{},{}],{}"#, first("cyd"), first("bob"), &OK[1..]));
        assert_eq!(sent()[2..], [("Both".to_owned(), names(&["cyd"])), ("Single".to_owned(), names(&["cyd"]))]);
        // The error belongs to a question for both directions.
        let none = if command == FRIEND { "NoRelation" } else { "NO" };
        let failed = list_item("cyd", &format!("{texts}{none}"), 30007);
        let response = check(&gateway, command, "Both", "ann", &["cyd", "bob", "cyd"]).await;
        let items = format!("{failed},{},{failed}", first("bob"));
        response.assert_relayed(200, format!(r#"{{"{list}":[{items}],"Fail_Account":["cyd","cyd"],{}"#, &OK[1..]));
        assert_eq!(sent()[4..], [("Both".to_owned(), names(&["cyd"]))]);
        chat.clear_script();
        check(&gateway, command, "Both", "ann", &["cyd"])
            .await
            .assert_relayed(200, format!(r#"{{"{list}":[{}],{}"#, first("cyd"), &OK[1..]));
        assert!(is_cached(&gateway, command, "cyd", "ann").await);
    }
}

#[tokio::test]
async fn other_bodies_are_relayed_untouched_and_bad_ones_rejected() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, ALL).start().await;
    check(&gateway, FRIEND, "Both", "ann", &["bob"]).await.json();
    for body in [
        r#"{"From_Account":"ann","To_Account":["bob"]}"#,
        r#"{"From_Account":"ann","To_Account":["bob"],"CheckType":"CheckResult_Type_New"}"#,
        r#"{"From_Account":"ann","To_Account":["bob"],"CheckType":"BlackCheckResult_Type_Both"}"#,
        r#"{"From_Account":"ann","To_Account":["bob"],"CheckType":"CheckResult_Type_Both","More":1}"#,
        r#"{ "More" : 1 }"#,
    ] {
        let before = chat.calls_of(FRIEND).len();
        let response = gateway.call(FRIEND, body).await;
        response.assert_relayed(200, chat.graph().respond(MAIN.sdkappid, FRIEND, body.as_bytes()));
        assert_eq!(response.header("cache-status"), Some("chatgate; fwd=bypass"));
        let calls = chat.calls_of(FRIEND);
        assert_eq!((calls.len(), String::from_utf8_lossy(&calls[before].body).as_ref()), (before + 1, body));
    }
    let before = chat.call_count();
    for (slug, code, members) in [
        ("bad_parameter", 30001, r#""From_Account":"ann","To_Account":[]"#),
        ("bad_parameter", 30001, r#""To_Account":["bob"]"#),
        ("bad_parameter", 30001, r#""From_Account":"ann","To_Account":["bob",7]"#),
        ("bad_parameter", 30001, r#""From_Account":"012345678901234567890123456789012","To_Account":["bob"]"#),
        ("bad_json", 60003, r#""From_Account":"ann","To_Account":["bob"],"CheckType":"CheckResult_Type_Both""#),
        ("bad_json", 60003, r#""From_Account":"ann","To_Account":["bob","#),
    ] {
        let body = format!(r#"{{{members},"CheckType":"CheckResult_Type_Both"}}"#);
        gateway.call(FRIEND, body).await.assert_error(400, slug, code);
    }
    assert_eq!(chat.call_count(), before);
}

#[tokio::test]
async fn relations_are_relayed_unless_they_are_enabled() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("cache", r#"ttl = "1h""#).start().await;
    for command in [FRIEND, BLOCK] {
        for round in 1..=2 {
            let response = check(&gateway, command, "Both", "ann", &["bob"]).await;
            assert_eq!(response.header("cache-status"), None, "{response:?}");
            assert_eq!(chat.calls_of(command).len(), round);
        }
    }
    let gateway = setup(&chat, ALL).unset("access", "allow").start().await;
    check(&gateway, FRIEND, "Both", "ann", &["bob"]).await.assert_error(403, "forbidden", 129_403);
    gateway.check("ann", &["bob"]).await.items();
}

/// Caches ann's pairs with bob and cyd in the enabled relations.
async fn fill_cache(gateway: &Gateway, commands: &[&str]) {
    for command in commands {
        assert_eq!(check(gateway, command, "Both", "ann", &["bob", "cyd"]).await.status, 200);
        assert!(is_cached(gateway, command, "bob", "ann").await && is_cached(gateway, command, "cyd", "ann").await);
    }
}

const NAMES: &str = r#"{"From_Account":"bob","To_Account":["ann"]}"#;
const ITEMS: &str =
    r#"{"From_Account":"bob","AddFriendItem":[{"To_Account":"ann","AddSource":"AddSource_Type_Server"}]}"#;
const UNREADABLE: &str = r#"{"From_Account":"bob","AddFriendItem":[{"To_Account":"x","To_Account":"ann"}]}"#;

/// Writes: command, body, whether each relation loses bob's pair (follow, friend, blacklist), and whether cyd's goes too.
const WRITES: [(&str, &str, [bool; 3], bool); 13] = [
    ("follow/follow_delete", NAMES, [true, false, false], false),
    ("sns/friend_add", ITEMS, [false, true, false], false),
    ("sns/friend_import", ITEMS, [false, true, false], false),
    ("sns/friend_add", UNREADABLE, [false, true, false], false),
    ("sns/friend_add", r#"{"AddFriendItem":[]}"#, [false, true, false], true),
    ("sns/friend_delete", NAMES, [false, true, false], false),
    ("sns/friend_delete_all", r#"{"From_Account":"bob"}"#, [false, true, false], false),
    ("sns/friend_update", r#"{"From_Account":"bob","UpdateItem":[{"To_Account":"ann"}]}"#, [false; 3], false),
    ("sns/black_list_add", NAMES, [true, true, true], false),
    ("sns/black_list_delete", NAMES, [false, true, true], false),
    ("im_open_login_svc/account_delete", r#"{"DeleteItem":[{"UserID":"bob"}]}"#, [true, true, true], false),
    ("openim_robot_http_svc/delete_robot", r#"{"Robot_Account":"bob"}"#, [true, true, true], false),
    ("sns/made_up", NAMES, [false, true, true], true),
];

#[tokio::test]
async fn writes_invalidate_the_relations_that_they_may_change() {
    let chat = FakeChat::start().await;
    let commands = [FOLLOW, FRIEND, BLOCK];
    // One relation at a time: with several, a write for one of them invalidates all.
    for (at, kinds) in
        [r#"kinds = ["follow"]"#, r#"kinds = ["friend"]"#, r#"kinds = ["blacklist"]"#].into_iter().enumerate()
    {
        let gateway = setup(&chat, kinds).start().await;
        for (write, body, touches, all) in WRITES {
            fill_cache(&gateway, &commands[at..=at]).await;
            gateway.call(write, body).await;
            let bob = is_cached(&gateway, commands[at], "ann", "bob").await;
            let cyd = is_cached(&gateway, commands[at], "ann", "cyd").await;
            assert_eq!((bob, cyd), (!touches[at], !(touches[at] && all)), "{kinds}: {write} {body}");
        }
    }
    let gateway = setup(&chat, ALL).start().await;
    for (write, body, touches, _) in WRITES {
        fill_cache(&gateway, &commands).await;
        gateway.call(write, body).await;
        for command in commands {
            let kept = !touches.contains(&true);
            assert_eq!(is_cached(&gateway, command, "ann", "bob").await, kept, "{command} after {write} {body}");
        }
    }
}

#[tokio::test]
async fn check_after_a_write_sees_its_effect() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, ALL).start().await;
    let relation = async |command: &'static str, from: &'static str, to: &'static str| {
        let response = check(&gateway, command, "Both", from, &[to]).await.json();
        let item =
            response.get("InfoItem").or(response.get("BlackListCheckItem")).expect("items")[0]["Relation"].clone();
        item.as_str().and_then(|text| text.rsplit('_').next()).expect("a text").to_owned()
    };
    assert_eq!(relation(FRIEND, "ann", "bob").await, "NoRelation");
    gateway.call("sns/friend_add", ITEMS).await;
    assert_eq!(relation(FRIEND, "ann", "bob").await, "BothWay");
    assert_eq!(relation(BLOCK, "bob", "ann").await, "NO");
    gateway.call("sns/friend_delete", NAMES).await;
    assert_eq!(
        (relation(FRIEND, "ann", "bob").await, relation(FRIEND, "bob", "ann").await),
        ("AWithB".into(), "BWithA".into())
    );
    gateway.call("sns/black_list_add", NAMES).await;
    assert_eq!(
        (relation(FRIEND, "ann", "bob").await, relation(BLOCK, "bob", "ann").await),
        ("NoRelation".into(), "AWithB".into())
    );
    gateway.call("sns/black_list_delete", NAMES).await;
    assert_eq!(relation(BLOCK, "ann", "bob").await, "NO");
    gateway.call("sns/friend_import", ITEMS).await;
    assert_eq!(relation(FRIEND, "bob", "ann").await, "AWithB");
    gateway.call("sns/friend_delete_all", r#"{"From_Account":"bob"}"#).await;
    assert_eq!(relation(FRIEND, "ann", "bob").await, "NoRelation");
}

#[tokio::test]
async fn lookup_in_flight_during_a_block_is_discarded() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, ALL).start().await;
    chat.graph().add(List::Friends, MAIN.sdkappid, "ann", "bob");
    let gate = Gate::closed();
    chat.reply_once(Reply::from_graph().after(&gate));
    let mut lookup = gateway.connect().await;
    lookup.send(TestRequest::command(FRIEND).body(body(FRIEND, "Single", "ann", &["bob"])).bytes()).await;
    chat.wait_for_calls(1).await;
    gateway.call("sns/black_list_add", NAMES).await;
    gate.open();
    let response = lookup.read_response().await;
    assert!(response.text().contains("CheckResult_Type_NoRelation"), "{response:?}");
    assert_eq!(chat.calls_of(FRIEND).len(), 2, "the pair was fetched again");
}

#[tokio::test]
async fn events_invalidate_each_pair_of_their_list() {
    let chat = FakeChat::start().await;
    let gateway = hook::listen(setup(&chat, ALL), &[MAIN]).start().await;
    let hooks = hook::address(&gateway).await;
    let list = r#"{"CallbackCommand":"x","PairList":[{"From_Account":"bob","To_Account":"ann"},{"From_Account":"x","To_Account":"bob"},{"From_Account":"ann","To_Account":"bob"}]}"#;
    let commands = [FOLLOW, FRIEND, BLOCK];
    for (event, body, all) in [
        ("Sns.CallbackFriendAdd", list, false),
        ("Sns.CallbackFriendDelete", list, false),
        ("Sns.CallbackBlackListAdd", list, false),
        ("Sns.CallbackBlackListDelete", list, false),
        ("Sns.CallbackFriendDelete", r#"{"PairList":[]}"#, true),
        ("Sns.CallbackBlackListAdd", "garbage", true),
    ] {
        fill_cache(&gateway, &commands).await;
        hook::post_accepted(&hooks, &hook::signed(MAIN, event, body)).await;
        for command in commands {
            assert!(!is_cached(&gateway, command, "ann", "bob").await, "{event} {command}");
            assert_eq!(is_cached(&gateway, command, "ann", "cyd").await, !all, "{event} {command}");
        }
    }
    fill_cache(&gateway, &commands).await;
    hook::post_accepted(&hooks, &hook::signed(MAIN, "Sns.CallbackPrevFriendAdd", list)).await;
    assert!(is_cached(&gateway, FRIEND, "ann", "bob").await);
}

#[tokio::test]
async fn partial_answer_lists_missing_accounts_as_failed() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, ALL).start().await;
    chat.graph().add(List::Blocks, MAIN.sdkappid, "ann", "bob");
    check(&gateway, BLOCK, "Both", "ann", &["bob"]).await.json();
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let request = TestRequest::command(BLOCK).body(body(BLOCK, "Single", "ann", &["cyd", "bob"]));
    let response = gateway.send(request.header("Chatgate-Timeout", "100ms").header("Chatgate-Partial", "1")).await;
    let answer = response.json();
    let items = &answer["BlackListCheckItem"];
    assert_eq!((&items[0]["ResultCode"], &items[0]["Relation"]), (&60008.into(), &"BlackCheckResult_Type_NO".into()));
    assert_eq!((&items[1]["ResultCode"], &items[1]["Relation"]), (&0.into(), &"BlackCheckResult_Type_AWithB".into()));
    assert_eq!(answer["Fail_Account"], json!(["cyd"]));
    assert!(response.header("cache-status").is_some_and(|text| text.contains("missing=1")), "{response:?}");
    gate.open();
}

#[tokio::test]
async fn calls_have_at_most_call_max_accounts() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, ALL).set("relation", "call_max = 400").start().await;
    let names: Vec<String> = (0..900).map(|number| format!("user{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (command, expected) in [(FOLLOW, vec![100; 9]), (FRIEND, vec![400, 400, 100]), (BLOCK, vec![400, 400, 100])] {
        check(&gateway, command, "Both", "ann", &names).await.json();
        let mut sizes: Vec<usize> = chat.calls_of(command).iter().map(|call| call.to_accounts().len()).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!(sizes, expected, "{command}");
    }
}

#[tokio::test]
async fn metrics_and_status_count_by_relation() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, r#"kinds = ["friend", "follow"]"#).start().await;
    check(&gateway, FRIEND, "Single", "ann", &["bob", "cyd"]).await.json();
    check(&gateway, FRIEND, "Both", "bob", &["ann"]).await.json();
    gateway.check("ann", &["bob"]).await.items();
    let metrics = gateway.admin_get("/metrics").await.text();
    for line in [
        r#"chatgate_relation_pairs_total{app="main",relation="friend",source="fetched"} 2"#,
        r#"chatgate_relation_pairs_total{app="main",relation="friend",source="hit"} 1"#,
        r#"chatgate_relation_pairs_total{app="main",relation="follow",source="fetched"} 1"#,
        r#"chatgate_follow_pairs_total{app="main",source="fetched"} 1"#,
        r#"chatgate_follow_pairs_total{app="main",source="hit"} 0"#,
        r#"chatgate_cache_pairs{app="main"} 3"#,
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert!(!metrics.contains(r#"relation="blacklist""#));
    let status = gateway.admin_get("/status").await.json();
    let relations = &status["apps"][0]["relations"];
    assert_eq!((&relations["friend"]["pairs_cached"], &relations["friend"]["pairs"]["hit"]), (&2.into(), &1.into()));
    assert_eq!((&relations["follow"]["pairs_cached"], &relations["blacklist"]), (&1.into(), &Value::Null));
    assert_eq!(status["config"]["relation"]["kinds"], json!(["follow", "friend"]));
}

#[tokio::test]
async fn follow_check_section_is_still_read_with_a_warning() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("follow_check", "max_to = 2").start().await;
    gateway.check("ann", &["bob", "cyd", "dan"]).await.assert_error(400, "bad_parameter", 30001);
    assert!(gateway.log().contains("former name of [relation]"), "{}", gateway.log());
}

/// A replica that does not check friends still passes on the writes that change them.
#[tokio::test]
async fn replicas_with_other_kinds_pass_writes_on() {
    let (chat, redis) = (FakeChat::start().await, Redis::start().await);
    let one = fleet::replica(fleet::setup(&chat, redis.address())).await;
    let two = fleet::replica(fleet::setup(&chat, redis.address()).set("relation", ALL)).await;
    for (write, body) in [("sns/friend_delete", NAMES), ("sns/friend_delete_all", r#"{"From_Account":"bob"}"#)] {
        check(&two, FRIEND, "Both", "ann", &["bob", "cyd"]).await.json();
        assert!(is_cached(&two, FRIEND, "bob", "ann").await);
        one.call(write, body).await;
        eventually("the pair is invalidated", async || (!is_cached(&two, FRIEND, "bob", "ann").await).then_some(()))
            .await;
    }
}
