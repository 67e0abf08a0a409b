//! Follows.

use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

use serde_json::Value;

use super::profiles::NICK;
use super::{Graph, RelationError};

/// Maximum number of users that one user may follow (vendor's client guides 1047/66035 and 1047/64330).
const FOLLOWING_MAX: usize = 5_000;

/// One of a user's three lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) enum FollowList {
    Followers,
    Following,
    Mutual,
}

/// The lengths of a user's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) struct FollowCounts {
    pub(in crate::sandbox) followers: usize,
    pub(in crate::sandbox) following: usize,
    pub(in crate::sandbox) mutual: usize,
}

/// A page of a list.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::sandbox) struct ListPage {
    pub(in crate::sandbox) entries: Vec<ListEntry>,
    /// Whether the list continues.
    pub(in crate::sandbox) has_more: bool,
}

/// One user of a list.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::sandbox) struct ListEntry {
    pub(in crate::sandbox) user: Arc<str>,
    pub(in crate::sandbox) since_secs: u64,
    pub(in crate::sandbox) nick: Option<Value>,
}

impl Graph {
    /// Adds a follow. An existing follow keeps its time.
    pub(in crate::sandbox) fn follow(&mut self, from: &str, to: &str, at_secs: u64) -> Result<(), RelationError> {
        let (from, to) = self.pair(from, to)?;
        if self.follows.has(&from, &to) {
            return Ok(());
        }
        if self.follows.list(&from).len() >= FOLLOWING_MAX || self.is_full() {
            return Err(RelationError::ListFull);
        }
        self.follows.set(&from, &to, at_secs);
        Ok(())
    }

    /// Removes a follow, if it exists.
    pub(in crate::sandbox) fn unfollow(&mut self, from: &str, to: &str) -> Result<(), RelationError> {
        if !self.exists(from) || !self.exists(to) {
            return Err(RelationError::UnknownUser);
        }
        self.follows.remove(from, to);
        Ok(())
    }

    /// Returns the FollowType: 2 if `from` follows `to`, plus 1 if `to` follows `from` (vendor page 1047/70349).
    pub(in crate::sandbox) fn follow_type(&self, from: &str, to: &str) -> u8 {
        self.follows.directions(from, to)
    }

    pub(in crate::sandbox) fn counts(&self, name: &str) -> Option<FollowCounts> {
        if !self.exists(name) {
            return None;
        }
        let (following, followers) = (self.follows.list(name), self.follows.list_to(name));
        let mutual = following.keys().filter(|other| followers.contains(*other)).count();
        Some(FollowCounts { followers: followers.len(), following: following.len(), mutual })
    }

    /// Returns up to `want` users of a list, sorted by name, that come after the name `after`.
    pub(in crate::sandbox) fn page(&self, name: &str, list: FollowList, after: &str, want: usize) -> Option<ListPage> {
        if !self.exists(name) {
            return None;
        }
        let rest = (Excluded(after), Unbounded);
        let following = self.follows.list(name).range::<str, _>(rest).map(|(other, _)| other);
        let mut names: Box<dyn Iterator<Item = &Arc<str>>> = match list {
            FollowList::Followers => Box::new(self.follows.list_to(name).range::<str, _>(rest)),
            FollowList::Following => Box::new(following),
            FollowList::Mutual => Box::new(following.filter(|other| self.follows.has(other, name))),
        };
        let since = |other: &str| match list {
            FollowList::Followers => self.follows.get(other, name),
            FollowList::Following | FollowList::Mutual => self.follows.get(name, other),
        };
        let entry = |other: &Arc<str>| ListEntry {
            user: Arc::clone(other),
            since_secs: since(other).copied().unwrap_or_default(),
            nick: self.users.get(other).and_then(|profile| profile.get(NICK).cloned()),
        };
        let entries = names.by_ref().take(want).map(entry).collect();
        Some(ListPage { entries, has_more: names.next().is_some() })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::graph;
    use super::*;

    fn names(page: &ListPage) -> Vec<&str> {
        page.entries.iter().map(|entry| &*entry.user).collect()
    }

    #[test]
    fn follow_type_has_one_bit_per_direction() {
        let mut graph = graph(&["ann", "bob"]);
        assert_eq!(graph.follow_type("ann", "bob"), 0);
        graph.follow("ann", "bob", 7).unwrap();
        assert_eq!((graph.follow_type("ann", "bob"), graph.follow_type("bob", "ann")), (2, 1));
        graph.follow("bob", "ann", 8).unwrap();
        assert_eq!((graph.follow_type("ann", "bob"), graph.follow_type("bob", "ann")), (3, 3));
        graph.unfollow("ann", "bob").unwrap();
        assert_eq!((graph.follow_type("ann", "bob"), graph.follow_type("bob", "ann")), (1, 2));
    }

    #[test]
    fn follow_rejects_self_unknown_users_and_full_lists() {
        let mut graph = graph(&["ann", "bob"]);
        assert_eq!(graph.follow("ann", "ann", 0), Err(RelationError::Itself));
        assert_eq!(graph.follow("ann", "cyd", 0), Err(RelationError::UnknownUser));
        assert_eq!(graph.unfollow("ann", "cyd"), Err(RelationError::UnknownUser));
        for number in 0..FOLLOWING_MAX {
            let other = format!("u{number}");
            graph.import(&other).unwrap();
            graph.follow("ann", &other, 0).unwrap();
        }
        assert_eq!(graph.follow("ann", "bob", 0), Err(RelationError::ListFull));
        assert_eq!(graph.follow("ann", "u0", 0), Ok(()), "an existing follow is no error");
    }

    #[test]
    fn page_continues_after_the_given_name() {
        let mut graph = graph(&["ann", "b", "c", "d", "e"]);
        for other in ["e", "c", "b", "d"] {
            graph.follow("ann", other, 5).unwrap();
        }
        graph.follow("c", "ann", 6).unwrap();
        graph.set_profile("c", [(NICK, json!("Cyd"))]);
        let page = graph.page("ann", FollowList::Following, "", 3).unwrap();
        assert_eq!((names(&page), page.has_more), (vec!["b", "c", "d"], true));
        assert_eq!((page.entries[1].nick.clone(), page.entries[1].since_secs), (Some(json!("Cyd")), 5));
        let page = graph.page("ann", FollowList::Following, "d", 3).unwrap();
        assert_eq!((names(&page), page.has_more), (vec!["e"], false));
        assert_eq!(names(&graph.page("ann", FollowList::Mutual, "", 9).unwrap()), ["c"]);
        let page = graph.page("ann", FollowList::Followers, "", 9).unwrap();
        assert_eq!((names(&page), page.entries[0].since_secs), (vec!["c"], 6));
        assert_eq!(graph.page("unknown", FollowList::Mutual, "", 9), None);
    }
}
