//! Faults at random, thousands of schedules of them, over what decides about a call: the table of outcomes,
//! attempts and their budget, failover, parking, sickness, the learned limit and the signer, together, under
//! a clock that only this test moves.
//!
//! [`world`] does what `attempts.rs` and `upstream/mod.rs` do with them, without a runtime; [`chat`] is the
//! other side, which fails by a schedule made from a seed. A seed that fails is printed with all that
//! happened, and `CHATGATE_SIMULATION_SEED` runs it alone.

mod chat;
mod figures;
mod world;

use self::figures::Totals;
use self::world::World;

const SCHEDULES: u64 = 10_000;

#[test]
fn whatever_fails_in_whatever_order_the_promises_hold() {
    let seeds = match std::env::var("CHATGATE_SIMULATION_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..SCHEDULES).collect(),
    };
    let mut all = Totals::default();
    for seed in seeds {
        match World::run(seed, false) {
            Ok(figures) => all.add(&figures),
            Err(broken) => {
                let again = World::run(seed, true).expect_err("a seed gives the same each time");
                panic!("schedule {seed}: {broken}; CHATGATE_SIMULATION_SEED={seed} runs it alone\n{again}");
            }
        }
    }
    println!("{all:#?}");
    assert!(all.is_worth_it(), "the schedules leave something out: {all:?}");
}

#[test]
fn a_seed_gives_the_same_each_time() {
    for seed in 0..20 {
        assert_eq!(World::run(seed, false).ok(), World::run(seed, true).ok(), "{seed}");
    }
}

/// splitmix64.
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

    /// One in `n`.
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}
