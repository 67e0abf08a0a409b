//! Blocklists. Blocking a friend ends the friendship on both sides (vendor page 1047/34911); follows remain, because no
//! page says otherwise.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Graph, RelationError};

/// Maximum number of blocked users of a user (vendor page 1047/33521).
pub(in crate::sandbox) const BLOCKED_MAX: usize = 1_000;

impl Graph {
    /// Adds `to` to the blocklist of `from` and ends their friendship. Changes nothing if it fails.
    pub(in crate::sandbox) fn block(&mut self, from: &str, to: &str, at_secs: u64) -> Result<(), RelationError> {
        let (from, to) = self.pair(from, to)?;
        if self.blocks.has(&from, &to) {
            return Err(RelationError::Exists);
        }
        if self.blocks.list(&from).len() >= BLOCKED_MAX || self.is_full() {
            return Err(RelationError::ListFull);
        }
        self.set_block(&from, &to, at_secs);
        Ok(())
    }

    /// Removes `to` from the blocklist of `from`. An ended friendship does not come back.
    pub(in crate::sandbox) fn unblock(&mut self, from: &str, to: &str) -> Result<(), RelationError> {
        let (from, to) = self.pair(from, to)?;
        if self.blocks.remove(&from, &to) { Ok(()) } else { Err(RelationError::Missing) }
    }

    /// Returns both blocks: 2 if `to` is on the blocklist of `from`, plus 1 for the reverse.
    pub(in crate::sandbox) fn block_type(&self, from: &str, to: &str) -> u8 {
        self.blocks.directions(from, to)
    }

    /// Returns the blocklist of a user, sorted by name, with the start of each block in Unix seconds.
    pub(in crate::sandbox) fn blocked(&self, from: &str) -> &BTreeMap<Arc<str>, u64> {
        self.blocks.list(from)
    }

    /// Returns the number of the latest change of a blocklist.
    pub(in crate::sandbox) fn block_sequence(&self, from: &str) -> u64 {
        self.blocks.sequence(from)
    }

    /// Adds a block that does not exist, without a look at limits.
    pub(super) fn set_block(&mut self, from: &Arc<str>, to: &Arc<str>, at_secs: u64) {
        self.blocks.set(from, to, at_secs);
        self.friends.remove(from, to);
        self.friends.remove(to, from);
    }
}

#[cfg(test)]
mod tests {
    use super::super::friends::Friend;
    use super::super::tests::graph;
    use super::*;

    #[test]
    fn block_ends_the_friendship_and_leaves_follows() {
        let mut graph = graph(&["ann", "bob"]);
        for (from, to) in [("ann", "bob"), ("bob", "ann")] {
            graph.import_friend(from, to, Friend::since(0)).unwrap();
            graph.follow(from, to, 0).unwrap();
        }
        assert_eq!(graph.block("ann", "bob", 5), Ok(()));
        assert_eq!(graph.block("ann", "bob", 6), Err(RelationError::Exists));
        assert_eq!((graph.block_type("ann", "bob"), graph.block_type("bob", "ann")), (2, 1));
        assert_eq!((graph.friend_type("ann", "bob"), graph.follow_type("ann", "bob")), (0, 3));
        assert_eq!(graph.blocked("ann").get("bob"), Some(&5));
        assert_eq!(graph.unblock("ann", "bob"), Ok(()));
        assert_eq!(graph.unblock("ann", "bob"), Err(RelationError::Missing));
        assert_eq!((graph.block_type("ann", "bob"), graph.friend_type("ann", "bob")), (0, 0));
        assert_eq!(graph.block("ann", "ann", 5), Err(RelationError::Itself));
        assert_eq!(graph.block("ann", "cyd", 5), Err(RelationError::UnknownUser));
    }

    #[test]
    fn full_blocklist_is_an_error_and_keeps_the_friendship() {
        let mut graph = graph(&["ann", "bob"]);
        graph.import_friend("ann", "bob", Friend::since(0)).unwrap();
        for number in 0..BLOCKED_MAX {
            let other = format!("u{number}");
            graph.import(&other).unwrap();
            graph.block("ann", &other, 0).unwrap();
        }
        assert_eq!(graph.block("ann", "bob", 0), Err(RelationError::ListFull));
        assert_eq!(graph.friend_type("ann", "bob"), 2);
    }
}
