//! A seeded simulation of calls: thousands of schedules of random faults in Chat, in the network, and in a proxy.
//!
//! The gateway's side consists of its own code: [`CallSession`](crate::domain::policy::call::CallSession) with retries
//! and retry budget, [`ConnectSession`](crate::domain::policy::connect::ConnectSession) with failover, parking, the stale
//! gate, the adaptive rate limit, and the signer. [`world`] drives them together, as `src/gateway/call.rs` and
//! `src/upstream/mod.rs` do, under a clock that only this test advances. [`chat`] is the simulated Chat, which fails by
//! a schedule made from a seed, and [`watch`] checks the promises.
//!
//! A seed that fails is printed with its events. `CHATGATE_SIMULATION_SEED` runs one seed alone.

mod chat;
mod counts;
mod watch;
mod world;

use self::counts::EventCounts;
use self::world::World;

const SCHEDULES: u64 = 10_000;

#[test]
fn promises_hold_in_thousands_of_schedules_of_faults() {
    let seeds = match std::env::var("CHATGATE_SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..SCHEDULES).collect(),
    };
    let mut all = EventCounts::default();
    for seed in seeds {
        match World::run(seed, false) {
            Ok(counts) => all.add(&counts),
            Err(violation) => {
                let traced = World::run(seed, true).expect_err("a seed replays exactly");
                panic!("schedule {seed}: {violation}; CHATGATE_SIMULATION_SEED={seed} runs it alone\n{traced}");
            }
        }
    }
    println!("{all:#?}");
    assert!(all.cover_everything(), "some kind of event never happened: {all:?}");
}

#[test]
fn seed_replays_exactly() {
    for seed in 0..20 {
        assert_eq!(World::run(seed, false).ok(), World::run(seed, true).ok(), "{seed}");
    }
}

/// Checks a promise.
///
/// # Errors
/// The violation.
fn holds(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise()) }
}

/// A splitmix64 generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// Returns true with a probability of one in `n`.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
