//! `Cache-Control` directives of requests.

use crate::support::chat::FakeChat;
use crate::support::client::Ask;
use crate::support::eventually;
use crate::support::reply::Reply;
use crate::support::setup::gateway;

fn check(control: &str, to: &[&str]) -> Ask {
    Ask::check("ann", to).header("Cache-Control", control)
}

#[tokio::test]
async fn no_cache_calls_upstream_and_caches_the_response() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    chat.follow("ann", "bob");
    assert_eq!(gateway.check("ann", &["bob"]).await.types(), [0], "cached");
    let answer = gateway.ask(check("no-cache", &["bob"])).await;
    assert_eq!(answer.types(), [2]);
    assert_eq!((answer.cache().outcome.as_str(), answer.cache().counts()), ("fwd=request", (0, 0, 1)));
    assert_eq!(chat.count(), 2);
    let cached = gateway.check("ann", &["bob"]).await;
    assert_eq!((cached.types(), cached.cache().outcome.as_str()), (vec![2], "hit"));
}

#[tokio::test]
async fn no_store_neither_reads_nor_fills_the_cache() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    chat.follow("ann", "bob");
    chat.follow("ann", "cyd");
    let answer = gateway.ask(check("no-store", &["bob", "cyd"])).await;
    assert_eq!(answer.types(), [2, 2]);
    assert!(["fwd=bypass", "fwd=request"].contains(&&*answer.cache().outcome), "{answer:?}");
    assert_eq!(answer.cache().counts(), (0, 0, 2));
    let mut fetched = chat.last().to_accounts();
    fetched.sort();
    assert_eq!(fetched, ["bob", "cyd"]);
    let before = chat.count();
    gateway.check("ann", &["cyd"]).await;
    assert_eq!(chat.count(), before + 1, "cyd was not cached");
}

#[tokio::test]
async fn max_age_accepts_only_pairs_that_are_young_enough() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    assert_eq!(gateway.ask(check("max-age=3600", &["bob"])).await.cache().outcome, "hit");
    chat.follow("ann", "bob");
    eventually("the cached pair is older than a second", async || {
        (gateway.check("ann", &["bob"]).await.age() >= 2).then_some(())
    })
    .await;
    assert_eq!(gateway.ask(check("max-age=3600", &["bob"])).await.types(), [0]);
    let answer = gateway.ask(check("max-age=1", &["bob"])).await;
    assert_eq!(answer.types(), [2], "older than max-age, so fetched again");
    assert_eq!(answer.cache().counts(), (0, 0, 1));
    assert_eq!(gateway.check("ann", &["bob"]).await.types(), [2], "the fetched pair is cached");
    assert_eq!(chat.count(), 2);
    chat.graph().unfollow(crate::support::app::MAIN.sdkappid, "ann", "bob");
    assert_eq!(gateway.ask(check("max-age=0", &["bob"])).await.types(), [0], "max-age=0 always calls upstream");
    assert_eq!(chat.count(), 3);
}

#[tokio::test]
async fn only_if_cached_never_calls_upstream() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.ask(check("only-if-cached", &["bob"])).await.assert_error(504, "not_cached", 129_504);
    assert_eq!(chat.count(), 0);
    gateway.check("ann", &["bob"]).await;
    let answer = gateway.ask(check("only-if-cached", &["bob"])).await;
    assert_eq!((answer.types(), answer.cache().outcome.as_str()), (vec![0], "hit"));
    gateway.ask(check("only-if-cached", &["bob", "cyd"])).await.assert_error(504, "not_cached", 129_504);
    gateway.ask(check("only-if-cached, no-cache", &["bob"])).await.assert_error(504, "not_cached", 129_504);
    gateway.ask(check("max-age=0, only-if-cached", &["bob"])).await.assert_error(504, "not_cached", 129_504);
    assert_eq!(chat.count(), 1);
}

#[tokio::test]
async fn directives_ignore_case_and_unknown_directives_have_no_effect() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    for control in ["No-Cache", "foo, no-cache", "no-cache,foo=\"a,b\"", " no-cache ", "max-age=5, NO-CACHE"] {
        let before = chat.count();
        gateway.ask(check(control, &["bob"])).await.checked();
        assert_eq!(chat.count(), before + 1, "{control}");
    }
    let before = chat.count();
    for control in ["", ",", "private", "max-stale=0", "x-no-cache", "s-maxage=0", "foo=\"no-cache\""] {
        let answer = gateway.ask(check(control, &["bob"])).await;
        assert_eq!(answer.cache().outcome, "hit", "{control}");
    }
    assert_eq!(chat.count(), before);
    let two_lines = check("foo", &["bob"]).header("Cache-Control", "no-cache");
    gateway.ask(two_lines).await.checked();
    assert_eq!(chat.count(), before + 1, "a second Cache-Control header counts too");
}

#[tokio::test]
async fn failed_no_cache_lookup_leaves_no_wrong_cached_pair() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    chat.always(Reply::json("no answer at all"));
    gateway.ask(check("no-cache", &["bob"])).await.assert_error(502, "upstream_invalid", 60013);
    chat.no_script();
    assert_eq!(gateway.check("ann", &["bob"]).await.types(), [0]);
}
