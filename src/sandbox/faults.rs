//! Injected faults: their kind, their frequency, and their commands.
//!
//! | member | effect | command executed |
//! | --- | --- | --- |
//! | `"error_code":N` | an envelope with that code | no |
//! | `"status":N` | that HTTP status with an HTML body, like the error page of a proxy | no |
//! | `"latency_ms":N` | the response is delayed; its content is from before the delay | yes |
//! | `"reset":true` | the connection is reset (TCP RST) instead of a response | yes |
//! | `"truncate":true` | the headers and half of the body, then the connection closes | yes |
//! | `"drop":true` | the connection closes instead of a response | yes |
//! | `"item_error_code":N` | the items of the response fail with that code, or only those of the user `"to"` | for the other items |
//!
//! `item_error_code` is for commands whose items have a `To_Account`. `latency_ms` can be combined with one of the others. `"next":K` applies to the next K calls, `"share":0.1` to
//! a tenth of the calls until `reset`. `"command"` is a command or a pattern; the default is every command.
//! A call gets the oldest fault that matches it. A call with an error of its own (signature, rate, body) keeps that
//! error and uses up no `error_code`, `status`, or `item_error_code`; it can get the other faults.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;

use crate::domain::chat::command::{CommandName, CommandPattern};
use crate::domain::json::object::{Object, describe};

/// Maximum number of faults at once.
pub(super) const FAULTS_MAX: usize = 64;
/// Maximum delay of a fault.
pub(super) const LATENCY_MAX: Duration = Duration::from_secs(60);

/// The active faults, oldest first.
#[derive(Default)]
pub(super) struct Faults(Vec<Fault>);

/// A fault with its frequency and its commands.
#[derive(Debug, PartialEq)]
pub(super) struct Fault {
    kind: Option<FaultKind>,
    latency: Duration,
    frequency: FaultFrequency,
    pattern: CommandPattern,
}

/// The effect of a fault, apart from a delay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum FaultKind {
    ErrorCode(i64),
    Status(StatusCode),
    Reset,
    Truncate,
    Drop,
    Items(Arc<ItemFault>),
}

/// A fault that hits items of a response.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ItemFault {
    pub(super) code: i64,
    /// The only user whose items it hits; `None` hits every item.
    pub(super) to: Option<String>,
}

impl ItemFault {
    /// Returns the ResultCode of the items of a user, if the fault hits them.
    pub(super) fn code_for(&self, user: &str) -> Option<i64> {
        self.to.as_ref().is_none_or(|to| to == user).then_some(self.code)
    }
}

#[derive(Debug, PartialEq)]
enum FaultFrequency {
    Next(u64),
    Share(f64),
}

/// The effect of a fault on one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AppliedFault {
    pub(super) kind: Option<FaultKind>,
    pub(super) latency: Duration,
}

impl Faults {
    /// Adds a fault. Returns `false` if there are [`FAULTS_MAX`] already.
    pub(super) fn add(&mut self, fault: Fault) -> bool {
        let has_room = self.0.len() < FAULTS_MAX;
        if has_room {
            self.0.push(fault);
        }
        has_room
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the fault for a call and counts it down. `has_error` says whether the call has an error of its own,
    /// and `roll` is a random number in [0, 1).
    pub(super) fn take(&mut self, name: CommandName<'_>, has_error: bool, roll: f64) -> Option<AppliedFault> {
        let at = self.0.iter().position(|fault| {
            let is_match = fault.pattern.matches(name) && !(has_error && fault.needs_success());
            is_match
                && match fault.frequency {
                    FaultFrequency::Next(_) => true,
                    FaultFrequency::Share(share) => roll < share,
                }
        })?;
        let fault = &mut self.0[at];
        let applied = AppliedFault { kind: fault.kind.clone(), latency: fault.latency };
        if let FaultFrequency::Next(left) = &mut fault.frequency {
            *left -= 1;
            if *left == 0 {
                self.0.remove(at);
            }
        }
        Some(applied)
    }
}

impl Fault {
    /// Parses the body of a control request. The error is text for the client.
    pub(super) fn parse(body: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct FaultRequest {
            error_code: Option<i64>,
            status: Option<u16>,
            latency_ms: Option<u64>,
            #[serde(default)]
            reset: bool,
            #[serde(default)]
            truncate: bool,
            #[serde(default)]
            drop: bool,
            item_error_code: Option<i64>,
            to: Option<String>,
            next: Option<u64>,
            share: Option<f64>,
            command: Option<String>,
        }
        let Object(request): Object<FaultRequest> =
            serde_json::from_slice(body).map_err(|error| format!("invalid fault: {}", describe(&error)))?;
        let mut kinds = Vec::new();
        kinds.extend(request.error_code.map(FaultKind::ErrorCode));
        if let Some(status) = request.status {
            let status = StatusCode::from_u16(status).ok().filter(|status| (200..600).contains(&status.as_u16()));
            kinds.push(FaultKind::Status(status.ok_or("status must be from 200 to 599")?));
        }
        kinds.extend(request.reset.then_some(FaultKind::Reset));
        kinds.extend(request.truncate.then_some(FaultKind::Truncate));
        kinds.extend(request.drop.then_some(FaultKind::Drop));
        match (request.item_error_code, request.to) {
            (None, None) => {}
            (Some(code), to) if code != 0 => kinds.push(FaultKind::Items(Arc::new(ItemFault { code, to }))),
            _ => return Err("item_error_code must not be 0, and \"to\" requires it".into()),
        }
        if kinds.len() > 1 || kinds.is_empty() && request.latency_ms.is_none() {
            return Err(
                "no single kind; set one of error_code, status, latency_ms, reset, truncate, drop, item_error_code"
                    .into(),
            );
        }
        let latency = Duration::from_millis(request.latency_ms.unwrap_or(0));
        if latency > LATENCY_MAX {
            return Err(format!("latency_ms must be at most {}", LATENCY_MAX.as_millis()));
        }
        let frequency = match (request.next, request.share) {
            (Some(next @ 1..), None) => FaultFrequency::Next(next),
            (None, Some(share)) if share > 0.0 && share <= 1.0 => FaultFrequency::Share(share),
            _ => return Err("no frequency; set either \"next\" (1 or more) or \"share\" (above 0, at most 1)".into()),
        };
        let pattern = match request.command {
            Some(text) => text.parse().map_err(|error| format!("command {error}"))?,
            None => CommandPattern::Any,
        };
        Ok(Fault { kind: kinds.pop(), latency, frequency, pattern })
    }

