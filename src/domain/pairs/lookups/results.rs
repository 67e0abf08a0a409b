//! What an answer means for those who wait.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::cache::{CachedPair, PairCache};
use super::super::fence::Fence;
use super::super::item::{Found, Item, Items};
use super::super::pair::Pair;
use super::{BatchId, Batching, Edge, EdgeId, LookupScheduler, Ticket, Waiter};
use crate::domain::tick::Tick;

/// How a call went.
#[derive(Debug)]
pub enum BatchOutcome<'a> {
    /// Chat answered with items.
    Answered(&'a Items<'a>),
    /// Chat refused the whole call because of something in it: its accounts, not the app or the moment.
    RefusedArguments,
    /// It failed for a reason that would be the same however it was asked.
    Failed,
}

/// What becomes of one pair of one request.
#[derive(Debug, PartialEq)]
pub struct WaiterResult {
    /// The request.
    pub ticket: Ticket,
    /// Its number for the pair.
    pub slot: usize,
    /// What it gets.
    pub settled: PairResult,
}

/// See [`WaiterResult`].
#[derive(Debug, Clone, PartialEq)]
pub enum PairResult {
    /// The relation, and whether it was asked the other way round than this request put it.
    Known {
        /// As kept.
        fact: CachedPair,
        /// Asked turned round.
        flipped: bool,
    },
    /// Chat's own item, for the question exactly as this request put it; sent at that moment.
    Verbatim(Arc<str>, Tick),
    /// Chat's answer does not fit the question.
    Malformed,
    /// The call failed as a whole; why is known to who made it.
    Failed,
}

/// What is to be kept of an answer.
#[derive(Debug, Clone)]
pub struct CacheablePair {
    /// The pair, as it was asked for.
    pub pair: Pair,
    /// What was learned.
    pub fact: CachedPair,
    /// The user of `pair.from`.
    pub from: Arc<str>,
    /// The user of `pair.to`.
    pub to: Arc<str>,
}

impl CacheablePair {
    /// Stores the pair in the cache, unless a write has marked it since. For `write_settle` after a write no result
    /// is stored: Chat's own replicas may not agree yet.
    pub fn store(&self, cache: &PairCache, fence: &Fence, write_settle: Duration) -> bool {
        let last_mark = fence.last_mark(self.pair);
        let may_store = last_mark == Tick::NEVER || self.fact.sent > last_mark.after(write_settle);
        if may_store {
            cache.insert(self.pair.key(), self.fact);
        }
        may_store
    }
}

impl LookupScheduler {
    /// A call is over. Says who gets what and which facts may be kept; what has to be asked again is
    /// queued again. `last_mark` is the fence.
    pub fn complete(
        &mut self,
        call: BatchId,
        outcome: &BatchOutcome<'_>,
        last_mark: impl Fn(Pair) -> Tick,
    ) -> (Vec<WaiterResult>, Vec<CacheablePair>) {
        let Some(flight) = self.calls.remove(&call) else { return (Vec::new(), Vec::new()) };
        let (mut settlements, mut kept) = (Vec::new(), Vec::new());
        for &id in &flight.edges {
            // From here on the edge is in no queue and in no call.
            let Some(mut edge) = self.forget(id) else { continue };
            edge.call = None;
            let turned = edge.pair.from != flight.from;
            let found = match outcome {
                BatchOutcome::Answered(items) => items.get(if turned { &edge.from } else { &edge.to }),
                BatchOutcome::RefusedArguments if flight.shared || turned => {
                    self.ask_each_alone(&edge);
                    continue;
                }
                BatchOutcome::RefusedArguments | BatchOutcome::Failed => {
                    for waiter in edge.waiters {
                        self.settle(waiter, PairResult::Failed, &mut settlements);
                    }
                    continue;
                }
            };
            if flight.sent <= last_mark(edge.pair) {
                // From before a write: nobody may have it, good or bad.
                self.requeue(edge);
                continue;
            }
            if let Some(Found::Item(Item::Known(seen))) = found {
                let as_called = if turned { edge.pair.flipped() } else { edge.pair };
                let fact = CachedPair { stored: as_called.stored_as(*seen), sent: flight.sent };
                if edge.keep {
                    let (from, to) = (Arc::clone(&edge.from), Arc::clone(&edge.to));
                    kept.push(CacheablePair { pair: edge.pair, fact, from, to });
                }
                for waiter in edge.waiters {
                    let flipped = waiter.turned != turned;
                    self.settle(waiter, PairResult::Known { fact, flipped }, &mut settlements);
                }
                continue;
            }
            // A failing item answers only those who asked exactly so.
            let (as_put, other_way): (Vec<_>, Vec<_>) =
                edge.waiters.drain(..).partition(|waiter| waiter.turned == turned);
            let settled = match found {
                Some(Found::Item(Item::Verbatim(json))) => PairResult::Verbatim(Arc::from(&**json), flight.sent),
                _ => PairResult::Malformed,
            };
            for waiter in as_put {
                self.settle(waiter, settled.clone(), &mut settlements);
            }
            if !other_way.is_empty() {
                self.ask_as_put(&edge, !turned, Batching::AsAsked, other_way);
            }
        }
        (settlements, kept)
    }

