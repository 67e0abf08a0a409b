//! The course of one call from attempt to attempt. It decides and does nothing, so that the simulation
//! drives the same decisions as the gateway.

use std::time::Duration;

use crate::domain::command::CommandKind;
use crate::domain::outcome::{Next, Seen, judge};
use crate::retry::{self, RetryBudget};

/// How far a call has come.
#[derive(Debug)]
pub(super) struct Course {
    kind: CommandKind,
    attempts_max: u32,
    tried: u32,
    signed_again: bool,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The caller gets what there is.
    HandOn,
    /// It is sent again at once, if there is another signature for it.
    SignAgain,
    /// It is sent again after this pause; the budget has paid for it.
    TryAgain(Duration),
}

impl Course {
    /// A call sets out. It brings its part to the `budget` of further attempts.
    pub(super) fn begin(kind: CommandKind, attempts_max: u32, budget: &RetryBudget) -> Self {
        budget.earn();
        Self { kind, attempts_max, tried: 0, signed_again: false }
    }

    /// How many attempts there were.
    pub(super) fn tried(&self) -> u32 {
        self.tried
    }

    /// An attempt has ended like this. `left` is the time in which another one could get its permit,
    /// `random` any number.
    pub(super) fn after(&mut self, seen: Seen, left: Duration, random: u32, budget: &RetryBudget) -> Step {
        self.tried += 1;
        match judge(seen, self.kind).next {
            Next::HandOn => Step::HandOn,
            Next::SignAgain if self.signed_again => Step::HandOn,
            Next::SignAgain => {
                self.signed_again = true;
                Step::SignAgain
            }
            Next::TryAgain => {
                let pause = retry::pause(self.tried, random);
                if self.tried >= self.attempts_max || pause >= left || !budget.spend() {
                    return Step::HandOn;
                }
                Step::TryAgain(pause)
            }
        }
    }
}
