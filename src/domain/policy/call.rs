//! One call to Chat, from attempt to attempt: parking, retries, renewed signatures, and pauses.
//!
//! A [`CallSession`] decides and does nothing else: no socket, no clock, no waiting. The gateway
//! (`src/gateway/call.rs`) and the simulation (`tests/model`) drive the same session.

use std::time::Duration;

use super::outcome::{AttemptOutcome, Effect, RetryClass, classify, effect_on};
use super::parking::{Observation, Parked, Parking, ParkingChange};
use super::retry_budget::{self, RetryBudget};
use crate::domain::chat::command::{CommandKind, CommandName};
use crate::domain::tick::Tick;

/// A call in progress.
#[derive(Debug)]
pub(crate) struct CallSession<'a> {
    command: CommandName<'a>,
    kind: CommandKind,
    attempts_max: u32,
    attempts: u32,
    renewed: bool,
}

/// What follows an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryDecision {
    /// The caller gets the result of this attempt.
    Return,
    /// Try again at once, if there is a signature newer than the rejected one.
    RetryWithFreshSignature,
    /// Try again after this pause. The retry budget has paid for it.
    RetryAfter(Duration),
}

/// A response of Chat, as far as it matters for later calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ResponseSeen<'a> {
    /// Its ErrorCode.
    pub code: i64,
    /// Its ErrorInfo; empty if the code has no effect.
    pub info: &'a str,
    /// When the call was sent.
    pub sent: Tick,
    /// When the response arrived.
    pub received: Tick,
}

impl<'a> CallSession<'a> {
    /// Starts a call with up to `attempts_max` attempts. The call adds its part to the retry budget.
    pub(crate) fn new(command: CommandName<'a>, kind: CommandKind, attempts_max: u32, budget: &RetryBudget) -> Self {
        budget.earn();
        Self { command, kind, attempts_max, attempts: 0, renewed: false }
    }

    /// Returns the number of attempts so far.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Checks whether it is worth waiting for a permit.
    ///
    /// # Errors
    /// The reason why the app or the command is parked.
    pub(crate) fn check(&self, parking: &Parking, now: Tick) -> Result<(), Parked> {
        parking.check(self.command, now)
    }

    /// Checks whether an attempt that has its permit may be sent. If the app or the command is parked and a probe is
    /// due, this attempt is the probe.
    ///
    /// # Errors
    /// The reason why the app or the command is parked.
    pub(crate) fn admit(&self, parking: &mut Parking, now: Tick) -> Result<(), Parked> {
        parking.admit(self.command, now)
    }

    /// Returns what a response with this code means for later calls.
    pub(crate) fn effect(&self, code: i64) -> Effect {
        effect_on(self.command, code)
    }

    /// Applies a response to what is parked.
    pub(crate) fn on_response(&self, response: ResponseSeen<'_>, parking: &mut Parking) -> ParkingChange {
        let ResponseSeen { code, info, sent, received } = response;
        parking.on_response(Observation { command: self.command, code, info, sent }, self.effect(code), received)
    }

    /// An attempt has ended. `left` is the time in which another attempt could still get its permit, `random` any
    /// number.
    pub(crate) fn on_outcome(
        &mut self,
        outcome: AttemptOutcome,
        left: Duration,
        random: u32,
        budget: &RetryBudget,
    ) -> RetryDecision {
        self.attempts += 1;
        match classify(outcome, self.kind).retry {
            RetryClass::Never => RetryDecision::Return,
            RetryClass::FreshSignature if self.renewed => RetryDecision::Return,
            RetryClass::FreshSignature => {
                self.renewed = true;
                RetryDecision::RetryWithFreshSignature
            }
            RetryClass::Retry => {
                let pause = retry_budget::pause(self.attempts, random);
                if self.attempts >= self.attempts_max || pause >= left || !budget.spend() {
                    return RetryDecision::Return;
                }
                RetryDecision::RetryAfter(pause)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chat::command::{FOLLOW_ADD, FOLLOW_CHECK};

    const LONG: Duration = Duration::from_secs(10);

    fn session(command: CommandName<'static>, budget: &RetryBudget) -> CallSession<'static> {
        CallSession::new(command, command.kind(), 3, budget)
    }

    #[test]
    fn reads_are_retried_up_to_the_attempt_limit() {
        let budget = RetryBudget::new(0.1);
        let mut read = session(FOLLOW_CHECK, &budget);
        for _ in 0..2 {
            let decision = read.on_outcome(AttemptOutcome::TimedOut, LONG, 1, &budget);
            assert!(matches!(decision, RetryDecision::RetryAfter(_)), "{decision:?}");
        }
        assert_eq!(read.on_outcome(AttemptOutcome::TimedOut, LONG, 1, &budget), RetryDecision::Return);
        assert_eq!(read.attempts(), 3);
    }

    #[test]
    fn writes_are_retried_only_if_nothing_was_sent() {
        let budget = RetryBudget::new(0.1);
        let mut write = session(FOLLOW_ADD, &budget);
        assert!(matches!(write.on_outcome(AttemptOutcome::NotSent, LONG, 1, &budget), RetryDecision::RetryAfter(_)));
        assert_eq!(write.on_outcome(AttemptOutcome::Broken, LONG, 1, &budget), RetryDecision::Return);
    }

    #[test]
    fn a_rejected_signature_is_renewed_once() {
        let budget = RetryBudget::new(0.1);
        let mut write = session(FOLLOW_ADD, &budget);
        let rejected = AttemptOutcome::Answer(70001);
        assert_eq!(write.on_outcome(rejected, LONG, 1, &budget), RetryDecision::RetryWithFreshSignature);
        assert_eq!(write.on_outcome(rejected, LONG, 1, &budget), RetryDecision::Return);
    }

    #[test]
    fn no_attempt_starts_that_could_not_get_its_permit() {
        let budget = RetryBudget::new(0.1);
        let mut read = session(FOLLOW_CHECK, &budget);
        let decision = read.on_outcome(AttemptOutcome::NotSent, Duration::from_micros(1), u32::MAX, &budget);
        assert_eq!(decision, RetryDecision::Return);
    }
}
