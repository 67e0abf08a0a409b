//! What callers wrote, reported, and read, and the check that no answer was older than promised.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A pair of users by their numbers.
pub(super) type PairId = (usize, usize);

/// A write or an event, which changes one pair. Changes of one pair never overlap.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) pair: PairId,
    pub(super) follow_type: u8,
    pub(super) sent_at: Instant,
    /// When the gateway acknowledged it; `None` if it did not.
    pub(super) acknowledged_at: Option<Instant>,
    pub(super) gateway: Process,
}

/// An answered lookup of one pair.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    pub(super) pair: PairId,
    pub(super) follow_type: u8,
    pub(super) sent_at: Instant,
    pub(super) answered_at: Instant,
    pub(super) gateway: Process,
}

/// A gateway, and how often it was restarted before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) gateway: usize,
    pub(super) restarts: usize,
}

/// A gateway that was killed or stopped.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) process: Process,
    pub(super) at: Instant,
}

/// Spans in which something was disturbed. Each lasts until the bound of an invalidation after the last replica has
/// reconnected.
#[derive(Debug, Default)]
pub(super) struct Spans(pub(super) Vec<(Instant, Instant)>);

impl Spans {
    pub(super) fn overlap(&self, from: Instant, to: Instant) -> bool {
        self.0.iter().any(|(begin, end)| *begin <= to && *end >= from)
    }

    /// Returns when every replica must see a change that was acknowledged at `at`: after `bound`, and after every span
    /// that began before that.
    fn visible_from(&self, at: Instant, bound: Duration) -> Instant {
        let mut visible_from = at + bound;
        loop {
            let continues = |(begin, end): &&(Instant, Instant)| *begin <= visible_from && *end > visible_from;
            match self.0.iter().filter(continues).map(|(_, end)| *end).max() {
                Some(end) => visible_from = end,
                None => return visible_from,
            }
        }
    }
}

/// All operations of a run.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) changes: Vec<Change>,
    pub(super) lookups: Vec<Lookup>,
}

/// A change, and from when on every replica must see it. `None` means that it was not acknowledged, or that its gateway
/// ended before it could send the invalidation.
struct Visible<'a> {
    change: &'a Change,
    from: Option<Instant>,
}

impl History {
    /// Returns a description of each lookup with an answer from before an acknowledged change. The replica that
    /// acknowledged a change may not answer from before it at all, another one only within `bound`, and as long as a
    /// replica is disconnected.
    pub(super) fn stale_answers(&self, disturbed: &Spans, ended: &[Ended], bound: Duration) -> Vec<String> {
        let mut changes: HashMap<PairId, Vec<Visible<'_>>> = HashMap::new();
        for change in &self.changes {
            let from = visible_from(change, disturbed, ended, bound);
            changes.entry(change.pair).or_default().push(Visible { change, from });
        }
        changes.values_mut().for_each(|changes| changes.sort_by_key(|visible| visible.change.sent_at));
        let of = |lookup: &Lookup| changes.get(&lookup.pair).map_or(&[][..], Vec::as_slice);
        let is_stale = |lookup: &&Lookup| !may_answer(lookup, of(lookup));
        self.lookups.iter().filter(is_stale).map(|lookup| describe(lookup, of(lookup))).collect()
    }
}

fn visible_from(change: &Change, disturbed: &Spans, ended: &[Ended], bound: Duration) -> Option<Instant> {
    let acknowledged_at = change.acknowledged_at?;
    let from = disturbed.visible_from(acknowledged_at, bound);
    let was_disturbed = disturbed.overlap(acknowledged_at, acknowledged_at);
    let is_lost = |ended: &Ended| was_disturbed && ended.process == change.gateway && ended.at < from;
    (!ended.iter().any(is_lost)).then_some(from)
}

/// Whether the answer is a state of the pair that was current recently enough.
fn may_answer(lookup: &Lookup, changes: &[Visible<'_>]) -> bool {
    let supersedes = |visible: &Visible<'_>| {
        let own = visible.change.acknowledged_at.filter(|_| visible.change.gateway == lookup.gateway);
        own.or(visible.from).is_some_and(|from| from < lookup.sent_at)
    };
    let first = changes.iter().rposition(supersedes);
    let is_possible = |change: &&Visible<'_>| change.change.sent_at <= lookup.answered_at;
    let initial = first.is_none() && lookup.follow_type == 0;
    let changes = &changes[first.unwrap_or(0)..];
    initial || changes.iter().filter(is_possible).any(|visible| visible.change.follow_type == lookup.follow_type)
}

