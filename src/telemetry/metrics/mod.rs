//! What is counted, and how it is added up.
//!
//! Every worker thread has a [`Recorder`] of its own, so that counting is an addition to memory nobody else
//! writes: no lock, no text, and an allocation only when a command is called for the first time. Whoever
//! reads adds up all recorders. Labels are numbers of closed sets ([`labels`]) until they are printed.

pub mod histogram;
pub mod labels;
pub mod process;
pub mod text;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use self::histogram::{Histogram, HistogramSnapshot};
use self::labels::{CallResult, CommandLabel, Outcome};

/// Where pairs of an answer came from: the values of the label `source`, in the order of [`PairCounts`].
pub const SOURCES: [&str; 5] = ["hit", "joined", "fetched", "flipped", "stale"];

/// Distinct pairs by source; flipped ones are a part of the fetched.
pub type PairCounts = [u64; SOURCES.len()];

/// The counters of a gateway.
#[derive(Debug)]
pub struct Metrics {
    recorders: Mutex<Vec<Arc<Recorder>>>,
    /// So many of them have been handed out.
    handed_out: AtomicUsize,
    apps: usize,
}

impl Metrics {
    /// For so many apps, which are known by their number.
    pub fn new(apps: usize) -> Self {
        Self { recorders: Mutex::default(), handed_out: AtomicUsize::new(0), apps }
    }

    /// Counters that go on from these: `before` says which app each one was, if it was there. Who still
    /// counts with the old ones counts into both.
    pub fn successor(&self, before: &[Option<usize>]) -> Self {
        let next = |recorder: &Arc<Recorder>| {
            let known = |app: &Option<usize>| app.map_or_else(Arc::default, |app| Arc::clone(&recorder.apps[app]));
            let no_app = recorder.apps.last().expect("there is always one for no app");
            Arc::new(Recorder { apps: before.iter().map(known).chain([Arc::clone(no_app)]).collect() })
        };
        let recorders = self.recorders().iter().map(next).collect();
        Self { recorders: Mutex::new(recorders), handed_out: AtomicUsize::new(0), apps: before.len() }
    }

    /// The counters of one more thread.
    pub fn recorder(&self) -> Arc<Recorder> {
        let number = self.handed_out.fetch_add(1, Ordering::Relaxed);
        let mut recorders = self.recorders();
        if let Some(recorder) = recorders.get(number) {
            return Arc::clone(recorder);
        }
        let recorder = Arc::new(Recorder::new(self.apps));
        recorders.push(Arc::clone(&recorder));
        recorder
    }

    /// Everything, added up: each app's in the order of their numbers, and last what belongs to no app.
    pub fn totals(&self) -> Vec<AppTotals> {
        let mut totals: Vec<AppTotals> = (0..=self.apps).map(|_| AppTotals::default()).collect();
        for recorder in self.recorders().iter() {
            for (totals, app) in totals.iter_mut().zip(&recorder.apps) {
                app.add_to(totals);
            }
        }
        totals
    }

    fn recorders(&self) -> MutexGuard<'_, Vec<Arc<Recorder>>> {
        self.recorders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thread's counters. Other threads may add too, which only costs time.
#[derive(Debug)]
pub struct Recorder {
    /// The last one is for requests that came to no app.
    apps: Box<[Arc<AppRecorder>]>,
}

/// One thread's counters of one app, or of requests that reached no app.
#[derive(Debug)]
pub struct AppRecorder {
    /// By [`CommandLabel`]; made when a command is first called.
    commands: Box<[OnceLock<Box<CommandRecorder>>]>,
    pairs: [AtomicU64; SOURCES.len()],
    call_time: Histogram,
    quota_wait: Histogram,
}

#[derive(Debug)]
struct CommandRecorder {
    /// By [`Outcome`].
    requests: [AtomicU64; Outcome::COUNT],
    request_time: Histogram,
    /// By [`CallResult`].
    calls: Box<[AtomicU64]>,
}

impl Default for AppRecorder {
    fn default() -> Self {
        Self {
            commands: (0..CommandLabel::count()).map(|_| OnceLock::new()).collect(),
            pairs: Default::default(),
            call_time: Histogram::default(),
            quota_wait: Histogram::default(),
        }
    }
}

impl Recorder {
    fn new(apps: usize) -> Self {
        Self { apps: (0..=apps).map(|_| Arc::default()).collect() }
    }

    /// Returns the counters of each app, in the order of the configuration.
    pub fn apps(&self) -> &[Arc<AppRecorder>] {
        &self.apps[..self.apps.len() - 1]
    }

    /// Returns the counters of requests that reached no app.
    pub fn no_app(&self) -> &Arc<AppRecorder> {
        self.apps.last().expect("there is always one")
    }
}

impl AppRecorder {
    /// Counts a request that has ended.
    pub fn request(&self, command: CommandLabel, outcome: Outcome, took: Duration) {
        let row = self.command(command);
        row.requests[outcome.index()].fetch_add(1, Ordering::Relaxed);
        row.request_time.add(took);
    }

