//! Shared by all topics: the gateway as a process, a fake Chat, and callers.
//!
//! * [`setup::Setup`] writes a configuration and starts the real binary as a [`gateway::Gateway`];
//! * [`chat::FakeChat`] is the upstream. It has its own HTTP reader, and when it is dropped it fails the test if any
//!   request that reached it broke the contract;
//! * [`proxy::FakeProxy`] is an egress proxy on the way to it;
//! * [`link::Link`] is the network in front of it and fails on demand; [`hosts::Hosts`] holds its host names;
//! * [`client::TestRequest`] and [`client::Conn`] are callers with control over each byte; [`h2`] is an HTTP/2 client,
//!   [`h2_raw`] writes single HTTP/2 frames;
//! * [`collector::Collector`] receives spans over HTTP, or fails on demand;
//! * [`exposition`] is a strict reader of `/metrics`;
//! * [`hook`] posts webhooks as Chat does, and [`app_server::AppServer`] is the app that they are forwarded to;
//! * [`trial::FaultTrial`] injects a network fault and asserts the guarantees that hold under every fault;
//! * [`response::Response`] is a response, with the contract's shapes as assertions;
//! * `harness` tests all of these.
//!
//! No test sleeps and hopes: it waits for a condition with [`eventually`] or for an event with [`within`], and both
//! are bounded. Tests run in parallel; a test that measures time calls [`turn::exclusive`] first.

pub(crate) mod app;
pub(crate) mod app_server;
pub(crate) mod chat;
pub(crate) mod client;
pub(crate) mod collector;
pub(crate) mod cpu_waits;
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
pub(crate) mod proxy;
pub(crate) mod redis;
pub(crate) mod redis_sets;
pub(crate) mod reply;
pub(crate) mod response;
pub(crate) mod secrets;
pub(crate) mod setup;
pub(crate) mod tls;
pub(crate) mod trial;
pub(crate) mod turn;
pub(crate) mod usersig;
pub(crate) mod wall_clock;
pub(crate) mod wire;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest wait for anything that must happen. It is long because the machine may be slow and because only a
/// failing test waits this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the time by the tests' clock, which is separate from the program's.
#[allow(clippy::disallowed_methods, reason = "tests measure the program with their own clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Returns the seconds since 1970.
#[allow(clippy::disallowed_methods, reason = "tests measure the program with their own clock")]
pub(crate) fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_secs()
}

/// Polls `probe` every 5 ms until it returns a value. Panics with `what` after [`PATIENCE`].
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let start = now();
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} without success for: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits for an event. Panics with `what` if it takes longer than `limit`.
pub(crate) async fn within<T>(limit: Duration, what: &str, event: impl Future<Output = T>) -> T {
    match tokio::time::timeout(limit, event).await {
        Ok(outcome) => outcome,
        Err(_) => panic!("took more than {limit:?}: {what}"),
    }
}
