//! The pairs that a write may have changed.

use super::cache::PairCache;
use super::fence::Fence;
use super::pair::{Pair, PairKey, UserHasher, UserKey};
use crate::domain::tick::Tick;

/// The narrowest set of pairs that certainly contains every pair a write may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// These pairs, in both directions.
    Pairs(Vec<UserPairs>),
    /// Every pair of these users.
    Users(Vec<String>),
    /// Every pair of the app.
    All,
}

/// Pairs of one user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserPairs {
    /// The user that all of them have in common.
    pub from: String,
    /// The other users.
    pub to: Vec<String>,
}

impl Scope {
    /// Returns the pairs of one user with others.
    pub fn pairs_of(from: &str, to: &[&str]) -> Self {
        let to = to.iter().copied().map(str::to_owned).collect();
        Scope::Pairs(vec![UserPairs { from: from.to_owned(), to }])
    }

    /// Returns its kind as the admin API and the logs show it: `pairs`, `user`, or `all`.
    pub fn name(&self) -> &'static str {
        match self {
            Scope::Pairs(_) => "pairs",
            Scope::Users(_) => "user",
            Scope::All => "all",
        }
    }
}

/// The keys of a scope.
#[derive(Debug)]
pub struct ScopeKeys {
    pairs: Vec<PairKey>,
    users: Vec<UserKey>,
    all: bool,
}

impl ScopeKeys {
    /// Hashes the users of a scope.
    pub fn new(scope: &Scope, hasher: &UserHasher) -> Self {
        let user = |name: &String| hasher.user(name);
        let mut keys = Self { pairs: Vec::new(), users: Vec::new(), all: false };
        match scope {
            Scope::Pairs(pairs) => {
                for UserPairs { from, to } in pairs {
                    let from = user(from);
                    keys.pairs.extend(to.iter().map(|to| Pair { from, to: user(to) }.key()));
                }
            }
            Scope::Users(names) => keys.users = names.iter().map(user).collect(),
            Scope::All => keys.all = true,
        }
        keys
    }

    /// Marks the fence: every lookup that was sent up to `now` is void.
    pub fn mark(&self, fence: &Fence, now: Tick) {
        self.pairs.iter().for_each(|pair| fence.mark_pair(*pair, now));
        self.users.iter().for_each(|user| fence.mark_user(*user, now));
        if self.all {
            fence.mark_all(now);
        }
    }

    /// Removes its pairs from a cache, after [`ScopeKeys::mark`]. The fence alone keeps the promise; removing only frees
    /// what can never be read again.
    pub fn remove_from(&self, cache: &PairCache) {
        self.pairs.iter().for_each(|pair| cache.remove(*pair));
    }
}
