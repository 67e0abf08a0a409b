//! Who exists and who follows whom.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use crate::domain::chat::app::{NameError, check_user_id};

/// Most users that are kept.
pub const USERS_MAX: usize = 1_000_000;
/// Most follows that are kept, over all users.
pub const EDGES_MAX: usize = 2_000_000;
/// Most users that one may follow (vendor's client guides 1047/66035 and 1047/64330).
pub const FOLLOWING_MAX: usize = 5_000;

/// Users and follows to begin with: `{"users":["ann"],"edges":[["ann","bob"]]}`.
///
/// The users of an edge need not be listed. The bound of [`FOLLOWING_MAX`] does not apply here.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeedGraph {
    /// Users that exist.
    #[serde(default)]
    pub users: Vec<String>,
    /// Follows: from, to.
    #[serde(default)]
    pub edges: Vec<(String, String)>,
}

/// Why a seed was refused; nothing of it was taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// A name that Chat would not take.
    #[error("the user name {name:?} {error}")]
    Name {
        /// The name, cut to its first characters.
        name: String,
        /// What is wrong with it.
        error: NameError,
    },
    /// An edge from a user to itself.
    #[error("{0:?} cannot follow itself")]
    Itself(String),
    /// One of the bounds would be passed.
    #[error("the sandbox keeps at most {USERS_MAX} users and {EDGES_MAX} follows")]
    Full,
}

/// The graph of a sandbox, to seed and to look at while it runs.
#[derive(Clone, Default)]
pub struct GraphHandle(Arc<Mutex<Graph>>);

impl GraphHandle {
    /// Adds users and follows; those that exist already stay as they are.
    pub fn seed(&self, seed: &SeedGraph, at_secs: u64) -> Result<(), SeedError> {
        self.lock().seed(seed, at_secs)
    }

    /// Number of users and of follows.
    pub fn size(&self) -> (usize, usize) {
        let graph = self.lock();
        (graph.users.len(), graph.edges)
    }

    /// Whether `from` follows `to`.
    pub fn follows(&self, from: &str, to: &str) -> bool {
        self.lock().follows(from, to)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Graph> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The graph itself. Both ends of a follow know of it, so either list is read without a search.
#[derive(Clone, Default)]
pub(super) struct Graph {
    users: HashMap<Arc<str>, User>,
    edges: usize,
}

#[derive(Clone, Default)]
struct User {
    nick: Option<Box<str>>,
    /// The other user, and when the follow began (Unix seconds).
    following: BTreeMap<Arc<str>, u64>,
    followers: BTreeMap<Arc<str>, u64>,
}

/// One of a user's three lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    Followers,
    Following,
    Mutual,
}

/// How many stand in each of a user's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) followers: usize,
    pub(super) following: usize,
    pub(super) mutual: usize,
}

/// A part of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) rows: Vec<Row>,
    /// Whether something follows.
    pub(super) more: bool,
}

/// One user of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) user: Arc<str>,
    pub(super) since_secs: u64,
    pub(super) nick: Option<Box<str>>,
}

/// Why someone does not follow someone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoFollow {
    Unknown,
    Itself,
    TooMany,
}

/// No room for another user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full;

impl Graph {
    pub(super) fn exists(&self, name: &str) -> bool {
        self.users.contains_key(name)
    }

    /// Makes a user, or gives one that exists a new nick.
    pub(super) fn import(&mut self, name: &str, nick: Option<&str>) -> Result<(), Full> {
        if !self.exists(name) && self.users.len() >= USERS_MAX {
            return Err(Full);
        }
        let user = self.users.entry(name.into()).or_default();
        if let Some(nick) = nick {
            user.nick = Some(nick.into());
        }
        Ok(())
    }

    /// Removes a user and every follow from and to it. `false` if there was none.
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

    /// `from` exists; following someone twice changes nothing.
    pub(super) fn follow(&mut self, from: &str, to: &str, at_secs: u64) -> Result<(), NoFollow> {
        if from == to {
            return Err(NoFollow::Itself);
        }
        let (Some(user), true) = (self.users.get(from), self.exists(to)) else { return Err(NoFollow::Unknown) };
        if user.following.contains_key(to) {
            return Ok(());
        }
        if user.following.len() >= FOLLOWING_MAX || self.edges >= EDGES_MAX {
            return Err(NoFollow::TooMany);
        }
        self.connect(from, to, at_secs);
        Ok(())
    }

