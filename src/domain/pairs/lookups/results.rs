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
use super::{BatchId, EndedRefresh, LookupScheduler, Ticket};
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
    /// Completes a batch. Pairs that need another lookup are queued again. `last_mark` is the fence.
    pub fn complete(
        &mut self,
        batch: BatchId,
        outcome: &BatchOutcome<'_>,
        last_mark: impl Fn(Pair) -> Tick,
    ) -> Completion {
        let mut completion = Completion::default();
        let Some(in_flight) = self.in_flight.remove(&batch) else { return completion };
        for &id in &in_flight.edges {
            // From here on the edge is in no queue and in no batch.
            let Some(mut edge) = self.remove_edge(id) else { continue };
            edge.batch = None;
            let refreshed = edge.refresh.take().map(|_| edge.pair.key());
            let cacheable = completion.cacheable.len();
            match outcome {
                BatchOutcome::RejectedArguments if in_flight.shared || in_flight.asks_otherwise(&edge) => {
                    self.repeat_for_each_request(&edge, &in_flight, &mut completion);
                }
                BatchOutcome::RejectedArguments | BatchOutcome::Failed => {
                    self.finish(edge.waiters, &PairResult::Failed, &mut completion);
                }
                // Chat may have read the pair before a write. No waiter gets any item of the response, not even an error item.
                BatchOutcome::Answered(_) if in_flight.sent <= last_mark(edge.pair) => {
                    self.requeue(edge);
                }
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
            if let Some(pair) = refreshed.filter(|_| completion.cacheable.len() == cacheable) {
                let is_void = matches!(outcome, BatchOutcome::Answered(_));
                self.ended_refreshes.push(EndedRefresh { pair, is_void });
            }
        }
        completion
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

    /// An error answers only the waiters that requested what the call asked, because an error refers to the request as its
    /// caller sent it. The pair is looked up once more for the others: once for all that request the same.
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
        let (as_called, others): (Vec<_>, Vec<_>) =
            edge.waiters.drain(..).partition(|waiter| waiter.sides == in_flight.sides && waiter.flipped == batch_flips);
        self.finish(as_called, &result, completion);
        let mut by_question: BTreeMap<(bool, Sides), Vec<Waiter>> = BTreeMap::new();
        for waiter in others {
            by_question.entry((waiter.flipped, waiter.sides)).or_default().push(waiter);
        }
        for ((_, sides), waiters) in by_question {
            let first = waiters.first().map(|waiter| waiter.ticket);
            if self.requeue(edge.as_requested(Batching::AsRequested(sides), waiters)) {
                completion.repeated.extend(first);
            }
        }
    }

    /// Gives waiters their result.
    fn finish(&mut self, waiters: impl IntoIterator<Item = Waiter>, result: &PairResult, completion: &mut Completion) {
        for Waiter { ticket, slot, .. } in waiters {
            let Some(queue) = self.tickets.get(&ticket).map(|state| state.queue) else { continue };
            self.subtract_waiting(queue, 1);
            completion.results.push(WaiterResult { ticket, slot, result: result.clone() });
        }
    }

    /// Queues an edge again. It joins a lookup that asks the same, if there is one; returns whether there is none.
    fn requeue(&mut self, edge: Edge) -> bool {
        if edge.waiters.is_empty() {
            return false;
        }
        let other = match edge.batching {
            Batching::Any => self.joinable.get(&edge.pair.key()),
            Batching::AsRequested(sides) => self.repeats.get(&(edge.pair, sides)),
            Batching::Solo(..) => None,
        };
        let other = other.copied();
        match other {
            Some(other) => self.merge(edge, other),
            None => self.add_edge(edge),
        }
        other.is_none()
    }

    /// Moves the waiters of an edge to another edge of the same pair.
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

    /// Queues a lookup of its own for every request, as it was requested: Chat has rejected the whole call.
    fn repeat_for_each_request(&mut self, edge: &Edge, in_flight: &InFlightBatch, completion: &mut Completion) {
        let mut by_request: BTreeMap<(Ticket, bool), Vec<Waiter>> = BTreeMap::new();
        for waiter in &edge.waiters {
            by_request.entry((waiter.ticket, waiter.flipped)).or_default().push(*waiter);
        }
        for ((ticket, _), waiters) in by_request {
            // What a request asks of its pairs is the same for all of them.
            let sides = waiters.first().map_or(Sides::Both, |waiter| waiter.sides);
            self.add_edge(edge.as_requested(Batching::Solo(ticket, sides), waiters));
            // If the call was shared, an account of another request may be the cause.
            if !in_flight.shared {
                completion.repeated.push(ticket);
            }
        }
    }
}

impl Edge {
    /// Returns an edge of the same pair in the direction that these waiters requested, which is the same for all of them.
    fn as_requested(&self, batching: Batching, waiters: Vec<Waiter>) -> Self {
        let flipped = waiters.first().is_some_and(|waiter| waiter.flipped);
        let (pair, from, to) =
            if flipped { (self.pair.flipped(), &self.to, &self.from) } else { (self.pair, &self.from, &self.to) };
        Self {
            pair,
            from: Arc::clone(from),
            to: Arc::clone(to),
            age: self.age,
            batching,
            class: self.class,
            batch: None,
            counted: None,
            refresh: None,
            keep: self.keep,
            waiters: waiters.into_iter().map(|waiter| Waiter { flipped: false, ..waiter }).collect(),
        }
    }
}

/// What a completed batch yields.
#[derive(Debug, Default)]
pub struct Completion {
    /// The results of waiters.
    pub results: Vec<WaiterResult>,
    /// The pairs that may be cached.
    pub cacheable: Vec<CacheablePair>,
    /// The requests for which a pair is looked up once more because of the question that they ask, each once for every
    /// such pair.
    pub repeated: Vec<Ticket>,
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
