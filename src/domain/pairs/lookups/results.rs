//! The results of a batch, for its waiters and for the cache.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::cache::{CachedPair, PairCache};
use super::super::fence::Fence;
use super::super::item::{Found, Item, Items};
use super::super::pair::{Pair, Relation, Sides};
use super::batch::InFlightBatch;
use super::graph::{Batching, Edge, EdgeId, Waiter};
use super::{BatchId, LookupScheduler, Ticket};
use crate::domain::tick::Tick;

/// How the call of a batch ended.
#[derive(Debug)]
pub enum BatchOutcome<'a> {
    /// Chat returned items.
    Answered(&'a Items<'a>),
    /// Chat rejected the whole call because of its arguments. Other arguments may succeed.
    RejectedArguments,
    /// The call failed for a reason that does not depend on its arguments.
    Failed,
}

/// The result of one pair for one request.
#[derive(Debug, PartialEq)]
pub struct WaiterResult {
    /// The request.
    pub ticket: Ticket,
    /// The request's own number for the pair.
    pub slot: usize,
    /// The result.
    pub result: PairResult,
}

/// The result of one pair.
#[derive(Debug, Clone, PartialEq)]
pub enum PairResult {
    /// Chat returned the relation.
    Known {
        /// The relation, as the cache stores it.
        cached: CachedPair,
        /// Whether the lookup was made in the reverse of the requested direction.
        flipped: bool,
    },
    /// Chat's own item, for a lookup in the requested direction that was sent at this moment.
    Verbatim(Arc<str>, Tick),
    /// Chat's response does not fit the lookup.
    Malformed,
    /// The call failed. Its driver knows the cause.
    Failed,
}

/// A relation that may be cached.
#[derive(Debug, Clone)]
pub struct CacheablePair {
    /// The pair, in the direction in which it was enqueued.
    pub pair: Pair,
    /// The entry for the cache.
    pub cached: CachedPair,
    /// The name of `pair.from`.
    pub from: Arc<str>,
    /// The name of `pair.to`.
    pub to: Arc<str>,
}

impl CacheablePair {
    /// Stores the pair in the cache, unless a write has marked it since. For `write_settle` after a write no result
    /// is stored: Chat's own replicas may not agree yet.
    pub fn store(&self, cache: &PairCache, fence: &Fence, write_settle: Duration) -> bool {
        let last_mark = fence.last_mark(self.pair);
        let may_store = last_mark == Tick::NEVER || self.cached.sent > last_mark.after(write_settle);
        if may_store {
            cache.insert(self.pair.key(), self.cached);
        }
        may_store
    }
}

impl LookupScheduler {
    /// Completes a batch. Returns the results of waiters, and the pairs that may be cached. Pairs that need another
    /// lookup are queued again. `last_mark` is the fence.
    pub fn complete(
        &mut self,
        batch: BatchId,
        outcome: &BatchOutcome<'_>,
        last_mark: impl Fn(Pair) -> Tick,
    ) -> (Vec<WaiterResult>, Vec<CacheablePair>) {
        let Some(in_flight) = self.in_flight.remove(&batch) else { return (Vec::new(), Vec::new()) };
        let mut completion = Completion::default();
        for &id in &in_flight.edges {
            // From here on the edge is in no queue and in no batch.
            let Some(mut edge) = self.remove_edge(id) else { continue };
            (edge.batch, edge.refresh) = (None, None);
            match outcome {
                BatchOutcome::RejectedArguments if in_flight.shared || in_flight.asks_otherwise(&edge) => {
                    self.requeue_solo(&edge, edge.waiters.iter().copied());
                }
                BatchOutcome::RejectedArguments | BatchOutcome::Failed => {
                    self.finish(edge.waiters, &PairResult::Failed, &mut completion);
                }
                // Chat may have read the pair before a write. No waiter gets any item of the response, not even an error item.
                BatchOutcome::Answered(_) if in_flight.sent <= last_mark(edge.pair) => self.requeue(edge),
                BatchOutcome::Answered(items) => {
                    let account = if in_flight.flips(&edge) { &edge.from } else { &edge.to };
                    match items.get(account) {
                        Some(Found::Item(Item::Known(seen))) => {
                            self.apply_relation(edge, &in_flight, *seen, &mut completion);
                        }
                        other => self.apply_error(edge, &in_flight, other, &mut completion),
                    }
                }
            }
        }
        (completion.results, completion.cacheable)
    }

    /// A relation answers all waiters, in both directions. `seen` is the relation from the batch's user.
    fn apply_relation(&mut self, edge: Edge, in_flight: &InFlightBatch, seen: Relation, completion: &mut Completion) {
        let batch_flips = in_flight.flips(&edge);
        let as_called = if batch_flips { edge.pair.flipped() } else { edge.pair };
        let cached = CachedPair { stored: as_called.stored_as(seen), sent: in_flight.sent };
        for waiter in edge.waiters {
            let flipped = waiter.flipped != batch_flips;
            self.finish([waiter], &PairResult::Known { cached, flipped }, completion);
        }
        // A call for one side says nothing of the other one.
        if edge.keep && in_flight.sides == Sides::Both {
            completion.cacheable.push(CacheablePair { pair: edge.pair, cached, from: edge.from, to: edge.to });
        }
    }

