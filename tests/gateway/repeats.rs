//! Failed items and rejected calls, which are asked again as their callers put them: how often, at whose expense, and
//! with which answer for the others.

use serde_json::Value;

use crate::relations::{ALL, BLOCK, FOLLOW, FRIEND, body, check, setup};
use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::graph::{List, OK, error_response, list_item};
use crate::support::reply::{Gate, Reply};
use crate::support::wire::Call;

const FEED: &str = "a.token~of~marked~letters+for/the/feed/of/failed/items==";
const SHOP: &str = "a.token~of~marked~letters+for/the/shop/of/failed/items==";

async fn send(gateway: &Gateway, request: TestRequest) -> Conn {
    let mut conn = gateway.connect().await;
    conn.send(request.bytes()).await;
    conn
}

fn request(command: &str, check_type: &str, from: &str, to: &[&str]) -> TestRequest {
    TestRequest::command(command).body(body(command, check_type, from, to))
}

async fn wait_for_pairs(gateway: &Gateway, count: usize) {
    eventually("requests wait for the pairs", async || {
        (gateway.admin_get("/status").await.json()["apps"][0]["queue"]["pairs_waited_for"] == count).then_some(())
    })
    .await;
}

fn asks_both(call: &Call) -> bool {
    call.json()["CheckType"].as_str().is_some_and(|text| text.ends_with("Both"))
}

/// Chat fails every item of a friend check for both directions, once the gate is open.
fn fail_both_directions(chat: &FakeChat, gate: &Gate) {
    let gate = gate.clone();
    chat.script(move |call| {
        let items: Vec<String> =
            call.to_accounts().iter().map(|to| list_item(to, "CheckResult_Type_NoRelation", 30007)).collect();
        let answer = format!(r#"{{"InfoItem":[{}],{}"#, items.join(","), &OK[1..]);
        (call.command() == FRIEND && asks_both(call)).then(|| Reply::json(answer).after(&gate))
    });
}

/// Returns the asking user of each friend check, in the order of the calls, and whether both directions were asked for.
fn asked(chat: &FakeChat) -> Vec<(String, bool)> {
    chat.calls_of(FRIEND).iter().map(|call| (call.source_account(), asks_both(call))).collect()
}

#[tokio::test]
async fn requests_share_the_repeated_lookup_of_a_failed_item() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, ALL).start().await;
    chat.graph().add(List::Friends, MAIN.sdkappid, "ann", "bob");
    let gate = Gate::closed();
    fail_both_directions(&chat, &gate);
    let mut of_ann = Vec::new();
    for _ in 0..4 {
        of_ann.push(send(&gateway, request(FRIEND, "Single", "ann", &["bob"])).await);
    }
    let mut of_bob = send(&gateway, request(FRIEND, "Single", "bob", &["ann"])).await;
    let mut both = send(&gateway, request(FRIEND, "Both", "ann", &["bob"])).await;
    wait_for_pairs(&gateway, 6).await;
    gate.open();
    let answer = |to: &str, relation: &str| {
        let item = list_item(to, &format!("CheckResult_Type_{relation}"), 0);
        format!(r#"{{"InfoItem":[{item}],{}"#, &OK[1..])
    };
    for conn in &mut of_ann {
        conn.read_response().await.assert_relayed(200, answer("bob", "AWithB"));
    }
    of_bob.read_response().await.assert_relayed(200, answer("ann", "NoRelation"));
    assert_eq!(both.read_response().await.json()["InfoItem"][0]["ResultCode"], 30007);
    let mut asked = asked(&chat);
    assert_eq!(asked.remove(0), ("ann".to_owned(), true));
    asked.sort_unstable();
    assert_eq!(asked, [("ann".to_owned(), false), ("bob".to_owned(), false)], "one call for each question");
}

