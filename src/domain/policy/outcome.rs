//! What each outcome of an attempt means, in one table: whether to retry, and the effect on later calls.
//!
//! Chat rejects a call with HTTP status 200, which other proxies take for success. Here the ErrorCode decides.

use crate::domain::chat::command::{CommandKind, CommandName, FOLLOW_CHECK};
use crate::domain::chat::error_code;
use crate::domain::chat::error_code::{ErrorClass, Retry};

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttemptOutcome {
    /// A complete response of Chat with this ErrorCode.
    Answer(i64),
    /// DNS lookup, connection, or TLS handshake failed: not a byte of the call was sent.
    NotSent,
    /// The proxy opens no tunnel, and would not for another attempt either: not a byte of the call was sent.
    ProxyRejected,
    /// The connection broke after part of the call may have been sent.
    Broken,
    /// No complete response before the timeout.
    TimedOut,
    /// Something other than a response of Chat, with this HTTP status.
    Invalid(u16),
    /// The buffers of chatgate had no room for the response.
    OverCapacity,
}

/// Whether the call is retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RetryClass {
    /// The caller gets the result.
    Never,
    /// The call is retried after a pause, if attempts, retry budget, and deadline allow.
    Retry,
    /// The call is retried once, with a fresh signature.
    FreshSignature,
}

/// The effect on later calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// No effect.
    None,
    /// The rate limit of the command is lowered.
    SlowDown,
    /// The command is parked.
    ParkCommand,
    /// The command is parked; the app, if commands of two services are rejected and none is accepted between them. The
    /// services of one paid feature count as one.
    ParkCommandOrApp,
    /// The app is parked, once a second call has confirmed the code.
    ParkApp,
    /// No call of the app is sent for one minute.
    Lockout,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Disposition {
    /// The effect on this call.
    pub retry: RetryClass,
    /// The effect on later calls.
    pub effect: Effect,
}

/// Looks an outcome up in the table. A write is retried only if Chat certainly did not apply it.
pub(crate) fn classify(outcome: AttemptOutcome, kind: CommandKind) -> Disposition {
    let retry_if_read = match kind {
        CommandKind::Read => RetryClass::Retry,
        CommandKind::Write => RetryClass::Never,
    };
    let plain = |retry| Disposition { retry, effect: Effect::None };
    match outcome {
        AttemptOutcome::Answer(code) => classify_code(code, retry_if_read),
        AttemptOutcome::NotSent => plain(RetryClass::Retry),
        AttemptOutcome::Broken | AttemptOutcome::TimedOut | AttemptOutcome::Invalid(500..=599) => plain(retry_if_read),
        // Nothing was sent, but a proxy that rejects the credentials may lock the account after some attempts.
        AttemptOutcome::ProxyRejected => plain(RetryClass::Never),
        AttemptOutcome::Invalid(_) | AttemptOutcome::OverCapacity => plain(RetryClass::Never),
    }
}

fn classify_code(code: i64, retry_if_read: RetryClass) -> Disposition {
    let (retry, effect) = match code {
        // Success.
        0 => (RetryClass::Never, Effect::None),
        // Above the rate limit of the command (-14: of a Desk command), of the app (60011), or "too frequently" (60018,
        // 60019). Other throttling codes concern one user or one group, which must not slow down the others.
        -14 | 60007 | 60011 | 60018 | 60019 => (retry_if_read, Effect::SlowDown),
        // Disabled for the app, or not permitted to this identifier: these codes concern one command.
        30005 | 60010 | 60017 => (RetryClass::Never, Effect::ParkCommand),
        // The app's plan has ended, or a paid feature of this command is off: the code does not say which.
        60020 => (RetryClass::Never, Effect::ParkCommandOrApp),
        60006 | 60016 | 60021 | 60026 | 70009 | 70013 | 70014 | 70016 | 70020 | 70051 => {
            (RetryClass::Never, Effect::ParkApp)
        }
        70050 => (RetryClass::Never, Effect::Lockout),
        _ => match error_code::lookup(code).map(|row| (row.class, row.retry)) {
            // Chat checks the signature before it applies anything, so writes are retried too.
            Some((_, Retry::FreshSignature)) => (RetryClass::FreshSignature, Effect::None),
            Some((ErrorClass::Transient, _) | (ErrorClass::Throttled, Retry::AfterBackoff)) => {
                (retry_if_read, Effect::None)
            }
            // Errors that a retry cannot fix, and unknown codes.
            _ => (RetryClass::Never, Effect::None),
        },
    };
    Disposition { retry, effect }
}

