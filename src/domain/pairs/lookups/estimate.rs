//! An estimate of the number of calls that the queued pairs need.
//!
//! Each queued edge counts for one of its two ends: the one that had more queued edges when the edge was queued, as if
//! the call that carries it were made from there. [`LookupScheduler::next_batch`] still chooses freely. Calls from
//! those ends would carry all edges, so about as many calls or fewer are needed. How many fewer shows while calls are
//! sent and others wait: queued edges fill their calls about as well as the edges that were sent last.

use super::LookupScheduler;
use super::graph::{EdgeId, Node};
use crate::domain::caller::{ByClass, CallerQueue, Class};

/// The totals over the queued edges of each class and earlier ones.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Estimate {
    /// Maximum number of accounts in one call.
    call_max: usize,
    edges: ByClass<usize>,
    calls: ByClass<usize>,
    /// Moving average of the edges per call; `None` since the queues were last empty.
    fill: Option<f64>,
}

/// The weight of the latest call in [`Estimate::fill`].
const FILL_WEIGHT: f64 = 0.25;

impl Estimate {
    pub(super) fn new(call_max: usize) -> Self {
        Self { call_max, edges: ByClass::default(), calls: ByClass::default(), fill: None }
    }

    /// Records a call with this number of edges that requests wait for.
    pub(super) fn on_sent(&mut self, edges: usize) {
        if edges == 0 {
            return;
        }
        let edges = edges as f64;
        let fill = self.fill.map_or(edges, |fill| fill + (edges - fill) * FILL_WEIGHT);
        self.fill = (self.edges[Class::LAST_OF_CALLERS] > 0).then_some(fill);
    }

    /// Returns the estimated number of calls for the queued edges of a class and earlier ones.
    fn calls(&self, class: Class) -> usize {
        let (edges, calls) = (self.edges[class], self.calls[class]);
        // `as` rounds down: a call that is nearly full counts as full.
        self.fill.map_or(calls, |fill| calls.min((edges as f64 / fill.max(1.0)) as usize + 1))
    }

    fn change(&mut self, node: &mut Node, class: Class, change: impl Fn(&mut usize)) {
        for class in class.and_later() {
            self.calls[class] -= node.counted[class].div_ceil(self.call_max);
            change(&mut node.counted[class]);
            self.calls[class] += node.counted[class].div_ceil(self.call_max);
            change(&mut self.edges[class]);
        }
    }
}

impl LookupScheduler {
    /// Returns the number of queued pairs that requests wait for.
    pub fn queued(&self) -> usize {
        self.estimate.edges[Class::LAST_OF_CALLERS]
    }

    /// Returns the number of queued pairs that no caller of an earlier class waits for.
    pub fn queued_in(&self, class: Class) -> usize {
        let earlier = class.earlier().last().map_or(0, |earlier| self.estimate.edges[earlier]);
        self.estimate.edges[class] - earlier
    }

    /// Estimates how many calls are sent before the last call of a new request of this caller, if it queues `more` pairs
    /// for its class ([`NewPairs::queued`](super::NewPairs::queued)). The estimate assumes that they share no call with other pairs, so it is rather too high than
    /// too low.
    pub fn calls_ahead(&self, queue: CallerQueue, more: usize) -> usize {
        let CallerQueue { class, .. } = queue;
        // Otherwise the request waits only for lookups of others, which are ahead of everything new.
        if !self.has_queued(class) || more == 0 {
            return 0;
        }
        let (all, queued, new) = (self.estimate.calls(class), self.queued_for(queue), more.div_ceil(self.call_max));
        let earlier = class.earlier().last().map_or(0, |earlier| self.estimate.calls(earlier)).min(all);
        let own = ((all - earlier) * queued).div_ceil(self.queued_in(class).max(1)) + new;
        // While the caller has its turns, each other caller of its class has at most as many.
        let callers = self.callers_queued(class) + usize::from(queued == 0);
        (all + new).min(earlier + own.saturating_mul(callers)) - 1
    }

    /// Counts an edge that was queued.
    pub(super) fn count_in(&mut self, id: EdgeId) {
        let Some(edge) = self.edges.get(&id).filter(|edge| edge.counted.is_none()) else { return };
        let ([from, to], class) = (self.ends(edge), edge.class);
        // Refreshes may never be sent, so they make no end the better one for a caller's pair.
        let last = class.max(Class::LAST_OF_CALLERS);
        let queued = |user| self.nodes.get(&user).map_or(0, |node| node.len(last));
        let end = if queued(to) > queued(from) { to } else { from };
        if let Some(node) = self.nodes.get_mut(&end) {
            self.estimate.change(node, class, |count| *count += 1);
            self.edges.entry(id).and_modify(|edge| edge.counted = Some(end));
        }
    }