    /// Counts the pairs that answered a `follow_check`.
    pub fn pairs(&self, pairs: &PairCounts) {
        for (sum, count) in self.pairs.iter().zip(pairs) {
            if *count > 0 {
                sum.fetch_add(*count, Ordering::Relaxed);
            }
        }
    }

    /// Counts a call to Chat that has ended. `took` is its own time, without waiting.
    pub fn call(&self, command: CommandLabel, result: CallResult, took: Duration) {
        self.command(command).calls[result.index()].fetch_add(1, Ordering::Relaxed);
        self.call_time.add(took);
    }

    /// Records how long a call waited for its permit, whether it got one or not.
    pub fn waited(&self, waited: Duration) {
        self.quota_wait.add(waited);
    }

    fn command(&self, label: CommandLabel) -> &CommandRecorder {
        self.commands[label.index()].get_or_init(|| {
            Box::new(CommandRecorder {
                requests: [const { AtomicU64::new(0) }; Outcome::COUNT],
                request_time: Histogram::default(),
                calls: (0..CallResult::count()).map(|_| AtomicU64::new(0)).collect(),
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
            command.calls.resize(row.calls.len(), 0);
            add_all(&mut command.calls, &row.calls);
            row.request_time.add_to(&mut command.request_time);
        }
        add_all(&mut totals.pairs, &self.pairs);
        self.call_time.add_to(&mut totals.call_time);
        self.quota_wait.add_to(&mut totals.quota_wait);
    }
}

fn add_all(sums: &mut [u64], counts: &[AtomicU64]) {
    for (sum, count) in sums.iter_mut().zip(counts) {
        *sum += count.load(Ordering::Relaxed);
    }
}

/// An app's counters, added up.
#[derive(Debug, Clone, Default)]
pub struct AppTotals {
    /// The commands that were called, in order.
    pub commands: Vec<(CommandLabel, CommandTotals)>,
    /// Pairs by source.
    pub pairs: PairCounts,
    /// How long calls to Chat took.
    pub call_time: HistogramSnapshot,
    /// How long calls waited for their turn.
    pub quota_wait: HistogramSnapshot,
}

/// A command's counters, added up.
#[derive(Debug, Clone, Default)]
pub struct CommandTotals {
    /// By [`Outcome`].
    pub requests: [u64; Outcome::COUNT],
    /// How long requests took.
    pub request_time: HistogramSnapshot,
    /// By [`CallResult`].
    pub calls: Vec<u64>,
}

impl CommandTotals {
    /// Calls to Chat, whatever became of them.
    pub fn call_count(&self) -> u64 {
        self.calls.iter().sum()
    }
}

/// Where the calls of an app go; its number is the value of `chatgate_upstream_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum UpstreamState {
    /// To its own domain, as they should.
    Primary = 0,
    /// To the second one, because the first cannot be reached.
    Standby = 1,
    /// Nowhere, because Chat refuses the app for a reason that asking again does not mend.
    Parked = 2,
}

impl UpstreamState {
    /// In one word.
    pub const fn word(self) -> &'static str {
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

    #[test]
    fn what_threads_count_comes_together_by_app_and_command() {
        let metrics = Metrics::new(2);
        let (one, two) = (metrics.recorder(), metrics.recorder());
        let (check, add) = (CommandLabel::of(FOLLOW_CHECK), CommandLabel::of(FOLLOW_ADD));
        let took = Duration::from_millis(1);
        one.apps()[1].request(check, Outcome::OK, took);
        two.apps()[1].request(check, Outcome::OK, took);
        two.apps()[1].request(add, Outcome::FAILED, took);
        one.no_app().request(CommandLabel::other(), Outcome::OK, took);
        one.apps()[1].pairs(&[3, 0, 2, 1, 0]);
        two.apps()[1].pairs(&[1, 0, 0, 0, 0]);
        two.apps()[1].call(check, CallResult::answered(60007), took);
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
        assert_eq!((app.pairs, app.call_time.count(), app.quota_wait.count()), ([4, 0, 2, 1, 0], 1, 1));
        assert_eq!(totals[2].commands[0].0, CommandLabel::other());
    }

    #[test]
    fn counting_goes_on_when_apps_change() {
        let metrics = Metrics::new(2);
        let old = metrics.recorder();
        let (check, took) = (CommandLabel::of(FOLLOW_CHECK), Duration::from_millis(1));
        old.apps()[1].request(check, Outcome::OK, took);
        old.no_app().request(check, Outcome::OK, took);
        let next = metrics.successor(&[Some(1), None]);
        let new = next.recorder();
        new.apps()[0].request(check, Outcome::OK, took);
        old.apps()[1].request(check, Outcome::OK, took);
        let count =
            |app: usize| next.totals()[app].commands.iter().map(|(_, row)| row.requests[Outcome::OK.index()]).sum();
        let counts: [u64; 3] = [count(0), count(1), count(2)];
        assert_eq!(counts, [3, 0, 1]);
    }
}
