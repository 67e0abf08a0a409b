//! The wall clock is set forward and back under a running gateway, by libfaketime; the monotonic clock goes on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::doctor::{HEX, Sandbox};
use crate::quota::press;
use crate::support::client::Ask;
use crate::support::gateway::Gateway;
use crate::support::setup::Setup;
use crate::support::{eventually, now, turn, unix_now};

const DAY: i64 = 24 * 3600;

/// The gateway's wall clock.
struct WallClock(PathBuf);

impl WallClock {
    /// Of the gateway that is started next with what is given back.
    fn of(setup: Setup) -> (WallClock, Setup) {
        let library = std::fs::read_dir("/usr/lib").expect("a folder").flatten();
        let library = library.map(|folder| folder.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
        let library = library.expect("libfaketime is installed; see tests/run");
        let clock = WallClock(setup.file("wall-clock", "+0"));
        let file = clock.0.to_string_lossy().into_owned();
        let setup = setup.env("LD_PRELOAD", &library.to_string_lossy()).env("FAKETIME_TIMESTAMP_FILE", &file);
        // Read anew each second. Were it read with every look at the clock, a thread that looks while another reads
        // would now and then get the true time (libfaketime 0.9.10: one look in ten thousand).
        let setup = setup.env("FAKETIME_CACHE_DURATION", "1").env("DONT_FAKE_MONOTONIC", "1");
        (clock, setup.env("FAKETIME_DONT_FAKE_MONOTONIC", "1"))
    }

    /// It differs from the true one by so many seconds from now on, and the gateway sees it.
    async fn set(&self, seconds: i64, gateway: &Gateway) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, format!("{seconds:+}")).expect("own directory");
        std::fs::rename(&new, &self.0).expect("own directory");
        eventually("the clock has jumped", async || {
            let time = gateway.admin_get("/status").await.json()["now"].as_f64()?;
            ((time - unix_now() as f64 - seconds as f64).abs() < 10.0).then_some(())
        })
        .await;
    }
}

/// A gateway before a sandbox that knows ann, who follows bob.
async fn gateway(ttl: &str, qps: &str) -> (WallClock, Gateway, Sandbox) {
    let setup = Setup::without_apps().set("cache", &format!("ttl = \"{ttl}\"")).set("cache", r#"write_settle = "0s""#);
    let sandbox = Sandbox::start(&setup, &["--qps", qps]).await;
    sandbox.tell("graph", r#"{"users":["ann","bob","cyd"],"edges":[["ann","bob"]]}"#).await;
    let lines = format!("{}\nusersig_lifetime = \"1h\"", sandbox.app_lines());
    let setup = setup.app(HEX, &lines).set("app.quota", &format!("per_command = \"{qps}/s\""));
    let (clock, setup) = WallClock::of(setup);
    (clock, setup.start().await, sandbox)
}

fn codes(journal: &Value) -> Vec<i64> {
    journal["calls"].as_array().expect("a list").iter().filter_map(|call| call["error_code"].as_i64()).collect()
}

/// A signature lives for an hour here. Chat's clock stays where it is.
#[tokio::test]
async fn whatever_the_clock_does_calls_are_signed_for_chat() {
    let (clock, gateway, sandbox) = gateway("1h", "200").await;
    let mut seen = 0;
    for seconds in [2 * DAY, 0, -DAY, 0, 400 * DAY, -DAY, 2 * DAY, 0] {
        clock.set(seconds, &gateway).await;
        for round in 0..10 {
            let asks = [
                Ask::command("openim/querystate"),
                Ask::check("ann", &["bob"]).header("Cache-Control", "no-cache"),
                Ask::command("follow/follow_delete").body(r#"{"From_Account":"ann","To_Account":["cyd"]}"#),
            ];
            let [one, two, three] = asks.map(|ask| gateway.ask(ask));
            for answer in <[_; 3]>::from(tokio::join!(one, two, three)) {
                assert_eq!(
                    (answer.status, &answer.json()["ErrorCode"]),
                    (200, &Value::from(0)),
                    "{seconds} s, {round}"
                );
            }
        }
        let codes = codes(&sandbox.journal().await);
        let refused = codes[seen..].iter().filter(|code| **code != 0).count();
        println!("{seconds} s: {refused} of {} calls were refused", codes.len() - seen);
        // Only those that were under way when Chat's clock became known.
        assert!(refused <= 3, "{seconds} s: {:?}", &codes[seen..]);
        seen = codes.len();
    }
}

/// Chat's own clock, by which it judges signatures, jumps.
#[tokio::test]
async fn whatever_chat_s_clock_does_calls_are_signed_for_it() {
    let (_clock, gateway, sandbox) = gateway("1h", "200").await;
    for seconds in [DAY, 0, -DAY, DAY, 0] {
        sandbox.tell("clock", &format!("{{\"skew\":{seconds}}}")).await;
        for _ in 0..5 {
            let answer = gateway.ask(Ask::command("openim/querystate")).await;
            assert_eq!((answer.status, &answer.json()["ErrorCode"]), (200, &Value::from(0)), "{seconds} s");
        }
    }
}

#[tokio::test]
async fn facts_age_by_the_clock_that_does_not_jump() {
    let known = async |gateway: &Gateway| {
        let answer = gateway.ask(Ask::check("ann", &["bob"]).header("Cache-Control", "only-if-cached")).await;
        assert!(answer.status == 200 || answer.slug() == Some("not_cached"), "{answer:?}");
        (answer.status == 200).then(|| answer.age())
    };
    let (clock, long, _sandbox) = gateway("1h", "200").await;
    let begun = now();
    long.check("ann", &["bob"]).await.checked();
    for seconds in [2 * DAY, -DAY, 0] {
        clock.set(seconds, &long).await;
        let age = known(&long).await.unwrap_or_else(|| panic!("{seconds} s: forgotten"));
        assert!(age <= begun.elapsed().as_secs(), "{seconds} s: {age}");
    }
    let (clock, short, _sandbox) = gateway("2s", "200").await;
    short.check("ann", &["bob"]).await.checked();
    clock.set(-DAY, &short).await;
    eventually("its time is over", async || known(&short).await.is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_jump_lets_more_calls_through_or_holds_them_up() {
    let _alone = turn::alone().await;
    let (clock, gateway, sandbox) = gateway("1h", "50").await;
    let is_over = AtomicBool::new(false);
    let jumping = async {
        for seconds in [3600, 0, -3600, 2 * DAY, 0, -60, 60, 0] {
            clock.set(seconds, &gateway).await;
            let before = codes(&sandbox.journal().await).len();
            let more = async || (codes(&sandbox.journal().await).len() >= before + 25).then_some(());
            eventually("calls go on", more).await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let ask = Ask::command("openim/querystate");
    let pressing = async {
        let mut answers = Vec::new();
        while !is_over.load(Ordering::Relaxed) {
            answers.extend(press(&gateway, &ask, 10, Duration::from_secs(1)).await);
        }
        answers
    };
    let (answers, ()) = tokio::join!(pressing, jumping);
    let failed = answers.iter().filter(|answer| answer.status != 200).count();
    assert_eq!(failed, 0, "of {}", answers.len());
    let journal = sandbox.journal().await;
    let most = journal["max_in_one_second"]["openim/querystate"].as_u64().expect("a number");
    println!("{} answers, at most {most} in one second", answers.len());
    assert!(most <= 50, "{most} calls in one second");
    assert!(!codes(&journal).contains(&60007), "Chat had to refuse some");
}
