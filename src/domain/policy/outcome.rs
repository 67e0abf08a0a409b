//! What to do about the outcome of an attempt: one table for everything that can come back from Chat.
//!
//! To every other proxy a refused call of Chat is a 200 like any other. Here the code decides.

use crate::domain::chat::command::CommandKind;
use crate::domain::chat::error_code;
use crate::domain::chat::error_code::{ErrorClass, Retry};

/// What came of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptOutcome {
    /// A whole answer of Chat with this ErrorCode.
    Answer(i64),
    /// Name lookup, connecting or TLS failed: not a byte of the call left.
    NotSent,
    /// The connection broke when some of the call may have left.
    Broken,
    /// No whole answer in time.
    TimedOut,
    /// Something that is no answer of Chat, under this HTTP status.
    Invalid(u16),
    /// The answer found no room here.
    OverCapacity,
}

/// What becomes of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryClass {
    /// The caller gets what there is.
    Never,
    /// It may be sent again after a while, as far as attempts, budget and deadline allow.
    Retry,
    /// It is sent again once, with a fresh signature.
    FreshSignature,
}

/// What becomes of the calls that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    None,
    /// They go more slowly.
    SlowDown,
    /// None of this command goes out.
    ParkCommand,
    /// None of the app goes out, once another call has confirmed it.
    ParkApp,
    /// None of the app goes out for a minute.
    Lockout,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disposition {
    /// For this call.
    pub retry: RetryClass,
    /// For others.
    pub effect: Effect,
}

/// Says what to do. A write is sent again only where it is certain that it was not carried out.
pub(crate) fn classify(seen: AttemptOutcome, kind: CommandKind) -> Disposition {
    let again_if_read = match kind {
        CommandKind::Read => RetryClass::Retry,
        CommandKind::Write => RetryClass::Never,
    };
    let plain = |next| Disposition { retry: next, effect: Effect::None };
    match seen {
        AttemptOutcome::Answer(code) => judge_code(code, again_if_read),
        AttemptOutcome::NotSent => plain(RetryClass::Retry),
        AttemptOutcome::Broken | AttemptOutcome::TimedOut | AttemptOutcome::Invalid(500..=599) => plain(again_if_read),
        AttemptOutcome::Invalid(_) | AttemptOutcome::OverCapacity => plain(RetryClass::Never),
    }
}

fn judge_code(code: i64, again_if_read: RetryClass) -> Disposition {
    let (next, effect) = match code {
        // Success.
        0 => (RetryClass::Never, Effect::None),
        // Called above the limit of the command, of the app (60011), or "too frequently" (60018, 60019).
        // Others of the class hold back one user or one group, which must not slow down the rest.
        60007 | 60011 | 60018 | 60019 => (again_if_read, Effect::SlowDown),
        // Off for the app, or refused to this identifier: what one command says of itself.
        30005 | 60010 | 60017 => (RetryClass::Never, Effect::ParkCommand),
        60006 | 60016 | 60020 | 60021 | 60026 | 70009 | 70013 | 70014 | 70016 | 70020 | 70051 => {
            (RetryClass::Never, Effect::ParkApp)
        }
        70050 => (RetryClass::Never, Effect::Lockout),
        _ => match error_code::lookup(code).map(|row| (row.class, row.retry)) {
            // The signature was refused before anything was carried out, so this holds for writes too.
            Some((_, Retry::AfterResign)) => (RetryClass::FreshSignature, Effect::None),
            Some((ErrorClass::Transient, _) | (ErrorClass::Throttled, Retry::AfterBackoff)) => {
                (again_if_read, Effect::None)
            }
            // What asking again cannot mend, and codes that nobody has heard of.
            _ => (RetryClass::Never, Effect::None),
        },
    };
    Disposition { retry: next, effect }
}

/// Whether an answer shows that Chat takes this app's calls: it knows the app and its signature.
pub(crate) fn is_accepted(code: i64) -> bool {
    let verdict = classify(AttemptOutcome::Answer(code), CommandKind::Write);
    !matches!(verdict.effect, Effect::ParkApp | Effect::Lockout) && verdict.retry != RetryClass::FreshSignature
}

/// Returns whether other arguments might have fared better. An unknown code counts as such: asking for each pair alone
/// is what the caller would have done.
pub(crate) fn is_about_arguments(code: i64) -> bool {
    error_code::lookup(code)
        .is_none_or(|row| matches!(row.class, ErrorClass::Client | ErrorClass::NotFound | ErrorClass::Blocked))
}

