//! What is being asked: the graph of unknown pairs, and which call goes next.
//!
//! Chat counts calls and a call carries up to 100 pairs that share one account, on either side.
//! Users are nodes, unknown pairs are edges, and an edge knows who waits for it. While calls may go
//! out, each request's pairs leave at once. While they may not (quota, room in flight), edges
//! gather here, and each call that becomes possible takes as many as it can carry:
//!
//! - callers take turns, the unit of a turn being the call, since that is what is scarce (deficit
//!   round robin whose every item costs one quantum);
//! - the caller's oldest edge starts the call, so nobody starves;
//! - the call is made from whichever end of that edge spares more further calls, and is filled up
//!   with that user's other edges, oldest first, whoever waits for them.
//!
//! This is bookkeeping only: [`LookupScheduler`] is driven from outside, and whatever it is told, every
//! waiter is settled exactly once or leaves.

mod estimate;
mod graph;
#[cfg(test)]
#[path = "../../../../tests/model/lookups/mod.rs"]
mod model;
mod results;
#[cfg(test)]
#[path = "../../../../tests/model/scheduler.rs"]
mod simulation;
#[cfg(test)]
mod tests;
mod waiters;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use self::estimate::Estimate;
use self::graph::Node;
use super::pair::{Pair, PairKey, UserKey};
use crate::domain::caller::QueueKey;
use crate::domain::tick::Tick;

pub use self::results::{BatchOutcome, CacheablePair, PairResult, WaiterResult};
pub use self::waiters::{Delivery, PairResults, Waiters};

/// Most pairs that may be waited for in one app, counted for each waiter: five seconds of full
/// calls at the vendor's 200 a second. What comes on top could not be answered in time.
pub const WAITING_MAX: usize = 100_000;
/// Most of them that one caller may have, so that a flood leaves room for the others.
pub const WAITING_PER_CALLER_MAX: usize = WAITING_MAX / 2;

/// One request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// One call under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchId(u64);

type EdgeId = u64;
/// Where an edge stands in a queue: by the age of the first request for it, then by its own number.
type QueuePosition = (u64, EdgeId);

/// A pair that a request waits for.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The pair, as the caller put it.
    pub pair: Pair,
    /// The name of `pair.from`.
    pub from: &'a str,
    /// The name of `pair.to`.
    pub to: &'a str,
    /// The request's own number for it, given back when it is settled.
    pub slot: usize,
}

/// How a request waits.
#[derive(Debug, Clone, Copy)]
pub struct JoinOptions {
    /// Who asks.
    pub caller: QueueKey,
    /// Whether a lookup that is already under way will do.
    pub join: bool,
    /// Whether the result may be kept for others.
    pub keep: bool,
}

/// No more pairs can be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerFull;

/// A call that may go out now.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Batch {
    /// Its number, for [`LookupScheduler::complete`].
    pub id: BatchId,
    /// The account it is asked from.
    pub from: Arc<str>,
    /// The accounts it asks about, 1 to the number asked for, without repeats.
    pub to: Vec<Arc<str>>,
}

/// See the module.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct LookupScheduler {
    flip: bool,
    next: u64,
    edges: HashMap<EdgeId, Edge>,
    /// The edge that a newcomer for the pair joins.
    joinable: HashMap<PairKey, EdgeId>,
    /// Queued edges by user.
    nodes: HashMap<UserKey, Node>,
    /// Queued edges by caller, oldest first.
    queues: HashMap<QueueKey, BTreeSet<QueuePosition>>,
    /// Callers with queued edges, each once, the next in turn first.
    turns: VecDeque<QueueKey>,
    calls: HashMap<BatchId, InFlightBatch>,
    tickets: HashMap<Ticket, TicketState>,
    forecast: Estimate,
    waiting: usize,
    waiting_by_caller: HashMap<QueueKey, usize>,
}

/// A pair that is being asked for.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Edge {
    pair: Pair,
    from: Arc<str>,
    to: Arc<str>,
    /// When it was first asked for, in numbers that only grow.
    age: u64,
    batching: Batching,
    /// The call that carries it; `None` while it is queued.
    call: Option<BatchId>,
    /// The end that it counts with in the forecast, while it is queued.
    counted: Option<UserKey>,
    keep: bool,
    waiters: Vec<Waiter>,
}

