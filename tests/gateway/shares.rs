//! Quotas and fairness between callers with different tokens.

use std::time::{Duration, Instant};

use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::reply::{Gate, Reply};
use crate::support::response::Response;
use crate::support::setup::Setup;
use crate::support::{now, turn};

const MANY: &str = "many.token~of~marked~letters+that/no/log/may/show/in/any/place/at/all==";
const FEW: &str = "few.token~of~marked~letters+that/no/log/may/show/in/any/place/at/all==";

/// A setup with two callers that may use every command. `many` holds extra lines for the first one.
fn setup(chat: &FakeChat, many: &str) -> Setup {
    Setup::without_apps().app(MAIN, &chat.app_lines()).caller("many", MANY, &format!("allow = ['*']\n{many}")).caller(
        "few",
        FEW,
        "allow = ['*']",
    )
}

/// Sends all requests at once, each on its own stream of one HTTP/2 connection.
async fn send_concurrently(gateway: &Gateway, requests: Vec<TestRequest>) -> Vec<Response> {
    let http2 = Http2::open(gateway.address()).await;
    let tasks: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let http2 = http2.clone();
            tokio::spawn(async move { http2.request(&request).await })
        })
        .collect();
    let mut responses = Vec::new();
    for task in tasks {
        responses.push(task.await.expect("no panic"));
    }
    responses
}

/// Asserts that each request succeeded or got `Retry-After`, and counts the successes.
#[track_caller]
fn count_served(responses: &[Response]) -> usize {
    for response in responses.iter().filter(|response| response.status != 200) {
        response.assert_error(429, "rate_limited", 60007);
        assert!(response.retry_after() <= 60 && response.text().contains("caller many"), "{response:?}");
    }
    responses.iter().filter(|response| response.status == 200).count()
}

#[tokio::test]
async fn caller_quota_covers_all_commands_and_no_other_caller() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "quota = '2/s'").timeout("2s").start().await;
    let commands = ["openim/querystate", "openim/sendmsg", "profile/portrait_get"];
    let requests = (0..30).map(|n| TestRequest::command(commands[n % 3]).token(MANY)).collect();
    let start = now();
    let (many, few) = tokio::join!(send_concurrently(&gateway, requests), async {
        let mut conn = gateway.connect().await;
        for _ in 0..100 {
            conn.request(&TestRequest::command("openim/querystate").token(FEW)).await.assert_relayed(200, OK);
        }
        start.elapsed()
    });
    // One call at once, then one every 500 ms until the deadline of 2 s, plus one more if the last requests
    // arrived slightly later.
    let served = count_served(&many);
    assert!((3..=5).contains(&served), "{served} of 30 served");
    assert_eq!(chat.call_count(), served + 100);
    // At the first caller's quota, the 100 calls would take 50 s.
    assert!(few < Duration::from_secs(20), "the other caller took {few:?}");
}

#[tokio::test]
async fn exhausted_caller_quota_rejects_at_once() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "quota = '1/s'").timeout("500ms").start().await;
    gateway.send(TestRequest::command("openim/querystate").token(MANY)).await.assert_relayed(200, OK);
    let start: Instant = now();
    let relayed = gateway.send(TestRequest::command("openim/sendmsg").token(MANY)).await;
    let checked = gateway.send(TestRequest::check("a", &["b"]).token(MANY)).await;
    let bypassing = gateway.send(TestRequest::command("follow/follow_check").body(r#"{"x":1}"#).token(MANY)).await;
    // None of the three requests waited until its deadline.
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    assert_eq!(count_served(&[relayed, checked, bypassing]), 0);
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn command_quota_rejection_does_not_consume_caller_quota() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let setup = setup(&chat, "quota = '2/s'").set("app.quota", "commands = { \"openim/sendmsg\" = \"1/s\" }");
    let gateway = setup.timeout("300ms").start().await;
    let request = |command: &str| TestRequest::command(command).token(FEW);
    gateway.send(request("openim/sendmsg")).await.assert_relayed(200, OK);
    // The caller with a quota finds the command quota exhausted on every request.
    for _ in 0..5 {
        let many = gateway.send(TestRequest::command("openim/sendmsg").token(MANY)).await;
        many.assert_error(429, "rate_limited", 60007);
        assert!(many.text().contains("quota for openim/sendmsg"), "{many:?}");
    }
    gateway.send(TestRequest::command("openim/querystate").token(MANY)).await.assert_relayed(200, OK);
}

#[tokio::test]
async fn lookups_consume_caller_quota_per_call_and_hits_none() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "quota = '1/s'").set("cache", r#"ttl = "1h""#).timeout("500ms").start().await;
    let to: Vec<String> = (0..101).map(|n| format!("to{n}")).collect();
    let check = |to: &[String]| TestRequest::check("ann", to).token(MANY);
    // The quota allows one call per second, never two at once.
    let impossible = gateway.send(check(&to)).await;
    assert!(impossible.text().contains("this request needs 2 calls"), "{impossible:?}");
    assert_eq!(count_served(&[impossible]), 0);
    assert_eq!(chat.call_count(), 0);
    assert_eq!(gateway.send(check(&to[..100])).await.follow_types().len(), 100);
    assert_eq!(count_served(&[gateway.send(check(&to)).await]), 0, "the quota is exhausted");
    for _ in 0..50 {
        assert_eq!(gateway.send(check(&to[..100])).await.cache_status().outcome, "hit");
    }
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn joined_lookups_consume_no_caller_quota() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "quota = '1/s'").set("cache", r#"ttl = "1h""#).start().await;
    let to: Vec<String> = (0..101).map(|n| format!("to{n}")).collect();
    let check = |to: &[String]| TestRequest::check("ann", to).token(MANY);
    assert_eq!(gateway.send(check(&to[..100])).await.follow_types().len(), 100);
    let gate = Gate::closed();
    chat.reply_once(Reply::from_graph().after(&gate));
    let other = gateway.send(TestRequest::check("ann", &to[100..]).token(FEW));
    let joining = async {
        chat.wait_for_calls(2).await;
        let mut conn = gateway.connect().await;
        conn.send(check(&to).bytes()).await;
        gateway.wait_for_in_flight(2).await;
        gateway.round_trips().await;
        gate.open();
        conn.read_response().await
    };
    // If the lookup consumed quota, it would wait and then find the pair cached.
    let (other, joined) = tokio::join!(other, joining);
    assert_eq!((other.follow_types().len(), joined.follow_types().len()), (1, 101));
    assert_eq!(joined.cache_status().counts(), (100, 1, 0));
    assert_eq!(chat.call_count(), 2);
}

