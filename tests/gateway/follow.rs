//! `follow_check`: its responses, the pairs it caches, and the calls it makes.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::{TestRequest, check_body};
use crate::support::graph::{check_response, error_response, failed_item, item};
use crate::support::reply::Reply;
use crate::support::setup::{Setup, gateway};
use crate::support::{eventually, now};

#[tokio::test]
async fn cached_pair_is_answered_without_a_call() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let gateway = gateway(&chat).await;
    let first = gateway.check("ann", &["bob"]).await;
    assert_eq!(first.items(), [("bob".to_owned(), 2)]);
    assert_eq!((first.cache_status().outcome.as_str(), first.cache_status().counts()), ("fwd=miss", (0, 0, 1)));
    let second = gateway.check("ann", &["bob"]).await;
    assert_eq!(second.items(), [("bob".to_owned(), 2)]);
    assert_eq!((second.cache_status().outcome.as_str(), second.cache_status().counts()), ("hit", (1, 0, 0)));
    assert_eq!(first.body, second.body, "a cached pair must look like a fetched one");
    assert_eq!(chat.call_count(), 1);
    assert!(second.header("content-type").is_some_and(|text| text.starts_with("application/json")));
}

#[tokio::test]
async fn response_has_exactly_the_envelope_of_chat() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for _ in 0..2 {
        let json = gateway.check("ann", &["bob"]).await.json();
        let mut names: Vec<&str> = json.as_object().expect("an object").keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["ActionStatus", "ErrorCode", "ErrorDisplay", "ErrorInfo", "ResultItem"]);
        assert_eq!((&json["ErrorInfo"], &json["ErrorDisplay"]), (&"".into(), &"".into()));
    }
}

#[tokio::test]
async fn only_uncached_pairs_are_fetched_and_order_is_kept() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    chat.follow("dan", "ann");
    chat.follow("ann", "eve");
    chat.follow("eve", "ann");
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob", "dan"]).await;
    let response = gateway.check("ann", &["eve", "dan", "cyd", "bob"]).await;
    let expected = [("eve", 3), ("dan", 1), ("cyd", 0), ("bob", 2)].map(|(name, kind)| (name.to_owned(), kind));
    assert_eq!(response.items(), expected);
    assert_eq!(
        (response.cache_status().outcome.as_str(), response.cache_status().counts()),
        ("fwd=partial", (2, 0, 2))
    );
    let fetched: BTreeSet<String> = chat.last_call().to_accounts().into_iter().collect();
    assert_eq!(fetched, ["cyd", "eve"].map(String::from).into());
    assert_eq!(chat.call_count(), 2);
}

#[tokio::test]
async fn repeated_accounts_are_fetched_once_and_answered_each_time() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let gateway = gateway(&chat).await;
    let response = gateway.check("ann", &["bob", "cyd", "bob", "bob"]).await;
    let names: Vec<String> = response.items().into_iter().map(|(name, _)| name).collect();
    assert_eq!(
        (names, response.follow_types()),
        (["bob", "cyd", "bob", "bob"].map(String::from).into(), vec![2, 0, 2, 2])
    );
    assert_eq!(response.cache_status().counts(), (0, 0, 2), "only distinct pairs count");
    let mut fetched = chat.last_call().to_accounts();
    fetched.sort();
    assert_eq!(fetched, ["bob", "cyd"]);
}

#[tokio::test]
async fn cached_pair_answers_both_directions() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "two");
    chat.follow("one", "ann");
    chat.follow("ann", "both");
    chat.follow("both", "ann");
    let gateway = gateway(&chat).await;
    assert_eq!(gateway.check("ann", &["none", "one", "two", "both"]).await.follow_types(), [0, 1, 2, 3]);
    for (from, expected) in [("none", 0), ("one", 2), ("two", 1), ("both", 3)] {
        let response = gateway.check(from, &["ann"]).await;
        assert_eq!(response.items(), [("ann".to_owned(), expected)], "{from}");
        assert_eq!(response.cache_status().outcome, "hit");
    }
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn user_paired_with_itself_is_an_ordinary_pair() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    assert_eq!(gateway.check("ann", &["ann"]).await.follow_types(), [0]);
    assert_eq!(gateway.check("ann", &["ann"]).await.follow_types(), [0]);
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn escaped_names_equal_their_decoded_text() {
    let chat = FakeChat::start().await;
    let unusual = ["abc", "Abc", "日本", "q\"u\\o/te", "a b", "😀", "@RBT#1"];
    unusual.iter().for_each(|name| chat.follow("ann", name));
    let gateway = gateway(&chat).await;
    let response = gateway.check("ann", &unusual).await;
    assert_eq!(response.items(), unusual.map(|name| (name.to_owned(), 2)));
    let escaped = r#" { "To_Account" : ["\u0061\u0062c","q\"u\\o\/te","\u65e5\u672c","\ud83d\ude00"] , "From\u005fAccount":"\u0061nn" } "#;
    let response = gateway.call("follow/follow_check", escaped).await;
    assert_eq!(response.items(), ["abc", "q\"u\\o/te", "日本", "😀"].map(|name| (name.to_owned(), 2)));
    assert_eq!(response.cache_status().outcome, "hit");
    assert_eq!(gateway.check("ann", &["aBc"]).await.follow_types(), [0], "case matters");
    assert_eq!(chat.call_count(), 2);
    let longest = "x".repeat(32);
    assert_eq!(gateway.check(&longest, &[longest.as_str()]).await.items(), [(longest.clone(), 0)]);
}

