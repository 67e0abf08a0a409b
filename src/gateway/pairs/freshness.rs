//! How fresh an answer must be, and how it is told where it came from.

use std::time::Duration;

use http::HeaderMap;
use http::header::CACHE_CONTROL;

/// What the caller's `Cache-Control` asks for (RFC 9111 section 5.2.1). A directive that cannot be
/// read is passed over, as that section wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheDirectives {
    /// Ask Chat, keep the answer.
    pub no_cache: bool,
    /// Neither use nor keep.
    pub no_store: bool,
    /// No fact may be older.
    pub max_age: Option<Duration>,
    /// A fact may be so long past its ttl.
    pub max_stale: Option<Duration>,
    /// Do not ask Chat.
    pub only_if_cached: bool,
}

impl CacheDirectives {
    /// Reads them from a request's headers.
    pub fn read(headers: &HeaderMap) -> Self {
        let mut wishes = Self::default();
        for value in headers.get_all(CACHE_CONTROL) {
            let Ok(text) = value.to_str() else { continue };
            for directive in text.split(',') {
                let (name, argument) = directive.split_once('=').unwrap_or((directive, ""));
                let seconds = || {
                    let digits = argument.trim().trim_matches('"');
                    let all_digits = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
                    // A number too large to hold is as good as the largest.
                    all_digits.then(|| Duration::from_secs(digits.parse::<u32>().unwrap_or(u32::MAX).into()))
                };
                match name.trim().to_ascii_lowercase().as_str() {
                    "no-cache" => wishes.no_cache = true,
                    "no-store" => wishes.no_store = true,
                    "only-if-cached" => wishes.only_if_cached = true,
                    "max-age" => wishes.max_age = seconds().or(wishes.max_age),
                    "max-stale" => wishes.max_stale = seconds().or(wishes.max_stale),
                    _ => {}
                }
            }
        }
        wishes
    }

    /// Whether a lookup that is already under way will do. It may have been sent long ago, so not for
    /// who bounds the age of what it gets.
    pub fn may_join(&self) -> bool {
        !self.no_cache && !self.no_store && self.max_age.is_none()
    }

    /// The age below which a kept fact is a hit, whatever else [`CacheDirectives::freshness`] would look at.
    pub fn hit_age_max(&self, ttl: Duration) -> Duration {
        if self.no_cache || self.no_store { Duration::ZERO } else { self.max_age.map_or(ttl, |age| age.min(ttl)) }
    }

    /// How a kept fact of this age may be used.
    pub fn freshness(&self, age: Duration, ttl: Duration) -> Freshness {
        if self.no_cache || self.no_store {
            return Freshness::Rejected;
        }
        let fresh_for = self.max_age.map_or(ttl, |max_age| max_age.min(ttl));
        if age <= fresh_for && age < ttl {
            Freshness::Hit
        } else if self.max_age.is_some_and(|max_age| age > max_age) {
            if age < ttl { Freshness::Rejected } else { Freshness::Expired }
        } else if self.max_stale.is_some_and(|stale| age < ttl.saturating_add(stale)) {
            Freshness::Stale
        } else {
            Freshness::Expired
        }
    }
}

impl CacheDirectives {
    /// Whether a fact past its ttl may stand in where Chat does not answer, if the configuration says so
    /// (RFC 5861, section 4): not for who wants to know how things are now.
    pub fn may_serve_stale(&self) -> bool {
        let wants_now = self.no_cache || self.no_store || self.max_age.is_some();
        !wants_now && self.max_stale != Some(Duration::ZERO)
    }
}

/// What a kept fact is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It answers.
    Hit,
    /// It answers, past its ttl, because the caller said so.
    Stale,
    /// It is past its ttl.
    Expired,
    /// It would do, but the caller wants another.
    Rejected,
}

/// Where the answer about a pair came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The cache, within its ttl.
    Hit,
    /// The cache, past its ttl.
    Stale,
    /// A lookup that somebody else had begun.
    Joined,
    /// A lookup of its own.
    Fetched,
    /// The same, asked the other way round.
    Flipped,
}

impl Source {
    /// Its name in `Chatgate-Explain`.
    pub const fn name(self) -> &'static str {
        match self {
            Source::Hit => "hit",
            Source::Stale => "stale",
            Source::Joined => "joined",
            Source::Fetched => "fetched",
            Source::Flipped => "flipped",
        }
    }
}

/// Distinct pairs by source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "named as in the header")]
pub struct PairSources {
    pub hit: usize,
    pub joined: usize,
    /// Flipped ones included.
    pub fetched: usize,
    pub flipped: usize,
    pub stale: usize,
    /// Stale ones stand in for what Chat did not answer.
    pub served_stale: bool,
}

impl PairSources {
    /// Counts one pair.
    pub fn count(&mut self, source: Source) {
        match source {
            Source::Hit => self.hit += 1,
            Source::Stale => self.stale += 1,
            Source::Joined => self.joined += 1,
            Source::Fetched => self.fetched += 1,
            Source::Flipped => {
                self.fetched += 1;
                self.flipped += 1;
            }
        }
    }

