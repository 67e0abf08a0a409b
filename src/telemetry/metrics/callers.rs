//! Counters of configured callers.
//!
//! Callers are known by their [`QueueKey`], which a reload does not change. Each thread has its own counters, so the lock
//! is contended only while a reader sums them up. An anonymous caller is not counted: its key could be any number.

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::labels::Outcome;
use super::{PairCounts, SOURCES};
use crate::domain::caller::QueueKey;

/// What one caller has done with one app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallerTotals {
    /// Calls to Chat that it has caused.
    pub(crate) calls: u64,
    /// Pairs by source.
    pub(crate) pairs: PairCounts,
    /// Requests that chatgate has rejected or could not complete, by [`Outcome`].
    pub(crate) refused: [u64; Outcome::COUNT],
    /// Time that its requests waited for lookups or quota, in microseconds.
    pub(crate) waited_micros: u64,
}

impl Default for CallerTotals {
    fn default() -> Self {
        Self { calls: 0, pairs: [0; SOURCES.len()], refused: [0; Outcome::COUNT], waited_micros: 0 }
    }
}

impl CallerTotals {
    /// Returns the outcomes of rejected requests, without those that never occurred.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (Outcome, u64)> {
        Outcome::all().map(|outcome| (outcome, self.refused[outcome.index()])).filter(|(_, count)| *count > 0)
    }

    fn add(&mut self, other: &Self) {
        self.calls += other.calls;
        self.waited_micros += other.waited_micros;
        let sums = self.pairs.iter_mut().chain(&mut self.refused);
        for (sum, count) in sums.zip(other.pairs.iter().chain(&other.refused)) {
            *sum += count;
        }
    }
}

/// A request that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallerRequest<'a> {
    pub(crate) outcome: Outcome,
    /// Its pairs, if it was a check.
    pub(crate) pairs: Option<&'a PairCounts>,
    pub(crate) waited_micros: u64,
}

/// One thread's counters of one app, by caller. At most one entry for each configured caller.
#[derive(Debug, Default)]
pub(crate) struct CallerRecorder(Mutex<FxHashMap<QueueKey, CallerTotals>>);

impl CallerRecorder {
    /// Counts a call to Chat for the caller that has caused it.
    pub(crate) fn call(&self, caller: QueueKey) {
        if caller.is_named() {
            self.0.lock().entry(caller).or_default().calls += 1;
        }
    }

    /// Counts a request.
    pub(crate) fn request(&self, caller: QueueKey, request: CallerRequest<'_>) {
        if !caller.is_named() {
            return;
        }
        let mut callers = self.0.lock();
        let totals = callers.entry(caller).or_default();
        totals.waited_micros += request.waited_micros;
        if request.outcome.is_rejection() {
            totals.refused[request.outcome.index()] += 1;
        }
        for (sum, count) in totals.pairs.iter_mut().zip(request.pairs.into_iter().flatten()) {
            *sum += count;
        }
    }

    /// Forgets callers that are no longer configured.
    pub(super) fn retain(&self, mut is_configured: impl FnMut(QueueKey) -> bool) {
        self.0.lock().retain(|caller, _| is_configured(*caller));
    }

    pub(super) fn add_to(&self, sums: &mut FxHashMap<QueueKey, CallerTotals>) {
        for (caller, totals) in self.0.lock().iter() {
            sums.entry(*caller).or_default().add(totals);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::caller::CallerName;
    use crate::error::GatewayError;

    #[test]
    fn configured_callers_are_counted_and_others_are_not() {
        let key = |name: &str| QueueKey::named(&name.parse::<CallerName>().expect(name));
        let (feed, shop, recorder) = (key("feed"), key("shop"), CallerRecorder::default());
        let rejected = Outcome::rejected(&GatewayError::NotCached);
        let pairs = [1, 2, 3, 0, 5];
        for (outcome, pairs) in [(Outcome::OK, Some(&pairs)), (Outcome::FAILED, None), (rejected, None)] {
            recorder.request(feed, CallerRequest { outcome, pairs, waited_micros: 7 });
        }
        recorder.call(feed);
        recorder.call(shop);
        for anonymous in [QueueKey::SELF, QueueKey(1), QueueKey(6), QueueKey(u64::MAX)] {
            recorder.call(anonymous);
            recorder.request(anonymous, CallerRequest { outcome: rejected, pairs: Some(&pairs), waited_micros: 1 });
        }
        let sums = |times: usize| {
            let mut sums = FxHashMap::default();
            (0..times).for_each(|_| recorder.add_to(&mut sums));
            sums
        };
        let totals = sums(2)[&feed];
        assert_eq!((totals.calls, totals.pairs, totals.waited_micros), (2, [2, 4, 6, 0, 10], 42));
        assert_eq!(totals.refusals().collect::<Vec<_>>(), [(rejected, 2)]);
        assert_eq!((sums(1).len(), sums(1)[&shop].calls), (2, 1));
        recorder.retain(|caller| caller == shop);
        assert_eq!(sums(1).into_keys().collect::<Vec<_>>(), [shop]);
    }
}