#[tokio::test]
async fn accounts_are_split_into_the_fewest_calls_of_100() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for (round, (count, calls)) in [(1, 1), (100, 1), (101, 2), (250, 3), (1000, 10)].into_iter().enumerate() {
        let from = format!("ann{round}");
        let names: Vec<String> = (0..count).map(|n| format!("u{round}-{n}")).collect();
        names.iter().step_by(3).for_each(|name| chat.follow(&from, name));
        let before = chat.call_count();
        let response = gateway.send(TestRequest::check(&from, &names)).await;
        let expected: Vec<(String, u8)> =
            names.iter().enumerate().map(|(n, name)| (name.clone(), if n % 3 == 0 { 2 } else { 0 })).collect();
        assert_eq!(response.items(), expected);
        assert_eq!(chat.call_count() - before, calls, "{count} accounts");
        let mut fetched: Vec<String> = Vec::new();
        for call in &chat.calls()[before..] {
            assert_eq!(call.source_account(), from);
            assert!((1..=100).contains(&call.to_accounts().len()), "{}", call.to_accounts().len());
            fetched.extend(call.to_accounts());
        }
        assert_eq!(fetched.iter().collect::<BTreeSet<_>>(), names.iter().collect::<BTreeSet<_>>());
        assert_eq!(fetched.len(), count, "an account was fetched twice");
        assert_eq!(gateway.send(TestRequest::check(&from, &names)).await.items(), expected);
        assert_eq!(chat.call_count() - before, calls, "all of them are cached now");
    }
}

#[tokio::test]
async fn items_are_matched_by_account_and_unrequested_items_ignored() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let items = [item("cyd", 1), item("stranger", 3), item("bob", 2), item("bob", 2), item("ann", 3)];
    chat.reply_once(Reply::json(check_response(&items)));
    assert_eq!(gateway.check("ann", &["bob", "cyd"]).await.follow_types(), [2, 1]);
    // The unrequested item is not cached either.
    assert_eq!(gateway.check("ann", &["stranger"]).await.follow_types(), [0]);
    assert_eq!(chat.call_count(), 2);
}

#[tokio::test]
async fn contradicting_items_are_upstream_invalid() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let failing = failed_item("bob", 30003);
    for second in [item("bob", 1), item("bob", 0), item("bob", 7), failing] {
        chat.reply_always(Reply::json(check_response(&[item("bob", 2), item("cyd", 3), second])));
        gateway.check("ann", &["bob"]).await.assert_error(502, "upstream_invalid", 60013);
    }
    chat.clear_script();
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0], "nothing of it is cached");
}