    /// Stops counting an edge that leaves the queues, or its class.
    pub(super) fn count_out(&mut self, id: EdgeId) {
        let Some(edge) = self.edges.get_mut(&id) else { return };
        let (counted, class) = (edge.counted.take(), edge.class);
        if let Some(node) = counted.and_then(|end| self.nodes.get_mut(&end)) {
            self.estimate.change(node, class, |count| *count -= 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, options, wanted};
    use super::super::*;

    const ANN: CallerQueue = caller(1);

    const fn caller(number: u64) -> CallerQueue {
        CallerQueue::interactive(QueueKey(number))
    }

    fn enqueue(scheduler: &mut LookupScheduler, caller: u64, from: &str, to: &[&str]) {
        scheduler.enqueue(options(super::tests::caller(caller)), &wanted(from, to), |_| Tick::NEVER).expect("room");
    }

    /// Takes batches until nothing is queued, and returns their number.
    fn drain(scheduler: &mut LookupScheduler) -> usize {
        std::iter::from_fn(|| scheduler.next_batch(Class::Refresh, at(1))).count()
    }

    fn names(prefix: &str, count: usize) -> Vec<String> {
        (0..count).map(|number| format!("{prefix}{number}")).collect()
    }

    #[test]
    fn first_request_has_no_calls_ahead() {
        let mut scheduler = LookupScheduler::new(true, 100);
        assert_eq!(scheduler.calls_ahead(ANN, 1000), 0);
        enqueue(&mut scheduler, 7, "ann", &["bob"]);
        assert_eq!(scheduler.calls_ahead(ANN, 0), 0, "it queues nothing");
    }

    #[test]
    fn pairs_without_a_common_user_count_a_call_each() {
        let mut scheduler = LookupScheduler::new(true, 100);
        for number in 0..300 {
            assert_eq!(scheduler.calls_ahead(caller(1000 + number), 1), number as usize);
            enqueue(&mut scheduler, 1000 + number, &format!("from{number}"), &[&format!("to{number}")]);
        }
        assert_eq!((scheduler.queued(), scheduler.calls_ahead(ANN, 1)), (300, 300));
        assert_eq!((drain(&mut scheduler), scheduler.calls_ahead(ANN, 1)), (300, 0));
    }

    #[test]
    fn pairs_of_one_star_count_full_calls() {
        let mut scheduler = LookupScheduler::new(true, 100);
        for fan in names("fan", 500) {
            enqueue(&mut scheduler, 7, &fan, &["star"]);
        }
        let ahead = scheduler.calls_ahead(ANN, 1);
        assert!(drain(&mut scheduler) == 5 && (1..=6).contains(&ahead), "{ahead}");
        // Without flipping, each fan needs a call of its own.
        let mut scheduler = LookupScheduler::new(false, 100);
        for fan in names("fan", 500) {
            enqueue(&mut scheduler, 7, &fan, &["star"]);
        }
        assert_eq!((scheduler.calls_ahead(caller(7), 1), drain(&mut scheduler)), (500, 500));
    }

    #[test]
    fn caller_behind_a_busy_caller_has_its_turn_soon() {
        let mut scheduler = LookupScheduler::new(true, 100);
        for number in 0..300 {
            enqueue(&mut scheduler, 7, &format!("from{number}"), &[&format!("to{number}")]);
        }
        assert_eq!((scheduler.calls_ahead(ANN, 1), scheduler.calls_ahead(ANN, 250)), (1, 5));
        assert_eq!(scheduler.calls_ahead(caller(7), 1), 300);
    }

    #[test]
    fn request_of_many_pairs_counts_the_calls_that_it_fills() {
        let mut scheduler = LookupScheduler::new(true, 100);
        let to = names("to", 250);
        enqueue(&mut scheduler, 7, "ann", &to.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!((scheduler.calls_ahead(caller(7), 1), scheduler.calls_ahead(caller(7), 250)), (3, 5));
    }

    #[test]
    fn estimate_follows_the_fill_of_sent_calls() {
        let mut scheduler = LookupScheduler::new(true, 100);
        // Feeds of 30 out of 60 accounts: each account is in the feeds of half of the viewers.
        for viewer in 0..200_usize {
            let to: Vec<String> = (0..30).map(|at| format!("to{}", (viewer * 7 + at * at) % 60)).collect();
            let to: std::collections::BTreeSet<&str> = to.iter().map(String::as_str).collect();
            enqueue(
                &mut scheduler,
                1000 + viewer as u64,
                &format!("viewer{viewer}"),
                &to.into_iter().collect::<Vec<_>>(),
            );
        }
        (0..10).for_each(|_| drop(scheduler.next_batch(Class::Refresh, at(1)).expect("one more")));
        let (ahead, queued) = (scheduler.calls_ahead(ANN, 1), scheduler.queued());
        let left = drain(&mut scheduler);
        assert!(left / 2 <= ahead && ahead <= left * 3 / 2, "{ahead} estimated, {left} needed for {queued}");
        assert_eq!(scheduler.estimate.fill, None, "the next burst may have another fill");
    }

    #[test]
    fn refreshes_do_not_change_the_estimate() {
        let mut scheduler = LookupScheduler::new(true, 100);
        for fan in names("fan", 50) {
            let refresh = Refresh { until: at(9), caused_by: QueueKey::SELF };
            scheduler.refresh(&wanted(&fan, &["star"]), refresh, |_| Tick::NEVER);
        }
        enqueue(&mut scheduler, 7, "ann", &["bob", "star"]);
        assert_eq!((scheduler.queued(), scheduler.calls_ahead(caller(7), 1)), (2, 1), "one call from ann");
    }

    #[test]
    fn cancelled_pairs_are_not_counted() {
        let mut scheduler = LookupScheduler::new(true, 100);
        let (first, _) =
            scheduler.enqueue(options(ANN), &wanted("ann", &["bob", "cyd"]), |_| Tick::NEVER).expect("room");
        let (second, _) =
            scheduler.enqueue(options(ANN), &wanted("bob", &["ann", "dan"]), |_| Tick::NEVER).expect("room");
        assert_eq!(scheduler.queued(), 3);
        scheduler.cancel(first);
        assert_eq!(scheduler.queued(), 2);
        scheduler.cancel(second);
        assert_eq!((scheduler.queued(), scheduler.calls_ahead(ANN, 1)), (0, 0));
        assert_eq!((scheduler.estimate.calls, scheduler.nodes.len()), (ByClass::default(), 0));
    }
}
