//! Cache directives of a request, and where the answers of a response came from.

use std::time::Duration;

/// Request directives of `Cache-Control` (RFC 9111 section 5.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheDirectives {
    /// Look every pair up; the results may be cached.
    pub no_cache: bool,
    /// Neither use the cache nor store results in it.
    pub no_store: bool,
    /// Highest acceptable age of a cached pair.
    pub max_age: Option<Duration>,
    /// How long past its ttl a cached pair may still answer.
    pub max_stale: Option<Duration>,
    /// Answer from the cache or not at all.
    pub only_if_cached: bool,
}

impl CacheDirectives {
    /// Returns whether a lookup that is already in flight may answer. It may have been sent long ago, so
    /// a request that bounds the age of its answers does not join it.
    pub fn may_join(&self) -> bool {
        !self.no_cache && !self.no_store && self.max_age.is_none()
    }

    /// Returns whether pairs that other replicas cached may answer.
    pub fn may_use_cache(&self) -> bool {
        !self.no_cache && !self.no_store
    }

    /// Returns the age below which a cached pair is a hit, whatever else [`CacheDirectives::freshness`]
    /// would consider.
    pub fn hit_age_max(&self, ttl: Duration) -> Duration {
        if self.may_use_cache() { self.max_age.map_or(ttl, |age| age.min(ttl)) } else { Duration::ZERO }
    }

    /// Returns how a cached pair of this age may be used. `while_revalidate` is `cache.stale_while_revalidate`.
    pub fn freshness(&self, age: Duration, ttl: Duration, while_revalidate: Duration) -> Freshness {
        if !self.may_use_cache() {
            return Freshness::Rejected;
        }
        let fresh_for = self.max_age.map_or(ttl, |max_age| max_age.min(ttl));
        if age <= fresh_for && age < ttl {
            Freshness::Hit
        } else if self.max_age.is_some_and(|max_age| age > max_age) {
            if age < ttl { Freshness::Rejected } else { Freshness::Expired }
        } else if age < ttl.saturating_add(self.max_stale.unwrap_or_else(|| self.revalidated(while_revalidate))) {
            Freshness::Stale
        } else {
            Freshness::Expired
        }
    }

    /// Returns how long past its ttl a pair answers while it is looked up again (RFC 5861 section 3), unless the caller
    /// sets that itself with `max-stale`. A request that asks for current data gets no such pair.
    pub fn revalidated(&self, while_revalidate: Duration) -> Duration {
        if self.may_serve_stale() { while_revalidate } else { Duration::ZERO }
    }

    /// Returns whether the request may cause lookups in the background. One that asks for the cache only causes none.
    pub fn may_refresh(&self) -> bool {
        !self.only_if_cached
    }

    /// Returns whether a pair past its ttl may answer while Chat fails, if `cache.stale_if_error` allows it
    /// (RFC 5861 section 4). A request that asks for current data gets none.
    pub fn may_serve_stale(&self) -> bool {
        self.may_use_cache() && self.max_age.is_none() && self.max_stale != Some(Duration::ZERO)
    }
}

/// How a cached pair may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It answers.
    Hit,
    /// It answers past its ttl, because the caller accepts that.
    Stale,
    /// It is past its ttl.
    Expired,
    /// It is within its ttl, but the caller's directives exclude it.
    Rejected,
}

/// Where the answer about a pair came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The cache, within the ttl.
    Hit,
    /// The cache, past the ttl.
    Stale,
    /// A lookup that another request had started.
    Joined,
    /// A lookup of this request.
    Fetched,
    /// A lookup of this request, made with the pair reversed.
    Flipped,
    /// Nowhere: it is not known by the caller's deadline.
    Missing,
}

impl Source {
    /// Returns the name used in `Chatgate-Explain`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Source::Hit => "hit",
            Source::Stale => "stale",
            Source::Joined => "joined",
            Source::Fetched => "fetched",
            Source::Flipped => "flipped",
            Source::Missing => "missing",
        }
    }
}

/// Numbers of distinct pairs by source, named as in `Cache-Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named as in the header")]
pub(crate) struct PairSources {
    pub hit: usize,
    pub joined: usize,
    /// Includes the flipped pairs.
    pub fetched: usize,
    pub flipped: usize,
    pub stale: usize,
    pub missing: usize,
}

