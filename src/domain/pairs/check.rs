//! One check of pairs, from the cache to a complete response. [`known`](super::known) answers what needs no more than
//! the cache.
//!
//! A [`CheckSession`] decides and does nothing else: no lock, no clock, no waiting. The gateway
//! (`src/gateway/pairs/check.rs`) and the model (`tests/model`) drive the same session:
//!
//! 1. [`CheckSession::scan`] fills slots from the cache.
//! 2. [`CheckSession::next`] drops every answer that a write has made void, and says what comes next.
//! 3. For a [`CheckStep::Lookup`] the driver locks the scheduler, scans once more, enqueues
//!    [`CheckSession::wanted`], waits, and reports the end with one of the `on_` functions.
//! 4. Steps 2 and 3 repeat until every pair has an answer that may be used *now*, or the check fails.

use std::time::Duration;

use super::cache::{CachedPair, PairCache};
use super::dedup::dedup;
use super::directives::{CacheDirectives, Freshness, PairSources, Source};
use super::fence::Fence;
use super::item::{Item, MissingReason};
use super::lookups::{JoinOptions, PairResult, Wanted};
use super::pair::{Pair, Sides};
use crate::domain::caller::CallerQueue;
use crate::domain::policy::stale_gate::StaleGate;
use crate::domain::tick::Tick;

/// What a check reads.
#[derive(Clone, Copy)]
pub(crate) struct PairView<'a> {
    /// The pairs that are cached.
    pub cache: &'a PairCache,
    /// The marks of writes.
    pub fence: &'a Fence,
    /// Whether lookups have failed lately.
    pub stale_gate: &'a StaleGate,
}

/// How a check may be answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CheckOptions {
    /// The caller's `Cache-Control`.
    pub directives: CacheDirectives,
    /// `cache.ttl`
    pub ttl: Duration,
    /// `cache.stale_if_error`: how long past its ttl a pair may answer while Chat fails.
    pub stale_if_error: Duration,
    /// `cache.stale_while_revalidate`: how long past its ttl a pair answers while it is looked up again.
    pub stale_while_revalidate: Duration,
    /// Whether pairs that are missing for lack of time or quota are answered as missing (`Chatgate-Partial`).
    pub partial: bool,
    /// What the request asks of each pair.
    pub sides: Sides,
}

/// How a lookup failed, as far as it matters for the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LookupFailure {
    /// Chat, the connection, or the quota failed, so that a stale answer is better than none.
    pub allows_stale: bool,
    /// Only time or quota has run out, so that a partial answer may be given.
    pub missing: Option<MissingReason>,
}

/// What the driver does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CheckStep {
    /// Every pair has its answer: respond.
    Respond,
    /// Look the missing pairs up.
    Lookup,
    /// Pairs are missing, and the caller wants an answer from the cache only.
    NotCached,
    /// Return the failure that was reported last.
    Fail,
}

/// The answer about one pair.
#[derive(Debug, Clone)]
pub(crate) struct PairAnswer {
    /// The item of the response.
    pub item: Item,
    /// When the lookup behind it was sent.
    pub sent: Tick,
    /// Where it came from.
    pub source: Source,
}

/// One distinct pair of a request.
#[derive(Debug, Clone)]
pub(super) struct PairSlot {
    pub(super) pair: Pair,
    /// The position of its first account in the request.
    pub(super) account: usize,
    pub(super) answer: Option<PairAnswer>,
}

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct CheckSession {
    options: CheckOptions,
    pub(super) slots: Vec<PairSlot>,
    /// The slot of each account; empty if every account has its own.
    slot_of: Vec<u32>,
    /// How many slots have no answer.
    missing: usize,
    /// The version of the fence under which it admitted every answer; `None` if answers were not judged yet.
    pub(super) admitted_under: Option<u64>,
    /// The moment of the latest step, to which ages refer.
    now: Tick,
    /// Slots of the lookup in progress.
    pub(super) looking_up: Vec<usize>,
    /// The caller's own quota has granted the next lookup.
    caller_quota_granted: bool,
    /// The failure that was reported last.
    failure: Option<LookupFailure>,
    /// The first scan found a pair that the caller's directives exclude.
    rejected: bool,
    /// Every pair that the first scan missed was cached, past its ttl.
    expired: bool,
    served_stale: bool,
    /// Whether a scan answered a pair past its ttl that may be refreshed.
    has_due: bool,
}

