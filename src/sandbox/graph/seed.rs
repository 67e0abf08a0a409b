//! Users and relations that are added together, before or while a test runs.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Deserialize;

use super::friends::Friend;
use super::{Graph, LINKS_MAX, Profile, USERS_MAX};
use crate::domain::chat::app::{NameError, check_user_id};

/// Users and relations to add: `{"users":["ann"],"edges":[["ann","bob"]],"friends":[["ann","bob"]],"blocks":[]}`.
///
/// Each pair is one direction, and its users need not be listed. Blocks are added last, so a pair that is in `friends`
/// and in `blocks` ends as blocked. The limits of a user's lists do not apply here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedGraph {
    /// Existing users.
    #[serde(default)]
    pub users: Vec<String>,
    /// Follows: the first user follows the second one.
    #[serde(default)]
    pub edges: Vec<(String, String)>,
    /// Friends: the second user is in the friend list of the first one.
    #[serde(default)]
    pub friends: Vec<(String, String)>,
    /// Blocks: the second user is on the blocklist of the first one.
    #[serde(default)]
    pub blocks: Vec<(String, String)>,
}

/// Why a seed was rejected. The graph is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// Chat does not accept the name of a user.
    #[error("{list}[{index}] {error}")]
    Name {
        /// The name of the list.
        list: &'static str,
        /// Position in the list, from 0.
        index: usize,
        /// Its problem.
        error: NameError,
    },
    /// A pair is from a user to itself.
    #[error("{list}[{index}] is from a user to itself")]
    Itself {
        /// The name of the list.
        list: &'static str,
        /// Position in the list, from 0.
        index: usize,
    },
    /// The graph would exceed one of its limits.
    #[error("the simulator holds at most {USERS_MAX} users and {LINKS_MAX} follows, friends, and blocks")]
    LimitExceeded,
}

impl Graph {
    /// Adds the whole seed, or nothing of it.
    pub(in crate::sandbox) fn seed(&mut self, seed: &SeedGraph, at_secs: u64) -> Result<(), SeedError> {
        seed.check()?;
        let links = seed.edges.len() + seed.friends.len() + seed.blocks.len();
        let held = self.follows.len() + self.friends.len() + self.blocks.len();
        if self.users.len() + self.new_users(seed) > USERS_MAX || held + links > LINKS_MAX {
            return Err(SeedError::LimitExceeded);
        }
        for name in &seed.users {
            self.seed_user(name);
        }
        for (from, to) in self.seed_pairs(&seed.edges) {
            if !self.follows.has(&from, &to) {
                self.follows.set(&from, &to, at_secs);
            }
        }
        for (from, to) in self.seed_pairs(&seed.friends) {
            if !self.friends.has(&from, &to) {
                self.friends.set(&from, &to, Friend::since(at_secs));
            }
        }
        for (from, to) in self.seed_pairs(&seed.blocks) {
            if !self.blocks.has(&from, &to) {
                self.set_block(&from, &to, at_secs);
            }
        }
        Ok(())
    }

    fn new_users(&self, seed: &SeedGraph) -> usize {
        let ends = seed.pairs().flat_map(|(_, pairs)| pairs).flat_map(|(from, to)| [from, to]);
        let names: HashSet<&String> = seed.users.iter().chain(ends).filter(|name| !self.exists(name)).collect();
        names.len()
    }

    /// Adds the users of these pairs, and returns the pairs.
    fn seed_pairs(&mut self, pairs: &[(String, String)]) -> Vec<(Arc<str>, Arc<str>)> {
        pairs.iter().map(|(from, to)| (self.seed_user(from), self.seed_user(to))).collect()
    }

    fn seed_user(&mut self, name: &str) -> Arc<str> {
        if let Some((name, _)) = self.users.get_key_value(name) {
            return Arc::clone(name);
        }
        let name: Arc<str> = name.into();
        self.users.insert(Arc::clone(&name), Profile::default());
        name
    }
}

impl SeedGraph {
    fn check(&self) -> Result<(), SeedError> {
        let check =
            |list, index, name: &str| check_user_id(name).map_err(|error| SeedError::Name { list, index, error });
        for (index, name) in self.users.iter().enumerate() {
            check("users", index, name)?;
        }
        for (list, pairs) in self.pairs() {
            for (index, (from, to)) in pairs.iter().enumerate() {
                check(list, index, from).and_then(|()| check(list, index, to))?;
                if from == to {
                    return Err(SeedError::Itself { list, index });
                }
            }
        }
        Ok(())
    }

    /// Returns the lists of pairs with their names.
    fn pairs(&self) -> impl Iterator<Item = (&'static str, &Vec<(String, String)>)> {
        [("edges", &self.edges), ("friends", &self.friends), ("blocks", &self.blocks)].into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GraphHandle, GraphSize};
    use super::*;

    fn seed(text: &str) -> SeedGraph {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn seed_is_added_whole_or_not_at_all() {
        let handle = GraphHandle::default();
        let good = seed(
            r#"{"users":["ann"],"edges":[["ann","bob"],["ann","bob"]],
                "friends":[["ann","bob"],["bob","ann"],["ann","cyd"]],"blocks":[["cyd","ann"],["cyd","dan"]]}"#,
        );
        handle.seed(&good, 1).unwrap();
        let size = GraphSize { users: 4, edges: 1, friends: 2, blocks: 2 };
        assert_eq!(handle.size(), size);
        assert!(handle.follows("ann", "bob"));
        {
            let graph = handle.lock();
            assert_eq!((graph.friend_type("ann", "bob"), graph.friend_type("ann", "cyd")), (3, 0), "cyd blocks ann");
        }
        for (text, error) in [
            (r#"{"users":["eve",""]}"#, "users[1] is empty"),
            (r#"{"users":["eve"],"edges":[["eve","eve"]]}"#, "edges[0] is from a user to itself"),
            (r#"{"friends":[["eve","ann"],["eve",""]]}"#, "friends[1] is empty"),
            (r#"{"friends":[["eve","ann"]],"blocks":[["eve","eve"]]}"#, "blocks[0] is from a user to itself"),
        ] {
            assert_eq!(handle.seed(&seed(text), 1).unwrap_err().to_string(), error);
        }
        assert_eq!(handle.size(), size);
    }
}
