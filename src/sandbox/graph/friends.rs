//! Friend lists. Each user has its own list, so a friendship has two sides that can differ.
//!
//! Where the vendor's pages are silent, these rules are the strict ones: an entry that exists is an error even if the
//! other side lacks it, and `ForceAddFlags` overrides the wish of the other user, but not a block.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::profiles::ALLOW_TYPE;
use super::{Graph, RelationError};

/// Maximum number of friends of a user (vendor page 1047/33521).
pub(in crate::sandbox) const FRIENDS_MAX: usize = 3_000;

/// An entry of a friend list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::sandbox) struct Friend {
    /// How the friend was found: `AddSource_Type_...`; empty for seeded friends.
    pub(in crate::sandbox) source: Box<str>,
    /// Name that the user gave to the friend; empty if none.
    pub(in crate::sandbox) remark: Box<str>,
    /// Friend groups that hold the friend.
    pub(in crate::sandbox) groups: Vec<Box<str>>,
    /// Start of the friendship, in Unix seconds.
    pub(in crate::sandbox) since_secs: u64,
}

/// How `friend_add` adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::sandbox) struct AddMode {
    /// Both users get an entry, not only the one that asks.
    pub(in crate::sandbox) both: bool,
    /// The other user need not agree.
    pub(in crate::sandbox) forced: bool,
}

/// The sides of a friendship that changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::sandbox) struct Sides {
    /// The list of the user that asked for the change.
    pub(in crate::sandbox) own: bool,
    /// The list of the other user.
    pub(in crate::sandbox) peer: bool,
}

impl Friend {
    /// Returns an entry without further data.
    pub(in crate::sandbox) fn since(since_secs: u64) -> Self {
        Self { since_secs, ..Self::default() }
    }
}

impl Graph {
    /// Adds `to` to the friend list of `from`, and in [`AddMode::both`] also `from` to that of `to`. Changes nothing if
    /// it fails.
    pub(in crate::sandbox) fn add_friend(
        &mut self,
        from: &str,
        to: &str,
        friend: Friend,
        mode: AddMode,
    ) -> Result<Sides, RelationError> {
        let (from, to) = self.pair(from, to)?;
        if self.blocks.has(&from, &to) {
            return Err(RelationError::BlocksPeer);
        }
        if self.blocks.has(&to, &from) {
            return Err(RelationError::BlockedByPeer);
        }
        let peer = mode.both && !self.friends.has(&to, &from);
        self.check_friend(&from, &to)?;
        if peer && self.friends.list(&to).len() >= FRIENDS_MAX {
            return Err(RelationError::PeerListFull);
        }
        let allow_type = self.users.get(&to).and_then(|profile| profile.get(ALLOW_TYPE)?.as_str());
        match allow_type {
            Some("AllowType_Type_DenyAny") if !mode.forced => return Err(RelationError::PeerDenies),
            Some("AllowType_Type_NeedConfirm") if !mode.forced => return Err(RelationError::PeerMustConfirm),
            _ => {}
        }
        if peer {
            let entry = Friend { source: friend.source.clone(), ..Friend::since(friend.since_secs) };
            self.friends.set(&to, &from, entry);
        }
        self.friends.set(&from, &to, friend);
        Ok(Sides { own: true, peer })
    }

    /// Adds `to` to the friend list of `from`. The page of `friend_import` names no block among its errors, so a block
    /// does not prevent this.
    pub(in crate::sandbox) fn import_friend(
        &mut self,
        from: &str,
        to: &str,
        friend: Friend,
    ) -> Result<(), RelationError> {
        let (from, to) = self.pair(from, to)?;
        self.check_friend(&from, &to)?;
        self.friends.set(&from, &to, friend);
        Ok(())
    }

    /// Changes remark and groups of a friend.
    pub(in crate::sandbox) fn update_friend(
        &mut self,
        from: &str,
        to: &str,
        change: impl FnOnce(&mut Friend),
    ) -> Result<(), RelationError> {
        let (from, to) = self.pair(from, to)?;
        let mut friend = self.friends.get(&from, &to).ok_or(RelationError::Missing)?.clone();
        change(&mut friend);
        self.friends.set(&from, &to, friend);
        Ok(())
    }

    /// Removes `to` from the friend list of `from`, and with `both` also `from` from that of `to`.
    pub(in crate::sandbox) fn delete_friend(
        &mut self,
        from: &str,
        to: &str,
        both: bool,
    ) -> Result<Sides, RelationError> {
        let (from, to) = self.pair(from, to)?;
        let sides = Sides { own: self.friends.remove(&from, &to), peer: both && self.friends.remove(&to, &from) };
        if sides == Sides::default() { Err(RelationError::Missing) } else { Ok(sides) }
    }

    /// Empties the friend list of a user; with `both` the user also leaves the lists of these friends.
    pub(in crate::sandbox) fn delete_all_friends(&mut self, from: &str, both: bool) {
        let all: Vec<Arc<str>> = self.friends.list(from).keys().cloned().collect();
        for to in all {
            self.friends.remove(from, &to);
            if both {
                self.friends.remove(&to, from);
            }
        }
    }

    /// Returns the sides of a friendship: 2 if `to` is in the friend list of `from`, plus 1 for the reverse.
    pub(in crate::sandbox) fn friend_type(&self, from: &str, to: &str) -> u8 {
        self.friends.directions(from, to)
    }

    /// Returns the friend list of a user, sorted by name.
    pub(in crate::sandbox) fn friends(&self, from: &str) -> &BTreeMap<Arc<str>, Friend> {
        self.friends.list(from)
    }

    /// Returns the number of the latest change of a friend list.
    pub(in crate::sandbox) fn friend_sequence(&self, from: &str) -> u64 {
        self.friends.sequence(from)
    }

