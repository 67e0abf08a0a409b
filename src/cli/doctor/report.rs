//! What was found: for people, and for machines.

use std::fmt::{self, Write as _};

use serde::Serialize;

use super::cause::Cause;

/// Longest text of a check, in characters. Errors of others may be longer, and need not be shown whole.
const DETAIL_LEN_MAX: usize = 400;

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Each app, in the order of the configuration.
    pub apps: Vec<AppReport>,
}

/// What was found about one app.
#[derive(Debug, Clone, Serialize)]
pub struct AppReport {
    /// Its name in the configuration.
    pub app: String,
    /// Its number.
    pub sdkappid: u32,
    /// The administrator that signs.
    pub identifier: String,
    /// Each step, in its order.
    pub checks: Vec<Check>,
    /// What is wrong, the most important first; empty if all is well.
    pub causes: Vec<Finding>,
}

/// One step.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// The domain it is about, `""` if it is about none.
    pub host: String,
    /// `key`, `name`, `connection`, `tls`, `speed`, `call` or `clock`.
    pub check: &'static str,
    /// How it went.
    pub status: Status,
    /// In words, without control characters.
    pub detail: String,
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    #[serde(rename = "ok")]
    Fine,
    /// Doubtful; no reason to fail.
    Remark,
    /// Wrong.
    Failed,
    /// Not done, and why.
    Skipped,
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its word, `wrong_region` and so on.
    pub cause: &'static str,
    /// Exit code that stands for it.
    pub exit_code: u8,
    /// In plain words.
    pub what: &'static str,
    /// What was seen.
    pub detail: String,
    /// What to do.
    pub advice: String,
}

impl Finding {
    /// `detail` is cleaned; `more` is further advice, such as that of the cause behind it.
    pub(super) fn new(cause: Cause, detail: &str, more: Option<Cause>) -> Self {
        let advice = match more {
            Some(more) => format!("{} {}", cause.advice(), more.advice()),
            None => cause.advice().to_owned(),
        };
        let (exit_code, what) = (cause.exit_code(), cause.what());
        Self { cause: cause.slug(), exit_code, what, detail: clean(detail), advice }
    }
}

impl Check {
    pub(super) fn new(check: &'static str, status: Status, detail: impl AsRef<str>) -> Self {
        Self { host: String::new(), check, status, detail: clean(detail.as_ref()) }
    }
}

impl Report {
    /// 0 if all is well, else the code of what is wrong with the first app that has something wrong.
    pub fn exit_code(&self) -> u8 {
        self.apps.iter().find_map(|app| app.causes.first()).map_or(0, |finding| finding.exit_code)
    }

    /// One JSON object on one line.
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct Whole<'a> {
            exit_code: u8,
            #[serde(flatten)]
            report: &'a Report,
        }
        let whole = Whole { exit_code: self.exit_code(), report: self };
        format!("{}\n", serde_json::to_string(&whole).expect("texts and numbers always become JSON"))
    }
}

/// For people.
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
            let word = match check.status {
                Status::Fine => "ok",
                Status::Remark => "remark",
                Status::Failed => "FAILED",
                Status::Skipped => "skipped",
            };
            let indent = if host.is_empty() { "  " } else { "    " };
            writeln!(f, "{indent}{word:<8}{:<11} {}", check.check, check.detail)?;
        }
        if self.causes.is_empty() {
            return writeln!(f, "  all is well");
        }
        for finding in &self.causes {
            writeln!(f, "\n  {} ({}): {}", finding.cause, finding.exit_code, finding.what)?;
            if !finding.detail.is_empty() {
                writeln!(f, "    seen    {}", finding.detail)?;
            }
            writeln!(f, "    to do   {}", finding.advice)?;
        }
        Ok(())
    }
}

/// One line of bounded length: what others said may hold anything.
fn clean(text: &str) -> String {
    let cleaned: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(DETAIL_LEN_MAX).collect();
    if text.chars().nth(DETAIL_LEN_MAX).is_some() { format!("{cleaned}…") } else { cleaned }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_others_take_one_line_of_bounded_length() {
        let check = Check::new("call", Status::Failed, "a\nb\x1b[31m");
        assert_eq!(check.detail, "a b [31m");
        assert_eq!(clean(&"ä".repeat(DETAIL_LEN_MAX + 1)).chars().count(), DETAIL_LEN_MAX + 1);
        assert_eq!(clean(&"ä".repeat(DETAIL_LEN_MAX)).chars().count(), DETAIL_LEN_MAX);
    }

    #[test]
    fn the_first_app_that_fails_decides() {
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
