//! Calls per second, as upstream sees them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::cpu_waits::CpuWaits;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::response::Response;
use crate::support::setup::Setup;
use crate::support::{now, turn, within};

/// The window that counts as one second. The fake stamps calls when it reads them, which is slightly and
/// variably later than they arrive. On a busy machine the delay grows to the time that threads waited for a CPU,
/// so the window shrinks by it. The window is always long enough to catch calls that go out together.
pub(crate) fn one_second_window(waits: &CpuWaits) -> Duration {
    Duration::from_millis(990).saturating_sub(waits.total()).max(Duration::from_millis(300))
}

/// Returns the call rate that must be reached: 90% of the limit, or 50% if threads waited long for a CPU.
pub(crate) fn min_rate(limit: f64, waits: &CpuWaits) -> f64 {
    limit * if waits.total() < Duration::from_millis(300) { 0.9 } else { 0.5 }
}

/// Returns the highest number of calls in any window of that length.
pub(crate) fn max_calls_in(second: Duration, times: &[Instant]) -> usize {
    let mut times = times.to_vec();
    times.sort();
    (0..times.len()).map(|i| times[i..].partition_point(|time| *time < times[i] + second)).max().unwrap_or(0)
}

/// Returns the mean calls per second from the first call to the last.
pub(crate) fn mean_rate(times: &[Instant]) -> f64 {
    let span = times[times.len() - 1] - times[0];
    (times.len() - 1) as f64 / span.as_secs_f64()
}