#[tokio::test]
async fn caller_quota_limits_separate_lookups() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "quota = '2/s'").timeout("2s").start().await;
    let requests = (0..30).map(|n| TestRequest::check(&format!("from{n}"), &[format!("to{n}")]).token(MANY)).collect();
    let served = count_served(&send_concurrently(&gateway, requests).await);
    assert!((3..=5).contains(&served), "{served} of 30 served");
    assert!(chat.call_count() <= served, "{} calls for {served}", chat.call_count());
}

#[tokio::test]
async fn one_caller_gets_at_most_half_of_max_requests() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "").set("server", "max_requests = 4").start().await;
    let gate = Gate::closed();
    let script_gate = gate.clone();
    chat.script(move |call| (call.command() == "openim/sendmsg").then(|| Reply::from_graph().after(&script_gate)));
    let waiting = Http2::open(gateway.address()).await;
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let waiting = waiting.clone();
            tokio::spawn(async move { waiting.request(&TestRequest::command("openim/sendmsg").token(MANY)).await })
        })
        .collect();
    chat.wait_for_calls(2).await;
    let query = || TestRequest::command("openim/querystate");
    let response = gateway.send(query().token(MANY)).await;
    response.assert_error(503, "overloaded", 129_503);
    assert!(response.text().contains("one caller") && response.retry_after() == 1, "{response:?}");
    gateway.send(query().token(FEW)).await.assert_relayed(200, OK);
    gate.open();
    for response in waiting {
        response.await.expect("no panic").assert_relayed(200, OK);
    }
    gateway.send(query().token(MANY)).await.assert_relayed(200, OK);
}

/// Floods the gateway from one caller and asserts that the other one is served. Both use one connection, so only
/// their tokens differ.
async fn assert_fair_under_flood(request_of: impl Fn(&str, usize) -> TestRequest) {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "").set("app.quota", r#"per_command = "5/s""#).timeout("12s").start().await;
    let http2 = Http2::open(gateway.address()).await;
    let flood: Vec<_> = (0..90)
        .map(|n| {
            let http2 = http2.clone();
            let requests: Vec<TestRequest> =
                (0..200).map(|round| request_of("many", n + 90 * round).token(MANY)).collect();
            tokio::spawn(async move {
                for request in requests {
                    if http2.request(&request).await.status != 200 {
                        // A rejected caller does not retry at once.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            })
        })
        .collect();
    chat.wait_for_calls(2).await;
    gateway.round_trips().await;
    for n in 0..4 {
        // On the connection of the flood.
        let response = http2.request(&request_of("few", n).token(FEW)).await;
        assert_eq!((response.status, response.slug()), (200, None), "{response:?}");
    }
    flood.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn flood_of_calls_does_not_starve_another_caller() {
    assert_fair_under_flood(|_, _| TestRequest::command("openim/querystate")).await;
}

#[tokio::test]
async fn flood_of_lookups_does_not_starve_another_caller() {
    assert_fair_under_flood(|caller, n| TestRequest::check(&format!("{caller}{n}"), &[format!("to-{caller}{n}")]))
        .await;
}
