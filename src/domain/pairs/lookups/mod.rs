//! Which lookup goes next: a graph of the pairs that requests wait for.
//!
//! Chat counts calls, and one call carries up to 100 pairs that share one account, on either side. So users are the
//! nodes of a graph, and pairs that are not cached are its edges. Each edge has the requests that wait for it.
//!
//! While calls may be sent, the pairs of a request leave at once. While calls must wait (for quota, or for room in
//! flight), edges are queued here, and each call that becomes possible takes as many edges as it can carry:
//!
//! - Callers of one class are served round-robin, one call per turn, because calls are the scarce resource. This is
//!   deficit round robin in which every item costs one quantum. Callers of an earlier class come first. A pair that
//!   callers of several classes wait for is in the queue of each, so it goes with the first.
//! - The caller's oldest edge starts the batch, so no edge starves.
//! - The call is made from that end of the edge which spares more calls later. It is filled up with the other edges of
//!   that user, oldest first, whichever requests wait for them.
//!
//! Pairs may also be queued without a request, to be refreshed. They fill calls that leave anyway, and get a call of their
//! own only with a permit that nothing else wants.
//!
//! [`LookupScheduler`] only keeps the books; its driver sends calls and reads the clock. In every order of events, each
//! waiter gets exactly one result or is cancelled.

mod batch;
mod estimate;
mod graph;
#[cfg(test)]
#[path = "../../../../tests/model/lookups/mod.rs"]
mod model;
#[cfg(test)]
#[path = "../../../../tests/unit/refreshes.rs"]
mod refreshes;
#[cfg(test)]
#[path = "../../../../tests/unit/lookup_repeats.rs"]
mod repeats_tests;
mod results;
#[cfg(test)]
#[path = "../../../../tests/model/revalidation.rs"]
mod revalidation;
#[cfg(test)]
#[path = "../../../../tests/model/scheduler/mod.rs"]
mod simulation;
#[cfg(test)]
#[path = "../../../../tests/unit/lookups.rs"]
mod tests;
mod waiters;

use std::collections::{BTreeSet, HashMap, VecDeque};

use self::batch::InFlightBatch;
use self::estimate::Estimate;
use self::graph::{Batching, Edge, EdgeId, Node, QueuePosition, REFRESHES, Waiter};
use super::pair::{Pair, PairKey, Sides, UserKey};
use crate::domain::caller::{ByClass, CallerQueue, Class, QueueKey};
use crate::domain::tick::Tick;

pub use self::batch::{Batch, BatchId};
pub use self::graph::Refresh;
pub use self::results::{BatchOutcome, CacheablePair, Completion, PairResult, WaiterResult};
pub use self::waiters::{Delivery, PairResults, Waiters};

/// Maximum number of pairs that the requests of one app may wait for, counted once per waiter: five seconds of full
/// calls at Chat's limit of 200 calls per second. Chat could not answer more of them in time.
pub const WAITING_MAX: usize = 100_000;
/// Maximum number of those pairs for one caller, so that a busy caller leaves room for the others.
pub const WAITING_PER_CALLER_MAX: usize = WAITING_MAX / 2;

/// Returns the maximum number of those pairs for a class: all batch callers together leave room for interactive ones.
const fn waiting_max(class: Class) -> usize {
    match class {
        Class::Interactive => WAITING_MAX,
        Class::Batch => WAITING_MAX / 2,
        Class::Refresh => 0,
    }
}

/// Maximum number of pairs that are queued only to be refreshed: the full calls of half a second at Chat's limit. Further
/// ones are looked up when a request needs them.
pub const REFRESHES_MAX: usize = 10_000;

/// One waiting request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// A pair that a request waits for.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The pair, in the direction of the request.
    pub pair: Pair,
    /// The name of `pair.from`.
    pub from: &'a str,
    /// The name of `pair.to`.
    pub to: &'a str,
    /// The request's own number for the pair, returned with its result.
    pub slot: usize,
}

/// How the lookups of a request may be shared.
#[derive(Debug, Clone, Copy)]
pub struct JoinOptions {
    /// The queue of its caller.
    pub queue: CallerQueue,
    /// Whether it may join a lookup that is already in flight.
    pub join: bool,
    /// Whether its results may be cached.
    pub keep: bool,
    /// What it asks of each pair. A lookup asks for both sides, which answers either question; only an error makes it
    /// ask again as the request did.
    pub sides: Sides,
}

