//! State across reloads: caller quotas, webhook tokens, CAs, apps, and requests in flight.

use std::time::Duration;

use crate::support::app::{MAIN, OTHER, TestApp};
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::hook::{self, ADDED, event, signed};
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;
use crate::support::tls::Ca;
use crate::support::{eventually, now, turn};

const CALL: &str = "openim/querystate";
const TOKEN: &str = "a.token~of~marked~letters+that/no/log/may/show/over/any/reload/of/all==";
const OTHER_TOKEN: &str = "b.token~of~marked~letters+that/no/log/may/show/over/any/reload/of/all==";

async fn reload(gateway: &Gateway, text: &str) {
    std::fs::write(gateway.dir().join("chatgate.toml"), text).expect("own directory");
    let response = gateway.send_to_admin(TestRequest::post("/reload")).await;
    assert_eq!(response.text(), "reloaded\n", "{response:?}");
}

/// Replaces the contents of a file atomically with rename(2).
fn replace(gateway: &Gateway, name: &str, text: &str) {
    std::fs::write(gateway.dir().join("fresh"), text).expect("own directory");
    std::fs::rename(gateway.dir().join("fresh"), gateway.dir().join(name)).expect("own directory");
}

#[tokio::test]
async fn reload_grants_no_new_burst_to_a_caller_quota() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).caller("feed", TOKEN, "allow = ['*']\nquota = '2/s'");
    let text = setup.text();
    let gateway = setup.start().await;
    let start = now();
    for count in 0..6 {
        // Alternately the same rate and a different one.
        let rate = if count % 2 == 0 { "2/s" } else { "3/s" };
        reload(&gateway, &text.replace("quota = '2/s'", &format!("quota = '{rate}'"))).await;
        gateway.send(TestRequest::command(CALL).token(TOKEN)).await.assert_relayed(200, OK);
    }
    // The first call may go at once, each further one after at least 333 ms.
    let took = start.elapsed();
    assert!(took > Duration::from_millis(1500), "{took:?}");
}

#[tokio::test]
async fn reload_changes_the_slots_of_a_caller() {
    let (chat, gate) = (FakeChat::start().await, Gate::closed());
    chat.reply_always(Reply::from_graph().after(&gate));
    let setup = Setup::new(&chat).set("server", "max_requests = 4").caller("feed", TOKEN, "allow = ['*']");
    let one_caller = setup.text();
    let setup = setup.caller("other", OTHER_TOKEN, "allow = ['*']");
    let two_callers = setup.text();
    let gateway = setup.start().await;
    let call = || TestRequest::command(CALL).token(TOKEN);
    let mut held = Vec::new();
    // One caller has all slots, and each of several callers has half of them.
    for (config, slots) in [(&two_callers, 2), (&one_caller, 4), (&two_callers, 2)] {
        reload(&gateway, config).await;
        for _ in held.len()..slots {
            let mut conn = gateway.connect().await;
            conn.send(call().bytes()).await;
            held.push(conn);
        }
        chat.wait_for_calls(held.len()).await;
        if slots == 2 {
            gateway.send(call()).await.assert_error(503, "overloaded", 129_503);
        }
    }
    gate.open();
    for conn in &mut held {
        conn.read_response().await.assert_relayed(200, OK);
    }
    gateway.send(call()).await.assert_relayed(200, OK);
}

#[tokio::test]
async fn changed_webhook_token_replaces_the_old_one() {
    let chat = FakeChat::start().await;
    let gateway = hook::listen(Setup::new(&chat), &[MAIN]).start().await;
    let hooks = hook::address(&gateway).await;
    let changed = TestApp { webhook_token: "webhook0token0of0the0main0app0marked0and0changed", ..MAIN };
    let body = event(ADDED, "ann", &["bob"]);
    hook::post_accepted(&hooks, &signed(MAIN, ADDED, &body)).await;
    assert_eq!(hook::post(&hooks, &signed(changed, ADDED, &body)).await.status, 401);
    replace(&gateway, "main.webhook", changed.webhook_token);
    let accepted = async || (hook::post(&hooks, &signed(changed, ADDED, &body)).await.status == 200).then_some(());
    eventually("the new token is accepted", accepted).await;
    assert_eq!(hook::post(&hooks, &signed(MAIN, ADDED, &body)).await.status, 401, "the old token is rejected");
    // Its events still invalidate cached pairs.
    gateway.check("ann", &["bob"]).await.items();
    hook::post_accepted(&hooks, &signed(changed, ADDED, &body)).await;
    let known = gateway.send(TestRequest::check("ann", &["bob"]).header("Cache-Control", "only-if-cached")).await;
    assert_eq!(known.slug(), Some("not_cached"));
}

