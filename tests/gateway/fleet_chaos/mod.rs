//! Four gateways that share state through Redis, under load, while random faults hit Redis, the network, and the
//! gateways. A checker then goes through the whole history:
//!
//! * every request was answered;
//! * no answer was from before an acknowledged write or event, past the bound;
//! * in no second did more calls reach Chat than the limit, or the documented excess while replicas were disconnected;
//! * no gateway kept growing.
//!
//! The seed determines the faults and their order. `CHATGATE_CHAOS_SEED` replays one, `CHATGATE_CHAOS_SECONDS` sets the
//! length, for example for an hour:
//!
//! ```console
//! CHATGATE_CHAOS_SECONDS=3600 cargo test --test gateway -- fleet_chaos::sentinel --ignored --nocapture
//! ```

mod history;
mod load;
mod network;
mod nodes;
mod run;

use std::time::Duration;

use self::nodes::Form;
use crate::support::turn;

/// Length of a run within the tests.
const SHORT: Duration = Duration::from_secs(8);

/// Reads a number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

async fn run(test: &str, form: Form, seed: u64) {
    let _exclusive = turn::exclusive().await;
    if network::is_inside(test) {
        let length = number("CHATGATE_CHAOS_SECONDS").map_or(SHORT, Duration::from_secs);
        run::run(form, number("CHATGATE_CHAOS_SEED").unwrap_or(seed), length).await;
    }
}

#[ignore = "takes minutes if the machine is busy; run it by name"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn primary() {
    run("fleet_chaos::primary", Form::Primary, 1).await;
}

#[ignore = "takes minutes if the machine is busy; run it by name"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinel() {
    run("fleet_chaos::sentinel", Form::Sentinel, 2).await;
}

#[ignore = "takes minutes if the machine is busy; run it by name"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster() {
    run("fleet_chaos::cluster", Form::Cluster, 3).await;
}