/// A refresh that has ended without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndedRefresh {
    /// The pair.
    pub pair: PairKey,
    /// Chat returned an error for the pair, so what is cached no longer holds. Otherwise the call failed, or there was no
    /// room to queue the pair.
    pub is_void: bool,
}

/// What a request adds to the lookups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NewPairs {
    /// Pairs that need a new lookup: those that [`LookupScheduler::enqueue`] would not report as joined.
    pub lookups: usize,
    /// Pairs that nothing of the request's class or an earlier one has queued: the new ones, and those that only later
    /// classes wait for. The latter move up when the request joins them.
    pub queued: usize,
}

/// The limit of waiting pairs is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerFull;

/// The lookups of one app. See the module for how it schedules them.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct LookupScheduler {
    flip: bool,
    /// Maximum number of accounts in one call.
    call_max: usize,
    last_id: u64,
    edges: HashMap<EdgeId, Edge>,
    /// The edge that a new request for the pair joins.
    joinable: HashMap<PairKey, EdgeId>,
    /// Queued edges of items that failed in another call, by what they ask.
    repeats: HashMap<(Pair, Sides), EdgeId>,
    /// Queued edges by user.
    nodes: HashMap<UserKey, Node>,
    /// Queued edges by caller, oldest first.
    queues: HashMap<CallerQueue, BTreeSet<QueuePosition>>,
    /// Callers with queued edges, each once in its class, the next in turn first.
    turns: ByClass<VecDeque<QueueKey>>,
    in_flight: HashMap<BatchId, InFlightBatch>,
    tickets: HashMap<Ticket, TicketState>,
    estimate: Estimate,
    /// For the next [`LookupScheduler::take_ended_refreshes`].
    ended_refreshes: Vec<EndedRefresh>,
    waiting: ByClass<usize>,
    waiting_by_caller: HashMap<CallerQueue, usize>,
}

/// A request whose wait has not ended.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct TicketState {
    queue: CallerQueue,
    /// Edges that it has waited for. Some of them may no longer exist.
    edges: Vec<EdgeId>,
}

impl LookupScheduler {
    /// Returns an empty scheduler of calls with at most `call_max` accounts. Without `flip`, a pair is looked up only in
    /// the direction of the request.
    pub fn new(flip: bool, call_max: usize) -> Self {
        Self {
            flip,
            call_max,
            last_id: 0,
            edges: HashMap::new(),
            joinable: HashMap::new(),
            repeats: HashMap::new(),
            nodes: HashMap::new(),
            queues: HashMap::new(),
            turns: ByClass::default(),
            in_flight: HashMap::new(),
            tickets: HashMap::new(),
            estimate: Estimate::new(call_max),
            ended_refreshes: Vec::new(),
            waiting: ByClass::default(),
            waiting_by_caller: HashMap::new(),
        }
    }

