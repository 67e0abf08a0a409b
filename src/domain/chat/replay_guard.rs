//! Which signatures of webhooks have been seen, as long as they could be seen again.
//!
//! A signature covers a second and no body (see [`super::webhook`]). Follow events are heeded whenever they
//! come: there may be many in one second, and a repeated one only makes chatgate forget. An alarm makes
//! it slow for minutes, so one that shows a signature which was seen before is passed over. If it was
//! honest, little is lost: Chat's refusals teach the same.
//!
//! What a webhook says, its command included, is not remembered beside the signature: neither is signed, so whoever has
//! caught one signature could put another alarm under it, which would then be new. Nor are repeated follow events
//! refused: a single blank makes one new, while an honest one may be word for word that of a moment ago.

use std::collections::BTreeSet;

use super::app::SdkAppId;

/// Most signatures that are kept. An app has one for each second of the window.
const KEPT_MAX: usize = 64 * 1024;

/// Signatures by the second that they are of.
#[derive(Debug, Default)]
pub struct ReplayGuard(BTreeSet<(u64, SdkAppId)>);

impl ReplayGuard {
    /// Notes a signature of an app, of the second `at`, verified at the second `now` within `window_secs`.
    /// Says whether it is seen for the first time, with certainty: when there is no more room, none is.
    pub fn is_first(&mut self, app: SdkAppId, at: u64, now: u64, window_secs: u64) -> bool {
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
    fn each_second_of_each_app_is_first_once_as_long_as_it_is_believed() {
        let mut once = ReplayGuard::default();
        for (number, at) in [(1, 1000), (2, 1000), (1, 1001), (1, 940), (1, 1060)] {
            assert!(once.is_first(app(number), at, 1000, 60), "{number} at {at}");
            assert!(!once.is_first(app(number), at, 1000, 60), "{number} at {at}, again");
        }
        assert!(!once.is_first(app(1), 1060, 1120, 60));
        assert_eq!(once.0.len(), 1, "what nobody would believe any more is forgotten");
    }

    #[test]
    fn there_is_room_for_so_many_and_then_nothing_is_first() {
        let mut once = ReplayGuard::default();
        assert!((0..KEPT_MAX as u32).all(|number| once.is_first(app(number + 1), 1000, 1000, 60)));
        assert!(!once.is_first(app(u32::MAX), 1000, 1000, 60));
        assert!(once.is_first(app(u32::MAX), 2000, 2000, 60));
    }
}
