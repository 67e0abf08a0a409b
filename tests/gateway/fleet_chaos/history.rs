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

/// Spans in which something was disturbed.
#[derive(Debug, Default)]
pub(super) struct Spans(pub(super) Vec<(Instant, Instant)>);

impl Spans {
    pub(super) fn overlap(&self, from: Instant, to: Instant) -> bool {
        self.0.iter().any(|(begin, end)| *begin <= to && *end >= from)
    }
}

/// All operations of a run.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) changes: Vec<Change>,
    pub(super) lookups: Vec<Lookup>,
}

/// How late another replica may see an acknowledged change.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// While all replicas are connected.
    pub(super) connected: Duration,
    /// While one is not.
    pub(super) disturbed: Duration,
}

impl History {
    /// Returns a description of each lookup with an answer from before an acknowledged change. The replica that
    /// acknowledged a change may not answer from before it at all, another one only within its bound.
    pub(super) fn stale_answers(&self, disturbed: &Spans, bounds: Bounds) -> Vec<String> {
        let mut changes: HashMap<PairId, Vec<&Change>> = HashMap::new();
        for change in &self.changes {
            changes.entry(change.pair).or_default().push(change);
        }
        changes.values_mut().for_each(|changes| changes.sort_by_key(|change| change.sent_at));
        let is_stale = |lookup: &&Lookup| {
            let changes = changes.get(&lookup.pair).map_or(&[][..], Vec::as_slice);
            !may_answer(lookup, changes, disturbed, bounds)
        };
        let describe = |lookup: &Lookup| {
            let all = changes.get(&lookup.pair).map_or(&[][..], Vec::as_slice);
            let recent: Vec<_> = all.iter().filter(|change| change.sent_at < lookup.answered_at).collect();
            let recent = &recent[recent.len().saturating_sub(3)..];
            let ago = |at: Instant| lookup.sent_at.saturating_duration_since(at).as_millis();
            let recent: Vec<String> = recent
                .iter()
                .map(|change| {
                    let acknowledged = change.acknowledged_at.map(ago);
                    format!("{} at {:?}, acknowledged {acknowledged:?} ms before", change.follow_type, change.gateway)
                })
                .collect();
            format!("{lookup:?} after {recent:?}")
        };
        self.lookups.iter().filter(is_stale).map(describe).collect()
    }
}

/// Whether the answer is a state of the pair that was current recently enough.
fn may_answer(lookup: &Lookup, changes: &[&Change], disturbed: &Spans, bounds: Bounds) -> bool {
    let supersedes = |change: &&Change| {
        let Some(acknowledged_at) = change.acknowledged_at else { return false };
        let bound = match change.gateway == lookup.gateway {
            true => Duration::ZERO,
            false if disturbed.overlap(acknowledged_at, lookup.sent_at) => bounds.disturbed,
            false => bounds.connected,
        };
        acknowledged_at + bound < lookup.sent_at
    };
    let first = changes.iter().rposition(supersedes);
    let is_possible = |change: &&&Change| change.sent_at <= lookup.answered_at;
    let initial = first.is_none() && lookup.follow_type == 0;
    let changes = &changes[first.unwrap_or(0)..];
    initial || changes.iter().filter(is_possible).any(|change| change.follow_type == lookup.follow_type)
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
        let bounds = Bounds { connected: Duration::from_millis(500), disturbed: Duration::from_millis(3000) };
        let disturbed = Spans(vec![(at(9200), at(9300))]);
        let stale = |by: usize, follow_type, sent: u64| {
            let lookup = Lookup {
                pair: (0, 0),
                follow_type,
                sent_at: at(sent),
                answered_at: at(sent + 1),
                gateway: gateway(by),
            };
            let history = History { changes: changes.clone(), lookups: vec![lookup] };
            !history.stale_answers(&disturbed, bounds).is_empty()
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
            (1, 0, 12_200, true),
            (0, 0, 9700, true),
        ] {
            assert_eq!(stale(by, follow_type, sent), expected, "{follow_type} by {by} at {sent}");
        }
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
