//! Relaying: every command except a plain `follow_check` passes unchanged in both directions.

use std::collections::HashSet;

use crate::support::app::{MAIN, ODD};
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::graph::{OK, error_response};
use crate::support::reply::{Reply, ReplyKind};
use crate::support::setup::{Setup, gateway};

/// JSON that no parser reproduces exactly: odd spacing, large and precise numbers, duplicate members,
/// unnecessary escapes, and text in several scripts.
const ODD_BODY: &str = "{ \"GroupId\" :\t\"@TGS#2J4\\u0053ZEAEL\",\r\n \"Random\":18446744073709551617 , \"e\":1.0E+2,\"x\":-0.0, \
     \"x\":[ ], \"Text\":\"\\/ ü 日本 \u{1f600} \\ud83d\\ude00\" }\n";

#[tokio::test]
async fn bodies_are_relayed_byte_for_byte() {
    let chat = FakeChat::start().await;
    let odd_response = "{\"ErrorCode\" : 0 ,\"ActionStatus\":\"OK\",\"Seq\":123456789012345678901234567890,\"a\":1,\"a\":2,\
         \"Text\":\"\\u00fc ü 日本\" ,\"ErrorInfo\":\"\"}\r\n";
    chat.reply_always(Reply::json(odd_response));
    let gateway = gateway(&chat).await;
    let response = gateway.call("group_open_http_svc/send_group_msg", ODD_BODY).await;
    response.assert_relayed(200, odd_response);
    assert_eq!(chat.last_call().body, ODD_BODY.as_bytes());
    assert_eq!(chat.last_call().path(), "/v4/group_open_http_svc/send_group_msg");
    assert_eq!(chat.call_count(), 1);
}

/// Covers lengths around the limit up to which headers and body are written together.
#[tokio::test]
async fn bodies_of_all_lengths_are_relayed_byte_for_byte() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    // With a few hundred bytes of headers, the 2 KiB limit is within this range.
    for length in (1300..2100).step_by(7).chain([0, 1, 4000, 70_000, 300_000]) {
        let text: String = (0..length).map(|at: usize| char::from(b'a' + (at % 26) as u8)).collect();
        let response = format!(r#"{{"ErrorCode":0,"Text":"{text}"}}"#);
        chat.reply_always(Reply::json(response.clone()));
        let body = format!(r#"{{"Text":"{text}"}}"#);
        conn.request(&TestRequest::command("openim/querystate").body(&body)).await.assert_relayed(200, &response);
        assert_eq!(chat.last_call().body, body.as_bytes(), "{length}");
    }
}

#[tokio::test]
async fn unknown_command_is_relayed_with_its_case_preserved() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.call("ConfigSvc/GetIPList", "{}").await.assert_relayed(200, OK);
    gateway.call("future_svc_2/Unheard_Of_9", "{}").await.assert_relayed(200, OK);
    let long = format!("{}/{}", "a".repeat(64), "B".repeat(64));
    gateway.call(&long, "{}").await.assert_relayed(200, OK);
    let commands: Vec<String> = chat.calls().iter().map(|call| call.command().to_owned()).collect();
    assert_eq!(commands, ["ConfigSvc/GetIPList", "future_svc_2/Unheard_Of_9", &long]);
}

#[tokio::test]
async fn only_traceparent_of_the_callers_headers_reaches_upstream() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request = TestRequest::command("openim/querystate")
        .header("Authorization", "Bearer caller-secret")
        .header("Cookie", "caller=secret")
        .header("X-Forwarded-For", "10.9.8.7")
        .header("Forwarded", "for=10.9.8.7")
        .header("Via", "1.1 caller")
        .header("User-Agent", "caller/1")
        .header("Connection", "keep-alive, X-Hop")
        .header("X-Hop", "hop")
        .header("Keep-Alive", "timeout=5")
        .header("Proxy-Authorization", "Basic secret")
        .header("TE", "trailers")
        .header("Upgrade", "websocket")
        .header("X-Request-Id", "seen-only-here")
        .header("Accept-Encoding", "gzip")
        .header("Content-Type", "text/plain; charset=x")
        .header("Cache-Control", "no-cache")
        .header("Chatgate-App", MAIN.name)
        .header("traceparent", trace);
    gateway.send(request).await.assert_relayed(200, OK);
    let call = chat.last_call();
    // `chat::violations` checks in every test that no call has other headers.
    assert_eq!(call.header("traceparent"), Some(trace));
    assert_eq!(call.header("content-type"), Some("application/json"));
    assert_eq!(call.header("host"), Some(&*chat.address().to_string()));
    assert!(call.header("accept").is_some(), "{call:?}");
}