impl CheckSession {
    /// Starts a check of `pairs`, given in the order of the request's accounts.
    pub(crate) fn new(pairs: impl Iterator<Item = Pair>, options: CheckOptions) -> Self {
        let slot = |(account, pair)| PairSlot { pair, account, answer: None };
        let mut slots: Vec<PairSlot> = pairs.enumerate().map(slot).collect();
        let slot_of = dedup(&mut slots, |slot| slot.pair);
        Self {
            options,
            missing: slots.len(),
            slots,
            slot_of,
            admitted_under: None,
            now: Tick::NEVER,
            looking_up: Vec::new(),
            caller_quota_granted: false,
            failure: None,
            rejected: false,
            expired: false,
            served_stale: false,
            has_due: false,
        }
    }

    /// Takes from the cache what the caller's directives allow.
    pub(crate) fn scan(&mut self, view: PairView<'_>, now: Tick) {
        let CheckOptions { directives, ttl, stale_while_revalidate, .. } = self.options;
        let is_first = self.now == Tick::NEVER;
        if self.missing == self.slots.len() {
            self.admitted_under = Some(view.fence.version());
        }
        let (mut found, mut stale, mut rejected, mut expired) = (0, 0, false, 0);
        for slot in self.slots.iter_mut().filter(|slot| slot.answer.is_none()) {
            let cached = view.cache.get(slot.pair.key());
            let Some(cached) = cached.filter(|cached| view.fence.admits(slot.pair, cached.sent)) else { continue };
            let source = match directives.freshness(now.since(cached.sent), ttl, stale_while_revalidate) {
                Freshness::Hit => Source::Hit,
                Freshness::Stale => {
                    stale += 1;
                    Source::Stale
                }
                Freshness::Rejected => {
                    rejected = true;
                    continue;
                }
                Freshness::Expired => {
                    expired += 1;
                    continue;
                }
            };
            slot.answer = Some(PairAnswer::cached(slot.pair, cached, source));
            found += 1;
        }
        self.missing -= found;
        self.has_due |=
            stale > 0 && directives.may_refresh() && !directives.revalidated(stale_while_revalidate).is_zero();
        self.now = now;
        if is_first {
            self.rejected = rejected;
            self.expired = expired > 0 && expired == self.missing;
        }
    }

    /// Returns whether pairs may be due: answered past their ttl, and to be refreshed.
    pub(crate) fn has_due(&self) -> bool {
        self.has_due
    }

