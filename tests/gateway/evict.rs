//! `POST /cache/evict`: an operator invalidates pairs that changed outside the gateway.
//!
//! The ttl is one hour, so a pair that is no longer cached was evicted.

use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::reply::{Gate, Reply};
use crate::support::response::Response;
use crate::support::setup::Setup;

async fn gateway(chat: &FakeChat, main_is_default: bool) -> Gateway {
    let lines = chat.app_lines();
    let setup = Setup::without_apps().app(MAIN, &format!("{lines}\ndefault = {main_is_default}")).app(OTHER, &lines);
    setup.set("cache", r#"ttl = "1h""#).set("cache", r#"write_settle = "0s""#).start().await
}

async fn evict(gateway: &Gateway, body: &str) -> Response {
    gateway.send_to_admin(TestRequest::post("/cache/evict").body(body)).await
}

/// Fills the cache of both apps with three pairs: ann and bob, ann and cyd, dan and bob.
async fn fill_cache(gateway: &Gateway) {
    for app in [MAIN, OTHER] {
        gateway.send(TestRequest::check("ann", &["bob", "cyd"]).header("Chatgate-App", app.name)).await.items();
        gateway.send(TestRequest::check("bob", &["dan"]).header("Chatgate-App", app.name)).await.items();
    }
    assert_eq!(cached_pairs(gateway).await, [true; 6]);
}

/// Returns which of these pairs are cached, main app first, without changing the cache.
async fn cached_pairs(gateway: &Gateway) -> [bool; 6] {
    let mut cached = [false; 6];
    let pairs = [("bob", "ann"), ("ann", "cyd"), ("dan", "bob")];
    for (at, (app, (from, to))) in [MAIN, OTHER].iter().flat_map(|app| pairs.map(|pair| (app, pair))).enumerate() {
        let request =
            TestRequest::check(from, &[to]).header("Cache-Control", "only-if-cached").header("Chatgate-App", app.name);
        let response = gateway.send(request).await;
        assert!(response.status == 200 || response.slug() == Some("not_cached"), "{response:?}");
        cached[at] = response.status == 200;
    }
    cached
}

#[tokio::test]
async fn evict_drops_pairs_a_user_or_a_whole_app() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat, true).await;
    let (t, f) = (true, false);
    for (body, evicted, left) in [
        (r#"{"App":"main","From_Account":"ann","To_Account":["bob"]}"#, "pairs", [f, t, t, t, t, t]),
        (r#"{"From_Account":"bob","To_Account":["zoe","dan","ann"]}"#, "pairs", [f, t, f, t, t, t]),
        (r#"{"App":"other","From_Account":"ann","To_Account":["\u0063yd"]}"#, "pairs", [t, t, t, t, f, t]),
        (r#"{"App":"other","From_Account":"bob"}"#, "user", [t, t, t, f, t, f]),
        (r#"{"From_Account":"ann"}"#, "user", [f, f, t, t, t, t]),
        (r#"{"From_Account":"zoe"}"#, "user", [t, t, t, t, t, t]),
        (r#"{"App":"other"}"#, "all", [t, t, t, f, f, f]),
        ("{}", "all", [f, f, f, t, t, t]),
    ] {
        fill_cache(&gateway).await;
        let calls = chat.call_count();
        let response = evict(&gateway, body).await;
        assert_eq!((response.status, response.json()), (200, serde_json::json!({"evicted": evicted})), "{body}");
        assert_eq!(response.header("content-type"), Some("application/json"));
        assert_eq!(cached_pairs(&gateway).await, left, "{body}");
        assert_eq!(chat.call_count(), calls, "no call to Chat");
    }
}

#[tokio::test]
async fn eviction_discards_the_result_of_an_in_flight_lookup() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat, true).await;
    for body in ["{}", r#"{"From_Account":"bob"}"#, r#"{"From_Account":"bob","To_Account":["ann"]}"#] {
        chat.graph().unfollow(MAIN.sdkappid, "ann", "bob");
        assert_eq!(evict(&gateway, "{}").await.status, 200);
        let gate = Gate::closed();
        chat.reply_once(Reply::from_graph().after(&gate));
        let before = chat.call_count();
        let mut lookup = gateway.connect().await;
        lookup.send(TestRequest::check("ann", &["bob"]).bytes()).await;
        chat.wait_for_calls(before + 1).await;
        chat.follow("ann", "bob");
        assert_eq!(evict(&gateway, body).await.status, 200);
        assert_eq!(
            gateway.check("ann", &["bob"]).await.follow_types(),
            [2],
            "{body}: a new check must not join the old lookup"
        );
        gate.open();
        assert_eq!(lookup.read_response().await.follow_types(), [2], "{body}: the lookup that was in flight");
        assert_eq!(gateway.check("bob", &["ann"]).await.follow_types(), [1], "{body}: the cached pair");
    }
}

#[tokio::test]
async fn invalid_evict_requests_are_rejected_and_evict_nothing() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat, false).await;
    fill_cache(&gateway).await;
    let large = format!(r#"{{"From_Account":"ann","To_Account":["{}"]}}"#, "x".repeat(1024 * 1024));
    for (body, status, slug) in [
        ("", 400, "bad_json"),
        ("all", 400, "bad_json"),
        ("[]", 400, "bad_json"),
        (r#"["main","ann",["bob"]]"#, 400, "bad_json"),
        (r#"{"App":"main","From":"ann"}"#, 400, "bad_json"),
        (r#"{"App":"main","app":"other"}"#, 400, "bad_json"),
        (r#"{"App":"main","App":"main"}"#, 400, "bad_json"),
        (r#"{"App":"main","From_Account":null}"#, 400, "bad_json"),
        (r#"{"App":"main","From_Account":"ann","To_Account":"bob"}"#, 400, "bad_json"),
        (r#"{"App":"main","To_Account":["bob"]}"#, 400, "bad_parameter"),
        (r#"{"App":"main","From_Account":"ann","To_Account":[]}"#, 400, "bad_parameter"),
        (r#"{"App":"main","From_Account":""}"#, 400, "bad_parameter"),
        (r#"{"App":"unknown","From_Account":"ann"}"#, 404, "unknown_app"),
        (r#"{"App":"","From_Account":"ann"}"#, 404, "unknown_app"),
        ("{}", 404, "unknown_app"),
        (&large, 413, "body_too_large"),
    ] {
        let response = evict(&gateway, body).await;
        let shown = &body[..body.len().min(60)];
        assert_eq!((response.status, response.slug()), (status, Some(slug)), "{shown}: {response:?}");
        assert_eq!(cached_pairs(&gateway).await, [true; 6], "{shown}");
    }
}

#[tokio::test]
async fn evict_rejects_browsers_and_other_methods() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat, true).await;
    fill_cache(&gateway).await;
    let valid = TestRequest::post("/cache/evict");
    for request in [
        valid.clone().host("evil.example"),
        valid.clone().header("Origin", "http://localhost"),
        valid.clone().header("Sec-Fetch-Site", "none"),
    ] {
        assert_eq!(gateway.send_to_admin(request).await.status, 403);
    }
    for method in ["GET", "PUT", "DELETE"] {
        let response = gateway.send_to_admin(TestRequest::new(method, "/cache/evict")).await;
        assert_eq!((response.status, response.header("allow")), (405, Some("POST")));
    }
    assert_eq!(gateway.send_to_admin(valid.clone().target("/cache/evict/")).await.status, 404);
    assert_eq!(gateway.send(valid.clone()).await.status, 404, "the data listener has no admin actions");
    assert_eq!(cached_pairs(&gateway).await, [true; 6]);
    // Several requests on one connection, with bodies.
    let mut conn = Conn::open(gateway.admin()).await.expect("accepted");
    for _ in 0..3 {
        assert_eq!(conn.request(&valid).await.status, 200);
    }
    assert_eq!(cached_pairs(&gateway).await, [false, false, false, true, true, true]);
}