    /// Enqueues distinct pairs for one request. Returns for each pair whether it joined an existing lookup. A refresh that
    /// is still queued does not count as one: without the request, it might never be sent.
    ///
    /// `last_mark` is the fence: a lookup that was sent at that moment or earlier is not joined.
    ///
    /// # Errors
    /// [`SchedulerFull`] if too many pairs are waiting. Nothing is changed then.
    pub fn enqueue(
        &mut self,
        options: JoinOptions,
        wanted: &[Wanted<'_>],
        last_mark: impl Fn(Pair) -> Tick,
    ) -> Result<(Ticket, Vec<bool>), SchedulerFull> {
        let of_caller = self.waiting_by_caller.get(&options.queue).copied().unwrap_or(0);
        let of_class = self.waiting[options.queue.class];
        let is_full = |waiting: usize, max: usize| waiting + wanted.len() > max;
        if is_full(self.waiting(), WAITING_MAX)
            || is_full(of_caller, WAITING_PER_CALLER_MAX)
            || is_full(of_class, waiting_max(options.queue.class))
        {
            return Err(SchedulerFull);
        }
        let ticket = Ticket(self.next_id());
        self.tickets.insert(ticket, TicketState { queue: options.queue, edges: Vec::with_capacity(wanted.len()) });
        let joined = wanted.iter().map(|one| self.enqueue_one(ticket, options, one, &last_mark)).collect();
        Ok((ticket, joined))
    }

    /// Queues pairs that no request needs to wait for. A lookup of the pair that others wait for becomes the refresh: it
    /// continues without them, and its result may be cached. A lookup that no call has taken by [`Refresh::until`] is
    /// dropped, and so is one beyond [`REFRESHES_MAX`].
    ///
    /// `last_mark` is the fence, as for [`LookupScheduler::enqueue`].
    pub fn refresh(&mut self, due: &[Wanted<'_>], refresh: Refresh, last_mark: impl Fn(Pair) -> Tick) {
        let options = JoinOptions { queue: REFRESHES, join: true, keep: true, sides: Sides::Both };
        for one in due {
            match self.edge_to_join(options, one.pair, &last_mark) {
                Some(id) => self.join_as_refresh(id, refresh),
                None if self.queued_in(Class::Refresh) < REFRESHES_MAX => {
                    self.add_new_edge(options, one, Vec::new(), Some(refresh));
                }
                None => self.ended_refreshes.push(EndedRefresh { pair: one.pair.key(), is_void: false }),
            }
        }
    }

    fn join_as_refresh(&mut self, id: EdgeId, refresh: Refresh) {
        let Some(edge) = self.edges.get_mut(&id) else { return };
        edge.keep = true;
        let earlier = edge.refresh.get_or_insert(refresh);
        earlier.until = earlier.until.max(refresh.until);
        if edge.batch.is_none() {
            let position = (edge.age, id);
            self.queue_for(REFRESHES, position);
        }
    }

    /// Returns the refreshes that have ended without a result since the last time.
    pub fn take_ended_refreshes(&mut self) -> Vec<EndedRefresh> {
        std::mem::take(&mut self.ended_refreshes)
    }

    /// Drops queued refreshes that are too late, and returns whether pairs are queued for this class or an earlier one.
    pub fn has_queued_at(&mut self, class: Class, now: Tick) -> bool {
        // The oldest ones are first in the queue.
        while let Some(&(_, id)) = self.queues.get(&REFRESHES).and_then(BTreeSet::first) {
            let Some(edge) = self.edges.get_mut(&id) else { break };
            if edge.refresh.is_some_and(|refresh| now < refresh.until) {
                break;
            }
            edge.refresh = None;
            self.leave_queue(REFRESHES, id);
            if self.edges[&id].waiters.is_empty() {
                self.dequeue(id);
                self.remove_edge(id);
            }
        }
        self.has_queued(class)
    }

    /// Returns what enqueueing these pairs would add to the lookups.
    pub fn new_among(&self, options: JoinOptions, wanted: &[Wanted<'_>], last_mark: impl Fn(Pair) -> Tick) -> NewPairs {
        let mut new = NewPairs::default();
        for one in wanted {
            let edge = self.edge_to_join(options, one.pair, &last_mark).and_then(|id| self.edges.get(&id));
            let is_ahead = |edge: &Edge| edge.batch.is_some() || edge.class <= options.queue.class;
            new.lookups += usize::from(!edge.is_some_and(Edge::is_joined));
            new.queued += usize::from(!edge.is_some_and(is_ahead));
        }
        new
    }

    /// Removes a request: its deadline has passed, or its caller has disconnected. Its lookups in flight continue;
    /// edges that only this request has queued are dropped.
    pub fn cancel(&mut self, ticket: Ticket) {
        let Some(state) = self.tickets.remove(&ticket) else { return };
        for id in state.edges {
            let Some(edge) = self.edges.get_mut(&id) else { continue };
            let before = edge.waiters.len();
            edge.waiters.retain(|waiter| waiter.ticket != ticket);
            let removed = before - edge.waiters.len();
            let is_unused = edge.waiters.is_empty() && edge.refresh.is_none();
            let is_queued = edge.batch.is_none();
            self.subtract_waiting(state.queue, removed);
            match (is_queued, is_unused) {
                (true, true) => {
                    self.leave_queue(state.queue, id);
                    self.dequeue(id);
                    self.remove_edge(id);
                }
                (true, false) => self.leave_queue(state.queue, id),
                (false, _) => {}
            }
        }
    }

    /// Returns whether a pair that the request waits for is not in flight yet.
    pub fn is_queued(&self, ticket: Ticket) -> bool {
        let edges = self.tickets.get(&ticket).into_iter().flat_map(|state| &state.edges);
        edges
            .filter_map(|id| self.edges.get(id))
            .any(|edge| edge.batch.is_none() && edge.waiters.iter().any(|waiter| waiter.ticket == ticket))
    }

    /// Returns the requests that wait for a batch, each once for every pair of the batch that it waits for.
    pub fn waiting_for(&self, batch: BatchId) -> impl Iterator<Item = Ticket> {
        let edges = self.in_flight.get(&batch).into_iter().flat_map(|in_flight| &in_flight.edges);
        let waiters = edges.filter_map(|id| self.edges.get(id)).flat_map(|edge| &edge.waiters);
        waiters.map(|waiter| waiter.ticket)
    }

    /// Returns whether any pair is queued for this class or an earlier one.
    pub fn has_queued(&self, class: Class) -> bool {
        class.and_earlier().any(|class| !self.turns[class].is_empty())
    }

    /// Returns the number of callers of a class with queued pairs.
    pub fn callers_queued(&self, class: Class) -> usize {
        self.turns[class].len()
    }

    /// Returns the number of queued pairs of one caller.
    pub fn queued_for(&self, queue: CallerQueue) -> usize {
        self.queues.get(&queue).map_or(0, BTreeSet::len)
    }

    /// Returns the maximum number of accounts in one call.
    pub fn call_max(&self) -> usize {
        self.call_max
    }

    /// Returns the number of pairs that requests wait for, counted once per waiter.
    pub fn waiting(&self) -> usize {
        Class::ALL.into_iter().map(|class| self.waiting[class]).sum()
    }

    fn enqueue_one(
        &mut self,
        ticket: Ticket,
        options: JoinOptions,
        wanted: &Wanted<'_>,
        last_mark: &impl Fn(Pair) -> Tick,
    ) -> bool {
        self.waiting[options.queue.class] += 1;
        *self.waiting_by_caller.entry(options.queue).or_default() += 1;
        if let Some(id) = self.edge_to_join(options, wanted.pair, last_mark) {
            let is_joined = self.edges.get(&id).is_some_and(Edge::is_joined);
            self.join(id, ticket, options, wanted);
            return is_joined;
        }
        let waiter = Waiter { ticket, slot: wanted.slot, flipped: false, sides: options.sides };
        self.add_new_edge(options, wanted, vec![waiter], None);
        false
    }

    fn add_new_edge(
        &mut self,
        options: JoinOptions,
        wanted: &Wanted<'_>,
        waiters: Vec<Waiter>,
        refresh: Option<Refresh>,
    ) {
        let age = self.next_id();
        self.add_edge(Edge {
            pair: wanted.pair,
            from: wanted.from.into(),
            to: wanted.to.into(),
            age,
            batching: Batching::Any,
            class: options.queue.class,
            batch: None,
            counted: None,
            refresh,
            keep: options.keep,
            waiters,
        });
    }

    /// Returns the edge that a new request for the pair can join.
    fn edge_to_join(&self, options: JoinOptions, pair: Pair, last_mark: &impl Fn(Pair) -> Tick) -> Option<EdgeId> {
        let id = *self.joinable.get(&pair.key())?;
        let may_join = match self.edges.get(&id)?.batch.and_then(|batch| self.in_flight.get(&batch)) {
            None => true,
            Some(in_flight) => options.join && in_flight.sent > last_mark(pair),
        };
        may_join.then_some(id)
    }

    fn join(&mut self, id: EdgeId, ticket: Ticket, options: JoinOptions, wanted: &Wanted<'_>) {
        let Some(edge) = self.edges.get_mut(&id) else { return };
        let flipped = edge.pair.from != wanted.pair.from;
        edge.waiters.push(Waiter { ticket, slot: wanted.slot, flipped, sides: options.sides });
        edge.keep |= options.keep;
        let (age, batch) = (edge.age, edge.batch);
        match batch {
            None => self.queue_for(options.queue, (age, id)),
            Some(batch) => {
                if let Some(in_flight) = self.in_flight.get_mut(&batch) {
                    in_flight.shared = true;
                }
            }
        }
        self.add_to_ticket(ticket, id);
    }

    /// Returns a number greater than all before.
    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn subtract_waiting(&mut self, queue: CallerQueue, removed: usize) {
        self.waiting[queue.class] -= removed;
        if let Some(waiting) = self.waiting_by_caller.get_mut(&queue) {
            *waiting -= removed;
            if *waiting == 0 {
                self.waiting_by_caller.remove(&queue);
            }
        }
    }

    fn add_to_ticket(&mut self, ticket: Ticket, edge: EdgeId) {
        if let Some(state) = self.tickets.get_mut(&ticket) {
            state.edges.push(edge);
        }
    }
}
