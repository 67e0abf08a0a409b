//! Callers whose own SDK signs: the UserSig is verified in full, dropped, and replaced by the gateway's own.

use serde_json::{Value, json};

use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::setup::Setup;
use crate::support::usersig::{encode, sign};
use crate::support::{eventually, unix_now};

const CALL: &str = "openim/querystate";
const KEY: &str = "5d4ke7ma1n0marked0key0of0a0callers0own0sdk0never0to0be0seen00001";
const NEXT_KEY: &str = "5d4ke7n3xt0marked0key0of0a0callers0own0sdk0never0to0be0seen00002";
const CHAT_KEY: &str = "5d4ke7chat0marked0key0of0a0callers0own0sdk0never0to0be0seen00003";
const TOKEN: &str = "plain.token~of~marked~letters+that/no/log/may/show/in/any/place/at/all==";

/// `feed` and `chat` sign, `plain` has a token.
fn setup(chat: &FakeChat) -> Setup {
    let lines = chat.app_lines();
    let setup = Setup::without_apps().app(MAIN, &format!("{lines}\ndefault = true")).app(OTHER, &lines);
    for (name, key) in [("feed", KEY), ("chat", CHAT_KEY)] {
        crate::support::secrets::add(key);
        setup.file(&format!("{name}.key"), key);
    }
    setup
        .raw("[[caller]]\nname = 'feed'\nusersig_key_file = 'feed.key'\nallow = ['openim/*', 'follow/follow_check']")
        .raw("[[caller]]\nname = 'chat'\nusersig_key_file = 'chat.key'\nallow = ['openim/*']\napps = ['other']")
        .caller("plain", TOKEN, "allow = ['*']")
        .set("log", r#"level = "trace""#)
        .set("log", r#"requests = "all""#)
}

/// The document of a valid signature of `feed`.
fn document() -> Value {
    sign(MAIN.sdkappid, "feed", KEY, unix_now(), 3600)
}

/// The query that an SDK sends.
fn query(sdkappid: u32, identifier: &str, usersig: &str) -> String {
    format!("sdkappid={sdkappid}&identifier={identifier}&usersig={usersig}&random=7&contenttype=json")
}

fn call_with(query: &str) -> TestRequest {
    TestRequest::post(&format!("/v4/{CALL}?{query}"))
}

fn call(usersig: &str) -> TestRequest {
    call_with(&query(MAIN.sdkappid, "feed", usersig))
}

async fn reload(gateway: &Gateway) {
    assert_eq!(gateway.send_to_admin(TestRequest::post("/reload")).await.text(), "reloaded\n");
}

#[tokio::test]
async fn usersig_of_a_caller_is_verified_dropped_and_replaced() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    let usersig = encode(&document());
    for request in [
        call(&usersig),
        call(&usersig),
        call(&usersig.replace('*', "%2A").replace('_', "%5F")),
        call_with(&query(MAIN.sdkappid, "feed", &usersig).replace("usersig", "%55ser%53ig")),
        call(&usersig).header("Chatgate-App", "main"),
        call(&usersig).target(&format!("/apps/main/v4/{CALL}?{}", query(MAIN.sdkappid, "feed", &usersig))),
    ] {
        // The fake Chat verifies that the gateway has signed as the administrator.
        gateway.send(request).await.assert_relayed(200, OK);
    }
    Http2::open(gateway.address()).await.request(&call(&usersig)).await.assert_relayed(200, OK);
    let other = encode(&sign(OTHER.sdkappid, "chat", CHAT_KEY, unix_now(), 60));
    gateway.send(call_with(&query(OTHER.sdkappid, "chat", &other))).await.assert_relayed(200, OK);
    let calls = chat.calls();
    assert_eq!(calls.len(), 8);
    for call in &calls {
        assert!(![&usersig, &other].contains(&&call.usersig()), "forwarded");
        assert_eq!(call.parameter("identifier").as_deref(), Some("administrator"));
    }
    // The permissions are those of the caller. A usersig for another app does not reach it.
    let add = TestRequest::post(&format!("/v4/follow/follow_add?{}", query(MAIN.sdkappid, "feed", &usersig)));
    gateway.send(add).await.assert_error(403, "forbidden", 129_403);
    let both = call(&usersig).header("Chatgate-App", "other");
    gateway.send(both).await.assert_error(404, "unknown_app", 129_404);
    let unknown = encode(&sign(9, "feed", KEY, unix_now(), 60));
    gateway.send(call_with(&query(9, "feed", &unknown))).await.assert_error(404, "unknown_app", 129_404);
    assert_eq!(chat.call_count(), 8);
    eventually("a log line of the caller", async || gateway.log().contains(r#""caller":"feed""#).then_some(())).await;
    let mut conn = gateway.connect().await;
    conn.send(format!("POST /v4/{CALL}?usersig={usersig} HTTP/1.1\r\nbroken\r\n\r\n")).await;
    conn.read_to_end().await;
    eventually("a verbose log", async || gateway.log().contains("DEBUG").then_some(())).await;
    let log = gateway.log();
    for secret in [&usersig, &other, KEY, CHAT_KEY] {
        assert!(!log.contains(&secret[..24]), "a credential is in the log");
    }
    assert!(!log.contains("usersig=eJ"));
}

#[tokio::test]
async fn each_altered_field_is_rejected_with_the_code_of_chat() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    let good = document();
    // The gateway has already verified the unaltered one.
    gateway.send(call(&encode(&good))).await.assert_relayed(200, OK);
    let now = unix_now();
    let with = |member: &str, value: Value| {
        let mut document = good.clone();
        document[member] = value;
        call(&encode(&document))
    };
    let signed = |sdkappid: u32, identifier: &str, key: &str, issued: u64| {
        call(&encode(&sign(sdkappid, identifier, key, issued, 3600)))
    };
    let usersig = encode(&good);
    let sig = good["TLS.sig"].as_str().expect("text").to_owned();
    let mut flipped = sig.clone().into_bytes();
    flipped[5] ^= 1;
    let rows = [
        ("version", 70003, with("TLS.ver", json!("1.0"))),
        ("identifier", 70013, with("TLS.identifier", json!("chat"))),
        ("sdkappid", 70014, with("TLS.sdkappid", json!(OTHER.sdkappid))),
        ("later time", 70009, with("TLS.time", json!(now + 1000))),
        ("longer lifetime", 70009, with("TLS.expire", json!(7200))),
        ("ended lifetime", 70001, with("TLS.time", json!(now - 4000))),
        ("userbuf", 70009, with("TLS.userbuf", json!("YQ=="))),
        ("sig", 70009, with("TLS.sig", json!(String::from_utf8(flipped).expect("ASCII")))),
        ("empty sig", 70009, with("TLS.sig", json!(""))),
        ("type of time", 70003, with("TLS.time", json!("soon"))),
        ("expired, well signed", 70001, signed(MAIN.sdkappid, "feed", KEY, now - 3700)),
        ("another key", 70009, signed(MAIN.sdkappid, "feed", NEXT_KEY, now)),
        ("the key of another caller", 70009, signed(MAIN.sdkappid, "feed", CHAT_KEY, now)),
        ("the key of the app", 70009, signed(MAIN.sdkappid, "feed", MAIN.key, now)),
        ("another app, well signed", 70014, signed(OTHER.sdkappid, "feed", KEY, now)),
        ("another caller, well signed", 70013, signed(MAIN.sdkappid, "chat", CHAT_KEY, now)),
        ("truncated", 70003, call(&usersig[..usersig.len() - 4])),
        ("not base64", 70003, call("!!!!")),
        ("not zlib", 70003, call("AAAA")),
        ("empty", 70003, call("")),
        ("repeated", 70003, call(&format!("{usersig}&usersig={usersig}"))),
        ("too long", 70003, call(&"A".repeat(7000))),
        ("identifier of another caller", 70013, call_with(&query(MAIN.sdkappid, "chat", &usersig))),
        ("identifier of the administrator", 70013, call_with(&query(MAIN.sdkappid, "administrator", &usersig))),
        ("identifier of a caller without a key", 70013, call_with(&query(MAIN.sdkappid, "plain", &usersig))),
        ("no identifier", 70013, call_with(&format!("sdkappid={}&usersig={usersig}", MAIN.sdkappid))),
        ("identifier in capitals", 70013, call_with(&query(MAIN.sdkappid, "FEED", &usersig))),
        ("app of the query", 70014, call_with(&query(OTHER.sdkappid, "feed", &usersig))),
        ("no app in the query", 70014, call_with(&format!("identifier=feed&usersig={usersig}"))),
        ("no usersig", 129_401, call_with(&format!("sdkappid={}&identifier=feed", MAIN.sdkappid))),
        ("no query", 129_401, TestRequest::command(CALL)),
    ];
    for (what, code, request) in rows {
        let response = gateway.send(request).await;
        assert_eq!(response.json()["ErrorCode"], code, "{what}: {response:?}");
        response.assert_error(401, "unauthenticated", code);
        assert_eq!(response.header("www-authenticate"), Some("Bearer"), "{what}");
    }
    assert_eq!(chat.call_count(), 1, "no rejected request causes a call");
    gateway.send(call(&usersig)).await.assert_relayed(200, OK);
}

#[tokio::test]
async fn wrong_usersig_reads_nothing_from_the_cache() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).set("cache", r#"ttl = "1h""#).start().await;
    let check = |usersig: &str| {
        let target = format!("/v4/follow/follow_check?{}", query(MAIN.sdkappid, "feed", usersig));
        TestRequest::check("ann", &["bob"]).target(&target)
    };
    let usersig = encode(&document());
    for outcome in ["fwd=miss", "hit"] {
        assert_eq!(gateway.send(check(&usersig)).await.cache_status().outcome, outcome);
    }
    let wrong = encode(&sign(MAIN.sdkappid, "feed", NEXT_KEY, unix_now(), 3600));
    for _ in 0..3 {
        let response = gateway.send(check(&wrong)).await;
        response.assert_error(401, "unauthenticated", 70009);
        assert_eq!(response.header("cache-status"), None);
    }
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn leftover_usersig_counts_only_without_another_proof() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    let (good, chats) = (encode(&document()), encode(&sign(MAIN.sdkappid, "chat", CHAT_KEY, unix_now(), 60)));
    let leftover = encode(&sign(MAIN.sdkappid, "administrator", MAIN.key, unix_now(), 60));
    let old = query(MAIN.sdkappid, "administrator", &leftover);
    gateway.send(call_with(&old)).await.assert_error(401, "unauthenticated", 70013);
    gateway.send(call_with(&old).token(TOKEN)).await.assert_relayed(200, OK);
    gateway.send(call_with("usersig=x").token(TOKEN)).await.assert_relayed(200, OK);
    // A token does not excuse a wrong UserSig of a caller, nor one of another caller.
    let wrong = encode(&sign(MAIN.sdkappid, "feed", NEXT_KEY, unix_now(), 60));
    gateway.send(call(&wrong).token(TOKEN)).await.assert_error(401, "unauthenticated", 70009);
    gateway.send(call(&good).token(TOKEN)).await.assert_error(401, "unauthenticated", 129_401);
    gateway.send(call(&good).token(&TOKEN[1..])).await.assert_error(401, "unauthenticated", 129_401);
    gateway.send(call(&good).header("Authorization", "Basic x")).await.assert_error(401, "unauthenticated", 129_401);
    let two = format!("{}&identifier=chat&usersig={chats}", query(MAIN.sdkappid, "feed", &good));
    gateway.send(call_with(&two)).await.assert_error(401, "unauthenticated", 70013);
    assert_eq!(chat.call_count(), 2);
}

#[tokio::test]
async fn remembered_usersig_ends_with_its_lifetime_and_with_its_key() {
    let chat = FakeChat::start().await;
    let setup = setup(&chat);
    let dir = setup.dir().to_owned();
    let gateway = setup.start().await;
    let short = encode(&sign(MAIN.sdkappid, "feed", KEY, unix_now(), 2));
    gateway.send(call(&short)).await.assert_relayed(200, OK);
    let expired = async || {
        let response = gateway.send(call(&short)).await;
        match response.status {
            200 => None,
            _ => Some(response),
        }
    };
    eventually("the signature has expired", expired).await.assert_error(401, "unauthenticated", 70001);
    let (old, new) = (encode(&document()), encode(&sign(MAIN.sdkappid, "feed", NEXT_KEY, unix_now(), 3600)));
    crate::support::secrets::add(NEXT_KEY);
    for _ in 0..2 {
        gateway.send(call(&old)).await.assert_relayed(200, OK);
        gateway.send(call(&new)).await.assert_error(401, "unauthenticated", 70009);
    }
    crate::reload::replace_file(&dir, "feed.key", NEXT_KEY);
    reload(&gateway).await;
    for _ in 0..2 {
        gateway.send(call(&new)).await.assert_relayed(200, OK);
        gateway.send(call(&old)).await.assert_error(401, "unauthenticated", 70009);
    }
}
