//! Edges, and the queues by user and by caller that they are in.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::pair::{Pair, Sides, UserKey};
use super::{BatchId, LookupScheduler, Ticket};
use crate::domain::caller::{ByClass, CallerQueue, Class, QueueKey};
use crate::domain::tick::Tick;

pub(super) type EdgeId = u64;
/// The position of an edge in a queue: by the age of the first request for it, then by its own number.
pub(super) type QueuePosition = (u64, EdgeId);
/// The position of an edge among those of a user: by the class of its callers first.
pub(super) type NodePosition = (Class, u64, EdgeId);

/// A pair that is being looked up.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Edge {
    pub(super) pair: Pair,
    pub(super) from: Arc<str>,
    pub(super) to: Arc<str>,
    /// When it was first enqueued, in numbers that only grow.
    pub(super) age: u64,
    pub(super) batching: Batching,
    /// The earliest class of its callers.
    pub(super) class: Class,
    /// The batch that carries it; `None` while it is queued.
    pub(super) batch: Option<BatchId>,
    /// The end that it counts for in the estimate, while it is queued.
    pub(super) counted: Option<UserKey>,
    /// Set if it is worth a call although no request waits for it.
    pub(super) refresh: Option<Refresh>,
    /// Whether its result may be cached.
    pub(super) keep: bool,
    pub(super) waiters: Vec<Waiter>,
}

impl Edge {
    /// Returns whether a request that waits for it now joins a lookup, and does not cause one: it is no queued refresh.
    pub(super) fn is_joined(&self) -> bool {
        self.batch.is_some() || self.class != Class::Refresh
    }

    /// Returns the user at the other end.
    pub(super) fn other_end(&self, user: UserKey) -> UserKey {
        if self.pair.from == user { self.pair.to } else { self.pair.from }
    }
}

/// What makes an edge worth a call although no request waits for it.
#[derive(Debug, Clone, Copy)]
pub struct Refresh {
    /// The moment from which it is too late.
    pub until: Tick,
    /// The caller whose request found the pair past its ttl.
    pub caused_by: QueueKey,
}

/// The queue of refreshes.
pub(super) const REFRESHES: CallerQueue = CallerQueue::of_chatgate(Class::Refresh);

/// Which calls may carry an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Batching {
    /// Calls from either end, together with any other edges.
    Any,
    /// Calls in the requested direction that ask for these sides, together with any other edges: the item failed in a call
    /// that asked otherwise.
    AsRequested(Sides),
    /// Calls that ask what this request asks, in its direction and with its edges only: Chat rejected a call that was
    /// shared or asked otherwise.
    Solo(Ticket, Sides),
}

impl Batching {
    /// Returns the only request whose edges may share the call.
    pub(super) fn only_ticket(self) -> Option<Ticket> {
        match self {
            Batching::Solo(ticket, _) => Some(ticket),
            Batching::Any | Batching::AsRequested(_) => None,
        }
    }

    /// Returns what a call that carries the edge asks of each pair.
    pub(super) fn sides(self) -> Sides {
        match self {
            Batching::AsRequested(sides) | Batching::Solo(_, sides) => sides,
            Batching::Any => Sides::Both,
        }
    }
}

/// A request that waits for an edge.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiter {
    pub(super) ticket: Ticket,
    pub(super) slot: usize,
    /// Its pair is the reverse of the edge's pair.
    pub(super) flipped: bool,
    /// What its request asks of the pair.
    pub(super) sides: Sides,
}

/// The queued edges of one user.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Node {
    /// The edges that a call from this user can carry: those in its direction, and those that may be flipped.
    pub(super) edges: BTreeSet<NodePosition>,
    /// How many of them are refreshes.
    pub(super) refreshes: usize,
    /// How many of them count for this user in the estimate: those of each class and earlier ones.
    pub(super) counted: ByClass<usize>,
}

impl Node {
    /// Returns the number of edges up to a class, which is a refresh or the last class of callers.
    pub(super) fn len(&self, last: Class) -> usize {
        if last == Class::Refresh { self.edges.len() } else { self.edges.len() - self.refreshes }
    }
}

impl LookupScheduler {
    /// Adds an edge and queues it for the callers of all its waiters.
    pub(super) fn add_edge(&mut self, edge: Edge) {
        let id = self.next_id();
        for waiter in &edge.waiters {
            self.add_to_ticket(waiter.ticket, id);
        }
        match edge.batching {
            Batching::Any => {
                self.joinable.insert(edge.pair.key(), id);
            }
            Batching::AsRequested(sides) => {
                self.repeats.insert((edge.pair, sides), id);
            }
            Batching::Solo(..) => {}
        }
        self.edges.insert(id, edge);
        self.queue_edge(id);
    }

