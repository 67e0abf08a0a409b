//! What the topics share: the gateway as a process, a Chat to talk to, and callers.
//!
//! * [`setup::Setup`] writes a configuration and starts the real binary as a [`gateway::Gateway`];
//! * [`chat::FakeChat`] is the upstream. It reads HTTP by itself, byte by byte, and fails the test at its
//!   end if any request that reached it was not exactly as the contract says;
//! * [`link::Link`] is the network before it, which goes bad on order, and [`hosts::Hosts`] its names;
//! * [`client::Ask`] and [`client::Conn`] are callers, down to the single byte; [`h2`] speaks HTTP/2, [`h2_raw`]
//!   its single frames;
//! * [`collector::Collector`] takes spans over gRPC, or does not;
//! * [`exposition`] reads `/metrics` to the letter;
//! * [`hook`] posts webhooks as Chat does;
//! * [`trial::Trial`] puts a gateway under a fault and asserts what holds under each;
//! * [`answer::Answer`] is what came back, with the contract's shapes as assertions;
//! * `harness` tests all of these.
//!
//! Nothing here sleeps for luck: a test waits for a condition with [`eventually`], or for an event
//! with [`within`], and both are bounded. Tests run next to each other; one that measures time asks
//! for [`turn::alone`] first.

pub(crate) mod answer;
pub(crate) mod app;
pub(crate) mod chat;
pub(crate) mod client;
pub(crate) mod collector;
pub(crate) mod exposition;
pub(crate) mod gateway;
pub(crate) mod graph;
pub(crate) mod h2;
pub(crate) mod h2_raw;
mod harness;
pub(crate) mod hook;
pub(crate) mod hosts;
pub(crate) mod link;
pub(crate) mod process;
pub(crate) mod redis;
pub(crate) mod reply;
pub(crate) mod secrets;
pub(crate) mod setup;
pub(crate) mod stalls;
pub(crate) mod tls;
pub(crate) mod trial;
pub(crate) mod turn;
pub(crate) mod usersig;
pub(crate) mod wire;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a test waits for anything that must happen. Long, because it is only ever waited out by
/// a test that fails, and the machine may be slow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The tests' own clock, apart from the program's.
#[allow(clippy::disallowed_methods, reason = "tests measure the program with a clock of their own")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Seconds since 1970.
#[allow(clippy::disallowed_methods, reason = "tests measure the program with a clock of their own")]
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs()
}

/// Asks `probe` again and again until it has an answer. Panics with `what` after [`PATIENCE`].
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = now();
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for one event. Panics with `what` if it takes longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, what: &str, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, event).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("took more than {limit:?}: {what}"),
    }
}
