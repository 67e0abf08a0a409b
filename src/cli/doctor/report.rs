//! The report: as readable text and as JSON.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::cause::Cause;
use crate::domain::quote::shorten;

/// The report of all examined apps.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    /// Apps in the order of the configuration.
    pub(super) apps: Vec<AppReport>,
}

/// The report of one app.
#[derive(Debug, Clone, Serialize)]
pub(super) struct AppReport {
    /// Name in the configuration.
    pub(super) app: String,
    /// SDKAppID.
    pub(super) sdkappid: u32,
    /// Administrator account that signs.
    pub(super) identifier: String,
    /// Checks in the order in which they were made.
    pub(super) checks: Vec<Check>,
    /// Problems, most important first; empty if there are none.
    pub(super) causes: Vec<Finding>,
}

/// The result of one step.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Check {
    /// Domain; empty if the check does not concern a domain.
    pub(super) host: String,
    /// `key`, `proxy`, `name`, `connection`, `tls`, `speed`, `call`, `clock` or `standby`.
    pub(super) check: &'static str,
    /// Outcome.
    pub(super) status: Status,
    /// Description without control characters.
    pub(super) detail: String,
}

/// The outcome of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// Successful.
    Ok,
    /// Suspicious, but not an error.
    Remark,
    /// An error.
    Failed,
    /// Not made; the detail has the reason.
    Skipped,
}

/// A problem with its cause and advice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// Slug of the cause, for example `wrong_region`.
    pub(super) cause: &'static str,
    /// Exit code of the cause.
    pub(super) exit_code: u8,
    /// Description of the cause.
    pub(super) what: &'static str,
    /// Observed error.
    pub(super) detail: String,
    /// Advice.
    pub(super) advice: String,
}

impl Finding {
    /// Creates a finding with a sanitized detail. The advice of `root_cause` is added to the advice of `cause`.
    pub(super) fn new(cause: Cause, detail: &str, root_cause: Option<Cause>) -> Self {
        let advice = match root_cause {
            Some(root_cause) => format!("{} {}", cause.advice(), root_cause.advice()),
            None => cause.advice().to_owned(),
        };
        let (exit_code, what) = (cause.exit_code(), cause.what());
        Self { cause: cause.slug(), exit_code, what, detail: sanitize(detail), advice }
    }
}

impl Check {
    pub(super) fn new(check: &'static str, status: Status, detail: impl AsRef<str>) -> Self {
        Self { host: String::new(), check, status, detail: sanitize(detail.as_ref()) }
    }
}

impl Report {
    /// Returns the exit code of the first app with a problem, or 0.
    pub(super) fn exit_code(&self) -> u8 {
        self.apps.iter().find_map(|app| app.causes.first()).map_or(0, |finding| finding.exit_code)
    }

    /// Returns one JSON object on one line.
    pub(super) fn json(&self) -> String {
        #[derive(Serialize)]
        struct Output<'a> {
            exit_code: u8,
            #[serde(flatten)]
            report: &'a Report,
        }
        let output = Output { exit_code: self.exit_code(), report: self };
        format!("{}\n", serde_json::to_string(&output).expect("strings and numbers serialize to JSON"))
    }
}

/// Formats the report as readable text.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (app, number) in self.apps.iter().zip(0..) {
            if number > 0 {
                f.write_char('\n')?;
            }
            app.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for AppReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "app {} (sdkappid {}, identifier {:?})", self.app, self.sdkappid, self.identifier)?;
        let mut host = "";
        for check in &self.checks {
            if check.host != host {
                host = &check.host;
                if !host.is_empty() {
                    writeln!(f, "  {host}")?;
                }
            }
            let status = match check.status {
                Status::Ok => "ok",
                Status::Remark => "remark",
                Status::Failed => "FAILED",
                Status::Skipped => "skipped",
            };
            let indent = if host.is_empty() { "  " } else { "    " };
            writeln!(f, "{indent}{status:<8}{:<11} {}", check.check, check.detail)?;
        }
        if self.causes.is_empty() {
            return writeln!(f, "  no problems found");
        }
        for finding in &self.causes {
            writeln!(f, "\n  {} ({}): {}", finding.cause, finding.exit_code, finding.what)?;
            if !finding.detail.is_empty() {
                writeln!(f, "    error   {}", finding.detail)?;
            }
            writeln!(f, "    advice  {}", finding.advice)?;
        }
        Ok(())
    }
}

/// Sanitizes a text from outside: one line with the length of a message, at most 1 KiB.
fn sanitize(text: &str) -> String {
    shorten(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::quote::MESSAGE_LEN_MAX;

    #[test]
    fn details_are_one_line_of_limited_length() {
        let check = Check::new("call", Status::Failed, "a\nb\x1b[31m");
        assert_eq!(check.detail, "a b [31m");
        assert_eq!(sanitize(&"a".repeat(MESSAGE_LEN_MAX)), "a".repeat(MESSAGE_LEN_MAX));
        for long in ["a", "ä", "錯", "😀"] {
            let text = sanitize(&long.repeat(MESSAGE_LEN_MAX + 1));
            assert!(text.len() <= MESSAGE_LEN_MAX && text.ends_with("..."), "{long}: {} bytes", text.len());
        }
    }

    #[test]
    fn exit_code_is_that_of_the_first_app_with_a_problem() {
        let app = |causes: &[Cause]| AppReport {
            app: "a".to_owned(),
            sdkappid: 7,
            identifier: "administrator".to_owned(),
            checks: Vec::new(),
            causes: causes.iter().map(|cause| Finding::new(*cause, "", None)).collect(),
        };
        let code = |apps: Vec<AppReport>| Report { apps }.exit_code();
        assert_eq!(code(vec![app(&[]), app(&[])]), 0);
        assert_eq!(code(vec![app(&[]), app(&[Cause::Clock, Cause::Dns]), app(&[Cause::Dns])]), 15);
    }
}
