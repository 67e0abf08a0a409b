//! Counters of requests, calls, and pairs, and their sums.
//!
//! Every worker thread has its own [`Recorder`], so counting adds to memory that no other thread writes. It needs no
//! lock and no text, and it allocates only for the first call of a command. A reader adds up all recorders. Labels are
//! indexes of closed sets ([`labels`]) until they are printed.

pub(crate) mod callers;
pub(crate) mod forwards;
pub(crate) mod histogram;
pub(crate) mod labels;
pub(crate) mod text;

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use self::callers::{CallerRecorder, CallerTotals};
use self::histogram::{Histogram, HistogramSnapshot};
use self::labels::{CallLabel, CommandLabel, Outcome};
use crate::domain::caller::QueueKey;
use crate::domain::pairs::directives::Source;
use crate::domain::relation::{KINDS, RelationKind};

/// Sources of pairs: the values of the label `source`, in the order of [`PairCounts`].
pub(crate) const SOURCES: [&str; 5] = ["hit", "joined", "fetched", "flipped", "stale"];

/// Numbers of distinct pairs by source. Flipped pairs are a part of the fetched ones.
pub(crate) type PairCounts = [u64; SOURCES.len()];

/// Where the response of a cached read came from: the label `source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ReadSource {
    /// The cache, within the ttl.
    Hit,
    /// A call that an equal request had started.
    Joined,
    /// A call that this request started.
    Fetched,
    /// The cache, past the ttl.
    Stale,
    /// A call outside the cache: the request must not be cached, or its caller does not want it to be.
    Bypass,
}

impl ReadSource {
    /// All of them, in the order of [`ReadCounts`].
    pub(crate) const ALL: [Self; 5] = [Self::Hit, Self::Joined, Self::Fetched, Self::Stale, Self::Bypass];

    /// Returns the source of a response.
    pub(crate) fn of(source: Source) -> Self {
        match source {
            Source::Hit => Self::Hit,
            Source::Joined => Self::Joined,
            Source::Stale => Self::Stale,
            Source::Fetched | Source::Flipped | Source::Missing => Self::Fetched,
        }
    }

    /// Returns the value of the label.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Joined => "joined",
            Self::Fetched => "fetched",
            Self::Stale => "stale",
            Self::Bypass => "bypass",
        }
    }
}

/// Numbers of responses by [`ReadSource`].
pub(crate) type ReadCounts = [u64; ReadSource::ALL.len()];

/// The counters of a gateway.
#[derive(Debug)]
pub(crate) struct Metrics {
    recorders: Mutex<Vec<Arc<Recorder>>>,
    /// Number of recorders that threads have taken.
    taken: AtomicUsize,
    apps: usize,
}

impl Metrics {
    /// Creates the counters of `apps` apps, which are identified by their index.
    pub(crate) fn new(apps: usize) -> Self {
        Self { recorders: Mutex::default(), taken: AtomicUsize::new(0), apps }
    }

    /// Returns the counters after a reload. They continue the present counts: `old_indexes` has the previous index of
    /// each app, or `None` for a new one. Counts of a thread that still uses the old counters appear in both.
    pub(crate) fn reloaded(&self, old_indexes: &[Option<usize>]) -> Self {
        let continue_from = |recorder: &Arc<Recorder>| {
            let app = |index: &Option<usize>| index.map_or_else(Arc::default, |app| Arc::clone(&recorder.apps[app]));
            let no_app = recorder.apps.last().expect("the last recorder is the one for no app");
            Arc::new(Recorder { apps: old_indexes.iter().map(app).chain([Arc::clone(no_app)]).collect() })
        };
        let recorders = self.recorders.lock().iter().map(continue_from).collect();
        Self { recorders: Mutex::new(recorders), taken: AtomicUsize::new(0), apps: old_indexes.len() }
    }

    /// Forgets the counters of callers that are not among `callers`.
    pub(crate) fn retain_callers(&self, callers: &HashSet<QueueKey>) {
        for app in self.recorders.lock().iter().flat_map(|recorder| &recorder.apps) {
            app.callers.retain(|caller| callers.contains(&caller));
        }
    }

    /// Returns the recorder of one more thread.
    pub(crate) fn recorder(&self) -> Arc<Recorder> {
        let index = self.taken.fetch_add(1, Ordering::Relaxed);
        let mut recorders = self.recorders.lock();
        if let Some(recorder) = recorders.get(index) {
            return Arc::clone(recorder);
        }
        let recorder = Arc::new(Recorder::new(self.apps));
        recorders.push(Arc::clone(&recorder));
        recorder
    }

    /// Returns the sums over all threads: one entry for each app in the order of their indexes, and a last one for
    /// requests without an app.
    pub(crate) fn totals(&self) -> Vec<AppTotals> {
        let mut totals: Vec<AppTotals> = (0..=self.apps).map(|_| AppTotals::default()).collect();
        for recorder in self.recorders.lock().iter() {
            for (totals, app) in totals.iter_mut().zip(&recorder.apps) {
                app.add_to(totals);
            }
        }
        totals
    }
}