/// Whether a code means that Chat fails or holds back, so that an older answer is better than none: not
/// what is wrong with the question.
pub(crate) fn allows_stale(code: i64) -> bool {
    let class = error_code::lookup(code).map(|row| row.class);
    matches!(class, Some(ErrorClass::Transient | ErrorClass::Throttled | ErrorClass::Auth))
        || matches!(judge_code(code, RetryClass::Never).effect, Effect::ParkApp | Effect::Lockout)
}

/// What to look at when Chat refuses an app or a command for good.
pub(crate) fn hint(code: i64) -> &'static str {
    match code {
        30005 => "switch the feature on in the console, or stop calling this command",
        60006 | 60012 => "check app.sdkappid",
        60010 => "check that app.identifier is an administrator of the app",
        60016 | 60017 | 70051 => "ask the vendor why it is disabled",
        60020 => "check the plan and the account's balance; it takes about five minutes to recover",
        60021 => "let the console's IP list take in this machine",
        60026 | 70016 | 70020 => "check app.region, and that app.sdkappid belongs to it",
        70009 => "check that app.secret_key_file holds the key of this app",
        70013 => "check app.identifier",
        70014 => "check app.sdkappid",
        70050 => "too many signatures were refused; nothing is sent for a minute",
        _ => "see the vendor's page on error codes",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(seen: AttemptOutcome) -> (Disposition, Disposition) {
        (classify(seen, CommandKind::Read), classify(seen, CommandKind::Write))
    }

    #[test]
    fn a_write_is_sent_again_only_if_it_was_certainly_not_carried_out() {
        let codes = error_code::table().iter().map(|row| AttemptOutcome::Answer(*row.codes.start()));
        let others = [
            AttemptOutcome::NotSent,
            AttemptOutcome::Broken,
            AttemptOutcome::TimedOut,
            AttemptOutcome::OverCapacity,
            AttemptOutcome::Answer(0),
            AttemptOutcome::Answer(-1),
        ];
        for seen in codes.chain(others).chain((100..=599).map(AttemptOutcome::Invalid)) {
            match classify(seen, CommandKind::Write).retry {
                RetryClass::Retry => assert_eq!(seen, AttemptOutcome::NotSent),
                RetryClass::FreshSignature => {
                    let AttemptOutcome::Answer(code) = seen else { panic!("{seen:?}") };
                    let row = error_code::lookup(code).expect("a known code");
                    assert_eq!(row.retry, Retry::AfterResign, "{code}");
                }
                RetryClass::Never => {}
            }
        }
    }

    #[test]
    fn a_read_is_tried_again_after_what_may_pass_by_itself() {
        for seen in [
            AttemptOutcome::Broken,
            AttemptOutcome::TimedOut,
            AttemptOutcome::Invalid(503),
            AttemptOutcome::Answer(60008),
            AttemptOutcome::Answer(30006),
        ] {
            let (read, write) = both(seen);
            assert_eq!((read.retry, write.retry), (RetryClass::Retry, RetryClass::Never), "{seen:?}");
            assert_eq!(read.effect, Effect::None);
        }
        for seen in [
            AttemptOutcome::Invalid(200),
            AttemptOutcome::OverCapacity,
            AttemptOutcome::Answer(0),
            AttemptOutcome::Answer(30001),
            AttemptOutcome::Answer(123_456),
        ] {
            let plain = Disposition { retry: RetryClass::Never, effect: Effect::None };
            assert_eq!(both(seen), (plain, plain), "{seen:?}");
        }
    }

    #[test]
    fn every_code_that_stops_an_app_or_a_command_has_a_hint_of_its_own() {
        for row in error_code::table() {
            let code = *row.codes.start();
            let (read, write) = both(AttemptOutcome::Answer(code));
            assert_eq!(read.effect, write.effect);
            if matches!(read.effect, Effect::ParkApp | Effect::ParkCommand | Effect::Lockout) {
                assert_ne!(hint(code), hint(0), "{code}");
                assert_eq!(read.retry, RetryClass::Never, "{code}");
            }
        }
    }

    #[test]
    fn an_older_answer_stands_in_for_trouble_and_not_for_what_is_wrong_with_a_question() {
        for code in [60008, 60007, 70001, 70009, 70050, 60026] {
            assert!(allows_stale(code), "{code}");
        }
        for code in [0, 30001, 30003, 30005, 60010, 70107, 123_456] {
            assert!(!allows_stale(code), "{code}");
        }
    }

    #[test]
    fn one_user_s_limit_slows_nobody_else_down() {
        for code in [10006, 10023, 72010, 90024] {
            assert_eq!(classify(AttemptOutcome::Answer(code), CommandKind::Read).effect, Effect::None, "{code}");
        }
        for code in [60007, 60011, 60018, 60019] {
            assert_eq!(classify(AttemptOutcome::Answer(code), CommandKind::Write).effect, Effect::SlowDown, "{code}");
        }
    }
}
