//! What to do about the outcome of an attempt: one table for everything that can come back from Chat.
//!
//! To every other proxy a refused call of Chat is a 200 like any other. Here the code decides.

use super::command::CommandKind;
use super::error_code::{self, ErrorClass, Retry};

/// What came of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
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
    NoRoom,
}

/// What becomes of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// The caller gets what there is.
    HandOn,
    /// It may be sent again after a while, as far as attempts, budget and deadline allow.
    TryAgain,
    /// It is sent again once, with a fresh signature.
    SignAgain,
}

/// What becomes of the calls that follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// They go more slowly.
    SlowDown,
    /// None of this command goes out.
    ParkCommand,
    /// None of the app goes out, once another call has confirmed it.
    ParkApp,
    /// None of the app goes out for a minute.
    Silence,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// For this call.
    pub next: Next,
    /// For others.
    pub effect: Effect,
}

/// Says what to do. A write is sent again only where it is certain that it was not carried out.
pub fn judge(seen: Seen, kind: CommandKind) -> Verdict {
    let again_if_read = match kind {
        CommandKind::Read => Next::TryAgain,
        CommandKind::Write => Next::HandOn,
    };
    let plain = |next| Verdict { next, effect: Effect::None };
    match seen {
        Seen::Answer(code) => judge_code(code, again_if_read),
        Seen::NotSent => plain(Next::TryAgain),
        Seen::Broken | Seen::TimedOut | Seen::Invalid(500..=599) => plain(again_if_read),
        Seen::Invalid(_) | Seen::NoRoom => plain(Next::HandOn),
    }
}

fn judge_code(code: i64, again_if_read: Next) -> Verdict {
    let (next, effect) = match code {
        // Success.
        0 => (Next::HandOn, Effect::None),
        // Called above the limit of the command, of the app (60011), or "too frequently" (60018, 60019).
        // Others of the class hold back one user or one group, which must not slow down the rest.
        60007 | 60011 | 60018 | 60019 => (again_if_read, Effect::SlowDown),
        // Off for the app, or refused to this identifier: what one command says of itself.
        30005 | 60010 | 60017 => (Next::HandOn, Effect::ParkCommand),
        60006 | 60016 | 60020 | 60021 | 60026 | 70009 | 70013 | 70014 | 70016 | 70020 | 70051 => {
            (Next::HandOn, Effect::ParkApp)
        }
        70050 => (Next::HandOn, Effect::Silence),
        _ => match error_code::lookup(code).map(|row| (row.class, row.retry)) {
            // The signature was refused before anything was carried out, so this holds for writes too.
            Some((_, Retry::AfterResign)) => (Next::SignAgain, Effect::None),
            Some((ErrorClass::Transient, _) | (ErrorClass::Throttled, Retry::AfterBackoff)) => {
                (again_if_read, Effect::None)
            }
            // What asking again cannot mend, and codes that nobody has heard of.
            _ => (Next::HandOn, Effect::None),
        },
    };
    Verdict { next, effect }
}

/// Whether an answer shows that Chat takes this app's calls: it knows the app and its signature.
pub fn is_accepted(code: i64) -> bool {
    let verdict = judge(Seen::Answer(code), CommandKind::Write);
    !matches!(verdict.effect, Effect::ParkApp | Effect::Silence) && verdict.next != Next::SignAgain
}

/// Whether a code means that Chat fails or holds back, so that an older answer is better than none: not
/// what is wrong with the question.
pub fn is_trouble(code: i64) -> bool {
    let class = error_code::lookup(code).map(|row| row.class);
    matches!(class, Some(ErrorClass::Transient | ErrorClass::Throttled | ErrorClass::Auth))
        || matches!(judge_code(code, Next::HandOn).effect, Effect::ParkApp | Effect::Silence)
}

/// What to look at when Chat refuses an app or a command for good.
pub fn hint(code: i64) -> &'static str {
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

    fn both(seen: Seen) -> (Verdict, Verdict) {
        (judge(seen, CommandKind::Read), judge(seen, CommandKind::Write))
    }

    #[test]
    fn a_write_is_sent_again_only_if_it_was_certainly_not_carried_out() {
        let codes = error_code::table().iter().map(|row| Seen::Answer(*row.codes.start()));
        let others = [Seen::NotSent, Seen::Broken, Seen::TimedOut, Seen::NoRoom, Seen::Answer(0), Seen::Answer(-1)];
        for seen in codes.chain(others).chain((100..=599).map(Seen::Invalid)) {
            match judge(seen, CommandKind::Write).next {
                Next::TryAgain => assert_eq!(seen, Seen::NotSent),
                Next::SignAgain => {
                    let Seen::Answer(code) = seen else { panic!("{seen:?}") };
                    let row = error_code::lookup(code).expect("a known code");
                    assert_eq!(row.retry, Retry::AfterResign, "{code}");
                }
                Next::HandOn => {}
            }
        }
    }

    #[test]
    fn a_read_is_tried_again_after_what_may_pass_by_itself() {
        for seen in [Seen::Broken, Seen::TimedOut, Seen::Invalid(503), Seen::Answer(60008), Seen::Answer(30006)] {
            let (read, write) = both(seen);
            assert_eq!((read.next, write.next), (Next::TryAgain, Next::HandOn), "{seen:?}");
            assert_eq!(read.effect, Effect::None);
        }
        for seen in [Seen::Invalid(200), Seen::NoRoom, Seen::Answer(0), Seen::Answer(30001), Seen::Answer(123_456)] {
            let plain = Verdict { next: Next::HandOn, effect: Effect::None };
            assert_eq!(both(seen), (plain, plain), "{seen:?}");
        }
    }

    #[test]
    fn every_code_that_stops_an_app_or_a_command_has_a_hint_of_its_own() {
        for row in error_code::table() {
            let code = *row.codes.start();
            let (read, write) = both(Seen::Answer(code));
            assert_eq!(read.effect, write.effect);
            if matches!(read.effect, Effect::ParkApp | Effect::ParkCommand | Effect::Silence) {
                assert_ne!(hint(code), hint(0), "{code}");
                assert_eq!(read.next, Next::HandOn, "{code}");
            }
        }
    }

    #[test]
    fn an_older_answer_stands_in_for_trouble_and_not_for_what_is_wrong_with_a_question() {
        for code in [60008, 60007, 70001, 70009, 70050, 60026] {
            assert!(is_trouble(code), "{code}");
        }
        for code in [0, 30001, 30003, 30005, 60010, 70107, 123_456] {
            assert!(!is_trouble(code), "{code}");
        }
    }

    #[test]
    fn one_user_s_limit_slows_nobody_else_down() {
        for code in [10006, 10023, 72010, 90024] {
            assert_eq!(judge(Seen::Answer(code), CommandKind::Read).effect, Effect::None, "{code}");
        }
        for code in [60007, 60011, 60018, 60019] {
            assert_eq!(judge(Seen::Answer(code), CommandKind::Write).effect, Effect::SlowDown, "{code}");
        }
    }
}