#[tokio::test]
async fn missing_items_are_upstream_invalid() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for items in
        [vec![], vec![item("bob", 2)], vec![item("bob", 2), item("CYD", 1)], vec![item("bob", 2), item("cyd ", 1)]]
    {
        chat.reply_always(Reply::json(check_response(&items)));
        gateway.check("ann", &["bob", "cyd"]).await.assert_error(502, "upstream_invalid", 60013);
    }
    chat.reply_always(Reply::json(r#"{"ActionStatus":"OK","ErrorCode":0}"#));
    gateway.check("ann", &["bob", "cyd"]).await.assert_error(502, "upstream_invalid", 60013);
    for shape in [r#""x""#, "{}", "[1]", r#"[{"To_Account":5,"ResultCode":0,"FollowType":2}]"#, "null"] {
        chat.reply_always(Reply::json(format!(r#"{{"ResultItem":{shape},"ActionStatus":"OK","ErrorCode":0}}"#)));
        gateway.check("ann", &["cyd"]).await.assert_error(502, "upstream_invalid", 60013);
    }
    chat.clear_script();
    assert_eq!(gateway.check("ann", &["cyd"]).await.follow_types(), [0]);
}

#[tokio::test]
async fn failed_or_unknown_items_are_relayed_verbatim_not_cached() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let unusual = [
        failed_item("odd", 30003),
        item("odd", 7),
        item("odd", 4),
        r#"{"To_Account":"odd","ResultCode":0,"ResultInfo":"","FollowType":-1}"#.to_owned(),
        r#"{"To_Account":"odd","ResultCode":0,"ResultInfo":"","FollowType":"2"}"#.to_owned(),
        r#"{ "FollowType" : 2 , "ResultInfo":"Err_\u0053ns" ,"ResultCode":-30003,"To_Account":"\u006fdd","New":[1.0E2, 1] }"#.to_owned(),
        r#"{"To_Account":"odd","ResultCode":99999999999,"ResultInfo":"<b>&\"日本"}"#.to_owned(),
    ];
    for (round, unusual) in unusual.iter().enumerate() {
        let good = format!("good{round}");
        chat.reply_once(Reply::json(check_response(&[item(&good, 3), unusual.clone()])));
        let response = gateway.check("ann", &["odd", &good, "odd"]).await;
        assert_eq!((response.status, response.slug()), (200, None), "{response:?}");
        let text = response.text();
        assert_eq!(text.matches(unusual.as_str()).count(), 2, "{unusual} in {text}");
        assert!(
            text.find(unusual.as_str()) < text.find(&good) && text.find(&good) < text.rfind(unusual.as_str()),
            "order: {text}"
        );
        let before = chat.call_count();
        assert_eq!(gateway.check("ann", &[&good]).await.follow_types(), [3], "the valid item next to it is cached");
        assert_eq!(chat.call_count(), before);
        assert_eq!(gateway.check("ann", &["odd"]).await.follow_types(), [0], "the unusual item is fetched again");
        assert_eq!(chat.call_count(), before + 1);
        // A write invalidates the pair for the next round.
        gateway.call("follow/follow_delete", check_body("ann", &["odd"])).await;
    }
}

#[tokio::test]
async fn failed_envelope_is_relayed_unchanged_and_not_cached() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let with_items = check_response(&[item("bob", 2)]).replace(r#""ErrorCode":0"#, r#""ErrorCode":30003"#);
    let unusual =
        "{ \"ErrorCode\":30001 ,\"ActionStatus\":\"FAIL\", \"ErrorInfo\":\"\\u4e0d\" ,\"RequestId\":\"r\" }\n"
            .to_owned();
    for (status, body) in [
        (200, error_response(30003, "Err_Account")),
        (200, with_items),
        (200, unusual),
        (400, error_response(60003, "json")),
    ] {
        chat.reply_once(Reply::status(status, body.clone()));
        let before = chat.call_count();
        gateway.check("ann", &["bob"]).await.assert_relayed(status, &body);
        assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
        assert_eq!(chat.call_count(), before + 2, "fetched again");
        gateway.call("follow/follow_delete", check_body("ann", &["bob"])).await;
    }
}

#[tokio::test]
async fn body_with_an_unknown_member_bypasses_the_cache() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let gateway = gateway(&chat).await;
    gateway.check("ann", &["bob"]).await;
    let body = "{ \"From_Account\":\"ann\",\"To_Account\":[\"bob\",\"cyd\"] ,\"Future\" : 1.0E0}";
    let upstream = check_response(&[item("cyd", 1), item("bob", 1)]);
    for round in 0..2 {
        chat.reply_always(Reply::json(upstream.clone()));
        let response = gateway.call("follow/follow_check", body).await;
        response.assert_relayed(200, &upstream);
        assert_eq!(chat.last_call().body, body.as_bytes());
        assert_eq!(chat.call_count(), 2 + round);
    }
    chat.clear_script();
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [2], "the relayed response is not cached");
    assert_eq!(gateway.check("ann", &["cyd"]).await.follow_types(), [0]);
}

#[tokio::test]
async fn apps_do_not_share_cached_pairs() {
    let chat = FakeChat::start().await;
    chat.graph().follow(MAIN.sdkappid, "ann", "bob");
    let lines = chat.app_lines();
    let gateway = Setup::without_apps().app(MAIN, &lines).app(OTHER, &lines).start().await;
    for round in 0..2 {
        for (app, expected) in [(MAIN, 2), (OTHER, 0)] {
            let response = gateway.send(TestRequest::check("ann", &["bob"]).header("Chatgate-App", app.name)).await;
            assert_eq!(response.follow_types(), [expected]);
            assert_eq!(response.cache_status().outcome, if round == 0 { "fwd=miss" } else { "hit" });
        }
    }
    let numbers: Vec<u32> = chat.calls().iter().map(|call| call.app()).collect();
    assert_eq!(numbers, [MAIN.sdkappid, OTHER.sdkappid]);
}

#[tokio::test]
async fn pair_is_fetched_again_after_its_ttl() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("cache", r#"ttl = "2s""#).start().await;
    let started = now();
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
    chat.follow("ann", "bob");
    let response = gateway.check("ann", &["bob"]).await;
    if started.elapsed() < Duration::from_secs(1) {
        assert_eq!((response.follow_types(), response.cache_status().outcome.as_str()), (vec![0], "hit"));
    }
    let response = eventually("the pair is fetched again", async || {
        let response = gateway.check("ann", &["bob"]).await;
        (chat.call_count() > 1).then_some(response)
    })
    .await;
    assert!(started.elapsed() >= Duration::from_millis(1900), "after {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(6), "after {:?}", started.elapsed());
    assert_eq!(response.follow_types(), [2]);
    assert_eq!(response.cache_status().outcome, "fwd=stale");
}

#[tokio::test]
async fn expired_pairs_are_stale_only_without_other_misses() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("cache", r#"ttl = "1s""#).start().await;
    gateway.check("ann", &["bob", "cyd"]).await;
    eventually("both are past their ttl", async || {
        let cached = TestRequest::check("ann", &["cyd"]).header("Cache-Control", "only-if-cached");
        (gateway.send(cached).await.status == 504).then_some(())
    })
    .await;
    assert_eq!(gateway.check("ann", &["bob", "dan"]).await.cache_status().outcome, "fwd=miss");
    assert_eq!(gateway.check("ann", &["cyd"]).await.cache_status().outcome, "fwd=stale");
    assert_eq!(chat.call_count(), 3);
}

#[tokio::test]
async fn age_header_is_that_of_the_oldest_pair() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    assert_eq!(gateway.check("ann", &["bob"]).await.age(), 0);
    eventually("the pair is one second old", async || {
        let response = gateway.check("ann", &["bob"]).await;
        assert_eq!(response.cache_status().outcome, "hit");
        (response.age() >= 1).then_some(())
    })
    .await;
    assert!(gateway.check("ann", &["cyd", "bob"]).await.age() >= 1);
    assert_eq!(gateway.check("ann", &["dan"]).await.age(), 0);
}

#[tokio::test]
async fn explain_lists_the_sources_of_the_first_200_accounts() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", "explain = true").start().await;
    gateway.check("ann", &["bob"]).await;
    let explain = |names: &[&str]| TestRequest::check("ann", names).header("Chatgate-Explain", "1");
    let sources = |response: &crate::support::response::Response| -> Vec<String> {
        let text = response.header("chatgate-explain").unwrap_or_else(|| panic!("no Chatgate-Explain: {response:?}"));
        text.split(',')
            .map(|entry| {
                let (source, age) = entry.trim().split_once(";age=").unwrap_or_else(|| panic!("{text}"));
                age.parse::<u64>().unwrap_or_else(|_| panic!("{text}"));
                source.to_owned()
            })
            .collect()
    };
    let response = gateway.send(explain(&["cyd", "bob"])).await;
    assert_eq!(sources(&response), ["fetched", "hit"]);
    let many: Vec<String> = (0..250).map(|n| format!("u{n}")).collect();
    let response = gateway.send(TestRequest::check("ann", &many).header("Chatgate-Explain", "1")).await;
    assert_eq!(sources(&response), vec!["fetched"; 200]);
    assert_eq!(gateway.check("ann", &["bob"]).await.header("chatgate-explain"), None, "only on request");
    let without_explain = crate::support::setup::gateway(&chat).await;
    assert_eq!(
        without_explain.send(explain(&["bob"])).await.header("chatgate-explain"),
        None,
        "only with server.explain"
    );
}

#[tokio::test]
async fn cache_holds_at_most_max_pairs() {
    let chat = FakeChat::start().await;
    // The ttl is long, so no pair expires while they are counted.
    let setup = Setup::new(&chat).set("cache", "max_pairs = 1000").set("cache", r#"ttl = "1h""#);
    let gateway = setup.start().await;
    let names = |round: usize| (0..100).map(|n| format!("u{round}-{n}")).collect::<Vec<_>>();
    for round in 0..40 {
        gateway.send(TestRequest::check(&format!("ann{round}"), &names(round))).await.items();
    }
    let (mut conn, mut cached) = (gateway.connect().await, 0);
    for (round, name) in (0..40).flat_map(|round| names(round).into_iter().map(move |name| (round, name))) {
        let request = TestRequest::check(&format!("ann{round}"), &[name]).header("Cache-Control", "only-if-cached");
        cached += usize::from(conn.request(&request).await.status == 200);
    }
    assert!(cached <= 1000, "{cached} of 4,000 pairs are cached at a limit of 1,000");
    assert!(cached >= 300, "only {cached} pairs are cached at a limit of 1,000");
}