/// How an edge may travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Batching {
    /// From either end, together with others.
    Any,
    /// Only as it was put, together with others: the turned-round question failed.
    AsAsked,
    /// Only as it was put, and only with what the same request asks: a shared call was refused.
    Solo(Ticket),
}

/// A request that waits for an edge.
#[derive(Debug, Clone, Copy)]
struct Waiter {
    ticket: Ticket,
    slot: usize,
    /// It put the pair the other way round than the edge has it.
    turned: bool,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct InFlightBatch {
    from: UserKey,
    sent: Tick,
    edges: Vec<EdgeId>,
    /// It was made, or is waited for, for more than one request, whether they are still there or not.
    shared: bool,
}

/// What is left of a request.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct TicketState {
    caller: QueueKey,
    edges: Vec<EdgeId>,
}

impl LookupScheduler {
    /// An empty graph. Without `flip` a pair is only ever asked for as it was put.
    pub fn new(flip: bool) -> Self {
        Self {
            flip,
            next: 0,
            edges: HashMap::new(),
            joinable: HashMap::new(),
            nodes: HashMap::new(),
            queues: HashMap::new(),
            turns: VecDeque::new(),
            calls: HashMap::new(),
            tickets: HashMap::new(),
            forecast: Estimate::default(),
            waiting: 0,
            waiting_by_caller: HashMap::new(),
        }
    }