impl PairSources {
    /// Counts one pair.
    pub(crate) fn count(&mut self, source: Source) {
        match source {
            Source::Hit => self.hit += 1,
            Source::Stale => self.stale += 1,
            Source::Joined => self.joined += 1,
            Source::Fetched => self.fetched += 1,
            Source::Flipped => {
                self.fetched += 1;
                self.flipped += 1;
            }
            Source::Missing => self.missing += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    fn seconds(seconds: u64) -> Option<Duration> {
        Some(Duration::from_secs(seconds))
    }

    fn directives() -> [CacheDirectives; 8] {
        let none = CacheDirectives::default();
        [
            none,
            CacheDirectives { max_age: seconds(5), ..none },
            CacheDirectives { max_age: seconds(99), ..none },
            CacheDirectives { max_age: seconds(0), ..none },
            CacheDirectives { max_stale: seconds(10), ..none },
            CacheDirectives { max_age: seconds(5), max_stale: seconds(10), ..none },
            CacheDirectives { no_cache: true, ..none },
            CacheDirectives { no_store: true, max_age: seconds(9), ..none },
        ]
    }

    #[test]
    fn freshness_follows_ttl_and_directives() {
        let [none, age_5, age_99, _, stale_10, age_5_stale_10, no_cache, no_store] = directives();
        let cases = [
            (none, 29, Freshness::Hit),
            (none, 30, Freshness::Expired),
            (no_cache, 0, Freshness::Rejected),
            (no_store, 0, Freshness::Rejected),
            (age_5, 5, Freshness::Hit),
            (age_5, 6, Freshness::Rejected),
            (age_99, 30, Freshness::Expired),
            (stale_10, 39, Freshness::Stale),
            (stale_10, 40, Freshness::Expired),
            (CacheDirectives { max_stale: seconds(0), ..none }, 30, Freshness::Expired),
            (age_5_stale_10, 35, Freshness::Expired),
        ];
        for (directives, age, freshness) in cases {
            assert_eq!(
                directives.freshness(Duration::from_secs(age), TTL, Duration::ZERO),
                freshness,
                "{directives:?} at {age} s"
            );
        }
    }

    #[test]
    fn max_stale_takes_the_place_of_the_refresh_window() {
        let none = CacheDirectives::default();
        let of_cache = CacheDirectives { only_if_cached: true, ..none };
        let stale = |max_stale| CacheDirectives { max_stale: seconds(max_stale), ..none };
        for (directives, last) in [(none, 39), (of_cache, 39), (stale(5), 34), (stale(15), 44), (stale(0), 29)] {
            for age in 30..50 {
                let expected = if age <= last { Freshness::Stale } else { Freshness::Expired };
                let age = Duration::from_secs(age);
                assert_eq!(
                    directives.freshness(age, TTL, Duration::from_secs(10)),
                    expected,
                    "{directives:?}: {age:?}"
                );
            }
        }
        assert!(none.may_refresh() && stale(5).may_refresh() && !of_cache.may_refresh());
    }

    #[test]
    fn pairs_younger_than_the_hit_age_are_hits() {
        for directives in directives() {
            let below = directives.hit_age_max(TTL);
            for age in (0..40).map(Duration::from_secs).filter(|age| *age < below) {
                assert_eq!(directives.freshness(age, TTL, Duration::ZERO), Freshness::Hit, "{directives:?}: {age:?}");
            }
        }
        assert_eq!(directives()[1].hit_age_max(TTL), Duration::from_secs(5));
    }

    #[test]
    fn requests_for_current_data_get_no_stale_pairs() {
        let none = CacheDirectives::default();
        for may in
            [none, CacheDirectives { only_if_cached: true, ..none }, CacheDirectives { max_stale: seconds(9), ..none }]
        {
            assert!(may.may_serve_stale(), "{may:?}");
        }
        let excluded = [
            CacheDirectives { no_cache: true, ..none },
            CacheDirectives { no_store: true, ..none },
            CacheDirectives { max_age: seconds(60), ..none },
            CacheDirectives { max_stale: seconds(0), ..none },
        ];
        for excluded in excluded {
            assert!(!excluded.may_serve_stale(), "{excluded:?}");
        }
    }
}