fn describe(lookup: &Lookup, changes: &[Visible<'_>]) -> String {
    let recent: Vec<_> = changes.iter().filter(|visible| visible.change.sent_at < lookup.answered_at).collect();
    let ago = |at: Instant| lookup.sent_at.saturating_duration_since(at).as_millis();
    let describe = |Visible { change, from }: &&Visible<'_>| {
        let (acknowledged, visible) = (change.acknowledged_at.map(ago), from.map(ago));
        let (state, gateway) = (change.follow_type, change.gateway);
        format!("{state} at {gateway:?}, acknowledged {acknowledged:?} and due {visible:?} ms before")
    };
    let recent: Vec<String> = recent[recent.len().saturating_sub(3)..].iter().map(describe).collect();
    format!("{lookup:?} after {recent:?}")
}

/// Returns the highest number of calls in a window, for windows that overlap `disturbed`, and for the others.
pub(super) fn peaks(calls: &[Instant], window: Duration, disturbed: &Spans) -> (usize, usize) {
    let mut peaks = (0, 0);
    for (at, first) in calls.iter().enumerate() {
        let count = calls[at..].partition_point(|call| *call < *first + window);
        let peak = if disturbed.overlap(*first, *first + window) { &mut peaks.0 } else { &mut peaks.1 };
        *peak = count.max(*peak);
    }
    peaks
}

mod tests {
    use super::*;

    #[test]
    fn checker_finds_stale_answers_and_accepts_fresh_ones() {
        let start = crate::support::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let gateway = |gateway| Process { gateway, restarts: 0 };
        let change = |follow_type, sent: u64, acknowledged: Option<u64>| Change {
            pair: (0, 0),
            follow_type,
            sent_at: at(sent),
            acknowledged_at: acknowledged.map(at),
            gateway: gateway(0),
        };
        let changes = vec![change(2, 1000, Some(1100)), change(0, 5000, None), change(2, 9000, Some(9100))];
        let bound = Duration::from_millis(500);
        // One disturbance continues the other one.
        let disturbed = Spans(vec![(at(9300), at(9900)), (at(9900), at(12_000)), (at(20_000), at(21_000))]);
        let stale = |by: usize, follow_type, sent: u64| {
            let lookup = Lookup {
                pair: (0, 0),
                follow_type,
                sent_at: at(sent),
                answered_at: at(sent + 1),
                gateway: gateway(by),
            };
            let history = History { changes: changes.clone(), lookups: vec![lookup] };
            !history.stale_answers(&disturbed, &[], bound).is_empty()
        };
        for (by, follow_type, sent, expected) in [
            (1, 0, 500, false),
            (1, 2, 500, true),
            (1, 2, 1050, false),
            (0, 0, 1050, false),
            (0, 0, 1101, true),
            (1, 0, 1550, false),
            (1, 0, 1700, true),
            (1, 2, 1700, false),
            // The change at 5 s was not acknowledged, so it may have happened or not.
            (0, 2, 6000, false),
            (0, 0, 6000, false),
            (1, 0, 9700, false),
            (1, 0, 12_000, false),
            (1, 0, 12_001, true),
            (1, 2, 12_001, false),
            (0, 0, 9700, true),
            (1, 0, 20_500, true),
        ] {
            assert_eq!(stale(by, follow_type, sent), expected, "{follow_type} by {by} at {sent}");
        }
    }

    #[test]
    fn invalidation_of_a_gateway_that_ended_while_disconnected_may_be_lost() {
        let start = crate::support::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let process = |gateway| Process { gateway, restarts: 0 };
        let disturbed = Spans(vec![(at(1000), at(4000))]);
        let is_stale = |acknowledged: u64, ended: Ended| {
            let (pair, follow_type, gateway) = ((0, 0), 2, process(0));
            let (sent_at, acknowledged_at) = (at(acknowledged - 10), Some(at(acknowledged)));
            let change = Change { pair, follow_type, sent_at, acknowledged_at, gateway };
            let (sent_at, answered_at, gateway) = (at(8000), at(8001), process(1));
            let lookup = Lookup { pair, follow_type: 0, sent_at, answered_at, gateway };
            let history = History { changes: vec![change], lookups: vec![lookup] };
            !history.stale_answers(&disturbed, &[ended], Duration::from_millis(500)).is_empty()
        };
        assert!(!is_stale(2000, Ended { process: process(0), at: at(3000) }));
        assert!(is_stale(2000, Ended { process: process(0), at: at(4500) }), "it had reconnected");
        assert!(is_stale(2000, Ended { process: process(2), at: at(3000) }), "another one ended");
        assert!(is_stale(900, Ended { process: process(0), at: at(1100) }), "it was connected");
    }

    #[test]
    fn peaks_are_counted_apart() {
        let start = crate::support::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let calls: Vec<_> = [0, 100, 200, 5000, 5100].into_iter().map(at).collect();
        let disturbed = Spans(vec![(at(4900), at(5000))]);
        assert_eq!(peaks(&calls, Duration::from_secs(1), &disturbed), (2, 3));
    }
}