/// Returns the effect of a code that this command was answered with.
///
/// 30005 parks only commands of the follow service: there it says that the feature is off (vendor page 1047/70349). In
/// the vendor's older tables it is a sensitive word in one request, which must not silence other requests.
pub(crate) fn effect_on(command: CommandName<'_>, code: i64) -> Effect {
    if code == 30005 && command.service() != FOLLOW_CHECK.service() {
        return Effect::None;
    }
    classify_code(code, RetryClass::Never).effect
}

/// Returns whether a response shows that Chat accepts this app's calls: it knows the app and its signature.
pub(crate) fn is_accepted(code: i64) -> bool {
    let disposition = classify(AttemptOutcome::Answer(code), CommandKind::Write);
    !matches!(disposition.effect, Effect::ParkCommandOrApp | Effect::ParkApp | Effect::Lockout)
        && disposition.retry != RetryClass::FreshSignature
}

/// Returns whether other arguments might succeed where this command was answered with this code. An unknown code counts
/// as such: then each pair gets a call of its own, as if its caller had called Chat directly.
pub(crate) fn is_about_arguments(command: CommandName<'_>, code: i64) -> bool {
    match code {
        // The URL, or the command that it names.
        60002 | 60009 => false,
        // The app, or an account in the request: the vendor's pages disagree (1047/70349, 1047/34348).
        30002 => true,
        _ if effect_on(command, code) != Effect::None => false,
        // Where it parks nothing, it is about one request.
        30005 => true,
        _ => error_code::lookup(code)
            .is_none_or(|row| matches!(row.class, ErrorClass::Client | ErrorClass::NotFound | ErrorClass::Blocked)),
    }
}

/// Returns whether a code means that Chat fails or throttles, so that a stale answer is better than none. Errors in the
/// request itself do not count.
pub(crate) fn allows_stale(code: i64) -> bool {
    let class = error_code::lookup(code).map(|row| row.class);
    matches!(class, Some(ErrorClass::Transient | ErrorClass::Throttled | ErrorClass::Auth))
        || matches!(
            classify_code(code, RetryClass::Never).effect,
            Effect::ParkCommandOrApp | Effect::ParkApp | Effect::Lockout
        )
}

