//! The closed sets of label values: whatever callers and Chat send, there are no others.

use std::borrow::Cow;

use crate::domain::chat::command;
use crate::domain::chat::command::{CommandName, KNOWN_COMMANDS};
use crate::domain::chat::error_code;
use crate::error::GatewayError;

/// What a command is called that the built-in table does not have.
pub const OTHER: &str = "other";

/// A command as a label: `service/command` of the built-in table, or `other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommandLabel(usize);

impl CommandLabel {
    /// What is not in the table, or was never read.
    pub fn other() -> Self {
        Self(KNOWN_COMMANDS.len())
    }

    /// The label of a command.
    pub fn of(name: CommandName<'_>) -> Self {
        command::row_number(name).map_or_else(Self::other, Self)
    }

    /// How many there are.
    pub fn count() -> usize {
        KNOWN_COMMANDS.len() + 1
    }

    /// Each of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::count()).map(Self)
    }

    /// Its place among them, from 0.
    pub fn index(self) -> usize {
        self.0
    }

    /// The command, if it is one of the table.
    pub fn name(self) -> Option<CommandName<'static>> {
        KNOWN_COMMANDS.get(self.0).map(|known| known.name)
    }

    /// Its text.
    pub fn text(self) -> Cow<'static, str> {
        self.name().map_or(Cow::Borrowed(OTHER), |name| Cow::Owned(name.to_string()))
    }
}

/// What became of a request, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome(usize);

/// `ok`, `failed`, `abandoned`, and every slug that a request can end with.
const OUTCOMES: [&str; 26] = [
    "ok",
    "failed",
    "abandoned",
    "bad_json",
    "bad_parameter",
    "bad_request",
    "body_too_large",
    "draining",
    "forbidden",
    "head_too_large",
    "internal",
    "method_not_allowed",
    "not_cached",
    "not_found",
    "overloaded",
    "parked",
    "rate_limited",
    "timeout",
    "unauthenticated",
    "unknown_app",
    "unsupported_encoding",
    "upstream_invalid",
    "upstream_timeout",
    "upstream_unreachable",
    "uri_too_long",
    OTHER,
];

impl Outcome {
    /// Answered, and Chat or the cache said yes.
    pub const OK: Outcome = Outcome(0);
    /// Chat said no.
    pub const FAILED: Outcome = Outcome(1);
    /// The caller left before it was answered.
    pub const ABANDONED: Outcome = Outcome(2);
    /// How many there are.
    pub const COUNT: usize = OUTCOMES.len();

    /// chatgate said no.
    pub fn rejected(error: &GatewayError) -> Self {
        Self::of_slug(error.wire().slug)
    }

    fn of_slug(slug: &str) -> Self {
        Self(OUTCOMES.iter().position(|text| *text == slug).unwrap_or(OUTCOMES.len() - 1))
    }

    /// Each of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// Its place among them, from 0.
    pub fn index(self) -> usize {
        self.0
    }

    /// Its text.
    pub fn text(self) -> &'static str {
        OUTCOMES[self.0]
    }
}

/// What became of a call to Chat, as a label: the ErrorCode where the vendor's table has it (a range is one
/// value), `other` for further codes, and a slug where no answer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallResult(usize);

/// Calls that brought no answer to use.
const UNANSWERED: [&str; 5] =
    ["upstream_unreachable", "upstream_timeout", "upstream_invalid", "overloaded", "abandoned"];

impl CallResult {
    /// ErrorCode 0.
    pub const OK: CallResult = CallResult(0);

    /// Chat answered with this code.
    pub fn answered(code: i64) -> Self {
        match code {
            0 => Self::OK,
            code => Self(error_code::row_number(code).map_or(error_code::table().len() + 1, |row| row + 1)),
        }
    }

    /// Broken off before it was over, because its caller left.
    pub fn abandoned() -> Self {
        Self(Self::count() - 1)
    }

    /// There was no answer to use.
    pub fn unanswered(error: &GatewayError) -> Self {
        let slug = error.wire().slug;
        let which = UNANSWERED.iter().position(|text| *text == slug);
        let codes = error_code::table().len();
        Self(which.map_or(codes + 1, |which| codes + 2 + which))
    }

    /// How many there are.
    pub fn count() -> usize {
        error_code::table().len() + 2 + UNANSWERED.len()
    }

    /// Each of them.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::count()).map(Self)
    }

    /// Its place among them, from 0.
    pub fn index(self) -> usize {
        self.0
    }

    /// Its text.
    pub fn text(self) -> Cow<'static, str> {
        let table = error_code::table();
        match self.0.checked_sub(1) {
            None => Cow::Borrowed("0"),
            Some(row) if row < table.len() => {
                let codes = &table[row].codes;
                let (first, last) = (codes.start(), codes.end());
                Cow::Owned(if first == last { first.to_string() } else { format!("{first}-{last}") })
            }
            Some(row) => Cow::Borrowed(row.checked_sub(table.len() + 1).map_or(OTHER, |which| UNANSWERED[which])),
        }
    }

    /// What Chat means by it, in a few words; empty for 0 and `other`.
    pub fn meaning(self) -> &'static str {
        let table = error_code::table();
        match self.0.checked_sub(1) {
            Some(row) if row < table.len() => table[row].meaning,
            Some(row) if row > table.len() => "no answer of Chat that can be used",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_labels_of_a_set_have_one_text() {
        let distinct = |texts: Vec<String>| (texts.len(), texts.into_iter().collect::<BTreeSet<_>>().len());
        let commands = distinct(CommandLabel::all().map(|label| label.text().into_owned()).collect());
        let outcomes = distinct(Outcome::all().map(|label| label.text().to_owned()).collect());
        let ends = distinct(CallResult::all().map(|label| label.text().into_owned()).collect());
        for (all, distinct) in [commands, outcomes, ends] {
            assert_eq!(all, distinct);
        }
        assert_eq!(commands.0, CommandLabel::count());
    }

    #[test]
    fn what_nobody_listed_is_other() {
        let command = |text| CommandLabel::of(CommandName::parse(text).expect("a name")).text();
        assert_eq!(command("follow/follow_check"), "follow/follow_check");
        assert_eq!(command("follow/follow_chec"), "other");
        assert_eq!(Outcome::of_slug("bad_json").text(), "bad_json");
        assert_eq!(Outcome::of_slug("new"), Outcome::of_slug("newer"));
        assert_eq!(Outcome::of_slug("new").text(), "other");
        let code = |code| CallResult::answered(code).text();
        assert_eq!((code(0), code(60007), code(38500)), ("0".into(), "60007".into(), "38000-39000".into()));
        assert_eq!((code(i64::MIN), code(987_654)), ("other".into(), "other".into()));
    }

    #[test]
    fn a_call_without_an_answer_has_the_reason_for_its_code() {
        let end = |error| CallResult::unanswered(&error).text();
        assert_eq!(end(GatewayError::UpstreamTimeout), "upstream_timeout");
        assert_eq!(end(GatewayError::UpstreamInvalid("x")), "upstream_invalid");
        assert_eq!(end(GatewayError::Internal), "other");
    }
}