impl Metrics {
    /// Returns the sums over all threads in the order of [`Metrics::totals`], for callers with at least one request or
    /// call.
    pub(crate) fn caller_totals(&self) -> Vec<FxHashMap<QueueKey, CallerTotals>> {
        let mut totals: Vec<FxHashMap<_, _>> = (0..=self.apps).map(|_| FxHashMap::default()).collect();
        for recorder in self.recorders.lock().iter() {
            for (totals, app) in totals.iter_mut().zip(&recorder.apps) {
                app.callers.add_to(totals);
            }
        }
        totals
    }
}

/// The counters of one thread. Other threads may add to them too, but more slowly.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// By index of the app. The last one is for requests without an app.
    apps: Box<[Arc<AppRecorder>]>,
}

/// One thread's counters of one app, or of requests without an app.
#[derive(Debug)]
pub(crate) struct AppRecorder {
    /// By [`CommandLabel`]; allocated by the first call of a command.
    commands: Box<[OnceLock<Box<CommandRecorder>>]>,
    /// By the index of the relation.
    pairs: [[AtomicU64; SOURCES.len()]; KINDS.len()],
    call_time: Histogram,
    quota_wait: Histogram,
    /// By caller.
    pub(crate) callers: CallerRecorder,
}

#[derive(Debug)]
struct CommandRecorder {
    /// By [`Outcome`].
    requests: [AtomicU64; Outcome::COUNT],
    request_time: Histogram,
    /// By [`ReadSource`].
    reads: [AtomicU64; ReadSource::ALL.len()],
    /// By [`CallLabel`].
    calls: Box<[AtomicU64]>,
}

impl Default for AppRecorder {
    fn default() -> Self {
        Self {
            commands: (0..CommandLabel::count()).map(|_| OnceLock::new()).collect(),
            pairs: Default::default(),
            call_time: Histogram::default(),
            quota_wait: Histogram::default(),
            callers: CallerRecorder::default(),
        }
    }
}

impl Recorder {
    fn new(apps: usize) -> Self {
        Self { apps: (0..=apps).map(|_| Arc::default()).collect() }
    }

    /// Returns the counters of each app, in the order of the configuration.
    pub(crate) fn apps(&self) -> &[Arc<AppRecorder>] {
        &self.apps[..self.apps.len() - 1]
    }

    /// Returns the counters of requests without an app.
    pub(crate) fn no_app(&self) -> &Arc<AppRecorder> {
        self.apps.last().expect("there is always one")
    }
}

impl AppRecorder {
    /// Counts an answered request.
    pub(crate) fn request(&self, command: CommandLabel, outcome: Outcome, took: Duration) {
        let row = self.command(command);
        row.requests[outcome.index()].fetch_add(1, Ordering::Relaxed);
        row.request_time.add(took);
    }

    /// Counts the pairs of an answered check.
    pub(crate) fn pairs(&self, kind: &RelationKind, pairs: &PairCounts) {
        for (sum, count) in self.pairs[kind.index].iter().zip(pairs) {
            if *count > 0 {
                sum.fetch_add(*count, Ordering::Relaxed);
            }
        }
    }

    /// Counts the response of a cached read.
    pub(crate) fn read(&self, command: CommandLabel, source: ReadSource) {
        self.command(command).reads[source as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a call to Chat that has ended. `took` does not include the wait for quota.
    pub(crate) fn call(&self, command: CommandLabel, result: CallLabel, took: Duration) {
        self.command(command).calls[result.index()].fetch_add(1, Ordering::Relaxed);
        self.call_time.add(took);
    }

    /// Counts the time that a call waited for quota, whether it got a permit or not.
    pub(crate) fn waited(&self, waited: Duration) {
        self.quota_wait.add(waited);
    }

    fn command(&self, label: CommandLabel) -> &CommandRecorder {
        self.commands[label.index()].get_or_init(|| {
            Box::new(CommandRecorder {
                requests: [const { AtomicU64::new(0) }; Outcome::COUNT],
                request_time: Histogram::default(),
                reads: Default::default(),
                calls: (0..CallLabel::count()).map(|_| AtomicU64::new(0)).collect(),
            })
        })
    }

    fn add_to(&self, totals: &mut AppTotals) {
        for label in CommandLabel::all() {
            let Some(row) = self.commands[label.index()].get() else { continue };
            let at = totals.commands.partition_point(|(other, _)| *other < label);
            if totals.commands.get(at).is_none_or(|(other, _)| *other != label) {
                totals.commands.insert(at, (label, CommandTotals::default()));
            }
            let command = &mut totals.commands[at].1;
            add_all(&mut command.requests, &row.requests);
            add_all(&mut command.reads, &row.reads);
            command.calls.resize(row.calls.len(), 0);
            add_all(&mut command.calls, &row.calls);
            row.request_time.add_to(&mut command.request_time);
        }
        for (sums, counts) in totals.relations.iter_mut().zip(&self.pairs) {
            add_all(sums, counts);
        }
        self.call_time.add_to(&mut totals.call_time);
        self.quota_wait.add_to(&mut totals.quota_wait);
    }
}

fn add_all(sums: &mut [u64], counts: &[AtomicU64]) {
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum += count.load(Ordering::Relaxed);
    }
}

/// The counters of an app, summed over all threads.
#[derive(Debug, Clone, Default)]
pub(crate) struct AppTotals {
    /// Commands with at least one request or call, sorted by label.
    pub commands: Vec<(CommandLabel, CommandTotals)>,
    /// Pairs by source, by the index of the relation.
    pub relations: [PairCounts; KINDS.len()],
    /// Durations of calls to Chat.
    pub call_time: HistogramSnapshot,
    /// Times that calls waited for quota.
    pub quota_wait: HistogramSnapshot,
}

impl AppTotals {
    /// Returns the pairs of all relations by source.
    pub(crate) fn pairs(&self) -> PairCounts {
        std::array::from_fn(|source| self.relations.iter().map(|counts| counts[source]).sum())
    }
}

/// The counters of a command, summed over all threads.
#[derive(Debug, Clone, Default)]
pub(crate) struct CommandTotals {
    /// Requests by [`Outcome`].
    pub requests: [u64; Outcome::COUNT],
    /// Durations of requests.
    pub request_time: HistogramSnapshot,
    /// Responses of a cached read by [`ReadSource`].
    pub reads: ReadCounts,
    /// Calls by [`CallLabel`].
    pub calls: Vec<u64>,
}

impl CommandTotals {
    /// Returns the number of calls to Chat with any result.
    pub(crate) fn call_count(&self) -> u64 {
        self.calls.iter().sum()
    }
}

/// The destination of an app's calls. Its number is the value of `chatgate_upstream_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum UpstreamState {
    /// Calls go to the primary domain.
    Primary = 0,
    /// Calls go to the standby domain, because the primary domain is unreachable.
    Standby = 1,
    /// chatgate makes no calls, because Chat rejects the app with an error that a retry cannot fix.
    Parked = 2,
}

