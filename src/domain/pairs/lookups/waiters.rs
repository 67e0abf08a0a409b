//! Requests that wait for the results of lookups.

use std::collections::HashMap;

use super::{PairResult, Ticket, WaiterResult};

/// Results of pairs, each with the request's own number for the pair.
pub type PairResults = Vec<(usize, PairResult)>;

/// How the wait of a request ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Delivery {
    /// Every pair has its result.
    Results(PairResults),
    /// The call for one of its pairs failed.
    Failed,
    /// Chat's response does not fit the lookup of one of its pairs.
    Malformed,
}

/// The waiting requests, each with a handle by which its driver is notified.
#[derive(Debug, Clone)]
pub struct Waiters<H>(pub(super) HashMap<Ticket, Waiting<H>>);

#[derive(Debug, Clone)]
pub(super) struct Waiting<H> {
    pub(super) missing: usize,
    pub(super) results: PairResults,
    handle: H,
}

impl<H> Default for Waiters<H> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<H> Waiters<H> {
    /// Adds a request that waits for this number of pairs.
    pub fn insert(&mut self, ticket: Ticket, pairs: usize, handle: H) {
        self.0.insert(ticket, Waiting { missing: pairs, results: Vec::with_capacity(pairs), handle });
    }

    /// Removes a request that no longer waits, and returns the results that it has by then.
    pub fn remove(&mut self, ticket: Ticket) -> PairResults {
        self.0.remove(&ticket).map(|waiting| waiting.results).unwrap_or_default()
    }

    /// Returns the handle of a waiting request.
    pub fn handle(&self, ticket: Ticket) -> Option<&H> {
        self.0.get(&ticket).map(|waiting| &waiting.handle)
    }

    /// Records results. Returns the requests whose wait has ended: the result of the last pair ends it, and so does
    /// the first failure. Results for requests that do not wait are dropped.
    pub fn deliver(&mut self, results: Vec<WaiterResult>) -> Vec<(H, Delivery)> {
        let mut ended = Vec::new();
        for WaiterResult { ticket, slot, result } in results {
            let failure = match result {
                PairResult::Failed => Some(Delivery::Failed),
                PairResult::Malformed => Some(Delivery::Malformed),
                PairResult::Known { .. } | PairResult::Verbatim(..) => None,
            };
            let Some(waiting) = self.0.get_mut(&ticket) else { continue };
            if failure.is_none() {
                waiting.results.push((slot, result));
                waiting.missing -= 1;
            }
            if (failure.is_some() || waiting.missing == 0)
                && let Some(Waiting { results, handle, .. }) = self.0.remove(&ticket)
            {
                ended.push((handle, failure.unwrap_or(Delivery::Results(results))));
            }
        }
        ended
    }
}

#[cfg(test)]
impl<H> Waiters<H> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tick::Tick;

    fn verbatim(ticket: u64, slot: usize) -> WaiterResult {
        WaiterResult { ticket: Ticket(ticket), slot, result: PairResult::Verbatim("{}".into(), Tick::NEVER) }
    }

    #[test]
    fn last_result_ends_a_wait() {
        let mut waiters = Waiters::default();
        waiters.insert(Ticket(1), 2, "one");
        assert!(waiters.deliver(vec![verbatim(1, 0)]).is_empty());
        let ended = waiters.deliver(vec![verbatim(1, 5)]);
        let [("one", Delivery::Results(results))] = ended.as_slice() else { panic!("{ended:?}") };
        assert_eq!(results.iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [0, 5]);
        assert!(waiters.is_empty());
    }

    #[test]
    fn first_failure_ends_a_wait() {
        for (result, delivery) in [(PairResult::Failed, Delivery::Failed), (PairResult::Malformed, Delivery::Malformed)]
        {
            let mut waiters = Waiters::default();
            waiters.insert(Ticket(1), 3, ());
            let failed = WaiterResult { ticket: Ticket(1), slot: 1, result };
            let ended = waiters.deliver(vec![verbatim(1, 0), failed, verbatim(1, 2)]);
            assert_eq!(ended, [((), delivery)]);
        }
    }

    #[test]
    fn removed_request_gets_the_results_so_far_and_no_more() {
        let mut waiters = Waiters::default();
        waiters.insert(Ticket(1), 2, ());
        assert!(waiters.deliver(vec![verbatim(1, 1)]).is_empty());
        assert_eq!(waiters.remove(Ticket(1)).iter().map(|(slot, _)| *slot).collect::<Vec<_>>(), [1]);
        assert!(waiters.remove(Ticket(1)).is_empty());
        assert!(waiters.deliver(vec![verbatim(1, 0)]).is_empty() && waiters.handle(Ticket(1)).is_none());
    }
}