    /// Puts an edge into the queues of both users and of the callers of all its waiters.
    pub(super) fn queue_edge(&mut self, id: EdgeId) {
        let queues = self.queues_of(id);
        let Some(edge) = self.edges.get_mut(&id) else { return };
        let (position, is_queued) = ((edge.age, id), edge.counted.is_some());
        if !is_queued {
            edge.class = queues.iter().map(|queue| queue.class).min().unwrap_or(edge.class);
            self.enter_nodes(id);
        }
        for queue in queues {
            self.queue_for(queue, position);
        }
    }

    /// Puts a queued edge into the queue of one more caller.
    pub(super) fn queue_for(&mut self, queue: CallerQueue, position: QueuePosition) {
        let positions = self.queues.entry(queue).or_default();
        if positions.is_empty() {
            self.turns[queue.class].push_back(queue.caller);
        }
        positions.insert(position);
        self.set_class(position.1, |class| class.min(queue.class));
    }

    /// Takes a queued edge out of the queue of a caller, unless another request of this caller waits for it.
    pub(super) fn leave_queue(&mut self, queue: CallerQueue, id: EdgeId) {
        let others = self.queues_of(id);
        if others.contains(&queue) {
            return;
        }
        self.remove_from_queue(queue, id);
        if let Some(earliest) = others.iter().map(|queue| queue.class).min() {
            self.set_class(id, |_| earliest);
        }
    }

    /// Takes an edge out of all queues.
    pub(super) fn dequeue(&mut self, id: EdgeId) {
        self.leave_nodes(id);
        if let Some(Edge { pair, batching: Batching::AsRequested(sides), .. }) = self.edges.get(&id) {
            self.repeats.remove(&(*pair, *sides));
        }
        for queue in self.queues_of(id) {
            self.remove_from_queue(queue, id);
        }
    }

    /// Returns the queues of the callers that wait for an edge, possibly one queue several times, and that of refreshes.
    fn queues_of(&self, id: EdgeId) -> Vec<CallerQueue> {
        let Some(edge) = self.edges.get(&id) else { return Vec::new() };
        let waiting = edge.waiters.iter().filter_map(|waiter| self.tickets.get(&waiter.ticket));
        let refresh = edge.refresh.map(|_| REFRESHES);
        waiting.map(|state| state.queue).chain(refresh).collect()
    }

    fn remove_from_queue(&mut self, queue: CallerQueue, id: EdgeId) {
        let Some(age) = self.edges.get(&id).map(|edge| edge.age) else { return };
        let Some(positions) = self.queues.get_mut(&queue) else { return };
        positions.remove(&(age, id));
        if positions.is_empty() {
            self.queues.remove(&queue);
            self.turns[queue.class].retain(|other| *other != queue.caller);
        }
    }

    /// Changes the class of a queued edge.
    fn set_class(&mut self, id: EdgeId, class: impl FnOnce(Class) -> Class) {
        let Some(before) = self.edges.get(&id).map(|edge| edge.class) else { return };
        let class = class(before);
        if class != before {
            self.leave_nodes(id);
            self.edges.entry(id).and_modify(|edge| edge.class = class);
            self.enter_nodes(id);
        }
    }

    fn enter_nodes(&mut self, id: EdgeId) {
        let Some(edge) = self.edges.get(&id) else { return };
        let position = (edge.class, edge.age, id);
        for user in self.ends(edge) {
            let node = self.nodes.entry(user).or_default();
            // Both ends are the same if the edge cannot be flipped.
            let is_new = node.edges.insert(position);
            node.refreshes += usize::from(is_new && position.0 == Class::Refresh);
        }
        self.count_in(id);
    }

    fn leave_nodes(&mut self, id: EdgeId) {
        self.count_out(id);
        let Some(edge) = self.edges.get(&id) else { return };
        let position = (edge.class, edge.age, id);
        for user in self.ends(edge) {
            if let Some(node) = self.nodes.get_mut(&user) {
                let was_there = node.edges.remove(&position);
                node.refreshes -= usize::from(was_there && position.0 == Class::Refresh);
                if node.edges.is_empty() {
                    self.nodes.remove(&user);
                }
            }
        }
    }

    /// Removes an edge that is in no queue.
    pub(super) fn remove_edge(&mut self, id: EdgeId) -> Option<Edge> {
        let edge = self.edges.remove(&id)?;
        if self.joinable.get(&edge.pair.key()) == Some(&id) {
            self.joinable.remove(&edge.pair.key());
        }
        Some(edge)
    }

    /// Returns the users from which the edge may be looked up, possibly one user twice.
    pub(super) fn ends(&self, edge: &Edge) -> [UserKey; 2] {
        let may_flip = edge.batching == Batching::Any && self.flip;
        [edge.pair.from, if may_flip { edge.pair.to } else { edge.pair.from }]
    }
}