    /// The value of `Cache-Status` (RFC 9211). `expired` says whether every pair that was not in the
    /// cache had been there once and was past its ttl.
    pub fn cache_status(&self, wishes: &CacheDirectives, refused: bool, expired: bool) -> String {
        let PairSources { hit, joined, fetched, flipped, stale, served_stale: fell_back } = self;
        let outcome = if *fell_back {
            "fwd=stale"
        } else if joined + fetched == 0 {
            "hit"
        } else if wishes.no_store {
            "fwd=bypass"
        } else if wishes.no_cache || refused {
            "fwd=request"
        } else if hit + stale > 0 {
            "fwd=partial"
        } else if expired {
            "fwd=stale"
        } else {
            "fwd=miss"
        };
        // Put together by hand: each request has one, and `format!` takes several times as long.
        let mut text = String::with_capacity(96);
        text.push_str("chatgate; ");
        text.push_str(outcome);
        text.push_str("; detail=\"hit=");
        push_number(&mut text, *hit);
        for (name, count) in [(" joined=", joined), (" fetched=", fetched), (" flipped=", flipped), (" stale=", stale)]
        {
            text.push_str(name);
            push_number(&mut text, *count);
        }
        text.push('"');
        text
    }
}

fn push_number(text: &mut String, number: usize) {
    if number >= 10 {
        push_number(text, number / 10);
    }
    text.push(char::from(b'0' + (number % 10) as u8));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(value: &'static str) -> CacheDirectives {
        let mut headers = HeaderMap::new();
        headers.insert(CACHE_CONTROL, http::HeaderValue::from_static(value));
        CacheDirectives::read(&headers)
    }

    fn judged(value: &'static str, age: u64) -> Freshness {
        wishes(value).freshness(Duration::from_secs(age), Duration::from_secs(30))
    }

    #[test]
    fn directives_are_read_in_any_case_and_unreadable_ones_are_passed_over() {
        let read = wishes("No-Cache, max-age=7 ,MAX-STALE=\"9\",only-if-cached,foo=bar");
        assert!(read.no_cache && read.only_if_cached && !read.no_store);
        assert_eq!((read.max_age, read.max_stale), (Some(Duration::from_secs(7)), Some(Duration::from_secs(9))));
        assert_eq!(wishes("max-age=-1, max-age=x, max-age"), CacheDirectives::default());
        assert_eq!(wishes("max-age=99999999999999").max_age, Some(Duration::from_secs(u32::MAX.into())));
    }

    #[test]
    fn a_fact_is_judged_by_ttl_and_by_what_the_caller_wants() {
        assert_eq!(judged("", 29), Freshness::Hit);
        assert_eq!(judged("", 30), Freshness::Expired);
        assert_eq!(judged("no-cache", 0), Freshness::Rejected);
        assert_eq!(judged("no-store", 0), Freshness::Rejected);
        assert_eq!(judged("max-age=5", 5), Freshness::Hit);
        assert_eq!(judged("max-age=5", 6), Freshness::Rejected);
        assert_eq!(judged("max-age=99", 30), Freshness::Expired);
        assert_eq!(judged("max-stale=10", 39), Freshness::Stale);
        assert_eq!(judged("max-stale=10", 40), Freshness::Expired);
        assert_eq!(judged("max-stale=0", 30), Freshness::Expired);
        assert_eq!(judged("max-age=5, max-stale=10", 35), Freshness::Expired);
    }

    #[test]
    fn whatever_is_younger_than_that_is_a_hit() {
        for value in ["", "max-age=5", "max-age=99", "max-stale=9", "no-cache", "no-store, max-age=9", "max-age=0"] {
            let (wishes, ttl) = (wishes(value), Duration::from_secs(30));
            let below = wishes.hit_age_max(ttl);
            for age in (0..40).map(Duration::from_secs).filter(|age| *age < below) {
                assert_eq!(wishes.freshness(age, ttl), Freshness::Hit, "{value}: {age:?}");
            }
        }
        assert_eq!(wishes("max-age=5").hit_age_max(Duration::from_secs(30)), Duration::from_secs(5));
    }

    #[test]
    fn who_wants_to_know_how_things_are_now_gets_no_substitute() {
        for (value, may) in [("", true), ("max-stale=9", true), ("only-if-cached", true)] {
            assert_eq!(wishes(value).may_serve_stale(), may, "{value}");
        }
        for value in ["no-cache", "no-store", "max-age=60", "max-stale=0"] {
            assert!(!wishes(value).may_serve_stale(), "{value}");
        }
    }

    #[test]
    fn the_status_tells_why_chat_was_asked() {
        let tally = |hit, joined, fetched| PairSources { hit, joined, fetched, ..PairSources::default() };
        let none = CacheDirectives::default();
        let of = |tally: PairSources, expired| tally.cache_status(&none, false, expired);
        assert_eq!(of(tally(3, 0, 0), false), "chatgate; hit; detail=\"hit=3 joined=0 fetched=0 flipped=0 stale=0\"");
        let many = PairSources { hit: 1000, joined: 9, fetched: 10, flipped: 99, stale: 100, served_stale: false };
        assert!(of(many, false).ends_with("detail=\"hit=1000 joined=9 fetched=10 flipped=99 stale=100\""));
        let fell_back = PairSources { hit: 1, stale: 2, served_stale: true, ..PairSources::default() };
        assert!(of(fell_back, false).starts_with("chatgate; fwd=stale; "));
        assert!(of(tally(1, 0, 2), false).starts_with("chatgate; fwd=partial; "));
        assert!(of(tally(0, 1, 2), false).starts_with("chatgate; fwd=miss; "));
        assert!(of(tally(0, 0, 2), true).starts_with("chatgate; fwd=stale; "));
        assert!(tally(0, 0, 1).cache_status(&wishes("no-store"), false, false).starts_with("chatgate; fwd=bypass; "));
        assert!(tally(0, 0, 1).cache_status(&wishes("no-cache"), false, false).starts_with("chatgate; fwd=request; "));
        assert!(tally(1, 0, 1).cache_status(&wishes("max-age=1"), true, false).starts_with("chatgate; fwd=request; "));
    }
}
