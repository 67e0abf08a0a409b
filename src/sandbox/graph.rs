//! The follow graph: the users of the simulated app, and their follows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;

use crate::domain::chat::app::{NameError, check_user_id};

/// Maximum number of users.
const USERS_MAX: usize = 1_000_000;
/// Maximum number of follows, over all users.
const EDGES_MAX: usize = 2_000_000;
/// Maximum number of users that one user may follow (vendor's client guides 1047/66035 and 1047/64330).
const FOLLOWING_MAX: usize = 5_000;

/// Initial users and follows: `{"users":["ann"],"edges":[["ann","bob"]]}`.
///
/// The users of an edge need not be listed. The limit of 5000 followed users does not apply here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedGraph {
    /// Existing users.
    #[serde(default)]
    pub users: Vec<String>,
    /// Follows, as (from, to).
    #[serde(default)]
    pub edges: Vec<(String, String)>,
}

/// Why a seed was rejected. The graph is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// Chat does not accept the name of a user.
    #[error("{list}[{index}] {error}")]
    Name {
        /// `users` or `edges`.
        list: &'static str,
        /// Position in the list, from 0.
        index: usize,
        /// Its problem.
        error: NameError,
    },
    /// An edge from a user to itself; with its position, from 0.
    #[error("edges[{0}] is from a user to itself")]
    SelfFollow(usize),
    /// The graph would exceed one of its limits.
    #[error("the simulator holds at most {USERS_MAX} users and {EDGES_MAX} follows")]
    LimitExceeded,
}

/// A handle to the graph of a running sandbox, to seed and to inspect it.
#[derive(Clone, Default)]
pub struct GraphHandle(Arc<Mutex<Graph>>);

impl GraphHandle {
    /// Adds users and follows, and leaves existing ones unchanged. `at_secs` is the time of the new follows.
    pub fn seed(&self, seed: &SeedGraph, at_secs: u64) -> Result<(), SeedError> {
        self.lock().seed(seed, at_secs)
    }

    /// Returns the number of users and the number of follows.
    pub fn size(&self) -> (usize, usize) {
        let graph = self.lock();
        (graph.users.len(), graph.edges)
    }

    /// Returns whether `from` follows `to`.
    pub fn follows(&self, from: &str, to: &str) -> bool {
        self.lock().follows(from, to)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Graph> {
        self.0.lock()
    }
}

/// The graph itself. Both users of a follow store it, so neither list needs a search.
#[derive(Clone, Default)]
pub(super) struct Graph {
    users: HashMap<Arc<str>, User>,
    edges: usize,
}

#[derive(Clone, Default)]
struct User {
    nick: Option<Box<str>>,
    /// Followed users, with the start of the follow in Unix seconds.
    following: BTreeMap<Arc<str>, u64>,
    followers: BTreeMap<Arc<str>, u64>,
}

/// One of a user's three lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FollowList {
    Followers,
    Following,
    Mutual,
}

/// The lengths of a user's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FollowCounts {
    pub(super) followers: usize,
    pub(super) following: usize,
    pub(super) mutual: usize,
}

/// A page of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListPage {
    pub(super) entries: Vec<ListEntry>,
    /// Whether the list continues.
    pub(super) has_more: bool,
}

/// One user of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ListEntry {
    pub(super) user: Arc<str>,
    pub(super) since_secs: u64,
    pub(super) nick: Option<Box<str>>,
}

/// Why a follow was neither added nor removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FollowError {
    UnknownUser,
    SelfFollow,
    LimitReached,
}

/// The graph has [`USERS_MAX`] users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GraphFull;

impl Graph {
    pub(super) fn exists(&self, name: &str) -> bool {
        self.users.contains_key(name)
    }

    /// Adds a user, or changes the nick of an existing one.
    pub(super) fn import(&mut self, name: &str, nick: Option<&str>) -> Result<(), GraphFull> {
        if !self.exists(name) && self.users.len() >= USERS_MAX {
            return Err(GraphFull);
        }
        let user = self.users.entry(name.into()).or_default();
        if let Some(nick) = nick {
            user.nick = Some(nick.into());
        }
        Ok(())
    }

    /// Removes a user and all its follows in both directions. Returns `false` if the user does not exist.
    pub(super) fn delete(&mut self, name: &str) -> bool {
        let Some(user) = self.users.remove(name) else { return false };
        self.edges -= user.following.len() + user.followers.len();
        for other in user.following.keys() {
            self.user_mut(other).followers.remove(name);
        }
        for other in user.followers.keys() {
            self.user_mut(other).following.remove(name);
        }
        true
    }

    /// Adds a follow. An existing follow keeps its time.
    pub(super) fn follow(&mut self, from: &str, to: &str, at_secs: u64) -> Result<(), FollowError> {
        if from == to {
            return Err(FollowError::SelfFollow);
        }
        let (Some(user), true) = (self.users.get(from), self.exists(to)) else { return Err(FollowError::UnknownUser) };
        if user.following.contains_key(to) {
            return Ok(());
        }
        if user.following.len() >= FOLLOWING_MAX || self.edges >= EDGES_MAX {
            return Err(FollowError::LimitReached);
        }
        self.connect(from, to, at_secs);
        Ok(())
    }

