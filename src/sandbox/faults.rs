//! Faults on order: what goes wrong, how often, and for which command.
//!
//! | member | what the caller sees | is the command carried out? |
//! | --- | --- | --- |
//! | `"error_code":N` | an envelope with that code | no |
//! | `"status":N` | that HTTP status with an HTML body, as from a proxy in between | no |
//! | `"latency_ms":N` | the answer, that much later; it is from before the wait | yes |
//! | `"reset":true` | the connection reset (TCP RST) instead of an answer | yes |
//! | `"truncate":true` | the answer's whole head and half of its body, then the end | yes |
//! | `"drop":true` | the connection closed instead of an answer | yes |
//!
//! Beside one of them `latency_ms` may stand too. `"next":K` is for the next K calls, `"share":0.1` for
//! a tenth of them until `reset`; `"command"` is a command or a pattern, and any command without it.
//! The oldest fault that fits a call is the one it meets. A call that Chat refuses anyway (signature,
//! rate, body) keeps its own refusal and uses up no `error_code` or `status`; the other faults hit it too.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;

use crate::domain::chat::command::{CommandName, CommandPattern};

/// Most faults that are waiting at once.
pub(super) const FAULTS_MAX: usize = 64;
/// Longest delay that can be ordered.
pub(super) const LATENCY_MAX: Duration = Duration::from_secs(60);

/// Faults in the order they were given.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

/// An order for faults.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    kind: Option<Kind>,
    latency: Duration,
    when: When,
    pattern: CommandPattern,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    ErrorCode(i64),
    Status(StatusCode),
    Reset,
    Truncate,
    Drop,
}

#[derive(Debug, PartialEq)]
enum When {
    Next(u64),
    Share(f64),
}

/// The fault that a call meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hit {
    pub(super) kind: Option<Kind>,
    pub(super) latency: Duration,
}

impl Faults {
    /// `false` if there are too many already.
    pub(super) fn add(&mut self, fault: Fault) -> bool {
        let room = self.0.len() < FAULTS_MAX;
        if room {
            self.0.push(fault);
        }
        room
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The fault for a call, used up by it. `roll` is drawn from [0, 1).
    pub(super) fn take(&mut self, name: CommandName<'_>, refused: bool, roll: f64) -> Option<Hit> {
        let at = self.0.iter().position(|fault| {
            let fits = fault.pattern.matches(name) && !(refused && fault.replaces_answer());
            fits && match fault.when {
                When::Next(_) => true,
                When::Share(share) => roll < share,
            }
        })?;
        let fault = &mut self.0[at];
        let hit = Hit { kind: fault.kind, latency: fault.latency };
        if let When::Next(left) = &mut fault.when {
            *left -= 1;
            if *left == 0 {
                self.0.remove(at);
            }
        }
        Some(hit)
    }
}

impl Fault {
    /// Reads an order; the error is a sentence for who gave it.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Order {
            error_code: Option<i64>,
            status: Option<u16>,
            latency_ms: Option<u64>,
            #[serde(default)]
            reset: bool,
            #[serde(default)]
            truncate: bool,
            #[serde(default)]
            drop: bool,
            next: Option<u64>,
            share: Option<f64>,
            command: Option<String>,
        }
        let order: Order = serde_json::from_slice(body).map_err(|error| format!("not an order for faults: {error}"))?;
        let mut kinds = Vec::new();
        kinds.extend(order.error_code.map(Kind::ErrorCode));
        if let Some(status) = order.status {
            let status = StatusCode::from_u16(status).ok().filter(|status| (200..600).contains(&status.as_u16()));
            kinds.push(Kind::Status(status.ok_or("status must be from 200 to 599")?));
        }
        kinds.extend(order.reset.then_some(Kind::Reset));
        kinds.extend(order.truncate.then_some(Kind::Truncate));
        kinds.extend(order.drop.then_some(Kind::Drop));
        if kinds.len() > 1 || kinds.is_empty() && order.latency_ms.is_none() {
            return Err("name one of error_code, status, latency_ms, reset, truncate, drop".into());
        }
        let latency = Duration::from_millis(order.latency_ms.unwrap_or(0));
        if latency > LATENCY_MAX {
            return Err(format!("latency_ms must be at most {}", LATENCY_MAX.as_millis()));
        }
        let when = match (order.next, order.share) {
            (Some(next @ 1..), None) => When::Next(next),
            (None, Some(share)) if share > 0.0 && share <= 1.0 => When::Share(share),
            _ => return Err("say how often: \"next\" (1 or more) or \"share\" (above 0, at most 1)".into()),
        };
        let pattern = match order.command {
            Some(text) => text.parse().map_err(|error| format!("command {error}"))?,
            None => CommandPattern::Any,
        };
        Ok(Fault { kind: kinds.pop(), latency, when, pattern })
    }

    fn replaces_answer(&self) -> bool {
        matches!(self.kind, Some(Kind::ErrorCode(_) | Kind::Status(_)))
    }
}

