//! The users of the simulated app: their profiles, follows, friends, and blocklists.
//!
//! Each relation has its own file with its rules: `follows`, `friends`, and `blocks`. All of them are [`Links`].
//! `profiles` is what a user says of itself, and `seed` adds many users and relations at once.

mod blocks;
mod follows;
mod friends;
mod links;
mod profiles;
mod seed;

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

pub(super) use self::follows::{FollowCounts, FollowList};
pub(super) use self::friends::{AddMode, Friend, Sides};
use self::links::Links;
pub(super) use self::profiles::{ALLOW_TYPE, IMAGE, NICK, Profile, known_tag};
pub use self::seed::{SeedError, SeedGraph};

/// Maximum number of users.
const USERS_MAX: usize = 1_000_000;
/// Maximum number of follows, friends, and blocked users together, over all users.
const LINKS_MAX: usize = 2_000_000;

/// A handle to the graph of a running sandbox, to seed and to inspect it.
#[derive(Clone, Default)]
pub struct GraphHandle(Arc<Mutex<Graph>>);

/// How much a graph holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphSize {
    /// Number of users.
    pub users: usize,
    /// Number of follows.
    pub edges: usize,
    /// Number of entries of friend lists; friends of each other are two.
    pub friends: usize,
    /// Number of entries of blocklists.
    pub blocks: usize,
}

impl GraphHandle {
    /// Adds users and relations, and leaves existing ones unchanged. `at_secs` is the time of the new relations.
    pub fn seed(&self, seed: &SeedGraph, at_secs: u64) -> Result<(), SeedError> {
        self.lock().seed(seed, at_secs)
    }

    /// Returns the number of users and of relations.
    pub fn size(&self) -> GraphSize {
        let graph = self.lock();
        GraphSize {
            users: graph.users.len(),
            edges: graph.follows.len(),
            friends: graph.friends.len(),
            blocks: graph.blocks.len(),
        }
    }

    /// Returns whether `from` follows `to`.
    pub fn follows(&self, from: &str, to: &str) -> bool {
        self.lock().follows.has(from, to)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Graph> {
        self.0.lock()
    }
}

/// The graph itself.
#[derive(Clone, Default)]
pub(super) struct Graph {
    users: HashMap<Arc<str>, Profile>,
    /// Followed users, with the start of the follow in Unix seconds.
    follows: Links<u64>,
    /// The friend lists.
    friends: Links<Friend>,
    /// The blocklists, with the start of the block in Unix seconds.
    blocks: Links<u64>,
}

/// Why a relation was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RelationError {
    /// One of the two users does not exist.
    UnknownUser,
    /// Both users are the same.
    Itself,
    /// The entry exists already.
    Exists,
    /// There is no entry to remove or to change.
    Missing,
    /// The list of the user that asked for the change is full, or the graph is.
    ListFull,
    /// The list of the other user is full.
    PeerListFull,
    /// The other user is on the blocklist of the user that asked for the change.
    BlocksPeer,
    /// The user that asked for the change is on the blocklist of the other user.
    BlockedByPeer,
    /// The other user rejects all friend requests.
    PeerDenies,
    /// The other user must agree first.
    PeerMustConfirm,
}

/// The graph has [`USERS_MAX`] users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GraphFull;

impl Graph {
    pub(super) fn exists(&self, name: &str) -> bool {
        self.users.contains_key(name)
    }

    /// Adds a user, if it does not exist.
    pub(super) fn import(&mut self, name: &str) -> Result<(), GraphFull> {
        if !self.exists(name) {
            if self.users.len() >= USERS_MAX {
                return Err(GraphFull);
            }
            self.users.insert(name.into(), Profile::default());
        }
        Ok(())
    }

    /// Removes a user with its profile, and its entries in all lists: its own, and those of other users. Returns `false`
    /// if the user does not exist.
    pub(super) fn delete(&mut self, name: &str) -> bool {
        self.follows.remove_user(name);
        self.friends.remove_user(name);
        self.blocks.remove_user(name);
        self.users.remove(name).is_some()
    }

    fn is_full(&self) -> bool {
        self.follows.len() + self.friends.len() + self.blocks.len() >= LINKS_MAX
    }

    /// Returns the shared names of two different users that exist.
    fn pair(&self, from: &str, to: &str) -> Result<(Arc<str>, Arc<str>), RelationError> {
        if from == to {
            return Err(RelationError::Itself);
        }
        let name = |name| self.users.get_key_value(name).map(|(name, _)| Arc::clone(name));
        name(from).zip(name(to)).ok_or(RelationError::UnknownUser)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a graph with these users.
    pub(super) fn graph(users: &[&str]) -> Graph {
        let mut graph = Graph::default();
        for user in users {
            graph.import(user).unwrap();
        }
        graph
    }

    #[test]
    fn delete_removes_the_user_from_every_list() {
        let mut graph = graph(&["ann", "bob", "cyd"]);
        for (from, to) in [("ann", "bob"), ("bob", "ann"), ("cyd", "ann"), ("cyd", "bob")] {
            graph.follow(from, to, 0).unwrap();
            graph.import_friend(from, to, Friend::since(0)).unwrap();
        }
        graph.block("bob", "ann", 0).unwrap();
        graph.block("ann", "cyd", 0).unwrap();
        graph.block("bob", "cyd", 0).unwrap();
        assert!(graph.delete("ann"));
        assert!(!graph.delete("ann"));
        assert_eq!((graph.follows.len(), graph.friends.len(), graph.blocks.len()), (1, 0, 1));
        graph.import("ann").unwrap();
        assert_eq!((graph.follow_type("ann", "bob"), graph.block_type("ann", "bob")), (0, 0));
        assert_eq!(graph.counts("cyd"), Some(FollowCounts { followers: 0, following: 1, mutual: 0 }));
    }
}
