//! The closed sets of label values. No input of callers or of Chat adds a value.

use std::borrow::Cow;

use crate::domain::chat::command::{self, CommandName, KNOWN_COMMANDS};
use crate::domain::chat::error_code;
use crate::error::{GatewayError, Slug};

/// The label of commands outside the built-in table.
pub(crate) const OTHER: &str = "other";

/// A command as a label: `service/command` of the built-in table, or `other`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CommandLabel(usize);

impl CommandLabel {
    /// A command outside the table, or one that was never read.
    pub(crate) fn other() -> Self {
        Self(KNOWN_COMMANDS.len())
    }

    /// Returns the label of a command.
    pub(crate) fn of(name: CommandName<'_>) -> Self {
        command::row_number(name).map_or_else(Self::other, Self)
    }

    /// Returns the number of values.
    pub(crate) fn count() -> usize {
        KNOWN_COMMANDS.len() + 1
    }

    /// Iterates over all values.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..Self::count()).map(Self)
    }

    /// Returns its position among all values.
    pub(crate) fn index(self) -> usize {
        self.0
    }

    /// Returns the command, if it is in the table.
    pub(crate) fn name(self) -> Option<CommandName<'static>> {
        KNOWN_COMMANDS.get(self.0).map(|known| known.name)
    }

    /// Returns its text.
    pub(crate) fn text(self) -> Cow<'static, str> {
        self.name().map_or(Cow::Borrowed(OTHER), |name| Cow::Owned(name.to_string()))
    }
}

/// How a request ended, as a label: `ok`, `failed`, `abandoned`, or a slug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome(usize);

/// Outcomes that are not slugs.
const ANSWERED: [&str; 3] = ["ok", "failed", "abandoned"];

impl Outcome {
    /// Answered successfully, by Chat or from the cache.
    pub(crate) const OK: Outcome = Outcome(0);
    /// Answered with an error of Chat.
    pub(crate) const FAILED: Outcome = Outcome(1);
    /// The caller disconnected before it was answered.
    pub(crate) const ABANDONED: Outcome = Outcome(2);
    /// The number of outcomes.
    pub(crate) const COUNT: usize = ANSWERED.len() + Slug::ALL.len();

    /// Answered with an error of chatgate.
    pub(crate) fn rejected(error: &GatewayError) -> Self {
        Self(ANSWERED.len() + error.wire().slug as usize)
    }

    /// Whether chatgate has rejected the request, or could not complete it.
    pub(crate) fn is_rejection(self) -> bool {
        self.0 >= ANSWERED.len()
    }

    /// Iterates over all outcomes.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// Returns its position among all outcomes.
    pub(crate) fn index(self) -> usize {
        self.0
    }

    /// Returns its text.
    pub(crate) fn text(self) -> &'static str {
        match self.0.checked_sub(ANSWERED.len()) {
            None => ANSWERED[self.0],
            Some(slug) => Slug::ALL[slug].text(),
        }
    }
}

/// How a call to Chat ended, as a label: the ErrorCode where the vendor's table has it (a range is one value), `other`
/// for further codes, and a slug or `abandoned` where no usable response came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallLabel(usize);

/// Calls without a usable response.
const UNANSWERED: [&str; 5] = [
    Slug::UpstreamUnreachable.text(),
    Slug::UpstreamTimeout.text(),
    Slug::UpstreamInvalid.text(),
    Slug::Overloaded.text(),
    "abandoned",
];

impl CallLabel {
    /// ErrorCode 0.
    pub(crate) const OK: CallLabel = CallLabel(0);

    /// Chat answered with this code.
    pub(crate) fn answered(code: i64) -> Self {
        match code {
            0 => Self::OK,
            code => Self(error_code::row_number(code).map_or(error_code::table().len() + 1, |row| row + 1)),
        }
    }

    /// Cut off before it ended, because its caller disconnected.
    pub(crate) fn abandoned() -> Self {
        Self(Self::count() - 1)
    }

    /// No usable response came.
    pub(crate) fn unanswered(error: &GatewayError) -> Self {
        let slug = error.wire().slug.text();
        let which = UNANSWERED.iter().position(|text| *text == slug);
        let codes = error_code::table().len();
        Self(which.map_or(codes + 1, |which| codes + 2 + which))
    }

    /// Returns the number of values.
    pub(crate) fn count() -> usize {
        error_code::table().len() + 2 + UNANSWERED.len()
    }

    /// Iterates over all values.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..Self::count()).map(Self)
    }

    /// Returns its position among all values.
    pub(crate) fn index(self) -> usize {
        self.0
    }

    /// Returns its text.
    pub(crate) fn text(self) -> Cow<'static, str> {
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

    /// Returns what Chat means by it; empty for 0 and `other`.
    pub(crate) fn meaning(self) -> &'static str {
        let table = error_code::table();
        match self.0.checked_sub(1) {
            Some(row) if row < table.len() => table[row].meaning,
            Some(row) if row > table.len() => "no usable response from Chat",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn label_texts_are_distinct() {
        let distinct = |texts: Vec<String>| (texts.len(), texts.into_iter().collect::<BTreeSet<_>>().len());
        let commands = distinct(CommandLabel::all().map(|label| label.text().into_owned()).collect());
        let outcomes = distinct(Outcome::all().map(|label| label.text().to_owned()).collect());
        let ends = distinct(CallLabel::all().map(|label| label.text().into_owned()).collect());
        for (all, distinct) in [commands, outcomes, ends] {
            assert_eq!(all, distinct);
        }
        assert_eq!(commands.0, CommandLabel::count());
        let of_error = Outcome::rejected(&GatewayError::NotCached);
        assert_eq!((Outcome::ABANDONED.text(), of_error.text()), ("abandoned", "not_cached"));
    }

    #[test]
    fn unlisted_values_are_other() {
        let command = |text| CommandLabel::of(CommandName::parse(text).expect("a name")).text();
        assert_eq!(command("follow/follow_check"), "follow/follow_check");
        assert_eq!(command("follow/follow_chec"), "other");
        let code = |code| CallLabel::answered(code).text();
        assert_eq!((code(0), code(60007), code(38500)), ("0".into(), "60007".into(), "38000-39000".into()));
        assert_eq!((code(i64::MIN), code(987_654)), ("other".into(), "other".into()));
    }

    #[test]
    fn calls_without_response_are_labeled_with_the_reason() {
        let end = |error| CallLabel::unanswered(&error).text();
        assert_eq!(end(GatewayError::UpstreamTimeout), "upstream_timeout");
        assert_eq!(end(GatewayError::UpstreamInvalid("x")), "upstream_invalid");
        assert_eq!(end(GatewayError::Internal), "other");
    }
}
