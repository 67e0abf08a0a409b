//! Ten times of what fits: all are answered, the excess is told when to come again, and what the load
//! had taken is given back.

use std::collections::BTreeMap;
use std::time::Duration;

use chatgate::clock;
use tokio::task::JoinSet;

use crate::support::chat::FakeChat;
use crate::support::client::{Ask, Conn};
use crate::support::eventually;
use crate::support::exposition::Exposition;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;
use crate::support::turn;

const CALL: &str = "openim/querystate";
/// Who is refused because of those before it is refused before this; who waits to the end is refused later.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Asks all at once, each on a connection of its own, and counts what came back: `ok`, the slug of a refusal, or
/// `cut`. `rate_limited` are told from `kept`: those that were refused only after [`AT_ONCE`].
async fn flood(gateway: &Gateway, asks: Vec<Ask>, meanwhile: impl AsyncFnOnce()) -> BTreeMap<String, usize> {
    let (mut tasks, count) = (JoinSet::new(), asks.len());
    for ask in asks {
        let address = gateway.address().to_owned();
        tasks.spawn(async move {
            let mut conn = Conn::open(&address).await.expect("accepted");
            let begun = clock::now();
            let answer = conn.ask(&ask).await;
            (answer, clock::now() - begun)
        });
    }
    meanwhile().await;
    let mut tally = BTreeMap::<String, usize>::new();
    for (answer, took) in tasks.join_all().await {
        let outcome = match answer.slug() {
            None => {
                assert_eq!((answer.status, &answer.json()["ErrorCode"]), (200, &0.into()), "{answer:?}");
                "ok"
            }
            Some("overloaded") => {
                answer.assert_error(503, "overloaded", 129_503);
                answer.retry_after();
                "overloaded"
            }
            // Let go at the last moment, and on a busy machine not answered in what was left.
            Some("upstream_timeout") => "cut",
            Some(_) => {
                answer.assert_error(429, "rate_limited", 60007);
                answer.retry_after();
                if took < AT_ONCE { "rate_limited" } else { "kept" }
            }
        };
        *tally.entry(outcome.to_owned()).or_default() += 1;
    }
    assert_eq!(tally.values().sum::<usize>(), count, "none is lost");
    tally
}

fn count(tally: &BTreeMap<String, usize>, outcome: &str) -> usize {
    tally.get(outcome).copied().unwrap_or(0)
}

/// What a load takes is free again.
async fn is_idle(gateway: &Gateway) {
    let gauges = [
        "chatgate_requests_in_flight",
        "chatgate_buffered_bytes",
        "chatgate_pairs_queued",
        "chatgate_upstream_calls_in_flight",
    ];
    eventually("nothing of the load is left", async || {
        let seen = Exposition::read(&gateway.admin_get("/metrics").await.text());
        assert!(gauges.iter().all(|gauge| seen.kinds().contains_key(*gauge)), "{:?}", seen.kinds());
        gauges.iter().all(|gauge| seen.sum(gauge, &[]) == 0.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn ten_times_max_requests_are_answered_and_the_excess_is_told_when_to_come_again() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", "max_requests = 20").deadline("20s").start().await;
    let gate = Gate::closed();
    chat.always(Reply::json(OK).held(&gate));
    let asks = (0..200).map(|n| Ask::command(CALL).body(format!("{{\"n\":{n}}}"))).collect();
    let tally = flood(&gateway, asks, async || {
        // Nobody is let go before as many have come in as there are places.
        chat.seen(20).await;
        gate.open();
    })
    .await;
    assert!(count(&tally, "ok") >= 20 && tally.len() <= 2, "{tally:?}");
    assert!(!tally.contains_key("rate_limited"), "{tally:?}");
    assert_eq!(chat.count(), count(&tally, "ok"), "no call for who was refused");
    is_idle(&gateway).await;
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn ten_times_the_quota_is_answered_and_the_excess_is_told_when_to_come_again() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("app.quota", "per_command = \"10/s\"");
    let gateway = setup.set("upstream", "timeout = \"2s\"").start().await;
    let relayed = (0..200).map(|n| Ask::command(CALL).body(format!("{{\"n\":{n}}}"))).collect();
    let tally = flood(&gateway, relayed, async || {}).await;
    let let_go = |tally: &BTreeMap<String, usize>| count(tally, "ok") + count(tally, "cut");
    assert!(let_go(&tally) >= 10 && count(&tally, "rate_limited") >= 100, "{tally:?}");
    // One that was cut may not have been read to its end.
    let calls = chat.count();
    assert!(calls >= count(&tally, "ok") && calls <= let_go(&tally), "{calls} calls for {tally:?}");
    // Pairs that share nobody: each needs a call of its own.
    let lookups = (0..200).map(|n| Ask::check(&format!("from{n}"), &[format!("to{n}")])).collect();
    let before = chat.count();
    let tally = flood(&gateway, lookups, async || {}).await;
    assert!(let_go(&tally) >= 10 && count(&tally, "rate_limited") >= 100, "{tally:?}");
    assert!(chat.count() - before <= let_go(&tally) + 2, "{} calls for {tally:?}", chat.count() - before);
    is_idle(&gateway).await;
    gateway.check("ann", &["bob"]).await.checked();
}

#[tokio::test]
async fn who_would_wait_for_nothing_is_refused_at_once() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("app.quota", "per_command = \"20/s\"");
    let gateway = setup.set("upstream", "timeout = \"5s\"").start().await;
    // Pairs that share nobody, three times as many as fit.
    let lookups = (0..300).map(|n| Ask::check(&format!("from{n}"), &[format!("to{n}")])).collect();
    let tally = flood(&gateway, lookups, async || {}).await;
    assert!(count(&tally, "ok") >= 60 && count(&tally, "rate_limited") >= 150, "{tally:?}");
    assert_eq!(count(&tally, "kept"), 0, "waited to the end and were refused: {tally:?}");
    is_idle(&gateway).await;
}
