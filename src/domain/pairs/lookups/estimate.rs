//! How many calls what is queued will take.
//!
//! Each queued edge counts with one of its two ends, the one that had more queued edges when it came, as
//! if the call that takes it were made from there. Counting is all: [`LookupScheduler::next_batch`] chooses anew.
//! But calls that are made from those ends would take all edges, so about as many or fewer are needed. How
//! many fewer shows while calls go out and others wait: what is queued fills calls about as well as what has
//! just gone.

use super::graph::Node;
use super::{EdgeId, LookupScheduler};
use crate::domain::caller::QueueKey;
use crate::domain::pairs::item::CALL_ACCOUNTS_MAX;

/// What is queued, all together.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Estimate {
    edges: usize,
    calls: usize,
    /// Edges that a call has carried lately; `None` since nothing was queued.
    fill: Option<f64>,
}

/// How much the latest call counts in [`Estimate::fill`].
const FILL_WEIGHT: f64 = 0.25;

impl Estimate {
    /// A call has left with so many edges.
    pub(super) fn sent(&mut self, edges: usize) {
        let edges = edges as f64;
        let fill = self.fill.map_or(edges, |fill| fill + (edges - fill) * FILL_WEIGHT);
        self.fill = (self.edges > 0).then_some(fill);
    }

    /// About how many calls what is queued takes.
    fn all(&self) -> usize {
        // `as` cuts: a call that is nearly full is counted as full.
        self.fill.map_or(self.calls, |fill| self.calls.min((self.edges as f64 / fill.max(1.0)) as usize + 1))
    }

    fn change(&mut self, node: &mut Node, change: impl FnOnce(&mut usize)) {
        self.calls -= calls(node.counted);
        change(&mut node.counted);
        self.calls += calls(node.counted);
    }
}

/// Calls that so many pairs of one user take.
fn calls(pairs: usize) -> usize {
    pairs.div_ceil(CALL_ACCOUNTS_MAX)
}

impl LookupScheduler {
    /// How many pairs are queued, not yet under way.
    pub fn queued(&self) -> usize {
        self.forecast.edges
    }

    /// About how many calls go out before the last one that a further question of this caller needs, of which
    /// `more` pairs are asked for by nobody yet. They are taken to share no call with others' pairs, so it is
    /// rather too many than too few.
    pub fn calls_ahead(&self, caller: QueueKey, more: usize) -> usize {
        let (edges, all) = (self.forecast.edges, self.forecast.all());
        // What others ask for already is under way before anything new.
        if edges == 0 || more == 0 {
            return 0;
        }
        let (queued, new) = (self.queued_for(caller), calls(more));
        let own = (all * queued).div_ceil(edges) + new;
        // While the caller has its turns each of the others has as many at most.
        let callers = self.callers_queued() + usize::from(queued == 0);
        (all + new).min(own.saturating_mul(callers)) - 1
    }

    /// An edge has come into the queues.
    pub(super) fn count_in(&mut self, id: EdgeId) {
        let Some(edge) = self.edges.get(&id).filter(|edge| edge.counted.is_none()) else { return };
        let [from, to] = self.ends(edge);
        let queued = |user| self.nodes.get(&user).map_or(0, Node::queued);
        let end = if queued(to) > queued(from) { to } else { from };
        if let Some(node) = self.nodes.get_mut(&end) {
            self.forecast.change(node, |counted| *counted += 1);
            self.forecast.edges += 1;
            self.edges.entry(id).and_modify(|edge| edge.counted = Some(end));
        }
    }