#[tokio::test]
async fn unusual_identifier_and_key_sign_calls_unchanged() {
    let chat = FakeChat::start().await;
    let gateway = Setup::without_apps().app(ODD, &chat.app_lines()).start().await;
    gateway.call("openim/querystate", "{}").await.assert_relayed(200, OK);
    assert_eq!(chat.last_call().parameter("identifier").as_deref(), Some(ODD.identifier));
    assert_eq!(chat.last_call().app(), u32::MAX);
}

#[tokio::test]
async fn random_differs_per_call_and_uses_all_32_bits() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    for _ in 0..64 {
        conn.request(&TestRequest::command("openim/querystate")).await.assert_relayed(200, OK);
    }
    let numbers: Vec<u32> =
        chat.calls().iter().map(|call| call.parameter("random").expect("random").parse().expect("a number")).collect();
    assert_eq!(numbers.iter().collect::<HashSet<_>>().len(), 64, "{numbers:?}");
    // Each bit is 0 in some call and 1 in another. The test fails by chance with a probability of 2^-57.
    assert_eq!(numbers.iter().fold(0, |all, number| all | number), u32::MAX);
    assert_eq!(numbers.iter().fold(u32::MAX, |all, number| all & number), 0);
}

#[tokio::test]
async fn only_upstream_status_and_content_type_are_relayed() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for status in [200, 201, 302, 400, 403, 500, 502, 503] {
        let body = error_response(40_000 + i64::from(status), "said by upstream");
        chat.reply_always(Reply::typed(status, "application/json; charset=utf-8", body.clone()));
        let response = gateway.call("profile/portrait_set", "{}").await;
        response.assert_relayed(status, &body);
        assert_eq!(response.header("content-type"), Some("application/json; charset=utf-8"));
        for foreign in ["server", "set-cookie", "access-control-allow-origin", "location"] {
            assert_eq!(response.header(foreign), None, "{foreign} of upstream");
        }
    }
}

#[tokio::test]
async fn upstream_error_codes_are_relayed_and_writes_sent_once() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    // Client, blocked, transient, unknown, negative, and huge codes: writes are never retried.
    for code in [30001, 30003, 20003, 30006, 90001, 99_999_999, -1, i64::MAX] {
        let before = chat.call_count();
        chat.reply_always(Reply::json(error_response(code, "no")));
        gateway.call("openim/sendmsg", r#"{"MsgRandom":1}"#).await.assert_relayed(200, error_response(code, "no"));
        assert_eq!(chat.call_count(), before + 1, "{code}");
    }
}

