//! Edges, and the queues by user and by caller that they are in.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::super::pair::{Pair, Sides, UserKey};
use super::{BatchId, LookupScheduler, Ticket};
use crate::domain::caller::QueueKey;

pub(super) type EdgeId = u64;
/// The position of an edge in a queue: by the age of the first request for it, then by its own number.
pub(super) type QueuePosition = (u64, EdgeId);

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
    /// The batch that carries it; `None` while it is queued.
    pub(super) batch: Option<BatchId>,
    /// The end that it counts for in the estimate, while it is queued.
    pub(super) counted: Option<UserKey>,
    /// Whether its result may be cached.
    pub(super) keep: bool,
    pub(super) waiters: Vec<Waiter>,
}

impl Edge {
    /// Returns the user at the other end.
    pub(super) fn other_end(&self, user: UserKey) -> UserKey {
        if self.pair.from == user { self.pair.to } else { self.pair.from }
    }
}

/// Which calls may carry an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Batching {
    /// Calls from either end, together with any other edges.
    Any,
    /// Calls in the requested direction, together with any other edges: the flipped lookup failed.
    AsRequested,
    /// Calls that ask what this request asks, in its direction and with its edges only: Chat rejected a shared call, or
    /// an item of a call that asked for more.
    Solo(Ticket, Sides),
}

impl Batching {
    /// Returns the only request whose edges may share the call.
    pub(super) fn only_ticket(self) -> Option<Ticket> {
        match self {
            Batching::Solo(ticket, _) => Some(ticket),
            Batching::Any | Batching::AsRequested => None,
        }
    }

    /// Returns what a call that carries the edge asks of each pair.
    pub(super) fn sides(self) -> Sides {
        match self {
            Batching::Solo(_, sides) => sides,
            Batching::Any | Batching::AsRequested => Sides::Both,
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
    pub(super) edges: BTreeSet<QueuePosition>,
    /// How many of them count for this user in the estimate.
    pub(super) counted: usize,
}

impl LookupScheduler {
    /// Adds an edge and queues it for the callers of all its waiters.
    pub(super) fn add_edge(&mut self, edge: Edge) {
        let id = self.next_id();
        for waiter in &edge.waiters {
            self.add_to_ticket(waiter.ticket, id);
        }
        if edge.batching == Batching::Any {
            self.joinable.insert(edge.pair.key(), id);
        }
        self.edges.insert(id, edge);
        self.queue_edge(id);
    }

    /// Puts an edge into the queues of both users and of the callers of all its waiters.
    pub(super) fn queue_edge(&mut self, id: EdgeId) {
        let Some(edge) = self.edges.get(&id) else { return };
        let position = (edge.age, id);
        for user in self.ends(edge) {
            self.nodes.entry(user).or_default().edges.insert(position);
        }
        self.count_in(id);
        let tickets: Vec<Ticket> = self.edges[&id].waiters.iter().map(|waiter| waiter.ticket).collect();
        for ticket in tickets {
            if let Some(caller) = self.tickets.get(&ticket).map(|state| state.caller) {
                self.queue_for(caller, position);
            }
        }
    }

    /// Puts a queued edge into the queue of one more caller.
    pub(super) fn queue_for(&mut self, caller: QueueKey, position: QueuePosition) {
        let queue = self.queues.entry(caller).or_default();
        if queue.is_empty() {
            self.turns.push_back(caller);
        }
        queue.insert(position);
    }

    /// Takes an edge out of all queues.
    pub(super) fn dequeue(&mut self, id: EdgeId) {
        self.count_out(id);
        let Some(edge) = self.edges.get(&id) else { return };
        let position = (edge.age, id);
        for user in self.ends(edge) {
            if let Some(node) = self.nodes.get_mut(&user) {
                node.edges.remove(&position);
                if node.edges.is_empty() {
                    self.nodes.remove(&user);
                }
            }
        }
        // All queues are searched, and they are few. A caller still has the edge queued after its last waiter was
        // cancelled, so the waiters do not show which queues contain it.
        let turns = &mut self.turns;
        self.queues.retain(|caller, queue| {
            if queue.remove(&position) && queue.is_empty() {
                turns.retain(|other| other != caller);
            }
            !queue.is_empty()
        });
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