    /// Checks that `from` can get the friend `to`.
    fn check_friend(&self, from: &str, to: &str) -> Result<(), RelationError> {
        if self.friends.has(from, to) {
            return Err(RelationError::Exists);
        }
        if self.friends.list(from).len() >= FRIENDS_MAX || self.is_full() {
            return Err(RelationError::ListFull);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::graph;
    use super::*;

    const BOTH: AddMode = AddMode { both: true, forced: false };
    const SINGLE: AddMode = AddMode { both: false, forced: false };

    fn add(graph: &mut Graph, from: &str, to: &str, mode: AddMode) -> Result<Sides, RelationError> {
        graph.add_friend(from, to, Friend::since(7), mode)
    }

    #[test]
    fn each_side_is_added_and_removed_alone_or_together() {
        let mut graph = graph(&["ann", "bob"]);
        assert_eq!(add(&mut graph, "ann", "bob", SINGLE), Ok(Sides { own: true, peer: false }));
        assert_eq!((graph.friend_type("ann", "bob"), graph.friend_type("bob", "ann")), (2, 1));
        assert_eq!(add(&mut graph, "ann", "bob", BOTH), Err(RelationError::Exists), "one side exists");
        assert_eq!(graph.friend_type("ann", "bob"), 2, "an error changes nothing");
        assert_eq!(add(&mut graph, "bob", "ann", BOTH), Ok(Sides { own: true, peer: false }));
        assert_eq!(graph.friend_type("ann", "bob"), 3);
        assert_eq!(graph.delete_friend("ann", "bob", false), Ok(Sides { own: true, peer: false }));
        assert_eq!(graph.delete_friend("ann", "bob", false), Err(RelationError::Missing));
        assert_eq!(graph.delete_friend("ann", "bob", true), Ok(Sides { own: false, peer: true }));
        assert_eq!(add(&mut graph, "ann", "bob", BOTH), Ok(Sides { own: true, peer: true }));
        assert_eq!(graph.delete_friend("ann", "bob", true), Ok(Sides { own: true, peer: true }));
        assert_eq!(add(&mut graph, "ann", "ann", BOTH), Err(RelationError::Itself));
        assert_eq!(add(&mut graph, "ann", "cyd", BOTH), Err(RelationError::UnknownUser));
        assert_eq!(graph.friends.len(), 0);
    }

    #[test]
    fn block_prevents_adding_even_by_force_but_not_importing() {
        let mut graph = graph(&["ann", "bob"]);
        graph.block("ann", "bob", 1).unwrap();
        let forced = AddMode { both: true, forced: true };
        assert_eq!(add(&mut graph, "ann", "bob", forced), Err(RelationError::BlocksPeer));
        assert_eq!(add(&mut graph, "bob", "ann", forced), Err(RelationError::BlockedByPeer));
        assert_eq!(graph.friends.len(), 0);
        assert_eq!(graph.import_friend("ann", "bob", Friend::since(7)), Ok(()));
        assert_eq!(graph.import_friend("ann", "bob", Friend::since(8)), Err(RelationError::Exists));
        assert_eq!(graph.friend_type("ann", "bob"), 2);
    }

    #[test]
    fn allow_type_decides_about_requests_without_force() {
        let mut graph = graph(&["ann", "bob"]);
        for (value, error) in [
            ("AllowType_Type_DenyAny", RelationError::PeerDenies),
            ("AllowType_Type_NeedConfirm", RelationError::PeerMustConfirm),
        ] {
            graph.set_profile("bob", [(ALLOW_TYPE, json!(value))]);
            assert_eq!(add(&mut graph, "ann", "bob", BOTH), Err(error));
            let forced = AddMode { forced: true, ..BOTH };
            assert_eq!(add(&mut graph, "ann", "bob", forced), Ok(Sides { own: true, peer: true }));
            graph.delete_friend("ann", "bob", true).unwrap();
        }
        graph.set_profile("bob", [(ALLOW_TYPE, json!("AllowType_Type_AllowAny"))]);
        assert!(add(&mut graph, "ann", "bob", BOTH).is_ok());
    }

    #[test]
    fn full_lists_of_either_user_are_errors() {
        let mut graph = graph(&["ann", "bob"]);
        for number in 0..FRIENDS_MAX {
            let other = format!("u{number}");
            graph.import(&other).unwrap();
            graph.import_friend("ann", &other, Friend::since(0)).unwrap();
        }
        assert_eq!(add(&mut graph, "ann", "bob", SINGLE), Err(RelationError::ListFull));
        assert_eq!(add(&mut graph, "bob", "ann", BOTH), Err(RelationError::PeerListFull));
        assert_eq!(graph.friend_type("ann", "bob"), 0);
        assert_eq!(add(&mut graph, "bob", "ann", SINGLE), Ok(Sides { own: true, peer: false }));
    }

    #[test]
    fn delete_all_empties_one_list_or_both_sides() {
        let mut graph = graph(&["ann", "bob", "cyd"]);
        for (from, to) in [("ann", "bob"), ("bob", "ann"), ("cyd", "ann")] {
            graph.import_friend(from, to, Friend::since(0)).unwrap();
        }
        graph.delete_all_friends("ann", false);
        assert_eq!((graph.friend_type("ann", "bob"), graph.friend_type("ann", "cyd")), (1, 1));
        graph.import_friend("ann", "bob", Friend::since(0)).unwrap();
        graph.delete_all_friends("ann", true);
        assert_eq!(
            (graph.friend_type("ann", "bob"), graph.friend_type("ann", "cyd")),
            (0, 1),
            "cyd was no friend of ann"
        );
    }
}
