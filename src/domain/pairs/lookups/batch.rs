//! The next call: which pairs it carries, and from which user it is made.

use std::collections::HashSet;
use std::sync::Arc;

use super::super::pair::{Pair, Sides, UserKey};
use super::LookupScheduler;
use super::graph::{Batching, EdgeId};
use crate::domain::caller::{CallerQueue, Class, QueueKey};
use crate::domain::tick::Tick;

/// The number of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchId(pub(super) u64);

/// The pairs of one call, which may be sent now.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Batch {
    /// Its number, for [`LookupScheduler::complete`].
    pub id: BatchId,
    /// The `From_Account` of the call.
    pub from: Arc<str>,
    /// The `To_Account`s of the call: 1 to the maximum of a call, each once.
    pub to: Vec<Arc<str>>,
    /// What the call asks of each pair.
    pub sides: Sides,
    /// The queue whose turn it was. Pairs of other callers may travel with its own.
    pub queue: CallerQueue,
    /// The caller that has caused the call: that of the queue, or the one whose request made the refresh due.
    pub caused_by: QueueKey,
}

/// A batch whose call has no response yet.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct InFlightBatch {
    pub(super) from: UserKey,
    pub(super) sides: Sides,
    pub(super) sent: Tick,
    pub(super) edges: Vec<EdgeId>,
    /// More than one request has waited for it. Some of them may have been cancelled.
    pub(super) shared: bool,
}

impl LookupScheduler {
    /// Returns the most urgent class of the requests that wait for a batch in flight; `None` if no request waits for it.
    pub fn awaited_in(&self, batch: BatchId) -> Option<Class> {
        let edges = self.in_flight.get(&batch)?.edges.iter().filter_map(|id| self.edges.get(id));
        let tickets = edges.flat_map(|edge| &edge.waiters).filter_map(|waiter| self.tickets.get(&waiter.ticket));
        tickets.map(|ticket| ticket.queue.class).min()
    }

    /// Returns the next batch for a permit of this class; `None` if nothing is queued for the class or an earlier one. The
    /// batch counts as sent at `now`, so its call must leave after that moment.
    pub fn next_batch(&mut self, class: Class, now: Tick) -> Option<Batch> {
        let class = class.and_earlier().find(|class| !self.turns[*class].is_empty())?;
        let caller = self.turns[class].pop_front()?;
        // The caller goes to the end of the line at once. Dequeuing its last edge removes it.
        self.turns[class].push_back(caller);
        let queue = CallerQueue { class, caller };
        let &(_, seed) = self.queues.get(&queue)?.first()?;
        let from = self.better_end(seed);
        let edges = self.gather(seed, from);
        let first = &self.edges[&seed];
        let sides = first.batching.sides();
        let refresh = first.refresh.filter(|_| class == Class::Refresh);
        let caused_by = refresh.map_or(caller, |refresh| refresh.caused_by);
        let id = BatchId(self.next_id());
        let mut to = Vec::with_capacity(edges.len());
        let mut from_name = None;
        for edge_id in &edges {
            self.dequeue(*edge_id);
            let edge = self.edges.get_mut(edge_id)?;
            edge.batch = Some(id);
            let (near, far) = if edge.pair.from == from { (&edge.from, &edge.to) } else { (&edge.to, &edge.from) };
            from_name = Some(Arc::clone(near));
            to.push(Arc::clone(far));
        }
        self.estimate.on_sent(edges.iter().filter(|id| !self.edges[id].waiters.is_empty()).count());
        let shared = self.is_shared(&edges);
        self.in_flight.insert(id, InFlightBatch { from, sides, sent: now, edges, shared });
        Some(Batch { id, from: from_name?, to, sides, queue, caused_by })
    }

    /// Returns the end of the edge whose call spares more calls, `from` if both spare the same.
    ///
    /// The end with more edges is not always the better one. Suppose that many feeds all contain one star. The star has
    /// the most edges, but each feed needs a call of its own for its other accounts, and that call has room for the
    /// star too: calls from the star spare none of them. So each edge of a call counts as the part of a call that it
    /// spares the user at its other end: one divided by the number of edges queued there. This is the greedy
    /// approximation of the fewest calls, which is a vertex cover.
    fn better_end(&self, id: EdgeId) -> UserKey {
        let edge = &self.edges[&id];
        let Pair { from, to } = edge.pair;
        if edge.batching != Batching::Any || !self.flip {
            return from;
        }
        // Requests wait for the calls that are spared, unless the call is a refresh itself.
        let last = edge.class.max(Class::LAST_OF_CALLERS);
        if self.spared_calls(to, last) > self.spared_calls(from, last) { to } else { from }
    }

    /// Returns how many calls of other users a call from this user spares, for edges up to a class.
    fn spared_calls(&self, user: UserKey, last: Class) -> f64 {
        let Some(node) = self.nodes.get(&user) else { return 0.0 };
        let queued = |other| self.nodes.get(&other).map_or(1, |node| node.len(last).max(1));
        let counted = node.edges.iter().take_while(|(class, ..)| *class <= last).take(self.call_max);
        counted.map(|(_, _, id)| 1.0 / queued(self.edges[id].other_end(user)) as f64).sum()
    }

    /// Returns the seed and the edges that can share a call from `from` with it, each account once: those of earlier
    /// classes first, then the oldest.
    fn gather(&self, seed: EdgeId, from: UserKey) -> Vec<EdgeId> {
        let first = &self.edges[&seed];
        let mut accounts = HashSet::from([first.other_end(from)]);
        let mut edges = vec![seed];
        let Some(node) = self.nodes.get(&from) else { return edges };
        for &(_, _, id) in &node.edges {
            if edges.len() >= self.call_max {
                break;
            }
            let edge = &self.edges[&id];
            let may_share = edge.batching.only_ticket() == first.batching.only_ticket()
                && edge.batching.sides() == first.batching.sides();
            if id != seed && may_share && accounts.insert(edge.other_end(from)) {
                edges.push(id);
            }
        }
        edges
    }

    /// Returns whether these edges are not those of a single request.
    fn is_shared(&self, edges: &[EdgeId]) -> bool {
        let mut edges = edges.iter().filter_map(|id| self.edges.get(id));
        let first = edges.clone().flat_map(|edge| &edge.waiters).map(|waiter| waiter.ticket).next();
        edges.any(|edge| edge.waiters.is_empty() || edge.waiters.iter().any(|waiter| Some(waiter.ticket) != first))
    }
}
