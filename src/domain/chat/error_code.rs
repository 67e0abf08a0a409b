//! What Chat's error codes mean and whether asking again can help.
//!
//! The table is `error_codes.csv`, gathered from the vendor page "Error Codes" (1047/34348) and the
//! command pages; class and retry are our judgement, the vendor gives one sentence a code. A code
//! that is not in it is no fault: new ones appear, and they are handed on as they are.

use std::ops::RangeInclusive;
use std::sync::LazyLock;

/// What kind of refusal a code is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The signature is at fault.
    Auth,
    /// Too many calls.
    Throttled,
    /// A fault inside Chat that may pass by itself.
    Transient,
    /// The app, its plan or its switches do not allow it.
    Config,
    /// The request is wrong.
    Client,
    /// What it names does not exist.
    NotFound,
    /// Disabled, banned or refused on purpose.
    Blocked,
}

/// Whether the same call may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// At once; a write only if repeating it does no harm.
    Yes,
    /// Once, with a fresh signature.
    AfterResign,
    /// Later.
    AfterBackoff,
    /// Asking again gives the same answer.
    No,
}

/// A row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorRow {
    /// The codes it stands for: one, or a range that the vendor leaves to the app's own webhooks.
    pub codes: RangeInclusive<i64>,
    /// A short name of ours.
    pub name: &'static str,
    /// What kind of refusal it is.
    pub class: ErrorClass,
    /// Whether to try again.
    pub retry: Retry,
    /// Its meaning in a few words.
    pub meaning: &'static str,
}

/// What is known of a code; `None` for 0, for the gateway's own and for codes the vendor never named.
pub fn lookup(code: i64) -> Option<&'static ErrorRow> {
    row_number(code).map(|row| &TABLE[row])
}

/// The place of a code's row in [`table`].
pub fn row_number(code: i64) -> Option<usize> {
    let row = TABLE.partition_point(|row| *row.codes.start() <= code).checked_sub(1)?;
    TABLE[row].codes.contains(&code).then_some(row)
}

/// Every row, in ascending order of codes.
pub fn table() -> &'static [ErrorRow] {
    &TABLE
}

/// The file has the columns code, name, family, class, retry and meaning; only the meaning may be quoted.
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
    let (first, last) = codes.split_once('-').unwrap_or((codes, codes));
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
            "after_resign" => Retry::AfterResign,
            "after_backoff" => Retry::AfterBackoff,
            "no" => Retry::No,
            _ => return None,
        },
        meaning: meaning.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(meaning),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole_and_in_order() {
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
    fn a_signature_that_signing_again_mends_is_told_from_one_that_it_does_not() {
        let retry = |code| lookup(code).map(|row| (row.class, row.retry));
        for code in [20002, 60004, 60005, 70001, 70002, 70003, 70005, 70052] {
            assert_eq!(retry(code), Some((ErrorClass::Auth, Retry::AfterResign)), "{code}");
        }
        for code in [70009, 70013, 70014] {
            assert_eq!(retry(code), Some((ErrorClass::Auth, Retry::No)), "{code}");
        }
        assert_eq!(retry(60007), Some((ErrorClass::Throttled, Retry::AfterBackoff)));
        assert_eq!(retry(30006), Some((ErrorClass::Transient, Retry::Yes)));
    }

    #[test]
    fn ranges_and_gaps() {
        assert_eq!(lookup(38500).map(|row| row.name), Some("relation_webhook_reject"));
        assert_eq!(lookup(120001).map(|row| row.name), Some("c2c_webhook_reject"));
        // The gateway's own codes lie where the vendor leaves room to apps.
        assert_eq!(lookup(129503).map(|row| row.name), Some("c2c_webhook_reject"));
        for code in [0, 1, -1, 1002, 37999, 39001, 60001, 999_999, i64::MIN, i64::MAX] {
            assert_eq!(lookup(code), None, "{code}");
        }
    }

    #[test]
    fn a_quoted_meaning_loses_its_quotes() {
        let meaning = lookup(60025).map(|row| row.meaning);
        assert_eq!(meaning, Some("sdkappid, identifier, usersig or contenttype in the URL is wrong"));
    }
}
