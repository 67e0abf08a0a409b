//! The error codes of Chat: their meaning, and whether a retry can help.
//!
//! The table is `error_codes.csv`, compiled from the vendor page "Error Codes" (1047/34348) and the pages of the
//! commands. Codes of the sister product Desk can be negative (-14). The vendor gives one sentence per code; class and
//! retry are this project's assessment. Chat adds new codes, so a code that is not in the table is relayed unchanged.

use std::ops::RangeInclusive;
use std::sync::LazyLock;

/// The kind of error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ErrorClass {
    /// The signature is invalid.
    Auth,
    /// Too many calls.
    Throttled,
    /// A temporary failure inside Chat.
    Transient,
    /// The app, its plan, or its settings do not allow the call.
    Config,
    /// The request is wrong.
    Client,
    /// The named object does not exist.
    NotFound,
    /// Disabled, banned, or rejected on purpose.
    Blocked,
}

/// Whether the same call may be retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Retry {
    /// Immediately; a write only if repeating it is harmless.
    Yes,
    /// Once, with a fresh signature.
    FreshSignature,
    /// Later.
    AfterBackoff,
    /// Never: a retry gives the same error.
    No,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ErrorRow {
    /// The codes of the row: one, or a range that the vendor reserves for the app's own webhooks.
    pub codes: RangeInclusive<i64>,
    /// A short name, chosen by this project.
    pub name: &'static str,
    /// The kind of error.
    pub class: ErrorClass,
    /// Whether to retry.
    pub retry: Retry,
    /// Its meaning in a few words.
    pub meaning: &'static str,
}

/// Returns the row of a code; `None` for 0, for the codes of chatgate, and for codes that the vendor does not list.
pub(crate) fn lookup(code: i64) -> Option<&'static ErrorRow> {
    row_number(code).map(|row| &TABLE[row])
}

/// Returns the index of a code's row in [`table`].
pub(crate) fn row_number(code: i64) -> Option<usize> {
    let row = TABLE.partition_point(|row| *row.codes.start() <= code).checked_sub(1)?;
    TABLE[row].codes.contains(&code).then_some(row)
}

/// Returns all rows, in ascending order of codes.
pub(crate) fn table() -> &'static [ErrorRow] {
    &TABLE
}

/// The file has the columns code, name, family, class, retry, and meaning; only the meaning may be quoted.
static TABLE: LazyLock<Vec<ErrorRow>> = LazyLock::new(|| {
    include_str!("error_codes.csv")
        .lines()
        .skip(1)
        .map(|line| row(line).expect("a row of the built-in table"))
        .collect()
});

fn row(line: &'static str) -> Option<ErrorRow> {
    let mut columns = line.splitn(6, ',');
    let (codes, name, _family) = (columns.next()?, columns.next()?, columns.next()?);
    let (class, retry, meaning) = (columns.next()?, columns.next()?, columns.next()?);
    let (first, last) = range(codes);
    Some(ErrorRow {
        codes: first.parse().ok()?..=last.parse().ok()?,
        name,
        class: match class {
            "auth" => ErrorClass::Auth,
            "throttled" => ErrorClass::Throttled,
            "transient" => ErrorClass::Transient,
            "config" => ErrorClass::Config,
            "client" => ErrorClass::Client,
            "not_found" => ErrorClass::NotFound,
            "blocked" => ErrorClass::Blocked,
            _ => return None,
        },
        retry: match retry {
            "yes" => Retry::Yes,
            "after_resign" => Retry::FreshSignature,
            "after_backoff" => Retry::AfterBackoff,
            "no" => Retry::No,
            _ => return None,
        },
        meaning: meaning.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(meaning),
    })
}

/// Splits `38000-39000` into its ends. A single code may be negative.
fn range(codes: &str) -> (&str, &str) {
    match codes.rfind('-') {
        None | Some(0) => (codes, codes),
        Some(dash) => (&codes[..dash], &codes[dash + 1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_error_table_is_read_in_order() {
        let lines = include_str!("error_codes.csv").lines().count() - 1;
        assert_eq!(table().len(), lines);
        for pair in table().windows(2) {
            assert!(pair[0].codes.end() < pair[1].codes.start(), "{pair:?}");
        }
        for row in table() {
            assert!(!row.codes.is_empty() && !row.name.is_empty() && !row.meaning.is_empty(), "{row:?}");
            assert!(!row.meaning.contains('"'), "{row:?}");
            assert_eq!(lookup(*row.codes.start()), Some(row));
            assert_eq!(lookup(*row.codes.end()), Some(row));
        }
    }

    #[test]
    fn signature_errors_distinguish_renewable_from_permanent() {
        let retry = |code| lookup(code).map(|row| (row.class, row.retry));
        for code in [20002, 60004, 60005, 70001, 70002, 70003, 70005, 70052] {
            assert_eq!(retry(code), Some((ErrorClass::Auth, Retry::FreshSignature)), "{code}");
        }
        for code in [70009, 70013, 70014] {
            assert_eq!(retry(code), Some((ErrorClass::Auth, Retry::No)), "{code}");
        }
        assert_eq!(retry(60007), Some((ErrorClass::Throttled, Retry::AfterBackoff)));
        assert_eq!(retry(30006), Some((ErrorClass::Transient, Retry::Yes)));
    }

    #[test]
    fn lookup_finds_codes_in_ranges_and_none_in_gaps() {
        assert_eq!(lookup(38500).map(|row| row.name), Some("relation_webhook_reject"));
        assert_eq!(lookup(120001).map(|row| row.name), Some("c2c_webhook_reject"));
        // The codes of chatgate are in a range that the vendor reserves for apps.
        assert_eq!(lookup(129503).map(|row| row.name), Some("c2c_webhook_reject"));
        for code in [0, 1, -1, 14, -15, 1002, 37999, 39001, 60001, 999_999, i64::MIN, i64::MAX] {
            assert_eq!(lookup(code), None, "{code}");
        }
    }

    #[test]
    fn negative_codes_are_looked_up() {
        let desk = lookup(-14).expect("a known code");
        assert_eq!((desk.class, desk.retry), (ErrorClass::Throttled, Retry::AfterBackoff));
        assert_eq!((range("-14"), range("38000-39000")), (("-14", "-14"), ("38000", "39000")));
    }

    #[test]
    fn quoted_meaning_loses_its_quotes() {
        let meaning = lookup(60025).map(|row| row.meaning);
        assert_eq!(meaning, Some("sdkappid, identifier, usersig or contenttype in the URL is wrong"));
    }
}
