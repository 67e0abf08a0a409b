//! Replay protection for rate-limit alerts: the webhook signatures seen within the window.
//!
//! A signature covers a time in seconds, but not the body (see [`super::webhook`]).
//!
//! - Follow events are always applied. There may be many in one second, and a replayed event only invalidates pairs.
//! - A rate-limit alert slows chatgate down for minutes, so it is ignored if its signature was seen before. If the alert
//!   was genuine, little is lost: the throttled calls that follow have the same effect.
//!
//! The command and the body are not stored with the signature. They are not signed, so an attacker with one signature
//! could send another alert under it, which would count as new. Replayed follow events are not rejected either. A
//! single added space would make a replay look new, and a genuine event may equal an earlier one byte for byte.

use std::collections::BTreeSet;

use super::app::SdkAppId;

/// Maximum number of stored signatures. An app has one per second of the window.
const KEPT_MAX: usize = 64 * 1024;

/// The signatures seen, by signed second.
#[derive(Debug, Default)]
pub(crate) struct ReplayGuard(BTreeSet<(u64, SdkAppId)>);

impl ReplayGuard {
    /// Records a signature of an app for the second `at`, verified at the second `now` within `window_secs`.
    ///
    /// Returns whether it is certainly new. When the guard is full, no signature counts as new.
    pub(crate) fn is_first(&mut self, app: SdkAppId, at: u64, now: u64, window_secs: u64) -> bool {
        let oldest = now.saturating_sub(window_secs);
        while self.0.first().is_some_and(|(at, _)| *at < oldest) {
            self.0.pop_first();
        }
        self.0.len() < KEPT_MAX && self.0.insert((at, app))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(number: u32) -> SdkAppId {
        SdkAppId::new(number).expect("not 0")
    }

    #[test]
    fn signature_is_first_once_per_app_and_second() {
        let mut guard = ReplayGuard::default();
        for (number, at) in [(1, 1000), (2, 1000), (1, 1001), (1, 940), (1, 1060)] {
            assert!(guard.is_first(app(number), at, 1000, 60), "{number} at {at}");
            assert!(!guard.is_first(app(number), at, 1000, 60), "{number} at {at}, again");
        }
        assert!(!guard.is_first(app(1), 1060, 1120, 60));
        assert_eq!(guard.0.len(), 1, "signatures outside the window are dropped");
    }

    #[test]
    fn full_guard_reports_no_signature_as_first() {
        let mut guard = ReplayGuard::default();
        assert!((0..KEPT_MAX as u32).all(|number| guard.is_first(app(number + 1), 1000, 1000, 60)));
        assert!(!guard.is_first(app(u32::MAX), 1000, 1000, 60));
        assert!(guard.is_first(app(u32::MAX), 2000, 2000, 60));
    }
}
