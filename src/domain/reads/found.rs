//! What the cache has for a request, and how a request may use it.

use std::sync::Arc;
use std::time::Duration;

use super::cache::KeptResponse;
use crate::domain::pairs::directives::{CacheDirectives, Freshness};
use crate::domain::tick::Tick;

/// What decides whether a kept response may answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadOptions {
    /// The caller's `Cache-Control`.
    pub directives: CacheDirectives,
    /// How long a response of the command may answer.
    pub ttl: Duration,
    /// `cache.stale_if_error`: how long past its ttl a response may answer while Chat fails.
    pub stale_if_error: Duration,
}

/// What the cache has for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// A response that answers. `stale`: past its ttl, which the caller accepts.
    Usable { response: Arc<KeptResponse>, stale: bool },
    /// A response that the caller's directives exclude.
    Rejected,
    /// A response past its ttl.
    Expired,
    /// Nothing, or nothing from after the last write.
    Nothing,
}

impl ReadOptions {
    /// Judges a kept response. `last_mark` is the fence.
    pub(crate) fn judge(&self, kept: Option<Arc<KeptResponse>>, last_mark: Tick, now: Tick) -> Found {
        let Some(response) = kept.filter(|kept| kept.sent > last_mark) else { return Found::Nothing };
        match self.directives.freshness(now.since(response.sent), self.ttl, Duration::ZERO) {
            Freshness::Hit => Found::Usable { response, stale: false },
            Freshness::Stale => Found::Usable { response, stale: true },
            Freshness::Expired => Found::Expired,
            Freshness::Rejected => Found::Rejected,
        }
    }

    /// Returns whether a kept response may answer because Chat, the connection, or the quota failed.
    pub(crate) fn may_answer_failure(&self, kept: &KeptResponse, last_mark: Tick, now: Tick) -> bool {
        let limit = self.ttl.saturating_add(self.stale_if_error);
        self.directives.may_serve_stale() && kept.sent > last_mark && now.since(kept.sent) < limit
    }
}

/// Returns whether a response may be kept whose call was sent at `sent`. For `write_settle` after a write none is: Chat's
/// own replicas may not agree yet.
pub(crate) fn may_keep(sent: Tick, last_mark: Tick, write_settle: Duration) -> bool {
    last_mark == Tick::NEVER || sent > last_mark.after(write_settle)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn at(seconds: u64) -> Tick {
        Tick::from_micros(1_000_000 * seconds)
    }

    fn kept(sent: Tick) -> Arc<KeptResponse> {
        Arc::new(KeptResponse { content_type: None, body: Bytes::new(), sent })
    }

    fn options(directives: CacheDirectives) -> ReadOptions {
        ReadOptions { directives, ttl: Duration::from_secs(10), stale_if_error: Duration::from_secs(20) }
    }

    fn judge(directives: CacheDirectives, last_mark: Tick, now: Tick) -> &'static str {
        match options(directives).judge(Some(kept(at(100))), last_mark, now) {
            Found::Usable { stale: false, .. } => "hit",
            Found::Usable { stale: true, .. } => "stale",
            Found::Rejected => "rejected",
            Found::Expired => "expired",
            Found::Nothing => "nothing",
        }
    }

    #[test]
    fn response_answers_within_its_ttl_and_after_the_last_mark() {
        let none = CacheDirectives::default();
        assert_eq!(options(none).judge(None, Tick::NEVER, at(100)), Found::Nothing);
        assert_eq!(judge(none, Tick::NEVER, at(109)), "hit");
        assert_eq!(judge(none, Tick::NEVER, at(110)), "expired");
        assert_eq!(judge(none, at(99), at(109)), "hit");
        assert_eq!(judge(none, at(100), at(109)), "nothing", "the same time may be before the write");
        assert_eq!(judge(none, at(101), at(109)), "nothing");
    }

    #[test]
    fn directives_decide_as_for_pairs() {
        let none = CacheDirectives::default();
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(judge(CacheDirectives { no_cache: true, ..none }, Tick::NEVER, at(101)), "rejected");
        assert_eq!(judge(CacheDirectives { max_age: seconds(3), ..none }, Tick::NEVER, at(104)), "rejected");
        assert_eq!(judge(CacheDirectives { max_stale: seconds(5), ..none }, Tick::NEVER, at(114)), "stale");
        assert_eq!(judge(CacheDirectives { max_stale: seconds(5), ..none }, Tick::NEVER, at(115)), "expired");
        assert_eq!(judge(CacheDirectives { max_stale: seconds(5), ..none }, at(100), at(114)), "nothing");
    }

    #[test]
    fn stale_response_answers_a_failure_within_its_limit() {
        let none = CacheDirectives::default();
        let may = |directives, last_mark, now| options(directives).may_answer_failure(&kept(at(100)), last_mark, now);
        assert!(may(none, Tick::NEVER, at(129)) && may(none, at(99), at(101)));
        assert!(!may(none, Tick::NEVER, at(130)) && !may(none, at(100), at(101)));
        assert!(!may(CacheDirectives { no_cache: true, ..none }, Tick::NEVER, at(101)));
    }

    #[test]
    fn nothing_is_kept_until_a_write_has_settled() {
        let settle = Duration::from_secs(1);
        assert!(may_keep(at(1), Tick::NEVER, settle));
        assert!(!may_keep(at(101), at(100), settle) && may_keep(at(102), at(100), settle));
        assert!(!may_keep(at(100), at(100), Duration::ZERO));
    }
}
