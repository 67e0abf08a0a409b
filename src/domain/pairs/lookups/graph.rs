//! The queues: which edges are at hand, and which of them share a call.

use std::collections::{BTreeSet, HashSet};

use super::super::pair::{Pair, UserKey};
use super::{Batching, Edge, EdgeId, LookupScheduler, QueuePosition, Ticket};
use crate::domain::caller::QueueKey;

/// The queued edges of one user.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Node {
    /// Those that a call from this user can carry: all that were put so, and those that may be turned.
    edges: BTreeSet<QueuePosition>,
    /// How many of them count with this user in the forecast.
    pub counted: usize,
}

impl Node {
    /// How many there are.
    pub(super) fn queued(&self) -> usize {
        self.edges.len()
    }
}

impl LookupScheduler {
    /// Takes in a new edge, queued for all who wait for it.
    pub(super) fn add(&mut self, edge: Edge) -> EdgeId {
        let id = self.number();
        for waiter in &edge.waiters {
            self.remember(waiter.ticket, id);
        }
        if edge.batching == Batching::Any {
            self.joinable.insert(edge.pair.key(), id);
        }
        self.edges.insert(id, edge);
        self.queue_edge(id);
        id
    }

    /// Puts an edge (back) into the queues of all who wait for it.
    pub(super) fn queue_edge(&mut self, id: EdgeId) {
        let Some(edge) = self.edges.get(&id) else { return };
        let place = (edge.age, id);
        for user in self.ends(edge) {
            self.nodes.entry(user).or_default().edges.insert(place);
        }
        self.count_in(id);
        let tickets: Vec<Ticket> = self.edges[&id].waiters.iter().map(|waiter| waiter.ticket).collect();
        for ticket in tickets {
            if let Some(caller) = self.tickets.get(&ticket).map(|waiting| waiting.caller) {
                self.queue_for(caller, place);
            }
        }
    }

    /// Puts a queued edge into one more caller's queue.
    pub(super) fn queue_for(&mut self, caller: QueueKey, place: QueuePosition) {
        let queue = self.queues.entry(caller).or_default();
        if queue.is_empty() {
            self.turns.push_back(caller);
        }
        queue.insert(place);
    }

    /// Takes an edge out of all queues.
    pub(super) fn dequeue(&mut self, id: EdgeId) {
        self.count_out(id);
        let Some(edge) = self.edges.get(&id) else { return };
        let place = (edge.age, id);
        for user in self.ends(edge) {
            if let Some(node) = self.nodes.get_mut(&user) {
                node.edges.remove(&place);
                if node.edges.is_empty() {
                    self.nodes.remove(&user);
                }
            }
        }
        // Callers are few; one whose last waiter left the edge still has it queued.
        let turns = &mut self.turns;
        self.queues.retain(|caller, queue| {
            if queue.remove(&place) && queue.is_empty() {
                turns.retain(|other| other != caller);
            }
            !queue.is_empty()
        });
    }

    /// Drops an edge that is in no queue.
    pub(super) fn forget(&mut self, id: EdgeId) -> Option<Edge> {
        let edge = self.edges.remove(&id)?;
        if self.joinable.get(&edge.pair.key()) == Some(&id) {
            self.joinable.remove(&edge.pair.key());
        }
        Some(edge)
    }

    /// From whose side the edge is asked: the one whose call spares more calls, its own `from` if equal.
    ///
    /// Not simply the one with more edges. Of feeds that all name one star, the star has most edges, but
    /// each feed needs a call of its own for the rest of it, and that call has room for the star too:
    /// calls from the star's side would spare none of them. So an edge that a call takes counts as
    /// that part of a call which the user at its other end is relieved of: one divided by how many
    /// edges are queued there. This is the greedy way to few calls (users that cover all edges).
    pub(super) fn better_end(&self, id: EdgeId, max: usize) -> UserKey {
        let edge = &self.edges[&id];
        let Pair { from, to } = edge.pair;
        if edge.batching != Batching::Any || !self.flip {
            return from;
        }
        if self.spared(to, max) > self.spared(from, max) { to } else { from }
    }

    /// How many calls of others a call from this user's side spares.
    fn spared(&self, user: UserKey, max: usize) -> f64 {
        let Some(node) = self.nodes.get(&user) else { return 0.0 };
        let far = |edge: &Edge| if edge.pair.from == user { edge.pair.to } else { edge.pair.from };
        let queued = |other| self.nodes.get(&other).map_or(1, |node| node.edges.len());
        node.edges.iter().take(max).map(|(_, id)| 1.0 / queued(far(&self.edges[id])) as f64).sum()
    }

    /// The seed, and what can travel with it from `from`, oldest first, each account once.
    pub(super) fn gather(&self, seed: EdgeId, from: UserKey, max: usize) -> Vec<EdgeId> {
        let alone = |edge: &Edge| match edge.batching {
            Batching::Solo(ticket) => Some(ticket),
            Batching::Any | Batching::AsAsked => None,
        };
        let first = &self.edges[&seed];
        let far = |edge: &Edge| if edge.pair.from == from { edge.pair.to } else { edge.pair.from };
        let mut asked = HashSet::from([far(first)]);
        let mut ids = vec![seed];
        let Some(node) = self.nodes.get(&from) else { return ids };
        for &(_, id) in &node.edges {
            if ids.len() >= max {
                break;
            }
            let edge = &self.edges[&id];
            if id != seed && alone(edge) == alone(first) && asked.insert(far(edge)) {
                ids.push(id);
            }
        }
        ids
    }

    /// The users from whose side the edge may be asked. One user twice does no harm.
    pub(super) fn ends(&self, edge: &Edge) -> [UserKey; 2] {
        let turned = if edge.batching == Batching::Any && self.flip { edge.pair.to } else { edge.pair.from };
        [edge.pair.from, turned]
    }
}