    /// Returns whether only a call without an error of its own can get this fault.
    fn needs_success(&self) -> bool {
        matches!(self.kind, Some(FaultKind::ErrorCode(_) | FaultKind::Status(_) | FaultKind::Items(_)))
    }
}

impl FaultKind {
    /// Returns the name that the journal shows.
    pub(super) fn name(&self) -> &'static str {
        match self {
            FaultKind::ErrorCode(_) => "error_code",
            FaultKind::Status(_) => "status",
            FaultKind::Reset => "reset",
            FaultKind::Truncate => "truncate",
            FaultKind::Drop => "drop",
            FaultKind::Items(_) => "item_error_code",
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
    fn oldest_fault_applies_first_until_used_up() {
        let mut faults = faults(&[r#"{"error_code":70001,"next":2}"#, r#"{"drop":true,"next":1}"#]);
        let mut kind = || faults.take(FOLLOW_CHECK, false, 0.5).map(|applied| applied.kind);
        assert_eq!(kind(), Some(Some(FaultKind::ErrorCode(70001))));
        assert_eq!(kind(), Some(Some(FaultKind::ErrorCode(70001))));
        assert_eq!(kind(), Some(Some(FaultKind::Drop)));
        assert_eq!(kind(), None);
        assert_eq!(faults.len(), 0);
    }

    #[test]
    fn share_depends_on_the_roll_and_is_not_used_up() {
        let mut faults = faults(&[r#"{"latency_ms":40,"share":0.25}"#]);
        assert_eq!(faults.take(FOLLOW_CHECK, false, 0.25), None);
        let applied = AppliedFault { kind: None, latency: Duration::from_millis(40) };
        for _ in 0..3 {
            assert_eq!(faults.take(FOLLOW_CHECK, false, 0.2499).as_ref(), Some(&applied));
        }
        faults.clear();
        assert_eq!(faults.take(FOLLOW_CHECK, false, 0.0), None);
    }

    #[test]
    fn faults_match_by_command_and_spare_calls_with_errors() {
        let mut faults = faults(&[
            r#"{"status":502,"latency_ms":5,"next":1,"command":"follow/follow_add"}"#,
            r#"{"reset":true,"next":1}"#,
        ]);
        assert_eq!(
            faults.take(FOLLOW_ADD, true, 0.0).unwrap().kind,
            Some(FaultKind::Reset),
            "a call with an error keeps it"
        );
        assert_eq!(faults.take(FOLLOW_CHECK, false, 0.0), None);
        let applied = faults.take(FOLLOW_ADD, false, 0.0).unwrap();
        assert_eq!(
            (applied.kind, applied.latency),
            (Some(FaultKind::Status(StatusCode::BAD_GATEWAY)), Duration::from_millis(5))
        );
    }

    #[test]
    fn item_faults_hit_one_user_or_all() {
        let mut faults =
            faults(&[r#"{"item_error_code":30006,"to":"bob","next":1}"#, r#"{"item_error_code":1,"share":1}"#]);
        assert!(faults.take(FOLLOW_CHECK, true, 0.0).is_none(), "a call with an error keeps it");
        for expected in [[Some(30006), None], [Some(1), Some(1)]] {
            let Some(FaultKind::Items(fault)) = faults.take(FOLLOW_CHECK, false, 0.0).unwrap().kind else { panic!() };
            assert_eq!(["bob", "ann"].map(|user| fault.code_for(user)), expected);
        }
    }

    #[test]
    fn invalid_faults_are_rejected() {
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
            r#"{"error_code":1,"next":1,"to":"bob"}"#,
            r#"{"item_error_code":0,"next":1}"#,
            r#"{"item_error_code":1,"error_code":1,"next":1}"#,
            r#"{"error_code":1,"next":1,"commando":"x/y"}"#,
        ] {
            assert!(Fault::parse(text.as_bytes()).is_err(), "{text}");
        }
        for text in [
            r#""private""#,
            r#"{"next":"private"}"#,
            r#"{"private":1}"#,
            r#"{"drop":true,"next":1,"command":"private"}"#,
        ] {
            let error = Fault::parse(text.as_bytes()).unwrap_err();
            assert!(!error.contains("private"), "{error}");
        }
        let mut many = Faults::default();
        for _ in 0..FAULTS_MAX {
            assert!(many.add(fault(r#"{"drop":true,"next":1}"#)));
        }
        assert!(!many.add(fault(r#"{"drop":true,"next":1}"#)));
    }
}