/// Returns the remedy for a code that parks an app or a command.
pub(crate) fn hint(code: i64) -> &'static str {
    match code {
        30005 => "enable the feature in the console, or stop calling this command",
        60006 | 60012 => "check app.sdkappid",
        60010 => "check that app.identifier is an administrator of the app",
        60016 | 60017 | 70051 => "ask Tencent why it is disabled",
        60020 => {
            "check the plan, the features that it includes, and the account's balance (recovery takes about five minutes)"
        }
        60021 => "add this machine to the IP allow list in the console",
        60026 | 70016 | 70020 => "check app.region, and that app.sdkappid belongs to it",
        70009 => "check that app.secret_key_file holds the key of this app",
        70013 => "check app.identifier",
        70014 => "check app.sdkappid",
        70050 => "Chat rejected too many signatures (nothing is sent for one minute)",
        _ => "see Tencent's page on error codes",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(outcome: AttemptOutcome) -> (Disposition, Disposition) {
        (classify(outcome, CommandKind::Read), classify(outcome, CommandKind::Write))
    }

    #[test]
    fn writes_are_retried_only_if_certainly_not_applied() {
        let codes = error_code::table().iter().map(|row| AttemptOutcome::Answer(*row.codes.start()));
        let others = [
            AttemptOutcome::NotSent,
            AttemptOutcome::ProxyRejected,
            AttemptOutcome::Broken,
            AttemptOutcome::TimedOut,
            AttemptOutcome::OverCapacity,
            AttemptOutcome::Answer(0),
            AttemptOutcome::Answer(-1),
        ];
        for outcome in codes.chain(others).chain((100..=599).map(AttemptOutcome::Invalid)) {
            match classify(outcome, CommandKind::Write).retry {
                RetryClass::Retry => assert_eq!(outcome, AttemptOutcome::NotSent),
                RetryClass::FreshSignature => {
                    let AttemptOutcome::Answer(code) = outcome else { panic!("{outcome:?}") };
                    let row = error_code::lookup(code).expect("a known code");
                    assert_eq!(row.retry, Retry::FreshSignature, "{code}");
                }
                RetryClass::Never => {}
            }
        }
    }

    #[test]
    fn rejected_signature_is_renewed_for_reads_and_writes() {
        let fresh = Disposition { retry: RetryClass::FreshSignature, effect: Effect::None };
        for row in error_code::table().iter().filter(|row| row.retry == Retry::FreshSignature) {
            let code = *row.codes.start();
            assert_eq!(both(AttemptOutcome::Answer(code)), (fresh, fresh), "{code}");
        }
        assert_eq!(both(AttemptOutcome::Answer(70001)), (fresh, fresh));
    }

    #[test]
    fn only_a_code_about_the_app_or_its_signature_shows_a_rejected_app() {
        for code in [0, -14, 30001, 30005, 60007, 60008, 60010, 60017, 123_456] {
            assert!(is_accepted(code), "{code}");
        }
        for code in [60006, 60020, 60026, 70001, 70009, 70050] {
            assert!(!is_accepted(code), "{code}");
        }
    }

    #[test]
    fn reads_are_retried_after_transient_outcomes() {
        for outcome in [
            AttemptOutcome::Broken,
            AttemptOutcome::TimedOut,
            AttemptOutcome::Invalid(503),
            AttemptOutcome::Answer(60008),
            AttemptOutcome::Answer(30006),
        ] {
            let (read, write) = both(outcome);
            assert_eq!((read.retry, write.retry), (RetryClass::Retry, RetryClass::Never), "{outcome:?}");
            assert_eq!(read.effect, Effect::None);
        }
        for outcome in [
            AttemptOutcome::Invalid(200),
            AttemptOutcome::ProxyRejected,
            AttemptOutcome::OverCapacity,
            AttemptOutcome::Answer(0),
            AttemptOutcome::Answer(30001),
            AttemptOutcome::Answer(123_456),
        ] {
            let plain = Disposition { retry: RetryClass::Never, effect: Effect::None };
            assert_eq!(both(outcome), (plain, plain), "{outcome:?}");
        }
    }

    #[test]
    fn sensitive_word_parks_no_command() {
        let on = |name: &str, code| effect_on(CommandName::parse(name).expect("a name"), code);
        assert_eq!(on("follow/follow_add", 30005), Effect::ParkCommand);
        assert_eq!(on("sns/friend_add", 30005), Effect::None);
        assert_eq!(on("sns/friend_add", 60017), Effect::ParkCommand);
        assert_eq!(on("sns/friend_add", 70009), Effect::ParkApp);
    }

    #[test]
    fn only_errors_of_arguments_are_looked_up_one_by_one() {
        for code in [30001, 30002, 30003, 60003, 60015, 30515, 70107, 123_456, -1] {
            assert!(is_about_arguments(FOLLOW_CHECK, code), "{code}");
        }
        for code in [-14, 30005, 60002, 60007, 60008, 60009, 60016, 60017, 60020, 60026, 70001, 70009, 70050, 70051] {
            assert!(!is_about_arguments(FOLLOW_CHECK, code), "{code}");
        }
        // Outside of the follow service it is about one request, see `effect_on`.
        assert!(is_about_arguments(CommandName::parse("sns/friend_check").expect("a name"), 30005));
    }

    #[test]
    fn every_parking_code_has_its_own_hint() {
        for row in error_code::table() {
            let code = *row.codes.start();
            let (read, write) = both(AttemptOutcome::Answer(code));
            assert_eq!(read.effect, write.effect);
            if !matches!(read.effect, Effect::None | Effect::SlowDown) {
                assert_ne!(hint(code), hint(0), "{code}");
                assert_eq!(read.retry, RetryClass::Never, "{code}");
            }
        }
    }

    #[test]
    fn failures_allow_stale_answers_and_request_errors_do_not() {
        for code in [60008, 60007, 70001, 70009, 70050, 60026] {
            assert!(allows_stale(code), "{code}");
        }
        for code in [0, 30001, 30003, 30005, 60010, 70107, 123_456] {
            assert!(!allows_stale(code), "{code}");
        }
    }

    #[test]
    fn limits_of_one_user_do_not_slow_down_others() {
        for code in [10006, 10023, 72010, 90024] {
            assert_eq!(classify(AttemptOutcome::Answer(code), CommandKind::Read).effect, Effect::None, "{code}");
        }
        for code in [-14, 60007, 60011, 60018, 60019] {
            let (read, write) = both(AttemptOutcome::Answer(code));
            assert_eq!((read.retry, read.effect), (RetryClass::Retry, Effect::SlowDown), "{code}");
            assert_eq!((write.retry, write.effect), (RetryClass::Never, Effect::SlowDown), "{code}");
        }
    }
}