    /// Removes a follow, if it exists.
    pub(super) fn unfollow(&mut self, from: &str, to: &str) -> Result<(), FollowError> {
        if !self.exists(from) || !self.exists(to) {
            return Err(FollowError::UnknownUser);
        }
        if self.user_mut(from).following.remove(to).is_some() {
            self.user_mut(to).followers.remove(from);
            self.edges -= 1;
        }
        Ok(())
    }

    pub(super) fn follows(&self, from: &str, to: &str) -> bool {
        self.users.get(from).is_some_and(|user| user.following.contains_key(to))
    }

    /// Returns the FollowType: 2 if `from` follows `to`, plus 1 if `to` follows `from` (vendor page 1047/70349).
    pub(super) fn follow_type(&self, from: &str, to: &str) -> u8 {
        2 * u8::from(self.follows(from, to)) + u8::from(self.follows(to, from))
    }

    pub(super) fn counts(&self, name: &str) -> Option<FollowCounts> {
        let user = self.users.get(name)?;
        let mutual = user.following.keys().filter(|other| user.followers.contains_key(*other)).count();
        Some(FollowCounts { followers: user.followers.len(), following: user.following.len(), mutual })
    }

    /// Returns up to `want` users of a list, sorted by name, that come after the name `after`.
    pub(super) fn page(&self, name: &str, list: FollowList, after: &str, want: usize) -> Option<ListPage> {
        use std::ops::Bound::{Excluded, Unbounded};
        let user = self.users.get(name)?;
        let all = if list == FollowList::Followers { &user.followers } else { &user.following };
        let mut rest = all
            .range::<str, _>((Excluded(after), Unbounded))
            .filter(|(other, _)| list != FollowList::Mutual || user.followers.contains_key(*other));
        let entries = rest
            .by_ref()
            .take(want)
            .map(|(other, since)| ListEntry {
                user: Arc::clone(other),
                since_secs: *since,
                nick: self.users.get(other).and_then(|user| user.nick.clone()),
            })
            .collect();
        Some(ListPage { entries, has_more: rest.next().is_some() })
    }

    /// Adds the whole seed, or nothing of it.
    pub(super) fn seed(&mut self, seed: &SeedGraph, at_secs: u64) -> Result<(), SeedError> {
        let check =
            |list, index, name: &String| check_user_id(name).map_err(|error| SeedError::Name { list, index, error });
        for (index, name) in seed.users.iter().enumerate() {
            check("users", index, name)?;
        }
        for (index, (from, to)) in seed.edges.iter().enumerate() {
            check("edges", index, from).and_then(|()| check("edges", index, to))?;
        }
        if let Some(index) = seed.edges.iter().position(|(from, to)| from == to) {
            return Err(SeedError::SelfFollow(index));
        }
        if self.users.len() + self.new_users(seed) > USERS_MAX || self.edges + seed.edges.len() > EDGES_MAX {
            return Err(SeedError::LimitExceeded);
        }
        for name in &seed.users {
            self.users.entry(name.as_str().into()).or_default();
        }
        for (from, to) in &seed.edges {
            for name in [from, to] {
                if !self.exists(name) {
                    self.users.insert(name.as_str().into(), User::default());
                }
            }
            if !self.follows(from, to) {
                self.connect(from, to, at_secs);
            }
        }
        Ok(())
    }

    fn new_users(&self, seed: &SeedGraph) -> usize {
        let ends = seed.edges.iter().flat_map(|(from, to)| [from, to]);
        let names: std::collections::HashSet<&String> =
            seed.users.iter().chain(ends).filter(|name| !self.exists(name)).collect();
        names.len()
    }

    /// Adds a follow that does not exist, between users that do.
    fn connect(&mut self, from: &str, to: &str, at_secs: u64) {
        let name = |users: &HashMap<Arc<str>, User>, name| {
            let (name, _) = users.get_key_value(name).expect("both users exist");
            Arc::clone(name)
        };
        let (from, to) = (name(&self.users, from), name(&self.users, to));
        self.user_mut(&from).following.insert(Arc::clone(&to), at_secs);
        self.user_mut(&to).followers.insert(from, at_secs);
        self.edges += 1;
    }