impl UpstreamState {
    /// Returns the state as a word for /status.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            UpstreamState::Primary => "primary",
            UpstreamState::Standby => "standby",
            UpstreamState::Parked => "parked",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chat::command::{FOLLOW_ADD, FOLLOW_CHECK};
    use crate::domain::relation::{BLACKLIST, FOLLOW};

    #[test]
    fn totals_sum_all_threads_by_app_and_command() {
        let metrics = Metrics::new(2);
        let (one, two) = (metrics.recorder(), metrics.recorder());
        let (check, add) = (CommandLabel::of(FOLLOW_CHECK), CommandLabel::of(FOLLOW_ADD));
        let took = Duration::from_millis(1);
        one.apps()[1].request(check, Outcome::OK, took);
        two.apps()[1].request(check, Outcome::OK, took);
        two.apps()[1].request(add, Outcome::FAILED, took);
        one.no_app().request(CommandLabel::other(), Outcome::OK, took);
        one.apps()[1].pairs(&FOLLOW, &[3, 0, 2, 1, 0]);
        two.apps()[1].pairs(&FOLLOW, &[1, 0, 0, 0, 0]);
        two.apps()[1].pairs(&BLACKLIST, &[0, 1, 0, 0, 0]);
        two.apps()[1].call(check, CallLabel::answered(60007), took);
        two.apps()[1].waited(took);
        let totals = metrics.totals();
        assert!(totals[0].commands.is_empty());
        let app = &totals[1];
        let labels: Vec<CommandLabel> = app.commands.iter().map(|(label, _)| *label).collect();
        assert!(labels.len() == 2 && labels.is_sorted() && labels.contains(&check));
        let totals_of = |label| &app.commands.iter().find(|(other, _)| *other == label).expect("called").1;
        assert_eq!(totals_of(check).requests[Outcome::OK.index()], 2);
        assert_eq!(totals_of(add).requests[Outcome::FAILED.index()], 1);
        assert_eq!((totals_of(check).call_count(), totals_of(add).call_count()), (1, 0));
        assert_eq!(app.relations, [[4, 0, 2, 1, 0], [0; 5], [0, 1, 0, 0, 0]]);
        assert_eq!((app.pairs(), app.call_time.count(), app.quota_wait.count()), ([4, 1, 2, 1, 0], 1, 1));
        assert_eq!(totals[2].commands[0].0, CommandLabel::other());
    }

    #[test]
    fn reloaded_metrics_continue_the_counts_of_each_app() {
        let metrics = Metrics::new(2);
        let old = metrics.recorder();
        let (check, took) = (CommandLabel::of(FOLLOW_CHECK), Duration::from_millis(1));
        old.apps()[1].request(check, Outcome::OK, took);
        old.no_app().request(check, Outcome::OK, took);
        let next = metrics.reloaded(&[Some(1), None]);
        let new = next.recorder();
        new.apps()[0].request(check, Outcome::OK, took);
        old.apps()[1].request(check, Outcome::OK, took);
        let count =
            |app: usize| next.totals()[app].commands.iter().map(|(_, row)| row.requests[Outcome::OK.index()]).sum();
        let counts: [u64; 3] = [count(0), count(1), count(2)];
        assert_eq!(counts, [3, 0, 1]);
    }
}