#[tokio::test]
async fn repeated_lookup_is_charged_to_the_caller_that_needs_it() {
    const PAIRS: usize = 100;
    let chat = FakeChat::start().await;
    let setup = setup(&chat, ALL).set("relation", "call_max = 1").set("relation", "flip = false").timeout("30s");
    let setup = setup.caller("shop", SHOP, "allow = ['*']");
    let gateway = setup.caller("feed", FEED, "allow = ['*']\nquota = '1/s'").start().await;
    let gate = Gate::closed();
    fail_both_directions(&chat, &gate);
    let names: Vec<String> = (0..PAIRS).map(|number| format!("user{number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut shop = send(&gateway, request(FRIEND, "Both", "ann", &names).token(SHOP)).await;
    wait_for_pairs(&gateway, PAIRS).await;
    // It joins the pairs, which costs it nothing.
    let mut feed = send(&gateway, request(FRIEND, "Single", "ann", &names).token(FEED)).await;
    wait_for_pairs(&gateway, 2 * PAIRS).await;
    gate.open();
    assert_eq!(shop.read_response().await.json()["Fail_Account"].as_array().map(Vec::len), Some(PAIRS));
    // Its question needs a call for each pair, so its next call would have to wait for all of these.
    assert_eq!(feed.read_response().await.json()["Fail_Account"], Value::Null);
    assert_eq!(asked(&chat).iter().filter(|(_, both)| !both).count(), PAIRS);
    let next = || request(FOLLOW, "", "ann", &["bob"]);
    gateway.send(next().token(FEED)).await.assert_error(429, "rate_limited", 60007);
    assert_eq!(gateway.send(next().token(SHOP)).await.follow_types(), [0]);
}

#[tokio::test]
async fn code_30005_of_a_shared_friend_check_concerns_one_request() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, ALL).start().await;
    let (gate, failure) = (Gate::closed(), error_response(30005, "a sensitive word"));
    chat.reply_once(Reply::json(failure.clone()).after(&gate));
    let mut first = send(&gateway, request(FRIEND, "Both", "ann", &["bob"])).await;
    chat.wait_for_calls(1).await;
    let mut second = send(&gateway, request(FRIEND, "Both", "ann", &["bob"])).await;
    wait_for_pairs(&gateway, 2).await;
    chat.reply_once(Reply::json(failure.clone()));
    gate.open();
    let answers = [first.read_response().await, second.read_response().await];
    let failed: Vec<bool> = answers.iter().map(|answer| answer.json()["ErrorCode"] == 30005).collect();
    assert!(failed == [true, false] || failed == [false, true], "{answers:?}");
    for (answer, failed) in answers.iter().zip(failed) {
        if failed {
            answer.assert_relayed(200, &failure);
        } else {
            assert_eq!(answer.json()["InfoItem"][0]["Relation"], "CheckResult_Type_NoRelation");
        }
    }
    assert_eq!(chat.calls_of(FRIEND).len(), 3, "each request is asked for once more");
    // It parks nothing.
    assert_eq!(check(&gateway, FRIEND, "Both", "ann", &["cyd"]).await.json()["ErrorCode"], 0);
}

#[tokio::test]
async fn code_30005_of_a_shared_follow_check_reaches_all_and_parks_the_command() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, ALL).start().await;
    let (gate, failure) = (Gate::closed(), error_response(30005, "the feature is off"));
    chat.reply_always(Reply::json(failure.clone()).after(&gate));
    let mut conns = Vec::new();
    for from in ["ann", "bob"] {
        let to = if from == "ann" { "bob" } else { "ann" };
        conns.push(send(&gateway, request(FOLLOW, "", from, &[to])).await);
    }
    wait_for_pairs(&gateway, 2).await;
    gate.open();
    for conn in &mut conns {
        conn.read_response().await.assert_relayed(200, &failure);
    }
    assert_eq!(chat.call_count(), 1, "it does not concern the request");
    check(&gateway, FOLLOW, "", "ann", &["cyd"]).await.assert_error(503, "parked", 30005);
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn right_to_check_one_relation_is_no_right_to_check_another() {
    let chat = FakeChat::start().await;
    let setup = setup(&chat, ALL).caller("feed", FEED, "allow = ['follow/follow_check']");
    let gateway = setup.caller("shop", SHOP, "allow = ['*']").start().await;
    for command in [FOLLOW, FRIEND, BLOCK] {
        gateway.send(request(command, "Both", "ann", &["bob"]).token(SHOP)).await.json();
    }
    let before = chat.call_count();
    assert_eq!(gateway.send(request(FOLLOW, "", "ann", &["bob"]).token(FEED)).await.follow_types(), [0]);
    for command in [FRIEND, BLOCK, "SNS/friend_check", "sns/Friend_Check", "follow/friend_check", "sns/follow_check"] {
        let cached = request(if command == BLOCK { BLOCK } else { FRIEND }, "Both", "ann", &["bob"]);
        // As a check, as a check that is cached, and as bodies that are relayed.
        for request in [
            cached.clone(),
            cached.clone().header("Cache-Control", "only-if-cached"),
            cached.clone().body(body(FOLLOW, "", "ann", &["bob"])),
            cached.body("{}"),
        ] {
            for target in [format!("/v4/{command}"), format!("/apps/{}/v4/{command}", MAIN.name)] {
                let request = request.clone().target(&target).token(FEED);
                gateway.send(request).await.assert_error(403, "forbidden", 129_403);
            }
        }
    }
    assert_eq!(chat.call_count(), before);
}