    /// An edge leaves the queues.
    pub(super) fn count_out(&mut self, id: EdgeId) {
        let Some(end) = self.edges.get_mut(&id).and_then(|edge| edge.counted.take()) else { return };
        self.forecast.edges -= 1;
        if let Some(node) = self.nodes.get_mut(&end) {
            self.forecast.change(node, |counted| *counted -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, terms, wanted};
    use super::super::*;

    const ANN: QueueKey = QueueKey(1);

    fn ask(pending: &mut LookupScheduler, caller: u64, from: &str, to: &[&str]) {
        pending.enqueue(terms(QueueKey(caller)), &wanted(from, to), |_| Tick::NEVER).expect("room");
    }

    /// Calls until nothing is queued.
    fn drain(pending: &mut LookupScheduler) -> usize {
        std::iter::from_fn(|| pending.next_batch(100, at(1))).count()
    }

    fn names(prefix: &str, count: usize) -> Vec<String> {
        (0..count).map(|number| format!("{prefix}{number}")).collect()
    }

    #[test]
    fn nobody_is_ahead_of_the_first() {
        let mut pending = LookupScheduler::new(true);
        assert_eq!(pending.calls_ahead(ANN, 1000), 0);
        ask(&mut pending, 7, "ann", &["bob"]);
        assert_eq!(pending.calls_ahead(ANN, 0), 0, "it asks for nothing new");
    }

    #[test]
    fn pairs_that_share_nobody_take_a_call_each() {
        let mut pending = LookupScheduler::new(true);
        for number in 0..300 {
            assert_eq!(pending.calls_ahead(QueueKey(1000 + number), 1), number as usize);
            ask(&mut pending, 1000 + number, &format!("from{number}"), &[&format!("to{number}")]);
        }
        assert_eq!((pending.queued(), pending.calls_ahead(ANN, 1)), (300, 300));
        assert_eq!((drain(&mut pending), pending.calls_ahead(ANN, 1)), (300, 0));
    }

    #[test]
    fn pairs_of_one_star_fill_calls() {
        let mut pending = LookupScheduler::new(true);
        for fan in names("fan", 500) {
            ask(&mut pending, 7, &fan, &["star"]);
        }
        let ahead = pending.calls_ahead(ANN, 1);
        assert!(drain(&mut pending) == 5 && (1..=6).contains(&ahead), "{ahead}");
        // Without turning pairs round each fan has to be asked.
        let mut pending = LookupScheduler::new(false);
        for fan in names("fan", 500) {
            ask(&mut pending, 7, &fan, &["star"]);
        }
        assert_eq!((pending.calls_ahead(QueueKey(7), 1), drain(&mut pending)), (500, 500));
    }

    #[test]
    fn who_waits_behind_one_that_floods_has_its_turn_soon() {
        let mut pending = LookupScheduler::new(true);
        for number in 0..300 {
            ask(&mut pending, 7, &format!("from{number}"), &[&format!("to{number}")]);
        }
        assert_eq!((pending.calls_ahead(ANN, 1), pending.calls_ahead(ANN, 250)), (1, 5));
        assert_eq!(pending.calls_ahead(QueueKey(7), 1), 300);
    }

    #[test]
    fn a_question_of_many_pairs_takes_as_many_calls_as_it_fills() {
        let mut pending = LookupScheduler::new(true);
        let to = names("to", 250);
        ask(&mut pending, 7, "ann", &to.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((pending.calls_ahead(QueueKey(7), 1), pending.calls_ahead(QueueKey(7), 250)), (3, 5));
    }

    #[test]
    fn how_well_calls_are_filled_shows_while_they_go_out() {
        let mut pending = LookupScheduler::new(true);
        // Feeds of 30 out of 60 accounts: each account is in the feeds of half of the viewers.
        for viewer in 0..200_usize {
            let to: Vec<String> = (0..30).map(|at| format!("to{}", (viewer * 7 + at * at) % 60)).collect();
            let to: std::collections::BTreeSet<&str> = to.iter().map(String::as_str).collect();
            ask(&mut pending, 1000 + viewer as u64, &format!("viewer{viewer}"), &to.into_iter().collect::<Vec<_>>());
        }
        (0..10).for_each(|_| drop(pending.next_batch(100, at(1)).expect("one more")));
        let (ahead, queued) = (pending.calls_ahead(ANN, 1), pending.queued());
        let left = drain(&mut pending);
        assert!(left / 2 <= ahead && ahead <= left * 3 / 2, "{ahead} foretold, {left} needed for {queued}");
        assert_eq!(pending.forecast.fill, None, "the next burst may be another one");
    }

    #[test]
    fn what_leaves_is_not_counted_any_more() {
        let mut pending = LookupScheduler::new(true);
        let (first, _) = pending.enqueue(terms(ANN), &wanted("ann", &["bob", "cyd"]), |_| Tick::NEVER).expect("room");
        let (second, _) = pending.enqueue(terms(ANN), &wanted("bob", &["ann", "dan"]), |_| Tick::NEVER).expect("room");
        assert_eq!(pending.queued(), 3);
        pending.cancel(first);
        assert_eq!(pending.queued(), 2);
        pending.cancel(second);
        assert_eq!((pending.queued(), pending.calls_ahead(ANN, 1)), (0, 0));
        assert_eq!((pending.forecast.calls, pending.nodes.len()), (0, 0));
    }
}
