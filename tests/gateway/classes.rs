//! Callers of class `batch`: their calls come after those of interactive callers, and leave the reserve alone.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::fleet;
use crate::quota::{max_calls_in, one_second_window};
use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::cpu_waits::CpuWaits;
use crate::support::eventually;
use crate::support::exposition::Exposition;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::redis::Redis;
use crate::support::reply::{Gate, Reply};
use crate::support::response::Response;
use crate::support::setup::Setup;
use crate::support::turn;

const FEED: &str = "feed.token~of~marked~letters+that/no/log/may/show/in/any/place/at/all==";
const JOB: &str = "job.token~of~marked~letters+that/no/log/may/show/in/any/place/at/all==";

/// A setup with an interactive caller `feed` and a batch caller `job`.
fn setup(chat: &FakeChat) -> Setup {
    Setup::without_apps().app(MAIN, &chat.app_lines()).caller("feed", FEED, "allow = ['*']").caller(
        "job",
        JOB,
        "allow = ['*']\nclass = 'batch'",
    )
}

/// Sends a check on a connection of its own, which keeps the response for later.
async fn send_check(gateway: &Gateway, token: &str, from: &str, to: &str) -> Conn {
    let mut conn = gateway.connect().await;
    conn.send(TestRequest::check(from, &[to]).token(token).bytes()).await;
    conn
}

