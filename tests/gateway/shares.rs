//! What one caller with a token may take from the others.

use std::time::{Duration, Instant};

use crate::support::answer::Answer;
use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::Ask;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::reply::{Gate, Reply};
use crate::support::setup::Setup;
use crate::support::{now, turn};

const MANY: &str = "many.token~of~marked~letters+that/nobody/may/see/in/any/place/at/all==";
const FEW: &str = "few.token~of~marked~letters+that/nobody/may/see/in/any/place/at/all==";

/// Two callers who may do everything, the first of them with these lines beside.
fn setup(chat: &FakeChat, many: &str) -> Setup {
    Setup::without_apps().app(MAIN, &chat.app_lines()).caller("many", MANY, &format!("allow = ['*']\n{many}")).caller(
        "few",
        FEW,
        "allow = ['*']",
    )
}

/// Asks them all at once, on one connection each of whose requests is on its own.
async fn at_once(gateway: &Gateway, asks: Vec<Ask>) -> Vec<Answer> {
    let http2 = Http2::open(gateway.address()).await;
    let tasks: Vec<_> = asks
        .into_iter()
        .map(|ask| {
            let http2 = http2.clone();
            tokio::spawn(async move { http2.ask(&ask).await })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.expect("no panic"));
    }
    answers
}

/// Asserts that each was served or told to come again, and counts those served.
#[track_caller]
fn served(answers: &[Answer]) -> usize {
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        answer.assert_error(429, "rate_limited", 60007);
        assert!(answer.retry_after() <= 60 && answer.text().contains("caller many"), "{answer:?}");
    }
    answers.iter().filter(|answer| answer.status == 200).count()
}

#[tokio::test]
async fn a_share_bounds_calls_of_all_commands_together_and_nobody_else_s() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "quota = '2/s'").deadline("2s").start().await;
    let commands = ["openim/querystate", "openim/sendmsg", "profile/portrait_get"];
    let asks = (0..30).map(|n| Ask::command(commands[n % 3]).token(MANY)).collect();
    let begun = now();
    let (many, few) = tokio::join!(at_once(&gateway, asks), async {
        let mut conn = gateway.connect().await;
        for _ in 0..100 {
            conn.ask(&Ask::command("openim/querystate").token(FEW)).await.assert_relayed(200, OK);
        }
        begun.elapsed()
    });
    // One at once, then one each half second and a little, up to the deadline of two; one more if the
    // last requests came a little later.
    let served = served(&many);
    assert!((3..=5).contains(&served), "{served} of 30 served");
    assert_eq!(chat.count(), served + 100);
    // At the first one's share its hundred calls would take fifty seconds.
    assert!(few < Duration::from_secs(20), "the other one was held up for {few:?}");
}

#[tokio::test]
async fn who_cannot_have_his_share_in_time_is_refused_at_once() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "quota = '1/s'").deadline("500ms").start().await;
    gateway.ask(Ask::command("openim/querystate").token(MANY)).await.assert_relayed(200, OK);
    let begun: Instant = now();
    let relayed = gateway.ask(Ask::command("openim/sendmsg").token(MANY)).await;
    let checked = gateway.ask(Ask::check("a", &["b"]).token(MANY)).await;
    let bypassing = gateway.ask(Ask::command("follow/follow_check").body(r#"{"x":1}"#).token(MANY)).await;
    // None of the three has waited until its deadline.
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    assert_eq!(served(&[relayed, checked, bypassing]), 0);
    assert_eq!(chat.count(), 1);
}

#[tokio::test]
async fn what_finds_no_quota_of_its_command_costs_nothing_of_a_share() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let setup = setup(&chat, "quota = '2/s'").set("app.quota", "commands = { \"openim/sendmsg\" = \"1/s\" }");
    let gateway = setup.deadline("300ms").start().await;
    let ask = |command: &str| Ask::command(command).token(FEW);
    gateway.ask(ask("openim/sendmsg")).await.assert_relayed(200, OK);
    // The one that is charged alone still finds its command used up, however often it asks.
    for _ in 0..5 {
        let many = gateway.ask(Ask::command("openim/sendmsg").token(MANY)).await;
        many.assert_error(429, "rate_limited", 60007);
        assert!(many.text().contains("the quota of openim/sendmsg"), "{many:?}");
    }
    gateway.ask(Ask::command("openim/querystate").token(MANY)).await.assert_relayed(200, OK);
}