    /// Waits for some pairs (no pair twice). `last_mark` is the fence: a lookup that was sent at that
    /// moment or before is of no use to who asks now. Says for each pair whether it joined a lookup
    /// that was being made already.
    ///
    /// # Errors
    /// [`SchedulerFull`], and nothing is changed.
    pub fn enqueue(
        &mut self,
        terms: JoinOptions,
        wanted: &[Wanted<'_>],
        last_mark: impl Fn(Pair) -> Tick,
    ) -> Result<(Ticket, Vec<bool>), SchedulerFull> {
        let of_caller = self.waiting_by_caller.get(&terms.caller).copied().unwrap_or(0);
        if self.waiting + wanted.len() > WAITING_MAX || of_caller + wanted.len() > WAITING_PER_CALLER_MAX {
            return Err(SchedulerFull);
        }
        let ticket = Ticket(self.number());
        self.tickets.insert(ticket, TicketState { caller: terms.caller, edges: Vec::with_capacity(wanted.len()) });
        let joined = wanted.iter().map(|one| self.enqueue_one(ticket, terms, one, &last_mark)).collect();
        Ok((ticket, joined))
    }

    /// How many of these pairs would have to be asked for: those that [`LookupScheduler::enqueue`] would not say to
    /// have joined a lookup.
    pub fn new_among(&self, terms: JoinOptions, wanted: &[Wanted<'_>], last_mark: impl Fn(Pair) -> Tick) -> usize {
        wanted.iter().filter(|one| self.to_join(terms, one.pair, &last_mark).is_none()).count()
    }

    /// A request leaves: its deadline has passed, or its caller is gone. What is under way for it
    /// goes on; what is only queued for it is dropped.
    pub fn cancel(&mut self, ticket: Ticket) {
        let Some(waiting) = self.tickets.remove(&ticket) else { return };
        for id in waiting.edges {
            let Some(edge) = self.edges.get_mut(&id) else { continue };
            let before = edge.waiters.len();
            edge.waiters.retain(|waiter| waiter.ticket != ticket);
            let gone = before - edge.waiters.len();
            let idle = edge.waiters.is_empty() && edge.call.is_none();
            self.uncount(waiting.caller, gone);
            if idle {
                self.dequeue(id);
                self.forget(id);
            }
        }
    }

    /// Whether something that a request waits for is not under way yet.
    pub fn is_queued(&self, ticket: Ticket) -> bool {
        let edges = self.tickets.get(&ticket).into_iter().flat_map(|waiting| &waiting.edges);
        edges
            .filter_map(|id| self.edges.get(id))
            .any(|edge| edge.call.is_none() && edge.waiters.iter().any(|waiter| waiter.ticket == ticket))
    }

    /// The requests that wait for what a call carries. One that waits for several of its pairs comes several times.
    pub fn waiting_for(&self, call: BatchId) -> impl Iterator<Item = Ticket> {
        let edges = self.calls.get(&call).into_iter().flat_map(|flight| &flight.edges);
        let waiters = edges.filter_map(|id| self.edges.get(id)).flat_map(|edge| &edge.waiters);
        waiters.map(|waiter| waiter.ticket)
    }

    /// The next call, with at most `max` accounts; `None` if nothing is queued. It counts as sent at
    /// `now`, so it must go out after that moment.
    pub fn next_batch(&mut self, max: usize, now: Tick) -> Option<Batch> {
        let caller = self.turns.pop_front()?;
        // Put back at once: taking the edges out of the queues keeps or removes it as is right.
        self.turns.push_back(caller);
        let &(_, seed) = self.queues.get(&caller)?.first()?;
        let from = self.better_end(seed, max);
        let ids = self.gather(seed, from, max);
        let id = BatchId(self.number());
        let mut to = Vec::with_capacity(ids.len());
        let mut from_name = None;
        for edge_id in &ids {
            self.dequeue(*edge_id);
            let edge = self.edges.get_mut(edge_id)?;
            edge.call = Some(id);
            let (near, far) = if edge.pair.from == from { (&edge.from, &edge.to) } else { (&edge.to, &edge.from) };
            from_name = Some(Arc::clone(near));
            to.push(Arc::clone(far));
        }
        self.forecast.sent(ids.len());
        let shared = self.is_shared(&ids);
        self.calls.insert(id, InFlightBatch { from, sent: now, edges: ids, shared });
        Some(Batch { id, from: from_name?, to })
    }

    /// Whether anything is queued.
    pub fn has_queued(&self) -> bool {
        !self.turns.is_empty()
    }

    /// How many callers have something queued.
    pub fn callers_queued(&self) -> usize {
        self.turns.len()
    }

    /// How many pairs are queued for one caller.
    pub fn queued_for(&self, caller: QueueKey) -> usize {
        self.queues.get(&caller).map_or(0, BTreeSet::len)
    }

    /// How many pairs are waited for, counted for each waiter.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    fn enqueue_one(
        &mut self,
        ticket: Ticket,
        terms: JoinOptions,
        wanted: &Wanted<'_>,
        last_mark: &impl Fn(Pair) -> Tick,
    ) -> bool {
        self.count(terms.caller);
        if let Some(id) = self.to_join(terms, wanted.pair, last_mark)
            && let Some(edge) = self.edges.get_mut(&id)
        {
            let turned = edge.pair.from != wanted.pair.from;
            edge.waiters.push(Waiter { ticket, slot: wanted.slot, turned });
            edge.keep |= terms.keep;
            let queued_at = edge.call.is_none().then_some((edge.age, id));
            if let Some(flight) = edge.call.and_then(|call| self.calls.get_mut(&call)) {
                flight.shared = true;
            }
            if let Some(place) = queued_at {
                self.queue_for(terms.caller, place);
            }
            self.remember(ticket, id);
            return true;
        }
        let age = self.number();
        let waiter = Waiter { ticket, slot: wanted.slot, turned: false };
        self.add(Edge {
            pair: wanted.pair,
            from: wanted.from.into(),
            to: wanted.to.into(),
            age,
            batching: Batching::Any,
            call: None,
            counted: None,
            keep: terms.keep,
            waiters: vec![waiter],
        });
        false
    }

    /// The edge that a newcomer for the pair joins, if there is one that is of use to it.
    fn to_join(&self, terms: JoinOptions, pair: Pair, last_mark: &impl Fn(Pair) -> Tick) -> Option<EdgeId> {
        let id = *self.joinable.get(&pair.key())?;
        let useful = match self.edges.get(&id)?.call.and_then(|call| self.calls.get(&call)) {
            None => true,
            Some(flight) => terms.join && flight.sent > last_mark(pair),
        };
        useful.then_some(id)
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn count(&mut self, caller: QueueKey) {
        self.waiting += 1;
        *self.waiting_by_caller.entry(caller).or_default() += 1;
    }

    fn uncount(&mut self, caller: QueueKey, gone: usize) {
        self.waiting -= gone;
        if let Some(left) = self.waiting_by_caller.get_mut(&caller) {
            *left -= gone;
            if *left == 0 {
                self.waiting_by_caller.remove(&caller);
            }
        }
    }

    fn remember(&mut self, ticket: Ticket, edge: EdgeId) {
        if let Some(waiting) = self.tickets.get_mut(&ticket) {
            waiting.edges.push(edge);
        }
    }
}