/// Sends this request repeatedly from `callers` callers for `span`. Returns all responses.
pub(crate) async fn send_from_callers(
    gateway: &Gateway,
    request: &TestRequest,
    callers: usize,
    span: Duration,
) -> Vec<Response> {
    let until = now() + span;
    let tasks: Vec<_> = (0..callers)
        .map(|_| {
            let (address, request) = (gateway.address().to_owned(), request.clone());
            tokio::spawn(async move {
                let mut conn = crate::support::client::Conn::open(&address).await.expect("accepted");
                let mut responses = Vec::new();
                while now() < until {
                    responses.push(conn.request(&request).await);
                    if responses.last().is_some_and(|response| response.status != 200) {
                        // A rejected caller does not retry at once.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
                responses
            })
        })
        .collect();
    let mut responses = Vec::new();
    for task in tasks {
        responses.extend(within(crate::support::PATIENCE, "the callers finish", task).await.expect("no panic"));
    }
    responses
}

#[track_caller]
pub(crate) fn assert_relayed_or_rate_limited(responses: &[Response]) {
    for response in responses {
        if response.status == 200 {
            response.assert_relayed(200, OK);
        } else {
            response.assert_error(429, "rate_limited", 60007);
            response.retry_after();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cold_gateway_keeps_and_nearly_reaches_its_limit() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("app.quota", r#"per_command = "20/s""#).start().await;
    let waits = CpuWaits::start(&gateway);
    let responses =
        send_from_callers(&gateway, &TestRequest::command("openim/querystate"), 40, Duration::from_secs(6)).await;
    assert_relayed_or_rate_limited(&responses);
    let times: Vec<Instant> = chat.calls().iter().map(|call| call.at).collect();
    let most = max_calls_in(one_second_window(&waits), &times);
    assert!(most <= 20, "{most} calls in one second");
    assert!(mean_rate(&times) >= min_rate(20.0, &waits), "only {:.1} calls per second", mean_rate(&times));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_of_one_per_second_is_kept_and_reached() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("app.quota", r#"per_command = "1/s""#).start().await;
    let waits = CpuWaits::start(&gateway);
    let responses =
        send_from_callers(&gateway, &TestRequest::command("openim/querystate"), 8, Duration::from_secs(7)).await;
    assert_relayed_or_rate_limited(&responses);
    let times: Vec<Instant> = chat.calls().iter().map(|call| call.at).collect();
    assert!(times.len() >= 5, "only {} calls", times.len());
    assert_eq!(max_calls_in(one_second_window(&waits), &times), 1);
    assert!(mean_rate(&times) >= min_rate(1.0, &waits), "only {:.2} calls per second", mean_rate(&times));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follow_check_lookups_stay_within_the_quota() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("app.quota", r#"per_command = "20/s""#).start().await;
    let waits = CpuWaits::start(&gateway);
    let until = now() + Duration::from_secs(3);
    let tasks: Vec<_> = (0..30)
        .map(|caller| {
            let address = gateway.address().to_owned();
            tokio::spawn(async move {
                let mut conn = crate::support::client::Conn::open(&address).await.expect("accepted");
                let mut round = 0;
                while now() < until {
                    let response =
                        conn.request(&TestRequest::check(&format!("a{caller}"), &[format!("b{round}")])).await;
                    assert!(response.status == 200 || response.slug() == Some("rate_limited"), "{response:?}");
                    if response.status != 200 {
                        // A rejected caller does not retry at once: 30 such callers would take the CPU time that
                        // the fake needs to stamp calls.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    round += 1;
                }
            })
        })
        .collect();
    for task in tasks {
        within(crate::support::PATIENCE, "the callers finish", task).await.expect("no panic");
    }
    let times: Vec<Instant> = chat.calls().iter().map(|call| call.at).collect();
    let most = max_calls_in(one_second_window(&waits), &times);
    assert!(most <= 20, "{most} calls in one second");
    assert!(mean_rate(&times) >= min_rate(20.0, &waits), "only {:.1} calls per second", mean_rate(&times));
}

#[tokio::test]
async fn wait_past_the_deadline_is_rejected_at_once() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("app.quota", r#"per_command = "1/s""#).timeout("3s");
    let gateway = Arc::new(setup.start().await);
    let requests: Vec<_> = (0..20)
        .map(|_| {
            let gateway = gateway.clone();
            tokio::spawn(async move {
                let start = now();
                (gateway.call("openim/querystate", "{}").await, start.elapsed())
            })
        })
        .collect();
    let (mut served, mut rejected) = (0, 0);
    for request in requests {
        let (response, took) = within(crate::support::PATIENCE, "a response", request).await.expect("no panic");
        if response.status == 200 {
            served += 1;
            assert!(took < Duration::from_millis(3500), "{took:?}");
        } else {
            rejected += 1;
            response.assert_error(429, "rate_limited", 60007);
            assert!(response.retry_after() <= 60);
            assert!(took < Duration::from_secs(1), "rejected only after {took:?}");
        }
    }
    assert!((2..=4).contains(&served), "{served} served and {rejected} rejected in 3 s at 1 call per second");
    assert_eq!(chat.call_count(), served);
}

#[tokio::test]
async fn lower_vendor_limits_apply_without_configuration() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("app.quota", r#"per_command = "200/s""#).start().await;
    let waits = CpuWaits::start(&gateway);
    // 1 call per second: vendor page 1047/34960.
    let slow = TestRequest::command("group_open_http_svc/get_appid_group_list");
    let responses = send_from_callers(&gateway, &slow, 3, Duration::from_secs(3)).await;
    assert_relayed_or_rate_limited(&responses);
    let times: Vec<Instant> = chat.calls().iter().map(|call| call.at).collect();
    assert_eq!(max_calls_in(one_second_window(&waits), &times), 1);
    assert!(times.len() >= 3, "only {} calls", times.len());
}

#[tokio::test]
async fn command_quota_does_not_affect_other_commands_or_apps() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let lines = chat.app_lines();
    let gateway = Setup::without_apps()
        .app(MAIN, &format!("{lines}\ndefault = true"))
        .app(OTHER, &lines)
        .set("app.quota", r#"commands = { "openim/querystate" = "1/s" }"#)
        .timeout("1s")
        .start()
        .await;
    let waits = CpuWaits::start(&gateway);
    let start = now();
    let limited = TestRequest::command("openim/querystate");
    let sending = send_from_callers(&gateway, &limited, 3, Duration::from_secs(2));
    let others = async {
        let mut conn = gateway.connect().await;
        for _ in 0..50 {
            conn.request(&TestRequest::command("openim/query_online_status")).await.assert_relayed(200, OK);
        }
        // The other app's first call of the same command does not wait.
        let request = TestRequest::command("openim/querystate").header("Chatgate-App", OTHER.name);
        conn.request(&request).await.assert_relayed(200, OK);
        start.elapsed()
    };
    let (responses, took) = tokio::join!(sending, others);
    assert_relayed_or_rate_limited(&responses);
    // At 1 call per second, they would take 50 s.
    assert!(took < Duration::from_secs(20), "the unlimited requests took {took:?}");
    let limited: Vec<Instant> = chat
        .calls_of("openim/querystate")
        .iter()
        .filter(|call| call.app() == MAIN.sdkappid)
        .map(|call| call.at)
        .collect();
    assert_eq!(max_calls_in(one_second_window(&waits), &limited), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn total_quota_limits_all_commands_of_an_app_together() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("app.quota", r#"total = "20/s""#).start().await;
    let waits = CpuWaits::start(&gateway);
    let (one, two) = (TestRequest::command("openim/querystate"), TestRequest::command("profile/portrait_get"));
    let span = Duration::from_secs(3);
    let (first, second) =
        tokio::join!(send_from_callers(&gateway, &one, 15, span), send_from_callers(&gateway, &two, 15, span));
    assert_relayed_or_rate_limited(&first);
    assert_relayed_or_rate_limited(&second);
    let times: Vec<Instant> = chat.calls().iter().map(|call| call.at).collect();
    let most = max_calls_in(one_second_window(&waits), &times);
    assert!(most <= 20, "{most} calls in one second");
    assert!(mean_rate(&times) >= min_rate(20.0, &waits), "only {:.1} calls per second", mean_rate(&times));
}

#[tokio::test]
async fn cache_hits_use_no_quota() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("app.quota", r#"per_command = "1/s""#).start().await;
    gateway.check("ann", &["bob"]).await.items();
    let mut conn = gateway.connect().await;
    for _ in 0..100 {
        assert_eq!(conn.request(&TestRequest::check("ann", &["bob"])).await.cache_status().outcome, "hit");
    }
    assert_eq!(chat.call_count(), 1);
}

#[test]
fn max_calls_in_uses_a_sliding_window() {
    let start = now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    assert_eq!(max_calls_in(Duration::from_millis(990), &[at(0), at(500), at(980), at(1500)]), 3);
    assert_eq!(max_calls_in(Duration::from_millis(990), &[at(0), at(1000), at(2000)]), 1);
    assert_eq!(max_calls_in(Duration::from_millis(990), &[at(900), at(950), at(1000), at(1050), at(3000)]), 4);
}
