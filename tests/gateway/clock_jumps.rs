//! Wall-clock jumps: libfaketime sets the clock of a running gateway forward and back. The monotonic clock is not
//! affected.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::doctor::{HEX, Simulator};
use crate::quota::send_from_callers;
use crate::support::client::TestRequest;
use crate::support::gateway::Gateway;
use crate::support::setup::Setup;
use crate::support::wall_clock::WallClock;
use crate::support::{eventually, now, turn, unix_now};

const DAY: i64 = 24 * 3600;

/// Returns a clock for the gateway that is started from the returned setup.
fn attach(setup: Setup) -> (WallClock, Setup) {
    let clock = WallClock::new(setup.dir().join("wall-clock"));
    let setup = clock.variables().iter().fold(setup, |setup, (name, value)| setup.env(name, value));
    (clock, setup)
}

/// Sets the offset from the true time, and waits until the gateway sees it.
async fn set(clock: &WallClock, seconds: i64, gateway: &Gateway) {
    clock.set(seconds as f64);
    eventually("the clock has jumped", async || {
        let time = gateway.admin_get("/status").await.json()["now"].as_f64()?;
        ((time - unix_now() as f64 - seconds as f64).abs() < 10.0).then_some(())
    })
    .await;
}

/// Starts a gateway in front of a simulator in which ann follows bob.
async fn gateway(ttl: &str, qps: &str) -> (WallClock, Gateway, Simulator) {
    let setup = Setup::without_apps().set("cache", &format!("ttl = \"{ttl}\"")).set("cache", r#"write_settle = "0s""#);
    let simulator = Simulator::start(&setup, &["--qps", qps]).await;
    simulator.control("graph", r#"{"users":["ann","bob","cyd"],"edges":[["ann","bob"]]}"#).await;
    let lines = format!("{}\nusersig_lifetime = \"1h\"", simulator.app_lines());
    let setup = setup.app(HEX, &lines).set("app.quota", &format!("per_command = \"{qps}/s\""));
    let (clock, setup) = attach(setup);
    (clock, setup.start().await, simulator)
}

fn codes(journal: &Value) -> Vec<i64> {
    journal["calls"].as_array().expect("a list").iter().filter_map(|call| call["error_code"].as_i64()).collect()
}

/// UserSigs are valid for one hour here. Chat's clock does not change.
#[tokio::test]
async fn signatures_stay_valid_when_the_local_clock_jumps() {
    let (clock, gateway, simulator) = gateway("1h", "200").await;
    let mut checked = 0;
    for seconds in [2 * DAY, 0, -DAY, 0, 400 * DAY, -DAY, 2 * DAY, 0] {
        set(&clock, seconds, &gateway).await;
        for round in 0..10 {
            let requests = [
                TestRequest::command("openim/querystate"),
                TestRequest::check("ann", &["bob"]).header("Cache-Control", "no-cache"),
                TestRequest::command("follow/follow_delete").body(r#"{"From_Account":"ann","To_Account":["cyd"]}"#),
            ];
            let [one, two, three] = requests.map(|request| gateway.send(request));
            for response in <[_; 3]>::from(tokio::join!(one, two, three)) {
                assert_eq!(
                    (response.status, &response.json()["ErrorCode"]),
                    (200, &Value::from(0)),
                    "{seconds} s, {round}"
                );
            }
        }
        let codes = codes(&simulator.journal().await);
        let rejected = codes[checked..].iter().filter(|code| **code != 0).count();
        println!("{seconds} s: {rejected} of {} calls were rejected", codes.len() - checked);
        // Only calls in flight when the gateway learns Chat's clock may fail.
        assert!(rejected <= 3, "{seconds} s: {:?}", &codes[checked..]);
        checked = codes.len();
    }
}

/// Chat verifies signatures by its own clock.
#[tokio::test]
async fn signatures_stay_valid_when_chats_clock_jumps() {
    let (_clock, gateway, simulator) = gateway("1h", "200").await;
    for seconds in [DAY, 0, -DAY, DAY, 0] {
        simulator.control("clock", &format!("{{\"skew\":{seconds}}}")).await;
        for _ in 0..5 {
            let response = gateway.send(TestRequest::command("openim/querystate")).await;
            assert_eq!((response.status, &response.json()["ErrorCode"]), (200, &Value::from(0)), "{seconds} s");
        }
    }
}

#[tokio::test]
async fn cached_pairs_age_by_the_monotonic_clock() {
    let cached_age = async |gateway: &Gateway| {
        let response =
            gateway.send(TestRequest::check("ann", &["bob"]).header("Cache-Control", "only-if-cached")).await;
        assert!(response.status == 200 || response.slug() == Some("not_cached"), "{response:?}");
        (response.status == 200).then(|| response.age())
    };
    let (clock, long, _simulator) = gateway("1h", "200").await;
    let started = now();
    long.check("ann", &["bob"]).await.items();
    for seconds in [2 * DAY, -DAY, 0] {
        set(&clock, seconds, &long).await;
        let age = cached_age(&long).await.unwrap_or_else(|| panic!("{seconds} s: not cached"));
        assert!(age <= started.elapsed().as_secs(), "{seconds} s: {age}");
    }
    let (clock, short, _simulator) = gateway("2s", "200").await;
    short.check("ann", &["bob"]).await.items();
    set(&clock, -DAY, &short).await;
    eventually("the ttl of the pair ends", async || cached_age(&short).await.is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_jumps_neither_exceed_nor_block_the_quota() {
    let _exclusive = turn::exclusive().await;
    let (clock, gateway, simulator) = gateway("1h", "50").await;
    let finished = AtomicBool::new(false);
    let jumps = async {
        for seconds in [3600, 0, -3600, 2 * DAY, 0, -60, 60, 0] {
            set(&clock, seconds, &gateway).await;
            let before = codes(&simulator.journal().await).len();
            let more = async || (codes(&simulator.journal().await).len() >= before + 25).then_some(());
            eventually("calls continue", more).await;
        }
        finished.store(true, Ordering::Relaxed);
    };
    let request = TestRequest::command("openim/querystate");
    let sending = async {
        let mut responses = Vec::new();
        while !finished.load(Ordering::Relaxed) {
            responses.extend(send_from_callers(&gateway, &request, 10, Duration::from_secs(1)).await);
        }
        responses
    };
    let (responses, ()) = tokio::join!(sending, jumps);
    let failed = responses.iter().filter(|response| response.status != 200).count();
    assert_eq!(failed, 0, "of {}", responses.len());
    let journal = simulator.journal().await;
    let most = journal["max_in_one_second"]["openim/querystate"].as_u64().expect("a number");
    println!("{} responses, at most {most} in one second", responses.len());
    assert!(most <= 50, "{most} calls in one second");
    assert!(!codes(&journal).contains(&60007), "Chat throttled some calls");
}