async fn wait_for_queued(gateway: &Gateway, pairs: usize) {
    eventually("the pairs are queued", async || {
        let seen = Exposition::parse(&gateway.admin_get("/metrics").await.text());
        (seen.sum("chatgate_pairs_queued", &[]) == pairs as f64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn interactive_lookups_go_before_batch_lookups() {
    let (chat, gate) = (FakeChat::start().await, Gate::closed());
    let gateway = setup(&chat)
        .set("upstream", "max_in_flight = 1")
        .timeout("15s")
        .set("follow_check", "flip = false")
        .start()
        .await;
    let script_gate = gate.clone();
    chat.script(move |call| (call.source_account() == "first").then(|| Reply::from_graph().after(&script_gate)));
    let mut conns = vec![send_check(&gateway, FEED, "first", "second").await];
    chat.wait_for_calls(1).await;
    for number in 0..5 {
        conns.push(send_check(&gateway, JOB, &format!("row{number}"), "star").await);
    }
    wait_for_queued(&gateway, 5).await;
    conns.push(send_check(&gateway, FEED, "ann", "bob").await);
    wait_for_queued(&gateway, 6).await;
    // It joins the pair of a batch request, which no longer waits with the other batch pairs.
    conns.push(send_check(&gateway, FEED, "row4", "star").await);
    eventually("the pair is joined", async || {
        (gateway.admin_get("/status").await.json()["apps"][0]["queue"]["pairs_waited_for"] == 8).then_some(())
    })
    .await;
    gate.open();
    for conn in &mut conns {
        assert_eq!(conn.read_response().await.follow_types(), [0]);
    }
    let order: Vec<String> = chat.calls().iter().map(|call| call.source_account()).collect();
    // The pair that was queued first is first among those of the interactive caller.
    assert_eq!(order[..3], ["first", "row4", "ann"]);
    assert_eq!(order.len(), 7, "{order:?}");
}

#[tokio::test]
async fn class_of_a_caller_is_shown() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat).start().await;
    for token in [FEED, JOB] {
        gateway.send(TestRequest::check("ann", &["bob"]).token(token)).await.follow_types();
    }
    let metrics = gateway.admin_get("/metrics").await.text();
    for (caller, class) in [("feed", "interactive"), ("job", "batch")] {
        let sample = format!("chatgate_caller_info{{caller=\"{caller}\",class=\"{class}\"}} 1\n");
        assert!(metrics.contains(&sample), "{sample}{metrics}");
    }
    let status = gateway.admin_get("/status").await.json();
    let callers = status["apps"][0]["callers"].as_array().expect("callers").clone();
    let classes: Vec<_> = callers.iter().map(|caller| (caller["name"].clone(), caller["class"].clone())).collect();
    assert_eq!(classes, [("feed".into(), "interactive".into()), ("job".into(), "batch".into())]);
    assert_eq!(status["config"]["caller"][1]["class"], "batch");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batch_calls_leave_the_reserve_alone_and_are_rejected_in_time() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let setup = setup(&chat).set("app.quota", r#"per_command = "20/s""#).set("app.quota", r#"reserve = "10/s""#);
    let gateway = setup.timeout("2s").start().await;
    let waits = CpuWaits::start(&gateway);
    let request = TestRequest::command("openim/querystate").token(JOB);
    let responses = crate::quota::send_from_callers(&gateway, &request, 40, Duration::from_secs(5)).await;
    crate::quota::assert_relayed_or_rate_limited(&responses);
    assert!(responses.iter().any(|response| response.status == 429), "no request was rejected");
    let times: Vec<Instant> = chat.calls().iter().map(|call| call.at).collect();
    let most = max_calls_in(one_second_window(&waits), &times);
    assert!(most <= 10 && times.len() >= 15, "{most} calls in one second, {} in all", times.len());
}

/// Sends a command this many times at once, over one connection.
async fn send_commands(gateway: &Gateway, token: &str, command: &str, count: usize) -> JoinSet<Response> {
    let http2 = Http2::open(gateway.address()).await;
    let request = TestRequest::command(command).token(token);
    let send = |_| {
        let (http2, request) = (http2.clone(), request.clone());
        async move { http2.request(&request).await }
    };
    (0..count).map(send).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn total_of_a_fleet_goes_to_interactive_calls_of_another_command() {
    let _exclusive = turn::exclusive().await;
    let redis = Redis::start().await;
    // Redis grants 250 ms ahead: less than the time between two calls, and more.
    for total in ["2/s", "20/s"] {
        let chat = FakeChat::start().await;
        let setup = setup(&chat).set("fleet", &format!("redis = \"redis://{}\"", redis.address()));
        let setup = setup.set("fleet", &format!("prefix = \"at{}\"", &total[..1]));
        let gateway = fleet::replica(setup.set("app.quota", &format!("total = \"{total}\"")).timeout("30s")).await;
        let mut batch = Vec::new();
        for command in ["openim/querystate", "profile/portrait_get", "follow/follow_get"] {
            batch.push(send_commands(&gateway, JOB, command, 15).await);
        }
        chat.wait_for_calls(2).await;
        for response in send_commands(&gateway, FEED, "openim/sendmsg", 10).await.join_all().await {
            response.assert_relayed(200, OK);
        }
        drop(batch);
        let order: Vec<bool> = chat.calls().iter().map(|call| call.command() == "openim/sendmsg").collect();
        let interactive: Vec<usize> = (0..order.len()).filter(|at| order[*at]).collect();
        // All of them are ready when the second one goes.
        let between = interactive[9] - interactive[1] - 8;
        assert!(between <= 1, "{between} batch calls went first at {total}: {order:?}");
        assert_eq!(fleet::mode(&gateway).await, "connected", "{}", gateway.log());
    }
}

#[tokio::test]
async fn interactive_request_for_queued_batch_pairs_is_rejected_in_time() {
    let _exclusive = turn::exclusive().await;
    let (chat, gate) = (FakeChat::start().await, Gate::closed());
    chat.reply_always(Reply::from_graph().after(&gate));
    let setup = setup(&chat).set("app.quota", r#"per_command = "1/s""#).set("follow_check", "flip = false");
    let gateway = setup.set("upstream", "max_in_flight = 1").timeout("60s").start().await;
    let mut conns = vec![send_check(&gateway, FEED, "first", "second").await];
    chat.wait_for_calls(1).await;
    conns.push(send_check(&gateway, JOB, "row", "star").await);
    for number in 0..15 {
        conns.push(send_check(&gateway, FEED, &format!("ann{number}"), "bob").await);
    }
    wait_for_queued(&gateway, 16).await;
    // The pair would be the last one of the interactive caller, in 15 seconds.
    let request = TestRequest::check("row", &["star"]).token(FEED).header("Chatgate-Timeout", "5s");
    let response = gateway.send(request).await;
    response.assert_error(429, "rate_limited", 60007);
    assert!(response.retry_after() > 5, "{response:?}");
    gate.open();
}
