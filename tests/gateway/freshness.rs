//! `Cache-Control` directives of requests.

use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::eventually;
use crate::support::reply::Reply;
use crate::support::setup::gateway;

fn check(control: &str, to: &[&str]) -> TestRequest {
    TestRequest::check("ann", to).header("Cache-Control", control)
}

#[tokio::test]
async fn no_cache_calls_upstream_and_caches_the_response() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    chat.follow("ann", "bob");
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0], "cached");
    let response = gateway.send(check("no-cache", &["bob"])).await;
    assert_eq!(response.follow_types(), [2]);
    assert_eq!(
        (response.cache_status().outcome.as_str(), response.cache_status().counts()),
        ("fwd=request", (0, 0, 1))
    );
    assert_eq!(chat.call_count(), 2);
    let cached = gateway.check("ann", &["bob"]).await;
    assert_eq!((cached.follow_types(), cached.cache_status().outcome.as_str()), (vec![2], "hit"));
}

#[tokio::test]
async fn no_store_neither_reads_nor_fills_the_cache() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    chat.follow("ann", "bob");
    chat.follow("ann", "cyd");
    let response = gateway.send(check("no-store", &["bob", "cyd"])).await;
    assert_eq!(response.follow_types(), [2, 2]);
    assert!(["fwd=bypass", "fwd=request"].contains(&&*response.cache_status().outcome), "{response:?}");
    assert_eq!(response.cache_status().counts(), (0, 0, 2));
    let mut fetched = chat.last_call().to_accounts();
    fetched.sort();
    assert_eq!(fetched, ["bob", "cyd"]);
    let before = chat.call_count();
    gateway.check("ann", &["cyd"]).await;
    assert_eq!(chat.call_count(), before + 1, "cyd was not cached");
}

#[tokio::test]
async fn max_age_accepts_only_pairs_that_are_young_enough() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    assert_eq!(gateway.send(check("max-age=3600", &["bob"])).await.cache_status().outcome, "hit");
    chat.follow("ann", "bob");
    eventually("the cached pair is older than a second", async || {
        (gateway.check("ann", &["bob"]).await.age() >= 2).then_some(())
    })
    .await;
    assert_eq!(gateway.send(check("max-age=3600", &["bob"])).await.follow_types(), [0]);
    let response = gateway.send(check("max-age=1", &["bob"])).await;
    assert_eq!(response.follow_types(), [2], "older than max-age, so fetched again");
    assert_eq!(response.cache_status().counts(), (0, 0, 1));
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [2], "the fetched pair is cached");
    assert_eq!(chat.call_count(), 2);
    chat.graph().unfollow(crate::support::app::MAIN.sdkappid, "ann", "bob");
    assert_eq!(gateway.send(check("max-age=0", &["bob"])).await.follow_types(), [0], "max-age=0 always calls upstream");
    assert_eq!(chat.call_count(), 3);
}

#[tokio::test]
async fn only_if_cached_never_calls_upstream() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.send(check("only-if-cached", &["bob"])).await.assert_error(504, "not_cached", 129_504);
    assert_eq!(chat.call_count(), 0);
    gateway.check("ann", &["bob"]).await;
    let response = gateway.send(check("only-if-cached", &["bob"])).await;
    assert_eq!((response.follow_types(), response.cache_status().outcome.as_str()), (vec![0], "hit"));
    gateway.send(check("only-if-cached", &["bob", "cyd"])).await.assert_error(504, "not_cached", 129_504);
    gateway.send(check("only-if-cached, no-cache", &["bob"])).await.assert_error(504, "not_cached", 129_504);
    gateway.send(check("max-age=0, only-if-cached", &["bob"])).await.assert_error(504, "not_cached", 129_504);
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn directives_ignore_case_and_unknown_directives_have_no_effect() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    for control in ["No-Cache", "foo, no-cache", "no-cache,foo=\"a,b\"", " no-cache ", "max-age=5, NO-CACHE"] {
        let before = chat.call_count();
        gateway.send(check(control, &["bob"])).await.items();
        assert_eq!(chat.call_count(), before + 1, "{control}");
    }
    let before = chat.call_count();
    for control in ["", ",", "private", "max-stale=0", "x-no-cache", "s-maxage=0", "foo=\"no-cache\""] {
        let response = gateway.send(check(control, &["bob"])).await;
        assert_eq!(response.cache_status().outcome, "hit", "{control}");
    }
    assert_eq!(chat.call_count(), before);
    let two_lines = check("foo", &["bob"]).header("Cache-Control", "no-cache");
    gateway.send(two_lines).await.items();
    assert_eq!(chat.call_count(), before + 1, "a second Cache-Control header counts too");
}

#[tokio::test]
async fn failed_no_cache_lookup_leaves_no_wrong_cached_pair() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    chat.reply_always(Reply::json("no valid response"));
    gateway.send(check("no-cache", &["bob"])).await.assert_error(502, "upstream_invalid", 60013);
    chat.clear_script();
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
}