    fn user_mut(&mut self, name: &str) -> &mut User {
        self.users.get_mut(name).expect("both users of a follow exist")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn graph(users: &[&str]) -> Graph {
        let mut graph = Graph::default();
        for user in users {
            graph.import(user, None).unwrap();
        }
        graph
    }

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
        assert_eq!(graph.follow("ann", "ann", 0), Err(FollowError::SelfFollow));
        assert_eq!(graph.follow("ann", "cyd", 0), Err(FollowError::UnknownUser));
        assert_eq!(graph.unfollow("ann", "cyd"), Err(FollowError::UnknownUser));
        for number in 0..FOLLOWING_MAX {
            let other = format!("u{number}");
            graph.import(&other, None).unwrap();
            graph.follow("ann", &other, 0).unwrap();
        }
        assert_eq!(graph.follow("ann", "bob", 0), Err(FollowError::LimitReached));
        assert_eq!(graph.follow("ann", "u0", 0), Ok(()), "an existing follow is no error");
    }

    #[test]
    fn delete_removes_all_follows_of_the_user() {
        let mut graph = graph(&["ann", "bob", "cyd"]);
        graph.follow("ann", "bob", 0).unwrap();
        graph.follow("bob", "ann", 0).unwrap();
        graph.follow("cyd", "ann", 0).unwrap();
        graph.follow("cyd", "bob", 0).unwrap();
        assert!(graph.delete("ann"));
        assert!(!graph.delete("ann"));
        assert_eq!(graph.edges, 1);
        graph.import("ann", None).unwrap();
        assert_eq!(graph.follow_type("ann", "bob"), 0);
        assert_eq!(graph.counts("cyd"), Some(FollowCounts { followers: 0, following: 1, mutual: 0 }));
    }

    #[test]
    fn page_continues_after_the_given_name() {
        let mut graph = graph(&["ann", "b", "c", "d", "e"]);
        for other in ["e", "c", "b", "d"] {
            graph.follow("ann", other, 5).unwrap();
        }
        graph.follow("c", "ann", 6).unwrap();
        graph.import("c", Some("Cyd")).unwrap();
        let page = graph.page("ann", FollowList::Following, "", 3).unwrap();
        assert_eq!((names(&page), page.has_more), (vec!["b", "c", "d"], true));
        assert_eq!((page.entries[1].nick.as_deref(), page.entries[1].since_secs), (Some("Cyd"), 5));
        let page = graph.page("ann", FollowList::Following, "d", 3).unwrap();
        assert_eq!((names(&page), page.has_more), (vec!["e"], false));
        assert_eq!(names(&graph.page("ann", FollowList::Mutual, "", 9).unwrap()), ["c"]);
        let page = graph.page("ann", FollowList::Followers, "", 9).unwrap();
        assert_eq!((names(&page), page.entries[0].since_secs), (vec!["c"], 6));
        assert_eq!(graph.page("unknown", FollowList::Mutual, "", 9), None);
    }

    #[test]
    fn seed_is_added_whole_or_not_at_all() {
        let handle = GraphHandle::default();
        let seed: SeedGraph =
            serde_json::from_str(r#"{"users":["ann"],"edges":[["ann","bob"],["ann","bob"]]}"#).unwrap();
        handle.seed(&seed, 1).unwrap();
        assert_eq!(handle.size(), (2, 1));
        assert!(handle.follows("ann", "bob"));
        let bad = SeedGraph { users: vec!["cyd".into(), String::new()], edges: Vec::new() };
        assert_eq!(handle.seed(&bad, 1).unwrap_err().to_string(), "users[1] is empty");
        let bad = SeedGraph { users: vec!["cyd".into()], edges: vec![("dan".into(), "dan".into())] };
        assert_eq!(handle.seed(&bad, 1), Err(SeedError::SelfFollow(0)));
        assert_eq!(handle.size(), (2, 1));
    }

    proptest! {
        /// Compares the graph with a plain set of pairs after any series of changes.
        #[test]
        fn graph_matches_a_plain_set_of_pairs(steps in prop::collection::vec((0u8..3, 0usize..5, 0usize..5), 0..60)) {
            const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
            let mut graph = graph(&NAMES);
            let mut set = std::collections::BTreeSet::new();
            for (change, from, to) in steps {
                match change {
                    0 => if graph.follow(NAMES[from], NAMES[to], 0).is_ok() { set.insert((from, to)); },
                    1 => { graph.unfollow(NAMES[from], NAMES[to]).unwrap(); set.remove(&(from, to)); }
                    _ => {
                        graph.delete(NAMES[from]);
                        graph.import(NAMES[from], None).unwrap();
                        set.retain(|pair| pair.0 != from && pair.1 != from);
                    }
                }
            }
            prop_assert_eq!(graph.edges, set.len());
            for (from, name) in NAMES.iter().enumerate() {
                let page = graph.page(name, FollowList::Following, "", 9).unwrap();
                let expected: Vec<&str> = set.iter().filter(|pair| pair.0 == from).map(|pair| NAMES[pair.1]).collect();
                prop_assert_eq!(names(&page), expected);
                for (to, other) in NAMES.iter().enumerate() {
                    let bits = 2 * u8::from(set.contains(&(from, to))) + u8::from(set.contains(&(to, from)));
                    prop_assert_eq!(graph.follow_type(name, other), bits);
                }
            }
        }
    }
}
