//! Lookups that have to wait: they travel together, nobody spoils another's answer, everybody gets a turn.
//!
//! With room for one call in flight, and that one held, everything else gathers: no timing is needed.

use std::time::Duration;

use crate::support::answer::Answer;
use crate::support::chat::FakeChat;
use crate::support::client::{Ask, Conn};
use crate::support::eventually;
use crate::support::exposition::Exposition;
use crate::support::gateway::Gateway;
use crate::support::graph::fail;
use crate::support::h2::Http2;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;

/// A gateway whose only room is taken by a lookup that is held at the gate.
async fn crowded(chat: &FakeChat, gate: &Gate, follow_check: &str) -> (Gateway, Conn) {
    let setup = Setup::new(chat).set("upstream", "max_in_flight = 1").deadline("15s");
    let gateway = setup.set("follow_check", follow_check).start().await;
    let held = gate.clone();
    chat.script(move |call| (call.asker() == "first").then(|| Reply::model().held(&held)));
    let mut first = gateway.connect().await;
    first.send(Ask::check("first", &["second"]).bytes()).await;
    chat.seen(1).await;
    (gateway, first)
}

/// Each of these asks for its pair on a connection of its own; once all are queued the gate is opened.
async fn all_ask(gateway: &Gateway, gate: &Gate, pairs: &[(String, String)]) -> Vec<Answer> {
    let mut conns = Vec::new();
    for (from, to) in pairs {
        let mut conn = gateway.connect().await;
        conn.send(Ask::check(from, &[to]).bytes()).await;
        conns.push(conn);
    }
    eventually("all are queued", async || {
        let seen = Exposition::read(&gateway.admin_get("/metrics").await.text());
        (seen.sum("chatgate_pairs_queued", &[]) == pairs.len() as f64).then_some(())
    })
    .await;
    gate.open();
    let mut answers = Vec::new();
    for mut conn in conns {
        answers.push(conn.answer().await);
    }
    answers
}

fn fans(count: usize) -> Vec<(String, String)> {
    (0..count).map(|n| (format!("fan{n:03}"), "star".to_owned())).collect()
}

#[tokio::test]
async fn many_who_ask_about_one_user_share_full_calls_from_that_users_side() {
    let chat = FakeChat::start().await;
    let gate = Gate::closed();
    let (gateway, mut first) = crowded(&chat, &gate, "flip = true").await;
    for n in (0..150).step_by(3) {
        chat.follow(&format!("fan{n:03}"), "star");
    }
    let answers = all_ask(&gateway, &gate, &fans(150)).await;
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(answer.types(), [if n % 3 == 0 { 2 } else { 0 }], "fan {n}");
    }
    assert!(answers.iter().all(|answer| answer.cache().counts() == (0, 0, 1)));
    assert!(answers.iter().filter(|answer| answer.cache().flipped == 1).count() >= 140);
    first.answer().await.types();
    let calls = chat.calls();
    // 150 pairs fill two calls; a few that came late, or left early, may have had another.
    assert!(calls.len() <= 5, "{} calls", calls.len());
    let fullest = calls.iter().max_by_key(|call| call.to_accounts().len()).expect("calls");
    assert_eq!((fullest.asker().as_str(), fullest.to_accounts().len()), ("star", 100));
}

#[tokio::test]
async fn without_flip_every_call_is_as_its_caller_put_it() {
    let chat = FakeChat::start().await;
    let gate = Gate::closed();
    let (gateway, _first) = crowded(&chat, &gate, "flip = false").await;
    let answers = all_ask(&gateway, &gate, &fans(12)).await;
    assert!(answers.iter().all(|answer| answer.types() == [0] && answer.cache().flipped == 0));
    let calls = chat.calls();
    assert_eq!(calls.len(), 13);
    assert!(calls[1..].iter().all(|call| call.to_accounts() == ["star"]));
}

