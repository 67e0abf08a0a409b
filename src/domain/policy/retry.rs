//! The course of one call from attempt to attempt. It decides and does nothing, so that the simulation
//! drives the same decisions as the gateway.

use std::time::Duration;

use crate::domain::chat::command::CommandKind;
use crate::domain::policy::outcome::{AttemptOutcome, RetryClass, classify};
use crate::domain::policy::retry_budget;
use crate::domain::policy::retry_budget::RetryBudget;

/// How far a call has come.
#[derive(Debug)]
pub(crate) struct RetryState {
    kind: CommandKind,
    attempts_max: u32,
    tried: u32,
    signed_again: bool,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryDecision {
    /// The caller gets what there is.
    Return,
    /// It is sent again at once, if there is another signature for it.
    RetryWithFreshSignature,
    /// It is sent again after this pause; the budget has paid for it.
    RetryAfter(Duration),
}

impl RetryState {
    /// A call sets out. It brings its part to the `budget` of further attempts.
    pub(crate) fn begin(kind: CommandKind, attempts_max: u32, budget: &RetryBudget) -> Self {
        budget.earn();
        Self { kind, attempts_max, tried: 0, signed_again: false }
    }

    /// How many attempts there were.
    pub(crate) fn retries(&self) -> u32 {
        self.tried
    }

    /// An attempt has ended like this. `left` is the time in which another one could get its permit,
    /// `random` any number.
    pub(crate) fn on_outcome(
        &mut self,
        seen: AttemptOutcome,
        left: Duration,
        random: u32,
        budget: &RetryBudget,
    ) -> RetryDecision {
        self.tried += 1;
        match classify(seen, self.kind).retry {
            RetryClass::Never => RetryDecision::Return,
            RetryClass::FreshSignature if self.signed_again => RetryDecision::Return,
            RetryClass::FreshSignature => {
                self.signed_again = true;
                RetryDecision::RetryWithFreshSignature
            }
            RetryClass::Retry => {
                let pause = retry_budget::pause(self.tried, random);
                if self.tried >= self.attempts_max || pause >= left || !budget.spend() {
                    return RetryDecision::Return;
                }
                RetryDecision::RetryAfter(pause)
            }
        }
    }
}