#[tokio::test]
async fn lookups_count_as_the_calls_they_need_and_what_is_known_counts_nothing() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "quota = '1/s'").set("cache", r#"ttl = "1h""#).deadline("500ms").start().await;
    let to: Vec<String> = (0..101).map(|n| format!("to{n}")).collect();
    let check = |to: &[String]| Ask::check("ann", to).token(MANY);
    // Two calls a second are not to be had, one is.
    let never = gateway.ask(check(&to)).await;
    assert!(never.text().contains("this takes 2 calls"), "{never:?}");
    assert_eq!(served(&[never]), 0);
    assert_eq!(chat.count(), 0);
    assert_eq!(gateway.ask(check(&to[..100])).await.types().len(), 100);
    assert_eq!(served(&[gateway.ask(check(&to)).await]), 0, "the share is used up");
    for _ in 0..50 {
        assert_eq!(gateway.ask(check(&to[..100])).await.cache().outcome, "hit");
    }
    assert_eq!(chat.count(), 1);
}

#[tokio::test]
async fn what_another_caller_asks_for_already_counts_nothing() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "quota = '1/s'").set("cache", r#"ttl = "1h""#).start().await;
    let to: Vec<String> = (0..101).map(|n| format!("to{n}")).collect();
    let check = |to: &[String]| Ask::check("ann", to).token(MANY);
    assert_eq!(gateway.ask(check(&to[..100])).await.types().len(), 100);
    let gate = Gate::closed();
    chat.once(Reply::model().held(&gate));
    let other = gateway.ask(Ask::check("ann", &to[100..]).token(FEW));
    let joining = async {
        chat.seen(2).await;
        let mut conn = gateway.connect().await;
        conn.send(check(&to).bytes()).await;
        gateway.at_work(2).await;
        gateway.round_trips().await;
        gate.open();
        conn.answer().await
    };
    // Were it charged, it would wait for its share and find the pair known.
    let (other, joined) = tokio::join!(other, joining);
    assert_eq!((other.types().len(), joined.types().len()), (1, 101));
    assert_eq!(joined.cache().counts(), (100, 1, 0));
    assert_eq!(chat.count(), 2);
}

#[tokio::test]
async fn a_share_holds_for_lookups_that_come_one_by_one() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "quota = '2/s'").deadline("2s").start().await;
    let asks = (0..30).map(|n| Ask::check(&format!("from{n}"), &[format!("to{n}")]).token(MANY)).collect();
    let served = served(&at_once(&gateway, asks).await);
    assert!((3..=5).contains(&served), "{served} of 30 served");
    assert!(chat.count() <= served, "{} calls for {served}", chat.count());
}

#[tokio::test]
async fn one_caller_gets_no_more_than_half_of_the_places() {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "").set("server", "max_requests = 4").start().await;
    let gate = Gate::closed();
    let held = gate.clone();
    chat.script(move |call| (call.command() == "openim/sendmsg").then(|| Reply::model().held(&held)));
    let waiting = Http2::open(gateway.address()).await;
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let waiting = waiting.clone();
            tokio::spawn(async move { waiting.ask(&Ask::command("openim/sendmsg").token(MANY)).await })
        })
        .collect();
    chat.seen(2).await;
    let query = || Ask::command("openim/querystate");
    let answer = gateway.ask(query().token(MANY)).await;
    answer.assert_error(503, "overloaded", 129_503);
    assert!(answer.text().contains("one caller") && answer.retry_after() == 1, "{answer:?}");
    gateway.ask(query().token(FEW)).await.assert_relayed(200, OK);
    gate.open();
    for answer in waiting {
        answer.await.expect("no panic").assert_relayed(200, OK);
    }
    gateway.ask(query().token(MANY)).await.assert_relayed(200, OK);
}

/// Both callers share one connection's kind and address: only their tokens tell them apart.
async fn flooded(per: impl Fn(&str, usize) -> Ask) {
    let chat = FakeChat::start().await;
    let gateway = setup(&chat, "").set("app.quota", r#"per_command = "5/s""#).deadline("12s").start().await;
    let http2 = Http2::open(gateway.address()).await;
    let flood: Vec<_> = (0..90)
        .map(|n| {
            let http2 = http2.clone();
            let asks: Vec<Ask> = (0..200).map(|round| per("many", n + 90 * round).token(MANY)).collect();
            tokio::spawn(async move {
                for ask in asks {
                    if http2.ask(&ask).await.status != 200 {
                        // Who is refused does not come back in the same instant.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            })
        })
        .collect();
    chat.seen(2).await;
    gateway.round_trips().await;
    for n in 0..4 {
        // On the flood's own connection.
        let answer = http2.ask(&per("few", n).token(FEW)).await;
        assert_eq!((answer.status, answer.slug()), (200, None), "{answer:?}");
    }
    flood.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_flood_of_calls_leaves_the_caller_with_another_token_its_turns() {
    flooded(|_, _| Ask::command("openim/querystate")).await;
}

#[tokio::test]
async fn a_flood_of_lookups_leaves_the_caller_with_another_token_its_turns() {
    flooded(|who, n| Ask::check(&format!("{who}{n}"), &[format!("to-{who}{n}")])).await;
}