    /// Ending what was not there changes nothing.
    pub(super) fn unfollow(&mut self, from: &str, to: &str) -> Result<(), NoFollow> {
        if !self.exists(from) || !self.exists(to) {
            return Err(NoFollow::Unknown);
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

    /// 2 if `from` follows `to`, plus 1 if `to` follows `from` (vendor page 1047/70349).
    pub(super) fn follow_type(&self, from: &str, to: &str) -> u8 {
        2 * u8::from(self.follows(from, to)) + u8::from(self.follows(to, from))
    }

    pub(super) fn counts(&self, name: &str) -> Option<Counts> {
        let user = self.users.get(name)?;
        let mutual = user.following.keys().filter(|other| user.followers.contains_key(*other)).count();
        Some(Counts { followers: user.followers.len(), following: user.following.len(), mutual })
    }

    /// Up to `want` users of a list, in the order of their names, behind the name `after`.
    pub(super) fn page(&self, name: &str, list: List, after: &str, want: usize) -> Option<Page> {
        use std::ops::Bound::{Excluded, Unbounded};
        let user = self.users.get(name)?;
        let all = if list == List::Followers { &user.followers } else { &user.following };
        let mut rest = all
            .range::<str, _>((Excluded(after), Unbounded))
            .filter(|(other, _)| list != List::Mutual || user.followers.contains_key(*other));
        let rows = rest
            .by_ref()
            .take(want)
            .map(|(other, since)| Row {
                user: Arc::clone(other),
                since_secs: *since,
                nick: self.users.get(other).and_then(|user| user.nick.clone()),
            })
            .collect();
        Some(Page { rows, more: rest.next().is_some() })
    }

    /// All or nothing.
    pub(super) fn seed(&mut self, seed: &SeedGraph, at_secs: u64) -> Result<(), SeedError> {
        let ends = seed.edges.iter().flat_map(|(from, to)| [from, to]);
        for name in seed.users.iter().chain(ends) {
            check_user_id(name).map_err(|error| SeedError::Name { name: name.chars().take(40).collect(), error })?;
        }
        if let Some((name, _)) = seed.edges.iter().find(|(from, to)| from == to) {
            return Err(SeedError::Itself(name.clone()));
        }
        if self.users.len() + self.new_users(seed) > USERS_MAX || self.edges + seed.edges.len() > EDGES_MAX {
            return Err(SeedError::Full);
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

    /// Both exist, and the follow does not.
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
        self.users.get_mut(name).expect("a follow joins two users that exist")
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

    fn names(page: &Page) -> Vec<&str> {
        page.rows.iter().map(|row| &*row.user).collect()
    }

    #[test]
    fn follow_type_has_the_two_bits_of_the_vendors_page() {
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
    fn what_cannot_be_followed() {
        let mut graph = graph(&["ann", "bob"]);
        assert_eq!(graph.follow("ann", "ann", 0), Err(NoFollow::Itself));
        assert_eq!(graph.follow("ann", "cyd", 0), Err(NoFollow::Unknown));
        assert_eq!(graph.unfollow("ann", "cyd"), Err(NoFollow::Unknown));
        for number in 0..FOLLOWING_MAX {
            let other = format!("u{number}");
            graph.import(&other, None).unwrap();
            graph.follow("ann", &other, 0).unwrap();
        }
        assert_eq!(graph.follow("ann", "bob", 0), Err(NoFollow::TooMany));
        assert_eq!(graph.follow("ann", "u0", 0), Ok(()), "what is followed stays followed");
    }

    #[test]
    fn a_deleted_user_leaves_no_follow_behind() {
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
        assert_eq!(graph.counts("cyd"), Some(Counts { followers: 0, following: 1, mutual: 0 }));
    }

    #[test]
    fn lists_are_read_page_by_page() {
        let mut graph = graph(&["ann", "b", "c", "d", "e"]);
        for other in ["e", "c", "b", "d"] {
            graph.follow("ann", other, 5).unwrap();
        }
        graph.follow("c", "ann", 6).unwrap();
        graph.import("c", Some("Cyd")).unwrap();
        let page = graph.page("ann", List::Following, "", 3).unwrap();
        assert_eq!((names(&page), page.more), (vec!["b", "c", "d"], true));
        assert_eq!((page.rows[1].nick.as_deref(), page.rows[1].since_secs), (Some("Cyd"), 5));
        let page = graph.page("ann", List::Following, "d", 3).unwrap();
        assert_eq!((names(&page), page.more), (vec!["e"], false));
        assert_eq!(names(&graph.page("ann", List::Mutual, "", 9).unwrap()), ["c"]);
        let page = graph.page("ann", List::Followers, "", 9).unwrap();
        assert_eq!((names(&page), page.rows[0].since_secs), (vec!["c"], 6));
        assert_eq!(graph.page("nobody", List::Mutual, "", 9), None);
    }

    #[test]
    fn a_seed_is_taken_whole_or_not_at_all() {
        let handle = GraphHandle::default();
        let seed: SeedGraph =
            serde_json::from_str(r#"{"users":["ann"],"edges":[["ann","bob"],["ann","bob"]]}"#).unwrap();
        handle.seed(&seed, 1).unwrap();
        assert_eq!(handle.size(), (2, 1));
        assert!(handle.follows("ann", "bob"));
        let bad = SeedGraph { users: vec!["cyd".into(), String::new()], edges: Vec::new() };
        assert!(matches!(handle.seed(&bad, 1), Err(SeedError::Name { .. })));
        let bad = SeedGraph { users: vec!["cyd".into()], edges: vec![("dan".into(), "dan".into())] };
        assert_eq!(handle.seed(&bad, 1), Err(SeedError::Itself("dan".into())));
        assert_eq!(handle.size(), (2, 1));
    }

    proptest! {
        /// Any series of changes, against a plain set of pairs.
        #[test]
        fn it_is_a_set_of_pairs(steps in prop::collection::vec((0u8..3, 0usize..5, 0usize..5), 0..60)) {
            const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];
            let mut graph = graph(&NAMES);
            let mut set = std::collections::BTreeSet::new();
            for (what, from, to) in steps {
                match what {
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
                let page = graph.page(name, List::Following, "", 9).unwrap();
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
