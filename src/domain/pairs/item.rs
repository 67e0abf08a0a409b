//! The items of a response from Chat, as plain values: what it says of each account.
//!
//! [`crate::domain::relation::response`] reads them from Chat's JSON.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::pair::Relation;

/// The result for one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// The relation, seen from the account that the call names as `From_Account`.
    Known(Relation),
    /// Chat's item, unchanged, in JSON: an error, or a value that is newer than this program.
    Verbatim(Box<str>),
    /// Nothing is known by the caller's deadline.
    Missing(MissingReason),
}

/// Why an item is missing at the caller's deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingReason {
    /// Chat has not answered yet.
    NoTime,
    /// The quota granted no call before the deadline.
    NoQuota,
}

impl MissingReason {
    /// Returns the vendor's ErrorCode that says the same: 60008 for a service that timed out, 60007 for too many calls.
    pub const fn code(self) -> i64 {
        match self {
            MissingReason::NoTime => 60008,
            MissingReason::NoQuota => 60007,
        }
    }

    /// Returns the text for people.
    pub const fn text(self) -> &'static str {
        match self {
            MissingReason::NoTime => "chatgate: Chat did not answer before the deadline of the request",
            MissingReason::NoQuota => "chatgate: no quota before the deadline of the request",
        }
    }
}

/// Everything that a response says of one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// One item, or several that agree.
    Item(Item),
    /// Items that contradict each other, or an item that cannot be read.
    Contradiction,
}

/// The items of a response, by account.
#[derive(Debug, Default)]
pub struct Items<'a>(HashMap<Cow<'a, str>, Found>);

impl<'a> Items<'a> {
    /// Returns an empty collection with room for `capacity` accounts.
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self(HashMap::with_capacity(capacity))
    }

    /// Adds an item. An item that differs from an earlier one of the same account makes a contradiction.
    pub(crate) fn add(&mut self, account: Cow<'a, str>, item: Item) {
        match self.0.entry(account) {
            Entry::Vacant(entry) => {
                entry.insert(Found::Item(item));
            }
            Entry::Occupied(mut entry) => {
                if *entry.get() != Found::Item(item) {
                    entry.insert(Found::Contradiction);
                }
            }
        }
    }

    /// Records that an item of the account cannot be read.
    pub(crate) fn add_unreadable(&mut self, account: Cow<'a, str>) {
        self.0.insert(account, Found::Contradiction);
    }

    /// Returns what the response says of an account; `None` if it has no item for it.
    pub fn get(&self, account: &str) -> Option<&Found> {
        self.0.get(account)
    }
}
