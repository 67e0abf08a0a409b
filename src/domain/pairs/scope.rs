//! The pairs that a write may have changed.

use super::cache::PairCache;
use super::fence::Fence;
use super::pair::{Pair, PairKey, UserHasher, UserKey};
use crate::domain::tick::Tick;

/// The narrowest set of pairs that certainly contains every pair a write may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// These pairs, in both directions.
    Pairs {
        /// The user that all of them have in common.
        from: String,
        /// The other users.
        to: Vec<String>,
    },
    /// Every pair of these users.
    Users(Vec<String>),
    /// Every pair of the app.
    All,
}

impl Scope {
    /// Returns its kind as the admin API and the logs show it: `pairs`, `user`, or `all`.
    pub fn name(&self) -> &'static str {
        match self {
            Scope::Pairs { .. } => "pairs",
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
            Scope::Pairs { from, to } => {
                let from = user(from);
                keys.pairs = to.iter().map(|to| Pair { from, to: user(to) }.key()).collect();
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

    /// Marks the fence and removes cached pairs. The fence alone keeps the promise; removing only frees what can
    /// never be read again.
    pub fn invalidate(&self, fence: &Fence, cache: &PairCache, now: Tick) {
        self.mark(fence, now);
        self.pairs.iter().for_each(|pair| cache.remove(*pair));
    }
}