#[tokio::test]
async fn echoed_usersig_is_redacted() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let percent =
        |sig: &str| percent_encoding::utf8_percent_encode(sig, percent_encoding::NON_ALPHANUMERIC).to_string();
    // 30003 does not park anything, so each round makes its own call.
    let frame =
        |middle: &str| format!(r#"{{"ErrorCode":30003,"ActionStatus":"FAIL","ErrorInfo":"bad sig {middle}, sorry"}}"#);
    for round in 0..4 {
        chat.script(move |call| {
            let sig = call.usersig();
            Some(match round {
                0 => Reply::json(frame(&sig)),
                1 => Reply::json(frame(&percent(&sig))),
                2 => Reply::json(frame(&format!("{sig}{sig}&usersig={sig}"))),
                _ => Reply::typed(200, &format!("application/json; echo={sig}"), frame("no")),
            })
        });
        for command in ["openim/querystate", "follow/follow_check"] {
            let response = gateway.call(command, r#"{"From_Account":"a","To_Account":["b"]}"#).await;
            let sig = chat.last_call().usersig();
            assert!(sig.len() > 100, "{sig}");
            // Reading the response already searches it for every signature; see `support::secrets`.
            let text = response.text();
            assert!(
                !text.contains(&sig[..40]) && !text.contains(&sig[sig.len() - 40..]),
                "a part is not redacted: {text}"
            );
            if response.slug().is_none() {
                assert!(
                    text.starts_with(r#"{"ErrorCode":30003,"ActionStatus":"FAIL","ErrorInfo":"bad sig "#),
                    "{text}"
                );
                assert!(text.ends_with(r#", sorry"}"#), "{text}");
            }
            if round < 3 {
                assert_eq!(response.slug(), None, "redacted, not rejected: {text}");
            }
        }
    }
}

#[tokio::test]
async fn valid_request_id_is_kept_and_others_are_replaced() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let request = |id: &str| TestRequest::command("openim/querystate").header("X-Request-Id", id);
    let longest = "~".repeat(128);
    for valid in ["a", "0af7651916cd43dd", "!\"#{}", longest.as_str()] {
        assert_eq!(gateway.send(request(valid)).await.request_id(), valid);
    }
    let too_long = "x".repeat(129);
    for invalid in ["", "two words", "tab\there", "ünicode", too_long.as_str()] {
        let response = gateway.send(request(invalid)).await;
        response.assert_relayed(200, OK);
        assert_ne!(response.request_id(), invalid);
    }
    let twice = TestRequest::command("openim/querystate").header("X-Request-Id", "one").header("X-Request-Id", "two");
    gateway.send(twice).await.request_id();
    let generated: HashSet<String> = [
        gateway.call("openim/querystate", "{}").await.request_id().to_owned(),
        gateway.call("openim/querystate", "{}").await.request_id().to_owned(),
        gateway.send(TestRequest::post("/nowhere")).await.request_id().to_owned(),
    ]
    .into();
    assert_eq!(generated.len(), 3, "each request has its own id: {generated:?}");
    assert_eq!(gateway.send(TestRequest::post("/nowhere").header("X-Request-Id", "kept")).await.request_id(), "kept");
}

#[tokio::test]
async fn upstream_response_is_accepted_in_any_valid_framing() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let chunked = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{OK}\r\n0\r\n\r\n", OK.len());
    let until_close = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{OK}");
    let old = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{OK}", OK.len());
    for bytes in [chunked, until_close, old] {
        chat.reply_always(Reply::bytes(bytes));
        gateway.call("openim/querystate", "{}").await.assert_relayed(200, OK);
    }
    chat.reply_always(ReplyKind::Response { status: 200, content_type: None, body: OK.into() }.into());
    let response = gateway.call("openim/querystate", "{}").await;
    response.assert_relayed(200, OK);
}

#[tokio::test]
async fn closed_idle_upstream_connection_fails_no_request() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    for round in 1..=5 {
        gateway.call("openim/querystate", "{}").await.assert_relayed(200, OK);
        assert_eq!(chat.call_count(), round);
        chat.drop_connections();
        gateway.round_trips().await;
    }
    assert_eq!(chat.accepted_connections(), 5);
}

#[tokio::test]
async fn connections_are_reused_in_both_directions() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let mut conn = gateway.connect().await;
    for _ in 0..20 {
        conn.request(&TestRequest::command("openim/querystate")).await.assert_relayed(200, OK);
    }
    assert_eq!(chat.accepted_connections(), 1, "sequential requests share one upstream connection");
}

#[tokio::test]
async fn json_objects_are_relayed_unchanged_over_http2() {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let http2 = crate::support::h2::Http2::open(gateway.address()).await;
    let mut runner = TestRunner::deterministic();
    let texts = r#"[ \t]{0,3}\{"k[0-9a-f]{1,6}":[ ]{0,2}("[^"\\\x00-\x1f]{0,40}"|-?(0|[1-9][0-9]{0,30})(\.[0-9]{1,9})?|\[null, true ,\{\}\])[ ]?\}"#;
    let texts = proptest::string::string_regex(texts).expect("a pattern");
    for _ in 0..60 {
        let body = texts.new_tree(&mut runner).expect("a text").current();
        let response = format!("{}{}", &OK[..OK.len() - 1], format_args!(",\"Echo\":{body}}}"));
        chat.reply_always(Reply::json(response.clone()));
        http2.request(&TestRequest::command("openim/querystate").body(&body)).await.assert_relayed(200, &response);
        assert_eq!(chat.last_call().body, body.as_bytes());
    }
}