#[tokio::test]
async fn changed_ca_file_replaces_the_old_ca() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let chat = FakeChat::start_tls(theirs.acceptor("localhost")).await;
    let setup = Setup::without_apps();
    let file = setup.file("ca.pem", &ours.pem());
    let setup = setup.app(MAIN, &format!("{}\nca_file = '{}'", chat.app_lines(), file.display()));
    let gateway = setup.start().await;
    gateway.call(CALL, "{}").await.assert_error(502, "upstream_unreachable", 129_502);
    assert_eq!(chat.call_count(), 0);
    replace(&gateway, "ca.pem", &theirs.pem());
    let served = async || (gateway.call(CALL, "{}").await.status == 200).then_some(());
    eventually("the new CA is trusted", served).await;
    // After changing back, no call uses a connection that the other CA authenticated.
    replace(&gateway, "ca.pem", &ours.pem());
    let distrusted = async || (gateway.call(CALL, "{}").await.status == 502).then_some(());
    eventually("the CA is no longer trusted", distrusted).await;
    let calls = chat.call_count();
    gateway.call(CALL, "{}").await.assert_error(502, "upstream_unreachable", 129_502);
    assert_eq!(chat.call_count(), calls);
}

/// Sends a request to the app of this name and returns the status.
async fn status_of_app(gateway: &Gateway, name: &str) -> u16 {
    gateway.send(TestRequest::command(CALL).header("Chatgate-App", name)).await.status
}

#[tokio::test]
async fn apps_are_added_removed_and_renamed() {
    let chat = FakeChat::start().await;
    let lines = chat.app_lines();
    let setup = Setup::without_apps().set("cache", r#"ttl = "1h""#).app(MAIN, &format!("{lines}\ndefault = true"));
    let without_other = setup.text();
    let with_other = setup.app(OTHER, &lines);
    let text = with_other.text();
    let gateway = with_other.start().await;
    assert_eq!((status_of_app(&gateway, MAIN.name).await, status_of_app(&gateway, OTHER.name).await), (200, 200));
    gateway.check("ann", &["bob"]).await.items();
    let calls = chat.call_count();
    // Removed: neither its name nor its SDKAppID is known.
    reload(&gateway, &without_other).await;
    assert_eq!(status_of_app(&gateway, OTHER.name).await, 404);
    let numbered = TestRequest::post(&format!("/v4/{CALL}?sdkappid={}", OTHER.sdkappid));
    gateway.send(numbered.clone()).await.assert_error(404, "unknown_app", 129_404);
    assert_eq!(gateway.check("ann", &["bob"]).await.cache_status().outcome, "hit", "the other app keeps its cache");
    assert_eq!(chat.call_count(), calls);
    // Added again, with the first app renamed and its SDKAppID unchanged.
    reload(&gateway, &text.replace("name = \"main\"", "name = \"renamed\"")).await;
    assert_eq!((status_of_app(&gateway, OTHER.name).await, status_of_app(&gateway, "renamed").await), (200, 200));
    assert_eq!(status_of_app(&gateway, MAIN.name).await, 404);
    assert_eq!(gateway.send(numbered).await.status, 200);
    assert_eq!(chat.last_call().parameter("sdkappid"), Some(OTHER.sdkappid.to_string()));
    gateway.check("ann", &["bob"]).await.items();
    let metrics = gateway.admin_get("/metrics").await.text();
    assert!(metrics.contains("chatgate_cache_pairs{app=\"renamed\"}"), "{metrics}");
    assert!(!metrics.contains("chatgate_cache_pairs{app=\"main\"}"), "{metrics}");
}

#[tokio::test]
async fn write_in_flight_survives_reloads_and_invalidates_its_pair() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("cache", r#"ttl = "1h""#);
    let text = setup.text();
    let gateway = setup.start().await;
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
    let gate = Gate::closed();
    let script_gate = gate.clone();
    chat.script(move |call| (call.command() == "follow/follow_add").then(|| Reply::from_graph().after(&script_gate)));
    let mut writing = gateway.connect().await;
    let body = r#"{"From_Account":"ann","FollowItem":[{"To_Account":"bob"}]}"#;
    let before = chat.call_count();
    writing.send(TestRequest::command("follow/follow_add").body(body).bytes()).await;
    chat.wait_for_calls(before + 1).await;
    for max_to in [500, 700] {
        reload(&gateway, &format!("{text}[relation]\nmax_to = {max_to}\n")).await;
    }
    gate.open();
    assert_eq!(writing.read_response().await.json()["ErrorCode"], 0);
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [2]);
    assert_eq!(gateway.check("bob", &["ann"]).await.follow_types(), [1]);
    assert_eq!(chat.calls_of("follow/follow_add").len(), 1, "the write was sent once");
    // The existing connection still works too.
    writing.send(TestRequest::check("ann", &["bob"]).bytes()).await;
    assert_eq!(writing.read_response().await.follow_types(), [2]);
}
