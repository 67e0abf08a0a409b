//! Which apps' invalidations may not have reached every other replica.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::keys::FleetKeys;
use crate::domain::chat::app::SdkAppId;

/// Apps, each with its keys. It has one entry for each app of the configuration at most, and of earlier ones.
type Apps = BTreeMap<SdkAppId, Arc<FleetKeys>>;

/// The apps of which another replica may lack an invalidation of this replica.
///
/// An invalidation that Redis rejected is lacking everywhere. One that Redis accepted can be lacking too: during a
/// failover another replica may already be connected to the new primary while this one still sends to the old one, and
/// the new primary has neither the mark nor the message. So the next run of Redis gets one invalidation of each whole
/// app again. It names no pairs, so that nothing has to be remembered of them: the caches were just cleared by the
/// failover anyway, and an invalidation of an app costs as much as one of a pair. There is no limit to how long ago
/// Redis accepted the lacking one: an old primary that is cut off from the new one may accept invalidations until the
/// network is whole again.
#[derive(Debug, Default)]
pub(crate) struct Undelivered {
    /// The run of Redis that accepted the invalidations of `accepted`. Empty before the first connection.
    run_id: String,
    accepted: Apps,
    unsent: Apps,
}

impl Undelivered {
    /// Begins a connection to a run of Redis. If it is another one than before, invalidations that the other one
    /// accepted count as unsent. Call it before the first invalidation is sent on the connection.
    pub(crate) fn connected(&mut self, run_id: &str) {
        if self.run_id != run_id {
            run_id.clone_into(&mut self.run_id);
            self.unsent.append(&mut self.accepted);
        }
    }

    /// Records an invalidation that a run of Redis accepted. It counts as unsent if the replica has since connected to
    /// another run.
    pub(crate) fn accepted(&mut self, run_id: &str, app: SdkAppId, keys: &Arc<FleetKeys>) {
        let apps = if self.run_id == run_id { &mut self.accepted } else { &mut self.unsent };
        apps.insert(app, Arc::clone(keys));
    }

    /// Records an invalidation that could not be sent.
    pub(crate) fn failed(&mut self, app: SdkAppId, keys: &Arc<FleetKeys>) {
        self.unsent.insert(app, Arc::clone(keys));
    }

    /// Returns the apps with an unsent invalidation, which the caller now sends.
    pub(crate) fn take_unsent(&mut self) -> Apps {
        std::mem::take(&mut self.unsent)
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::for_test;
    use super::*;

    fn unsent(undelivered: &mut Undelivered) -> Vec<u32> {
        undelivered.take_unsent().into_keys().map(SdkAppId::get).collect()
    }

    #[test]
    fn another_run_gets_the_accepted_invalidations_again() {
        let (app, keys) = (|n| SdkAppId::new(n).expect("not 0"), Arc::new(for_test("secret", 1)));
        let mut undelivered = Undelivered::default();
        undelivered.connected("old");
        undelivered.accepted("old", app(1), &keys);
        undelivered.failed(app(2), &keys);
        assert_eq!(unsent(&mut undelivered), [2]);
        undelivered.connected("old");
        assert!(unsent(&mut undelivered).is_empty(), "the same run has its invalidations");
        undelivered.connected("new");
        assert_eq!(unsent(&mut undelivered), [1]);
        undelivered.connected("new");
        assert!(unsent(&mut undelivered).is_empty(), "they are sent once");
        // The response of the old run arrives after the replica has connected to the new one.
        undelivered.accepted("new", app(3), &keys);
        undelivered.accepted("old", app(4), &keys);
        assert_eq!(unsent(&mut undelivered), [4]);
        undelivered.connected("newest");
        assert_eq!(unsent(&mut undelivered), [3]);
    }
}