    /// An error answers only the waiters that requested what the call asked. The others need a call of their own: an
    /// error refers to the request as its caller sent it.
    fn apply_error(
        &mut self,
        mut edge: Edge,
        in_flight: &InFlightBatch,
        found: Option<&Found>,
        completion: &mut Completion,
    ) {
        let batch_flips = in_flight.flips(&edge);
        let result = match found {
            Some(Found::Item(Item::Verbatim(json))) => PairResult::Verbatim(Arc::from(&**json), in_flight.sent),
            _ => PairResult::Malformed,
        };
        let (fitting, widened): (Vec<_>, Vec<_>) =
            edge.waiters.drain(..).partition(|waiter| waiter.sides == in_flight.sides);
        let (as_called, reversed): (Vec<_>, Vec<_>) =
            fitting.into_iter().partition(|waiter| waiter.flipped == batch_flips);
        self.finish(as_called, &result, completion);
        if !reversed.is_empty() {
            self.requeue_as_requested(&edge, Batching::AsRequested, reversed);
        }
        self.requeue_solo(&edge, widened);
    }

    /// Gives waiters their result.
    fn finish(&mut self, waiters: impl IntoIterator<Item = Waiter>, result: &PairResult, completion: &mut Completion) {
        for Waiter { ticket, slot, .. } in waiters {
            let Some(queue) = self.tickets.get(&ticket).map(|state| state.queue) else { continue };
            self.subtract_waiting(queue, 1);
            completion.results.push(WaiterResult { ticket, slot, result: result.clone() });
        }
    }

    /// Queues an edge again with the same batching. It joins a newer lookup of its pair if there is one.
    fn requeue(&mut self, edge: Edge) {
        if edge.waiters.is_empty() {
            return;
        }
        match self.joinable.get(&edge.pair.key()) {
            Some(&newer) if edge.batching == Batching::Any => self.merge(edge, newer),
            _ => self.add_edge(edge),
        }
    }

    /// Moves the waiters of an edge to a newer edge of the same pair.
    fn merge(&mut self, edge: Edge, newer: EdgeId) {
        let Some(other) = self.edges.get_mut(&newer) else { return };
        let reversed = other.pair.from != edge.pair.from;
        other.keep |= edge.keep;
        let batch = other.batch;
        let moved = edge.waiters.iter().map(|waiter| Waiter { flipped: waiter.flipped != reversed, ..*waiter });
        other.waiters.extend(moved);
        for waiter in &edge.waiters {
            self.add_to_ticket(waiter.ticket, newer);
        }
        match batch.and_then(|batch| self.in_flight.get_mut(&batch)) {
            // The call is now waited for by requests that it was not made for.
            Some(in_flight) => in_flight.shared = true,
            None => self.queue_edge(newer),
        }
    }

    /// Queues a lookup of its own for every request, in the requested direction.
    fn requeue_solo(&mut self, edge: &Edge, waiters: impl IntoIterator<Item = Waiter>) {
        let mut by_request: BTreeMap<(Ticket, bool), Vec<Waiter>> = BTreeMap::new();
        for waiter in waiters {
            by_request.entry((waiter.ticket, waiter.flipped)).or_default().push(waiter);
        }
        for ((ticket, _), waiters) in by_request {
            // What a request asks of its pairs is the same for all of them.
            let sides = waiters.first().map_or(Sides::Both, |waiter| waiter.sides);
            self.requeue_as_requested(edge, Batching::Solo(ticket, sides), waiters);
        }
    }

    /// Queues a new edge in the direction that these waiters requested, which is the same for all of them.
    fn requeue_as_requested(&mut self, edge: &Edge, batching: Batching, waiters: Vec<Waiter>) {
        let flipped = waiters.first().is_some_and(|waiter| waiter.flipped);
        let (pair, from, to) =
            if flipped { (edge.pair.flipped(), &edge.to, &edge.from) } else { (edge.pair, &edge.from, &edge.to) };
        self.add_edge(Edge {
            pair,
            from: Arc::clone(from),
            to: Arc::clone(to),
            age: edge.age,
            batching,
            class: edge.class,
            batch: None,
            counted: None,
            refresh: None,
            keep: edge.keep,
            waiters: waiters.into_iter().map(|waiter| Waiter { flipped: false, ..waiter }).collect(),
        });
    }
}

/// What a completed batch yields.
#[derive(Default)]
struct Completion {
    results: Vec<WaiterResult>,
    cacheable: Vec<CacheablePair>,
}

impl InFlightBatch {
    /// Returns whether a waiter did not request what the call asks.
    fn asks_otherwise(&self, edge: &Edge) -> bool {
        self.flips(edge) || edge.waiters.iter().any(|waiter| waiter.sides != self.sides)
    }

    /// Returns whether the call has the pair in the reverse of the edge's direction.
    fn flips(&self, edge: &Edge) -> bool {
        edge.pair.from != self.from
    }
}
