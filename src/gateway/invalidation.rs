//! Forgetting: what a write, an event or an operator names is not answered from before it.

use std::num::NonZeroU32;

use super::app::{Follow, Gateway};
use crate::clock;
use crate::domain::chat::command::CommandName;
use crate::domain::pairs::pair::{Pair, PairKey, UserKey};
use crate::domain::pairs::scope::Scope;

impl Gateway {
    /// Forgets what `scope` names of an app. Once it returns, no answer comes from a lookup that was
    /// sent before: neither one that is kept nor one that is under way. For `cache.write_settle` answers
    /// about these pairs are not kept, as after a write.
    ///
    /// `app` is one that [`Gateway::app_named`] or [`Gateway::app_numbered`] gave.
    pub fn evict(&self, app: usize, scope: &Scope) {
        let follow = &self.apps[app].follow;
        follow.evict(&follow.keys(scope));
    }

    /// Chat says what it holds a command to: for a while no more than that is sent, and never more than
    /// is configured.
    pub fn apply_rate_alert(&self, app: usize, name: CommandName<'_>, limit: NonZeroU32) {
        self.apps[app].quotas.alert(name, limit);
    }
}

/// What a scope names, hashed.
pub(super) struct ScopeKeys {
    pairs: Vec<PairKey>,
    users: Vec<UserKey>,
    all: bool,
}

impl Follow {
    pub(super) fn keys(&self, scope: &Scope) -> ScopeKeys {
        let user = |name: &String| self.hasher.user(name);
        let mut keys = ScopeKeys { pairs: Vec::new(), users: Vec::new(), all: false };
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

    /// Marks the fence. What was sent up to now is void.
    fn mark(&self, keys: &ScopeKeys) {
        let (fence, now) = (&self.fence, clock::tick());
        keys.pairs.iter().for_each(|pair| fence.mark_pair(*pair, now));
        keys.users.iter().for_each(|user| fence.mark_user(*user, now));
        if keys.all {
            fence.mark_all(now);
        }
    }

    pub(super) fn evict(&self, keys: &ScopeKeys) {
        self.mark(keys);
        // The fence alone keeps the promise; this only frees what can never be read again.
        keys.pairs.iter().for_each(|pair| self.cache.remove(*pair));
    }
}

/// A write under way: marks what it may change when it begins, and evicts it when it ends, however it
/// ends.
pub(super) struct WriteFence<'a> {
    follow: &'a Follow,
    keys: ScopeKeys,
}

impl<'a> WriteFence<'a> {
    pub(super) fn new(follow: &'a Follow, scope: &Scope) -> Self {
        let keys = follow.keys(scope);
        follow.mark(&keys);
        Self { follow, keys }
    }
}

impl Drop for WriteFence<'_> {
    fn drop(&mut self) {
        self.follow.evict(&self.keys);
    }
}