impl Kind {
    /// How the journal calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::ErrorCode(_) => "error_code",
            Kind::Status(_) => "status",
            Kind::Reset => "reset",
            Kind::Truncate => "truncate",
            Kind::Drop => "drop",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chat::command::{FOLLOW_ADD, FOLLOW_CHECK};

    fn fault(text: &str) -> Fault {
        Fault::parse(text.as_bytes()).unwrap()
    }

    fn faults(texts: &[&str]) -> Faults {
        let mut faults = Faults::default();
        for text in texts {
            assert!(faults.add(fault(text)));
        }
        faults
    }

    #[test]
    fn next_is_used_up_and_the_oldest_goes_first() {
        let mut faults = faults(&[r#"{"error_code":70001,"next":2}"#, r#"{"drop":true,"next":1}"#]);
        let mut kind = || faults.take(FOLLOW_CHECK, false, 0.5).map(|hit| hit.kind);
        assert_eq!(kind(), Some(Some(Kind::ErrorCode(70001))));
        assert_eq!(kind(), Some(Some(Kind::ErrorCode(70001))));
        assert_eq!(kind(), Some(Some(Kind::Drop)));
        assert_eq!(kind(), None);
        assert_eq!(faults.len(), 0);
    }

    #[test]
    fn a_share_hits_by_the_roll_and_stays() {
        let mut faults = faults(&[r#"{"latency_ms":40,"share":0.25}"#]);
        assert_eq!(faults.take(FOLLOW_CHECK, false, 0.25), None);
        let hit = Hit { kind: None, latency: Duration::from_millis(40) };
        for _ in 0..3 {
            assert_eq!(faults.take(FOLLOW_CHECK, false, 0.2499), Some(hit));
        }
        faults.clear();
        assert_eq!(faults.take(FOLLOW_CHECK, false, 0.0), None);
    }

    #[test]
    fn commands_and_refused_calls_are_told_apart() {
        let mut faults = faults(&[
            r#"{"status":502,"latency_ms":5,"next":1,"command":"follow/follow_add"}"#,
            r#"{"reset":true,"next":1}"#,
        ]);
        assert_eq!(
            faults.take(FOLLOW_ADD, true, 0.0).unwrap().kind,
            Some(Kind::Reset),
            "a refused call has its answer"
        );
        assert_eq!(faults.take(FOLLOW_CHECK, false, 0.0), None);
        let hit = faults.take(FOLLOW_ADD, false, 0.0).unwrap();
        assert_eq!((hit.kind, hit.latency), (Some(Kind::Status(StatusCode::BAD_GATEWAY)), Duration::from_millis(5)));
    }

    #[test]
    fn orders_that_make_no_sense_are_refused() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"next":1}"#,
            r#"{"drop":true}"#,
            r#"{"drop":false,"next":1}"#,
            r#"{"drop":true,"next":0}"#,
            r#"{"drop":true,"next":1,"share":0.5}"#,
            r#"{"drop":true,"reset":true,"next":1}"#,
            r#"{"drop":true,"share":0}"#,
            r#"{"drop":true,"share":1.5}"#,
            r#"{"status":100,"next":1}"#,
            r#"{"status":"502","next":1}"#,
            r#"{"latency_ms":60001,"next":1}"#,
            r#"{"error_code":1,"next":1,"command":"follow"}"#,
            r#"{"error_code":1,"next":1,"commando":"x/y"}"#,
        ] {
            assert!(Fault::parse(text.as_bytes()).is_err(), "{text}");
        }
        let mut many = Faults::default();
        for _ in 0..FAULTS_MAX {
            assert!(many.add(fault(r#"{"drop":true,"next":1}"#)));
        }
        assert!(!many.add(fault(r#"{"drop":true,"next":1}"#)));
    }
}
