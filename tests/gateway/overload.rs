//! Ten times the capacity: every request gets a response, the excess gets `Retry-After`, and all resources are
//! released afterwards.

use std::collections::BTreeMap;
use std::time::Duration;

use chatgate::clock;
use tokio::task::JoinSet;

use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::eventually;
use crate::support::exposition::Exposition;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;
use crate::support::turn;

const CALL: &str = "openim/querystate";
/// A request that is rejected because the queue is too long is rejected within this time. A request that waits
/// until its deadline is rejected later.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Sends all requests at once, each on its own connection, and counts the outcomes: `ok`, an error slug, or `cut`
/// for a call that timed out upstream. `rate_limited` after more than [`AT_ONCE`] counts as `late`.
async fn flood(
    gateway: &Gateway,
    requests: Vec<TestRequest>,
    meanwhile: impl AsyncFnOnce(),
) -> BTreeMap<String, usize> {
    let (mut tasks, count) = (JoinSet::new(), requests.len());
    for request in requests {
        let address = gateway.address().to_owned();
        tasks.spawn(async move {
            let mut conn = Conn::open(&address).await.expect("accepted");
            let start = clock::now();
            let response = conn.request(&request).await;
            (response, clock::now() - start)
        });
    }
    meanwhile().await;
    let mut tally = BTreeMap::<String, usize>::new();
    for (response, took) in tasks.join_all().await {
        let outcome = match response.slug() {
            None => {
                assert_eq!((response.status, &response.json()["ErrorCode"]), (200, &0.into()), "{response:?}");
                "ok"
            }
            Some("overloaded") => {
                response.assert_error(503, "overloaded", 129_503);
                response.retry_after();
                "overloaded"
            }
            // Sent just before the deadline; a busy machine may not respond in the remaining time.
            Some("upstream_timeout") => "cut",
            Some(_) => {
                response.assert_error(429, "rate_limited", 60007);
                response.retry_after();
                if took < AT_ONCE { "rate_limited" } else { "late" }
            }
        };
        *tally.entry(outcome.to_owned()).or_default() += 1;
    }
    assert_eq!(tally.values().sum::<usize>(), count, "no request is lost");
    tally
}

fn count(tally: &BTreeMap<String, usize>, outcome: &str) -> usize {
    tally.get(outcome).copied().unwrap_or(0)
}

/// Waits until the gateway has released all resources of the load.
async fn wait_until_idle(gateway: &Gateway) {
    let gauges = [
        "chatgate_requests_in_flight",
        "chatgate_buffered_bytes",
        "chatgate_pairs_queued",
        "chatgate_upstream_calls_in_flight",
    ];
    eventually("all gauges of the load are zero", async || {
        let seen = Exposition::parse(&gateway.admin_get("/metrics").await.text());
        assert!(gauges.iter().all(|gauge| seen.types().contains_key(*gauge)), "{:?}", seen.types());
        gauges.iter().all(|gauge| seen.sum(gauge, &[]) == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_beyond_max_requests_are_rejected_with_retry_after() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", "max_requests = 20").timeout("20s").start().await;
    let gate = Gate::closed();
    chat.reply_always(Reply::json(OK).after(&gate));
    let requests = (0..200).map(|n| TestRequest::command(CALL).body(format!("{{\"n\":{n}}}"))).collect();
    let tally = flood(&gateway, requests, async || {
        // The gate opens only when all 20 slots are in use.
        chat.wait_for_calls(20).await;
        gate.open();
    })
    .await;
    assert!(count(&tally, "ok") >= 20 && tally.len() <= 2, "{tally:?}");
    assert!(!tally.contains_key("rate_limited"), "{tally:?}");
    assert_eq!(chat.call_count(), count(&tally, "ok"), "rejected requests cause no call");
    wait_until_idle(&gateway).await;
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn requests_beyond_the_quota_are_rejected_with_retry_after() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("app.quota", "per_command = \"10/s\"");
    let gateway = setup.set("upstream", "timeout = \"2s\"").start().await;
    let relayed = (0..200).map(|n| TestRequest::command(CALL).body(format!("{{\"n\":{n}}}"))).collect();
    let tally = flood(&gateway, relayed, async || {}).await;
    let sent = |tally: &BTreeMap<String, usize>| count(tally, "ok") + count(tally, "cut");
    assert!(sent(&tally) >= 10 && count(&tally, "rate_limited") >= 100, "{tally:?}");
    // A `cut` call may not have reached Chat completely.
    let calls = chat.call_count();
    assert!(calls >= count(&tally, "ok") && calls <= sent(&tally), "{calls} calls for {tally:?}");
    // Pairs without a common user: each needs its own call.
    let lookups = (0..200).map(|n| TestRequest::check(&format!("from{n}"), &[format!("to{n}")])).collect();
    let before = chat.call_count();
    let tally = flood(&gateway, lookups, async || {}).await;
    assert!(sent(&tally) >= 10 && count(&tally, "rate_limited") >= 100, "{tally:?}");
    assert!(chat.call_count() - before <= sent(&tally) + 2, "{} calls for {tally:?}", chat.call_count() - before);
    wait_until_idle(&gateway).await;
    gateway.check("ann", &["bob"]).await.items();
}

#[tokio::test]
async fn lookups_past_the_deadline_are_rejected_at_once() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("app.quota", "per_command = \"20/s\"");
    let gateway = setup.set("upstream", "timeout = \"5s\"").start().await;
    // Pairs without a common user, three times the capacity.
    let lookups = (0..300).map(|n| TestRequest::check(&format!("from{n}"), &[format!("to{n}")])).collect();
    let tally = flood(&gateway, lookups, async || {}).await;
    assert!(count(&tally, "ok") >= 60 && count(&tally, "rate_limited") >= 150, "{tally:?}");
    // A forecast knows nothing of a machine that stalls: half a second of it makes the last ten that wait late.
    assert!(count(&tally, "late") <= 10, "requests were rejected only at their deadline: {tally:?}");
    wait_until_idle(&gateway).await;
}
