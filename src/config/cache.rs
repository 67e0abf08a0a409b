//! `[cache]`: the cache of pairs.

use std::time::Duration;

use super::section::Section;
use super::units::{count, duration, hours, millis};

/// `[cache]`: the cache of pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Maximum age of a cached pair, 0 (no caching) to 24 h. Default 30 s.
    pub ttl: Duration,
    /// Maximum number of cached pairs per app, 1 to 100,000,000. Default 1,000,000.
    pub max_pairs: usize,
    /// How long past its ttl a pair is served while Chat fails or the quota is exhausted, up to 24 h. Default 0.
    pub stale_if_error: Duration,
    /// How long after a relayed write its pairs are not cached, up to 5 min. Default 1 s.
    pub write_settle: Duration,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            max_pairs: 1_000_000,
            stale_if_error: Duration::ZERO,
            write_settle: Duration::from_secs(1),
        }
    }
}

impl Cache {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let mut cache = Self::default();
        section.read("ttl", &mut cache.ttl, duration(millis(0)..=hours(24)));
        section.read("max_pairs", &mut cache.max_pairs, count(1..=100_000_000));
        section.read("write_settle", &mut cache.write_settle, duration(millis(0)..=millis(300_000)));
        section.read("stale_if_error", &mut cache.stale_if_error, duration(millis(0)..=hours(24)));
        section.finish();
        cache
    }
}