    /// Returns the pairs to refresh, with the names of their users. Each result of a pair is refreshed once.
    pub(crate) fn take_due<'n>(
        &mut self,
        cache: &PairCache,
        from: &'n str,
        to: impl Fn(usize) -> &'n str,
    ) -> Vec<Wanted<'n>> {
        let CheckOptions { directives, ttl, stale_while_revalidate, .. } = self.options;
        self.has_due = false;
        let age_max = ttl.saturating_add(directives.revalidated(stale_while_revalidate));
        let due = self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let answer = slot.answer.as_ref().filter(|answer| answer.source == Source::Stale)?;
            let is_due = self.now.since(answer.sent) < age_max && cache.begin_refresh(slot.pair.key(), answer.sent);
            is_due.then(|| Wanted { pair: slot.pair, from, to: to(slot.account), slot: index })
        });
        due.collect()
    }

    /// Returns whether the caller takes an answer in which pairs are missing.
    pub(crate) fn takes_partial_answers(&self) -> bool {
        self.options.partial
    }

    /// Returns whether pairs are missing that other replicas may have cached.
    pub(crate) fn wants_shared_cache(&self) -> bool {
        self.missing > 0 && self.options.directives.may_use_cache()
    }

    /// Decides what comes next.
    pub(crate) fn next(&mut self, view: PairView<'_>) -> CheckStep {
        self.drop_void(view.fence);
        if let Some(failure) = self.failure.take() {
            if failure.allows_stale && self.serve_stale(view) {
                return CheckStep::Respond;
            }
            let Some(reason) = failure.missing.filter(|_| self.options.partial) else { return CheckStep::Fail };
            // Calls that have ended meanwhile stored what they found.
            self.scan(view, self.now);
            self.answer_as_missing(reason);
            return CheckStep::Respond;
        }
        if self.missing == 0 {
            return CheckStep::Respond;
        }
        if self.options.directives.only_if_cached {
            return CheckStep::NotCached;
        }
        // While Chat fails, a stale answer is given at once, except to one request from time to time that probes.
        if view.stale_gate.should_serve_stale(self.now) && self.serve_stale(view) {
            return CheckStep::Respond;
        }
        CheckStep::Lookup
    }

    /// Returns the pairs to look up, with the names of their users. The driver holds the scheduler's lock and
    /// has scanned under it: a lookup stores its results under that lock, so a pair that is missing now is neither
    /// cached nor in flight unseen.
    pub(crate) fn wanted<'n>(&mut self, from: &'n str, to: impl Fn(usize) -> &'n str) -> Vec<Wanted<'n>> {
        let missing = self.slots.iter().enumerate().filter(|(_, slot)| slot.answer.is_none());
        let wanted = missing.map(|(index, slot)| Wanted { pair: slot.pair, from, to: to(slot.account), slot: index });
        let wanted: Vec<Wanted<'n>> = wanted.collect();
        self.looking_up.clear();
        self.looking_up.extend(wanted.iter().map(|one| one.slot));
        wanted
    }

    /// Returns how its lookups may be shared with those of others.
    pub(crate) fn join_options(&self, queue: CallerQueue) -> JoinOptions {
        let CheckOptions { directives, sides, .. } = &self.options;
        JoinOptions { queue, join: directives.may_join(), keep: !directives.no_store, sides: *sides }
    }

    /// Returns the positions of the accounts that have no answer.
    pub(crate) fn missing_accounts(&self) -> impl Iterator<Item = (usize, Pair)> {
        self.slots.iter().filter(|slot| slot.answer.is_none()).map(|slot| (slot.account, slot.pair))
    }

    /// Returns whether pairs are missing.
    pub(crate) fn is_complete(&self) -> bool {
        self.missing == 0
    }

    /// Returns whether the caller's own quota has already granted the next lookup.
    pub(crate) fn caller_quota_granted(&self) -> bool {
        self.caller_quota_granted
    }

    /// The caller's own quota has granted the next lookup, after a wait.
    pub(crate) fn on_caller_quota_granted(&mut self, now: Tick) {
        (self.caller_quota_granted, self.now) = (true, now);
    }

    /// A lookup has ended. `joined` says for each wanted pair whether it joined a lookup in flight.
    pub(crate) fn on_results(&mut self, joined: &[bool], results: Vec<(usize, PairResult)>, now: Tick) {
        let mut joined_slot = vec![false; self.slots.len()];
        for (slot, joined) in self.looking_up.drain(..).zip(joined) {
            joined_slot[slot] = *joined;
        }
        for (index, result) in results {
            let slot = &mut self.slots[index];
            let source = |flipped| match (joined_slot[index], flipped) {
                (true, _) => Source::Joined,
                (false, true) => Source::Flipped,
                (false, false) => Source::Fetched,
            };
            slot.answer = match result {
                PairResult::Known { cached, flipped } => Some(PairAnswer::cached(slot.pair, cached, source(flipped))),
                PairResult::Verbatim(json, sent) => {
                    Some(PairAnswer { item: Item::Verbatim((&*json).into()), sent, source: source(false) })
                }
                PairResult::Malformed | PairResult::Failed => None,
            };
        }
        self.end_of_lookup(now);
        self.caller_quota_granted = false;
    }

    /// A lookup found every pair in the cache when the driver scanned under the scheduler's lock.
    pub(crate) fn on_cached(&mut self, now: Tick) {
        self.end_of_lookup(now);
        self.caller_quota_granted = false;
    }

    /// A lookup has failed.
    pub(crate) fn on_failure(&mut self, failure: LookupFailure, now: Tick) {
        self.end_of_lookup(now);
        self.failure = Some(failure);
    }

    /// Answers every pair that has no answer as missing.
    fn answer_as_missing(&mut self, reason: MissingReason) {
        for slot in self.slots.iter_mut().filter(|slot| slot.answer.is_none()) {
            slot.answer = Some(PairAnswer { item: Item::Missing(reason), sent: self.now, source: Source::Missing });
        }
        self.missing = 0;
    }

    fn end_of_lookup(&mut self, now: Tick) {
        (self.now, self.admitted_under) = (now, None);
        self.missing = self.slots.iter().filter(|slot| slot.answer.is_none()).count();
    }

    /// A write may have ended since the answers were admitted: what was sent before it does not answer after it.
    fn drop_void(&mut self, fence: &Fence) {
        let version = fence.version();
        if self.admitted_under == Some(version) {
            return;
        }
        for slot in &mut self.slots {
            if slot.answer.as_ref().is_some_and(|answer| !fence.admits(slot.pair, answer.sent)) {
                slot.answer = None;
                self.missing += 1;
            }
        }
        self.admitted_under = Some(version);
    }

    /// Answers all missing pairs from the cache, past their ttl, or none of them (`cache.stale_if_error`).
    fn serve_stale(&mut self, view: PairView<'_>) -> bool {
        let CheckOptions { directives, ttl, stale_if_error, .. } = self.options;
        if stale_if_error == Duration::ZERO || !directives.may_serve_stale() {
            return false;
        }
        let (now, age_max) = (self.now, ttl + stale_if_error);
        let mut found = Vec::new();
        for (index, slot) in self.slots.iter().enumerate().filter(|(_, slot)| slot.answer.is_none()) {
            let cached = view.cache.get(slot.pair.key());
            let usable =
                cached.filter(|cached| view.fence.admits(slot.pair, cached.sent) && now.since(cached.sent) < age_max);
            let Some(cached) = usable else { return false };
            let source = if now.since(cached.sent) < ttl { Source::Hit } else { Source::Stale };
            found.push((index, PairAnswer::cached(slot.pair, cached, source)));
        }
        for (index, answer) in found {
            self.slots[index].answer = Some(answer);
        }
        self.missing = 0;
        self.served_stale = true;
        true
    }

    /// Returns the answer for an account, by its position in the request. `None` until the check is complete.
    pub(crate) fn answer(&self, account: usize) -> Option<&PairAnswer> {
        self.slots[self.slot_of.get(account).map_or(account, |slot| *slot as usize)].answer.as_ref()
    }

    /// Returns how long ago the lookup of an answer was sent.
    pub(crate) fn age(&self, answer: &PairAnswer) -> Duration {
        self.now.since(answer.sent)
    }

    /// Returns where the answers came from, and the age of the oldest one.
    pub(crate) fn summary(&self) -> CheckSummary {
        let mut summary = CheckSummary {
            sources: PairSources::default(),
            oldest: Duration::ZERO,
            rejected: self.rejected,
            expired: self.expired,
            served_stale: self.served_stale,
        };
        let mut oldest = Tick::LAST;
        for answer in self.slots.iter().filter_map(|slot| slot.answer.as_ref()) {
            summary.sources.count(answer.source);
            oldest = oldest.min(answer.sent);
        }
        summary.oldest = self.now.since(oldest);
        summary
    }
}

/// What a response says about its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct CheckSummary {
    /// Numbers of distinct pairs by source.
    pub sources: PairSources,
    /// The age of the oldest answer.
    pub oldest: Duration,
    /// A cached pair would have answered, but the caller's directives exclude it.
    pub rejected: bool,
    /// Every pair that was not answered from the cache was cached, past its ttl.
    pub expired: bool,
    /// Stale pairs answered because Chat failed.
    pub served_stale: bool,
}

impl PairAnswer {
    fn cached(pair: Pair, cached: CachedPair, source: Source) -> Self {
        Self { item: Item::Known(pair.seen_from(cached.stored)), sent: cached.sent, source }
    }
}
