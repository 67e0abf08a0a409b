//! Messages: they name what is wrong, quote what may be quoted, repeat nothing from outside, and have a bound.

use serde_json::{Value, json};

use crate::doctor::{HEX, HEX_KEY, Simulator};
use crate::support::app::{MAIN, OTHER, TestApp};
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest, check_body};
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::process::{Process, ProcessOutput};
use crate::support::reply::Reply;
use crate::support::setup::{Setup, gateway};
use crate::support::tls::Ca;

const REGION: &str = r#"region = "singapore""#;

/// Returns the text of an error response, without the name of the program.
async fn error_text(gateway: &Gateway, request: TestRequest) -> String {
    let response = gateway.send(request).await;
    let text = response.json()["ErrorInfo"].as_str().expect("a text").to_owned();
    text.strip_prefix("chatgate: ").expect("a message of chatgate").to_owned()
}

async fn run(setup: &Setup, args: &[&str], env: &[(&str, &str)]) -> ProcessOutput {
    Process::run(args, setup.dir(), env).await
}

#[tokio::test]
async fn bad_parameter_names_the_parameter() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let check = |body: &str| TestRequest::command("follow/follow_check").body(body);
    let long = "x".repeat(33);
    for (request, text) in [
        (check(r#"{"To_Account":["b"]}"#), "From_Account is missing"),
        (check(r#"{"From_Account":"a"}"#), "To_Account is missing"),
        (check(r#"{"From_Account":1,"To_Account":["b"]}"#), "From_Account must be a string"),
        (check(r#"{"From_Account":"a","To_Account":["b","c",7]}"#), "To_Account[2] is not a string"),
        (check(&check_body("a", &["b", ""])), "To_Account[1] is empty"),
        (check(&check_body("a", &["b", "c", "d", &long])), "To_Account[3] is longer than 32 bytes"),
        (check(&check_body("a\n", &["b"])), "From_Account contains a control character"),
        (
            TestRequest::post("/v4/openim/querystate?random=1&call_back=private"),
            "unknown query parameter call_back; put arguments in the JSON body",
        ),
    ] {
        assert_eq!(error_text(&gateway, request).await, text);
    }
    let key = HEX_KEY;
    for name in [key, "eJwtzLsOgjAYQOF3", "private%20name", "private.name", &"private-".repeat(9)] {
        let request = TestRequest::post(&format!("/v4/openim/querystate?{name}=private"));
        let text = error_text(&gateway, request).await;
        assert_eq!(text, "a query parameter is unknown; put arguments in the JSON body");
    }
    for (request, text) in [
        (TestRequest::post("/apps/other/v4/openim/querystate"), "no app named other is configured"),
        (TestRequest::command("openim/querystate").header("Chatgate-App", "Other"), "no app named Other is configured"),
        (TestRequest::command("openim/querystate").header("Chatgate-App", key), "no app with this name is configured"),
        (
            TestRequest::command("openim/querystate").header("Chatgate-App", "a b"),
            "no app with this name is configured",
        ),
        (TestRequest::post("/v4/openim/querystate?sdkappid=7"), "no app with sdkappid 7 is configured"),
        (TestRequest::post("/v4/openim/querystate?sdkappid=private"), "sdkappid is not the number of an app"),
    ] {
        assert_eq!(error_text(&gateway, request).await, text);
    }
    assert!(!gateway.log().contains("private") && !gateway.log().contains(key));
    assert_eq!(chat.call_count(), 0);
}

#[tokio::test]
async fn command_that_could_be_a_key_is_not_repeated() {
    let chat = FakeChat::start().await;
    let access = r#"allow = ["openim/*"]"#;
    let gateway = Setup::new(&chat).set("access", access).set("log", r#"requests = "all""#).start().await;
    let text = error_text(&gateway, TestRequest::command(&format!("follow/{HEX_KEY}"))).await;
    assert_eq!(text, "other is not allowed; to allow it, add it to access.allow");
    let text = error_text(&gateway, TestRequest::command("follow/follow_add")).await;
    assert!(text.starts_with("follow/follow_add is not allowed"), "{text}");
    // Chat parks the command, which is a line of the log.
    chat.reply_always(Reply::json(r#"{"ActionStatus":"FAIL","ErrorCode":60017,"ErrorInfo":"disabled"}"#));
    gateway.call(&format!("openim/{HEX_KEY}"), "{}").await;
    eventually("the command is parked", async || gateway.log().contains("command parked").then_some(())).await;
    assert!(!gateway.log().contains(&HEX_KEY[..16]), "{}", gateway.log());
}

#[tokio::test]
async fn long_text_of_chat_is_shortened_in_log_and_response() {
    let chat = FakeChat::start().await;
    for (format, info) in [("json", "\u{1}\"".repeat(50_000)), ("text", "\u{e4}".repeat(50_000))] {
        let body = json!({"ActionStatus": "FAIL", "ErrorCode": 60017, "ErrorInfo": info}).to_string();
        chat.reply_always(Reply::json(body.clone()));
        let setup = Setup::new(&chat).set("log", &format!("format = \"{format}\""));
        let gateway = if format == "json" { setup.start().await } else { setup.start_at_fixed_addresses().await };
        let call = || TestRequest::command("openim/querystate");
        gateway.send(call()).await.assert_relayed(200, &body);
        let text = error_text(&gateway, call()).await;
        assert!(text.starts_with("parked: Chat rejects these calls with 60017") && text.len() <= 1024, "{text}");
        let parked = |line: &str| line.contains("command parked");
        let line = eventually("the command is parked", async || {
            gateway.log().lines().find(|line| parked(line)).map(str::to_owned)
        })
        .await;
        assert!(line.len() <= 1024, "{} bytes", line.len());
        if format == "json" {
            let line: Value = serde_json::from_str(&line).expect("an object");
            assert_eq!((&line["level"], &line["error_code"]), (&"WARN".into(), &60017.into()), "{line}");
        }
    }
}

#[tokio::test]
async fn names_in_the_certificate_of_a_peer_are_not_logged() {
    let ca = Ca::new();
    let chat = FakeChat::start_tls(ca.acceptor("private-name.example")).await;
    let setup = Setup::without_apps();
    let file = setup.file("ca.pem", &ca.pem());
    let setup = setup.app(MAIN, &format!("{}\nca_file = '{}'", chat.app_lines(), file.display()));
    let gateway = setup.set("log", r#"level = "debug""#).timeout("1s").start().await;
    gateway.call("openim/querystate", "{}").await.assert_error(502, "upstream_unreachable", 129_502);
    let cause = async || gateway.log().lines().find(|line| line.contains("\"cause\":")).map(str::to_owned);
    let line = eventually("the cause is logged", cause).await;
    assert!(line.contains("its certificate is for another name"), "{line}");
    assert!(!gateway.log().contains("private-name"), "{}", gateway.log());
}

#[tokio::test]
async fn check_quotes_wrong_values_but_never_a_key() {
    let setup = Setup::without_apps().app(MAIN, r#"region = "mars""#);
    let setup = setup.set("server", r#"listen = "http://127.0.0.1:8700""#).set("log", r#"level = "loud""#);
    let file = setup.write();
    let args = ["check", "--config", &*file.to_string_lossy()];
    std::fs::remove_file(setup.dir().join("main.key")).expect("own file");
    let outcome = run(&setup, &args, &[]).await;
    assert_eq!(outcome.code, 78, "{outcome:?}");
    let key_file = setup.dir().join("main.key");
    for part in [
        "unknown region: \"mars\"; valid regions",
        "leave the scheme out, as in \"127.0.0.1:8700\"",
        "\"loud\"",
        &format!("cannot read the file (no such file): \"{}\"; check", key_file.display()),
    ] {
        assert!(outcome.stderr.contains(part), "{part}\n{}", outcome.stderr);
    }
    let text = setup.text().replace(&key_file.display().to_string(), HEX_KEY).replace("mars", HEX_KEY);
    std::fs::write(&file, text).expect("own file");
    let outcome = run(&setup, &args, &[("CHATGATE__LOG__LEVEL", HEX_KEY)]).await;
    assert_eq!(outcome.code, 78, "{outcome:?}");
    assert!(outcome.stderr.contains("not the secret itself") && !outcome.stderr.contains(&HEX_KEY[..8]), "{outcome:?}");
    // clap repeats wrong arguments.
    let outcome = run(&setup, &["usersig", "mint", "--sdkappid", HEX_KEY], &[]).await;
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("--sdkappid") && !outcome.stderr.contains(&HEX_KEY[..8]), "{outcome:?}");
}

#[tokio::test]
async fn variables_with_one_underscore_are_warned_of_unless_kubernetes_sets_them() {
    let setup = Setup::without_apps().app(MAIN, REGION);
    let file = setup.write();
    let args = ["check", "--config", &*file.to_string_lossy()];
    let outcome = run(&setup, &args, &[("CHATGATE_SERVER_LISTEN", "127.0.0.1:1")]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let expected = "warning: CHATGATE_SERVER_LISTEN: has no effect";
    assert!(outcome.stderr.contains(expected) && outcome.stderr.contains("CHATGATE__SERVER__LISTEN"), "{outcome:?}");
    let of_kubernetes = [
        ("CHATGATE_SERVICE_HOST", "10.0.0.1"),
        ("CHATGATE_SERVICE_PORT", "8700"),
        ("CHATGATE_SERVICE_PORT_HTTP", "8700"),
        ("CHATGATE_PORT", "tcp://10.0.0.1:8700"),
        ("CHATGATE_PORT_8700_TCP", "tcp://10.0.0.1:8700"),
        ("CHATGATE_PORT_8700_TCP_ADDR", "10.0.0.1"),
        ("CHATGATE_CONFIG", "unused"),
    ];
    let outcome = run(&setup, &args, &of_kubernetes).await;
    assert!(outcome.code == 0 && !outcome.stderr.contains("no effect"), "{outcome:?}");
}

#[tokio::test]
async fn check_and_doctor_say_what_a_key_looks_like() {
    let setup = Setup::without_apps();
    let simulator = Simulator::start(&setup, &[]).await;
    let setup = setup.app(HEX, &simulator.app_lines());
    let file = setup.write();
    let base64 = "NWVjMmU3MGJhZGMwZGU1ZWMyZTcwYmFkYzBkZTVlYzI=";
    for (key, words) in [
        (format!("\"{HEX_KEY}\""), "looks like a key in quotes"),
        (format!("CHAT_KEY={HEX_KEY}"), "looks like NAME=VALUE"),
        ("${CHAT_KEY}".to_owned(), "looks like a placeholder such as ${NAME}"),
        (base64.to_owned(), "looks like base64"),
    ] {
        simulator.control("reset", "{}").await;
        setup.file("main.key", &key);
        let check = run(&setup, &["check", "--config", &file.to_string_lossy()], &[]).await;
        assert_eq!(check.code, 0, "{check:?}");
        assert!(check.stderr.contains("app[0].secret_key_file") && check.stderr.contains(words), "{check:?}");
        let doctor = run(&setup, &["doctor", "--config", &file.to_string_lossy()], &[]).await;
        assert_eq!(doctor.code, 12, "{doctor:?}");
        assert!(doctor.stdout.matches(words).count() == 2, "{doctor:?}");
        for text in [&check.stdout, &check.stderr, &doctor.stdout, &doctor.stderr] {
            assert!(!text.contains(&HEX_KEY[..8]) && !text.contains(base64) && !text.contains("CHAT_KEY"), "{text}");
        }
    }
}

#[tokio::test]
async fn inspect_recognizes_what_was_pasted_in_place_of_a_signature() {
    // SDKAppIDs of their own, as in the tests of `usersig mint`.
    let app = TestApp { sdkappid: OTHER.sdkappid - 2_000_000, ..OTHER };
    let setup = Setup::without_apps().app(app, REGION);
    let config = setup.write().to_string_lossy().into_owned();
    let minted = run(&setup, &["usersig", "mint", "--config", &config], &[]).await;
    let sig = minted.stdout.trim_end().to_owned();
    let encoded = sig.replace('*', "%2A").replace('-', "%2D").replace('_', "%5F");
    let url = format!("https://console.tim.qq.com/v4/a/b?sdkappid=1&identifier=x&usersig={encoded}&random=1");
    for (text, words) in [
        (format!("\"{sig}\""), &["in quotes; paste"][..]),
        (encoded.replace("eJ", "%65J"), &["percent-encoded; paste"]),
        (format!("usersig={sig}"), &["a URL or a part of one; paste"]),
        (
            format!("'{}'", url.replace("eJ", "%65J")),
            &["in quotes; paste", "a URL or a part", "percent-encoded; paste"],
        ),
    ] {
        let outcome = run(&setup, &["usersig", "inspect", &text, "--config", &config], &[]).await;
        assert_eq!(outcome.code, 0, "{outcome:?}");
        assert!(words.iter().all(|words| outcome.stdout.contains(&format!("input        {words}"))), "{outcome:?}");
        assert!(outcome.stdout.contains("valid        yes") && !outcome.stdout.contains(&sig[..16]), "{outcome:?}");
    }
    for (text, words) in [
        (format!("https://x/?usersig={sig}&usersig={sig}"), "several parameters usersig"),
        ("https://x/?sdkappid=1".to_owned(), "without a parameter usersig"),
        (format!("\"{}\"", &sig[..40]), "in quotes; paste"),
    ] {
        let outcome = run(&setup, &["usersig", "inspect", &text, "--config", &config], &[]).await;
        assert_eq!(outcome.code, 1, "{outcome:?}");
        assert!(outcome.stdout.contains(words) && outcome.stdout.contains("valid        no: "), "{outcome:?}");
    }
}

#[tokio::test]
async fn simulator_control_errors_repeat_nothing() {
    let setup = Setup::without_apps();
    let simulator = Simulator::start(&setup, &[]).await;
    for (name, body) in [
        ("clock", r#"{"skew":"private"}"#),
        ("clock", r#"{"private":1}"#),
        ("clock", r#""private""#),
        ("faults", r#"{"drop":true,"next":"private"}"#),
        ("faults", r#"{"drop":true,"next":1,"command":"private"}"#),
        ("graph", r#"{"users":"private"}"#),
        ("graph", r#"{"users":["private\n"]}"#),
        ("graph", r#"{"edges":[["private","private"]]}"#),
        ("graph", r#"{"edges":[["private"]]}"#),
    ] {
        let mut conn = Conn::open(simulator.address()).await.expect("a listening simulator");
        let response = conn.request(&TestRequest::post(&format!("/__sandbox/{name}")).body(body)).await;
        assert_eq!(response.status, 400, "{body}");
        assert!(!response.text().contains("private") && response.text().len() < 300, "{}", response.text());
    }
}