#[tokio::test]
async fn one_bad_account_among_fifty_callers_spoils_only_its_own_answer() {
    let chat = FakeChat::start().await;
    let gate = Gate::closed();
    let (gateway, _first) = crowded(&chat, &gate, "flip = true").await;
    let held = gate.clone();
    let refusal = fail(30003, "no such account");
    let unshared = refusal.clone();
    chat.script(move |call| {
        let bad = call.asker() == "bad" || call.to_accounts().iter().any(|to| to == "bad");
        if bad {
            return Some(Reply::json(refusal.clone()));
        }
        (call.asker() == "first").then(|| Reply::model().held(&held))
    });
    let mut pairs = fans(50);
    pairs[20].0 = "bad".to_owned();
    let answers = all_ask(&gateway, &gate, &pairs).await;
    for (n, answer) in answers.iter().enumerate() {
        if n == 20 {
            answer.assert_relayed(200, &unshared);
        } else {
            assert_eq!(answer.types(), [0], "fan {n}");
        }
    }
    let shared = chat.calls().iter().filter(|call| call.to_accounts().len() > 1).count();
    assert!(shared >= 1, "nothing was shared, so nothing could have been spoilt");
    // The error is nobody's fact.
    gateway.check("bad", &["star"]).await.assert_relayed(200, &unshared);
}

/// One caller always asks for a hundred things at once, another for one thing after the other.
async fn flooded(chat: &FakeChat, gateway: &Gateway, what: impl Fn(&str, usize) -> Ask) -> Vec<Answer> {
    let flood = Http2::open(gateway.address()).await;
    let asks: Vec<_> = (0..100)
        .map(|n| {
            let flood = flood.clone();
            let asks: Vec<Ask> = (0..200).map(|round| what("many", n + 100 * round)).collect();
            tokio::spawn(async move {
                for ask in asks {
                    if flood.ask(&ask).await.status != 200 {
                        // Who is refused does not come back in the same instant.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            })
        })
        .collect();
    // The flood is there before the other one comes.
    chat.seen(2).await;
    gateway.round_trips().await;
    let mut conn = gateway.connect().await;
    let mut answers = Vec::new();
    for n in 0..5 {
        answers.push(conn.ask(&what("few", n)).await);
    }
    asks.iter().for_each(tokio::task::JoinHandle::abort);
    answers
}

#[tokio::test]
async fn a_flood_of_lookups_leaves_another_caller_its_turns() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("app.quota", r#"per_command = "5/s""#).deadline("4s");
    let gateway = setup.start().await;
    let answers = flooded(&chat, &gateway, |who, n| Ask::check(&format!("{who}{n}"), &[format!("to-{who}{n}")])).await;
    assert!(answers.iter().all(|answer| answer.types() == [0]));
}

#[tokio::test]
async fn a_flood_of_other_calls_leaves_another_caller_its_turns() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("app.quota", r#"per_command = "5/s""#).deadline("4s");
    let gateway = setup.start().await;
    let answers = flooded(&chat, &gateway, |_, _| Ask::command("openim/querystate")).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
}

#[tokio::test]
async fn lookups_that_wait_long_wait_idly() {
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("app.quota", r#"per_command = "1/s""#).deadline("4s");
    let gateway = setup.start().await;
    // One pair each towards users of their own, more than a second's quota for every one of them.
    let mut conns = Vec::new();
    for n in 0..30 {
        let mut conn = gateway.connect().await;
        conn.send(Ask::check(&format!("a{n}"), &[format!("b{n}")]).bytes()).await;
        conns.push(conn);
    }
    let before = gateway.ticks();
    let mut served = 0;
    for mut conn in conns {
        let answer = conn.answer().await;
        match answer.status {
            200 => served += 1,
            _ => answer.assert_error(429, "rate_limited", 60007),
        }
    }
    // Four seconds are 400 ticks; what there is to do takes a few.
    let used = gateway.ticks() - before;
    assert!(used < 100, "{used} ticks of processor time to wait");
    assert!((3..=5).contains(&served), "{served} served in 4 s at one a second");
}
