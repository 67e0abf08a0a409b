//! Histograms of durations with fixed buckets, exact to about a third.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets in microseconds: six per decade, from 10 µs to 10 s. One more bucket counts longer
/// durations.
const BOUNDS_MICROS: [u64; 37] = bounds();
/// Number of buckets, including the one above the last bound.
const BUCKETS: usize = BOUNDS_MICROS.len() + 1;

const fn bounds() -> [u64; 37] {
    let (steps, mut bounds, mut at, mut decade) = ([10, 15, 20, 30, 50, 70], [0; 37], 0, 1);
    while at < bounds.len() {
        bounds[at] = steps[at % 6] * decade;
        at += 1;
        if at.is_multiple_of(6) {
            decade *= 10;
        }
    }
    bounds
}

/// A histogram that several threads may add to. An addition costs two atomic additions.
#[derive(Debug)]
pub(super) struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum_micros: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BUCKETS], sum_micros: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts a duration.
    pub(super) fn add(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Adds the current counts to a sum.
    pub(super) fn add_to(&self, sum: &mut HistogramSnapshot) {
        for (sum, count) in sum.counts.iter_mut().zip(&self.counts) {
            *sum += count.load(Ordering::Relaxed);
        }
        sum.sum_micros = sum.sum_micros.wrapping_add(self.sum_micros.load(Ordering::Relaxed));
    }
}

/// The counts of a histogram, or of the sum of several, at one instant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HistogramSnapshot {
    counts: [u64; BUCKETS],
    sum_micros: u64,
}

impl Default for HistogramSnapshot {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], sum_micros: 0 }
    }
}

impl HistogramSnapshot {
    /// Returns the number of durations.
    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the sum of the durations, in seconds.
    pub(crate) fn sum_secs(&self) -> f64 {
        self.sum_micros as f64 / 1e6
    }

    /// Adds the counts of another snapshot.
    pub(crate) fn add(&mut self, other: &HistogramSnapshot) {
        for (sum, count) in self.counts.iter_mut().zip(&other.counts) {
            *sum += count;
        }
        self.sum_micros = self.sum_micros.wrapping_add(other.sum_micros);
    }

    /// Returns the difference from an earlier snapshot.
    pub(crate) fn since(&self, earlier: &HistogramSnapshot) -> HistogramSnapshot {
        let mut counts = self.counts;
        for (count, earlier) in counts.iter_mut().zip(&earlier.counts) {
            *count = count.saturating_sub(*earlier);
        }
        HistogramSnapshot { counts, sum_micros: self.sum_micros.wrapping_sub(earlier.sum_micros) }
    }

    /// Returns each bound in microseconds with the number of durations up to it.
    pub(crate) fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut sum = 0;
        BOUNDS_MICROS.iter().zip(&self.counts).map(move |(bound, count)| {
            sum += count;
            (*bound, sum)
        })
    }

    /// Returns the `q`-quantile (0 to 1) in seconds, interpolated linearly between the bounds. A quantile above the
    /// last bound is that bound. `None` if the histogram is empty.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        let rank = q * self.count() as f64;
        let (mut below, mut lower) = (0, 0);
        for (bound, count) in BOUNDS_MICROS.into_iter().zip(self.counts) {
            if count > 0 && (below + count) as f64 >= rank {
                let fraction = ((rank - below as f64) / count as f64).max(0.0);
                return Some((lower as f64 + fraction * (bound - lower) as f64) / 1e6);
            }
            below += count;
            lower = bound;
        }
        (self.count() > 0).then_some(lower as f64 / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(micros: &[u64]) -> HistogramSnapshot {
        let (histogram, mut snapshot) = (Histogram::default(), HistogramSnapshot::default());
        micros.iter().for_each(|micros| histogram.add(Duration::from_micros(*micros)));
        histogram.add_to(&mut snapshot);
        snapshot
    }

    #[test]
    fn bounds_rise_from_ten_microseconds_to_ten_seconds() {
        assert!(BOUNDS_MICROS.is_sorted_by(|a, b| a < b), "{BOUNDS_MICROS:?}");
        assert_eq!((BOUNDS_MICROS[0], BOUNDS_MICROS[36]), (10, 10_000_000));
    }

    #[test]
    fn cumulative_counts_include_the_bound_itself() {
        let snapshot = snapshot(&[0, 10, 11, 10_000_000, 10_000_001, u64::MAX]);
        let at = |bound| snapshot.cumulative().find(|(at, _)| *at == bound).map(|(_, count)| count);
        assert_eq!((at(10), at(15), at(7_000_000), at(10_000_000)), (Some(2), Some(3), Some(3), Some(4)));
        assert_eq!(snapshot.count(), 6);
    }

    #[test]
    fn quantiles_are_exact_to_the_width_of_a_bucket() {
        assert_eq!(HistogramSnapshot::default().quantile(0.5), None);
        let thousand: Vec<u64> = (1..=1000).map(|n| n * 100).collect();
        let snapshot = snapshot(&thousand);
        for q in [0.1, 0.5, 0.9, 0.99] {
            let (estimate, exact) = (snapshot.quantile(q).expect("not empty"), q * 0.1);
            assert!((estimate / exact - 1.0).abs() < 0.35, "{q}: {estimate} for {exact}");
        }
        assert_eq!(self::snapshot(&[99_000_000]).quantile(0.5), Some(10.0));
        assert!((snapshot.sum_secs() - 50.05).abs() < 1e-6);
    }

    #[test]
    fn since_returns_the_difference_of_two_snapshots() {
        let (early, late) = (snapshot(&[100, 200]), snapshot(&[100, 200, 5000]));
        let mut difference = late.since(&early);
        assert_eq!((difference.count(), difference.sum_secs()), (1, 0.005));
        difference.add(&early);
        assert_eq!(difference, late);
    }
}
