//! Selection of the app for a request, and removal of the signing parameters that older clients still send.

use std::collections::BTreeSet;

use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::setup::{Setup, gateway};

const UNKNOWN: (u16, &str, i64) = (404, "unknown_app", 129_404);

/// Starts a gateway with two apps on one Chat. `default` makes `main` the default app.
async fn two_apps(chat: &FakeChat, default: bool) -> Gateway {
    let lines = chat.app_lines();
    let main = if default { format!("{lines}\ndefault = true") } else { lines.clone() };
    Setup::without_apps().app(MAIN, &main).app(OTHER, &lines).start().await
}

/// Sends the request and returns the SDKAppID that Chat saw.
async fn app_of(gateway: &Gateway, chat: &FakeChat, request: TestRequest) -> u32 {
    let before = chat.call_count();
    gateway.send(request).await.assert_relayed(200, OK);
    assert_eq!(chat.call_count(), before + 1);
    assert_eq!(chat.last_call().path(), "/v4/openim/querystate");
    chat.last_call().app()
}

#[tokio::test]
async fn app_is_selected_by_prefix_header_or_sdkappid() {
    let chat = FakeChat::start().await;
    let gateway = two_apps(&chat, true).await;
    let plain = || TestRequest::command("openim/querystate");
    for app in [MAIN, OTHER] {
        let prefixed = format!("/apps/{}/v4/openim/querystate", app.name);
        let numbered = format!("/v4/openim/querystate?sdkappid={}", app.sdkappid);
        let combined = format!("{prefixed}?sdkappid={}", app.sdkappid);
        for request in [
            TestRequest::post(&prefixed),
            plain().header("Chatgate-App", app.name),
            plain().header("chatgate-app", app.name),
            TestRequest::post(&numbered),
            TestRequest::post(&combined).header("Chatgate-App", app.name),
        ] {
            assert_eq!(app_of(&gateway, &chat, request).await, app.sdkappid);
        }
    }
    assert_eq!(app_of(&gateway, &chat, plain()).await, MAIN.sdkappid, "the default app");
}

#[tokio::test]
async fn request_without_app_fails_if_no_default_exists() {
    let chat = FakeChat::start().await;
    let single = gateway(&chat).await;
    assert_eq!(app_of(&single, &chat, TestRequest::command("openim/querystate")).await, MAIN.sdkappid);
    let double = two_apps(&chat, false).await;
    let before = chat.call_count();
    let response = double.call("openim/querystate", "{}").await;
    response.assert_error(UNKNOWN.0, UNKNOWN.1, UNKNOWN.2);
    assert_eq!(chat.call_count(), before);
    assert_eq!(app_of(&double, &chat, TestRequest::post("/apps/other/v4/openim/querystate")).await, OTHER.sdkappid);
}

#[tokio::test]
async fn conflicting_app_selectors_are_rejected() {
    let chat = FakeChat::start().await;
    let gateway = two_apps(&chat, true).await;
    let (main, other) = (MAIN.sdkappid, OTHER.sdkappid);
    let requests = [
        TestRequest::post("/apps/main/v4/openim/querystate").header("Chatgate-App", "other"),
        TestRequest::post(&format!("/apps/main/v4/openim/querystate?sdkappid={other}")),
        TestRequest::post(&format!("/v4/openim/querystate?sdkappid={main}")).header("Chatgate-App", "other"),
        TestRequest::post(&format!("/v4/openim/querystate?sdkappid={main}&sdkappid={other}")),
        TestRequest::post(&format!("/v4/openim/querystate?sdkappid={main}&SdkAppId={other}")),
        TestRequest::post(&format!("/v4/openim/querystate?sdkappid={main}&%73dkappid={other}")),
        TestRequest::post("/v4/openim/querystate?sdkappid=1400000003"),
        TestRequest::post("/v4/openim/querystate?sdkappid=main"),
        TestRequest::post("/v4/openim/querystate?sdkappid=-1"),
        TestRequest::post("/v4/openim/querystate?sdkappid=99999999999999999999999999"),
        TestRequest::command("openim/querystate").header("Chatgate-App", "main").header("Chatgate-App", "other"),
        TestRequest::command("openim/querystate").header("Chatgate-App", "unknown"),
    ];
    for request in requests {
        gateway.send(request).await.assert_error(UNKNOWN.0, UNKNOWN.1, UNKNOWN.2);
    }
    assert_eq!(chat.call_count(), 0);
}

#[tokio::test]
async fn signing_parameters_of_callers_are_never_forwarded() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let number = MAIN.sdkappid;
    let queries = [
        format!("sdkappid={number}&identifier=someone&usersig=eJwForged&random=7&contenttype=json"),
        "usersig=forged".to_owned(),
        "USERSIG=forged&Identifier=root&RANDOM=1&ContentType=xml".to_owned(),
        "%75sersig=forged&usersi%67=forged&%55SERSIG=forged".to_owned(),
        "%20usersig=forged&usersig%20=forged&+usersig=forged&usersig%09=forged".to_owned(),
        "identifier=".to_owned() + &"x&identifier=".repeat(49),
        "random&usersig&identifier&contenttype".to_owned(),
        "usersig=%zz&random=%00&identifier=%ff%fe".to_owned(),
        "usersig=a%26identifier%3Droot%26x%3D1".to_owned(),
        "usersig==&&random=1&".to_owned(),
        format!("SDKAPPID={number}&%73dkappid={number}"),
    ];
    for (round, query) in queries.iter().enumerate() {
        let request = TestRequest::post(&format!("/v4/openim/querystate?{query}"));
        // `chat::violations` checks in every test that each call has the five parameters exactly once, with
        // the app's own values.
        gateway.send(request).await.assert_relayed(200, OK);
        assert_eq!(chat.call_count(), round + 1, "{query}");
        assert!(!chat.last_call().target.to_lowercase().contains("forged"), "{query}");
        assert!(!chat.last_call().target.contains("root"), "{query}");
    }
}

#[tokio::test]
async fn app_prefix_selects_the_cache_for_follow_check() {
    let chat = FakeChat::start().await;
    chat.graph().follow(OTHER.sdkappid, "a", "b");
    let gateway = two_apps(&chat, true).await;
    let check = |app: &str| TestRequest::check("a", &["b"]).target(&format!("/apps/{app}/v4/follow/follow_check"));
    assert_eq!(gateway.send(check("main")).await.follow_types(), [0]);
    assert_eq!(gateway.send(check("other")).await.follow_types(), [2]);
    assert_eq!(gateway.send(check("main")).await.cache_status().outcome, "hit");
    assert_eq!(gateway.send(check("other")).await.follow_types(), [2]);
    assert_eq!(chat.call_count(), 2);
}

#[tokio::test]
async fn apps_do_not_share_upstream_connections() {
    let chat = FakeChat::start().await;
    let gateway = two_apps(&chat, true).await;
    for _ in 0..3 {
        for app in [MAIN, OTHER] {
            let request = TestRequest::command("openim/querystate").header("Chatgate-App", app.name);
            assert_eq!(app_of(&gateway, &chat, request).await, app.sdkappid);
        }
    }
    let connections_of = |app: u32| -> BTreeSet<usize> {
        chat.calls().iter().filter(|call| call.app() == app).map(|call| call.connection).collect()
    };
    let (main, other) = (connections_of(MAIN.sdkappid), connections_of(OTHER.sdkappid));
    assert!(main.is_disjoint(&other), "{main:?} {other:?}");
}