    /// Whether more than one request waits for these.
    pub(super) fn is_shared(&self, edges: &[EdgeId]) -> bool {
        let waiters = edges.iter().filter_map(|id| self.edges.get(id)).flat_map(|edge| &edge.waiters);
        let mut tickets = waiters.map(|waiter| waiter.ticket);
        let first = tickets.next();
        tickets.any(|ticket| Some(ticket) != first)
    }

    fn settle(&mut self, waiter: Waiter, settled: PairResult, settlements: &mut Vec<WaiterResult>) {
        if let Some(waiting) = self.tickets.get(&waiter.ticket) {
            let caller = waiting.caller;
            self.uncount(caller, 1);
            settlements.push(WaiterResult { ticket: waiter.ticket, slot: waiter.slot, settled });
        }
    }

    /// Asks again, in the same manner; together with a newer lookup of the pair if there is one.
    fn requeue(&mut self, edge: Edge) {
        if edge.waiters.is_empty() {
            return;
        }
        if edge.batching == Batching::Any
            && let Some(&newer) = self.joinable.get(&edge.pair.key())
        {
            self.merge(edge, newer);
        } else {
            self.add(edge);
        }
    }

    fn merge(&mut self, edge: Edge, newer: u64) {
        let Some(other) = self.edges.get_mut(&newer) else { return };
        let turned = other.pair.from != edge.pair.from;
        other.keep |= edge.keep;
        let queued = other.call.is_none();
        other.waiters.extend(edge.waiters.iter().map(|waiter| Waiter { turned: waiter.turned != turned, ..*waiter }));
        for waiter in &edge.waiters {
            self.remember(waiter.ticket, newer);
        }
        if queued {
            self.queue_edge(newer);
        }
    }

    /// Every request asks for its own, as it put it.
    fn ask_each_alone(&mut self, edge: &Edge) {
        let mut by_request: BTreeMap<(Ticket, bool), Vec<Waiter>> = BTreeMap::new();
        for waiter in &edge.waiters {
            by_request.entry((waiter.ticket, waiter.turned)).or_default().push(*waiter);
        }
        for ((ticket, turned), waiters) in by_request {
            self.ask_as_put(edge, turned, Batching::Solo(ticket), waiters);
        }
    }

    /// A new edge for those who put the pair as `edge` has it, or the other way round.
    fn ask_as_put(&mut self, edge: &Edge, turned: bool, manner: Batching, waiters: Vec<Waiter>) {
        let (pair, from, to) =
            if turned { (edge.pair.flipped(), &edge.to, &edge.from) } else { (edge.pair, &edge.from, &edge.to) };
        self.add(Edge {
            pair,
            from: Arc::clone(from),
            to: Arc::clone(to),
            age: edge.age,
            batching: manner,
            call: None,
            counted: None,
            keep: edge.keep,
            waiters: waiters.into_iter().map(|waiter| Waiter { turned: false, ..waiter }).collect(),
        });
    }
}
