//! `follow_check` from facts, and from Chat for what is not known.
//!
//! The answer is put together only when every pair has something that may be used *now*: what came
//! from the cache or from a lookup some time ago is judged against the fence once more, and asked
//! again if a write has come between.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use tokio::sync::oneshot;

use super::freshness::{CacheDirectives, Freshness, PairSources, Source};
use crate::clock;
use crate::domain::chat::command::FOLLOW_CHECK;
use crate::domain::follow::request::CheckRequest;
use crate::domain::follow::response::encode_response;
use crate::domain::pairs::cache::CachedPair;
use crate::domain::pairs::dedup::dedup;
use crate::domain::pairs::item::{CALL_ACCOUNTS_MAX, Item};
use crate::domain::pairs::lookups::{JoinOptions, PairResult, Ticket, WAITING_MAX, Wanted};
use crate::domain::pairs::pair::Pair;
use crate::domain::policy::outcome::allows_stale;
use crate::domain::tick::Tick;
use crate::error::GatewayError;
use crate::gateway::app::{PairResults, Waiter};
use crate::gateway::observe::access_log::RequestContext;
use crate::gateway::{BUFFERED, CallContext, CallFailure, Reply, UNCOUNTED_MAX, Worker, counted};
use crate::limits::CommandQuota;

/// `Chatgate-Explain` says this much, so that a header stays a header.
const EXPLAINED_MAX: usize = 200;

/// One part in so many is added to the estimate of a wait.
const MARGIN_PART: u32 = 10;

/// How a question is to be answered.
pub(crate) struct LookupOptions {
    pub wishes: CacheDirectives,
    pub explain: bool,
    pub asker: CallContext,
}

/// One distinct pair of a question.
pub(crate) struct PairSlot {
    pub pair: Pair,
    /// Where it stands first among the accounts.
    pub first: usize,
    pub known: Option<PairAnswer>,
}

/// What a look at the cache has found, beside facts.
struct CacheScan {
    /// When it was.
    at: Tick,
    /// A fact was there that the caller does not want.
    refused: bool,
    /// All that are missing were there and are past their ttl.
    expired: bool,
}

/// What may answer for a pair.
pub(crate) struct PairAnswer {
    item: Item,
    sent: Tick,
    source: Source,
}

impl Worker {
    /// Answers a question.
    pub(crate) async fn check_pairs(
        self: &Arc<Self>,
        app: usize,
        question: &CheckRequest<'_>,
        manner: LookupOptions,
        trail: &mut RequestContext,
    ) -> Result<Reply, GatewayError> {
        let follow = &self.app(app).follow;
        let from = follow.hasher.user(&question.from);
        let slot = |(first, to): (usize, &Cow<'_, str>)| PairSlot {
            pair: Pair { from, to: follow.hasher.user(to) },
            first,
            known: None,
        };
        let mut slots: Vec<PairSlot> = question.to.iter().enumerate().map(slot).collect();
        // Which of the slots each account has; nothing if each has its own.
        let slot_of = dedup(&mut slots, |slot| slot.pair);
        let CacheScan { mut at, refused, expired } = self.scan_cache(app, &mut slots, &manner.wishes);
        let wants_kept = !manner.wishes.no_cache && !manner.wishes.no_store;
        if wants_kept && slots.iter().any(|slot| slot.known.is_none()) && self.app(app).member.is_some() {
            // Boxed: what a hit does not need must not be part of every request's future.
            Box::pin(self.read_from_fleet(app, question, &slots)).await;
            at = self.scan_cache(app, &mut slots, &manner.wishes).at;
        }
        let (mut fell_back, mut paid) = (false, false);
        while slots.iter().any(|slot| slot.known.is_none()) {
            if manner.wishes.only_if_cached {
                return Err(GatewayError::NotCached);
            }
            // While Chat is sick, what can be answered without it is, but for a probe now and then.
            if follow.stale_gate.should_serve_stale(clock::tick()) && self.serve_stale(app, &mut slots, &manner.wishes)
            {
                fell_back = true;
                break;
            }
            let begun = clock::now();
            let fetched = Box::pin(self.fetch(app, question, &mut slots, &manner, paid)).await;
            if let Err(LookupError::NotYet(wait)) = &fetched {
                tokio::time::sleep(*wait).await;
            }
            let ended = clock::now();
            at = clock::tick_at(ended);
            trail.waited(ended - begun);
            // A write may have come between: what was sent before it does not answer after it, whatever
            // became of the lookup.
            for slot in &mut slots {
                if slot.known.as_ref().is_some_and(|known| !follow.fence.admits(slot.pair, known.sent)) {
                    slot.known = None;
                }
            }
            match fetched {
                Ok(()) => paid = false,
                Err(LookupError::NotYet(_)) => paid = true,
                Err(ended) if ended.allows_stale() && self.serve_stale(app, &mut slots, &manner.wishes) => {
                    fell_back = true;
                    break;
                }
                Err(LookupError::Refused(refusal)) => return failure_reply(&refusal),
                Err(LookupError::Gateway(error)) => return Err(error),
            }
        }
        // An item as it came from Chat may be long, and stands once for each time it was asked for.
        let len = answer_len(question, &slots, &slot_of);
        let held = match len {
            ..=UNCOUNTED_MAX => None,
            _ => Some(self.gateway.buffered.try_acquire(len).ok_or(GatewayError::Overloaded(BUFFERED))?),
        };
        let mut reply = reply(question, &slots, &slot_of, &manner, at, [refused, expired, fell_back]);
        reply.body = counted(reply.body, held);
        Ok(reply)
    }

    /// Takes from the cache what the caller's wishes allow.
    fn scan_cache(&self, app: usize, slots: &mut [PairSlot], wishes: &CacheDirectives) -> CacheScan {
        let follow = &self.app(app).follow;
        let ttl = self.gateway.config.cache.ttl;
        let now = clock::tick();
        // What was sent later is a hit without further judgement.
        let hit_after = match wishes.hit_age_max(ttl) {
            Duration::ZERO => Tick::LAST,
            below => now.before(below),
        };
        let (mut refused, mut expired) = (false, 0);
        let wanted = |slot: &PairSlot| slot.known.is_none().then(|| slot.pair.key());
        follow.cache.get_batch(slots, wanted, |slot, fact| {
            if !follow.fence.admits(slot.pair, fact.sent) {
                return;
            }
            let judged =
                if fact.sent > hit_after { Freshness::Hit } else { wishes.freshness(now.since(fact.sent), ttl) };
            match judged {
                Freshness::Hit => slot.known = Some(PairAnswer::from_fact(slot.pair, fact, Source::Hit)),
                Freshness::Stale => slot.known = Some(PairAnswer::from_fact(slot.pair, fact, Source::Stale)),
                Freshness::Rejected => refused = true,
                Freshness::Expired => expired += 1,
            }
        });
        let missing = slots.iter().filter(|slot| slot.known.is_none());
        CacheScan { at: now, refused, expired: expired > 0 && expired == missing.count() }
    }

    /// Lets facts past their ttl stand in for all that is missing, or for nothing
    /// (`cache.stale_if_error`).
    fn serve_stale(&self, app: usize, slots: &mut [PairSlot], wishes: &CacheDirectives) -> bool {
        let (follow, cache) = (&self.app(app).follow, &self.gateway.config.cache);
        if cache.stale_if_error == Duration::ZERO || !wishes.may_serve_stale() {
            return false;
        }
        let (now, oldest) = (clock::tick(), cache.ttl + cache.stale_if_error);
        let mut found = Vec::new();
        for (at, slot) in slots.iter().enumerate().filter(|(_, slot)| slot.known.is_none()) {
            let fact = follow.cache.get(slot.pair.key()).filter(|fact| follow.fence.admits(slot.pair, fact.sent));
            let Some(fact) = fact.filter(|fact| now.since(fact.sent) < oldest) else { return false };
            let source = if now.since(fact.sent) < cache.ttl { Source::Hit } else { Source::Stale };
            found.push((at, PairAnswer::from_fact(slot.pair, fact, source)));
        }
        for (at, known) in found {
            slots[at].known = Some(known);
        }
        true
    }

    /// Waits for the missing pairs. A caller with a share of its own is charged for as many calls as
    /// those of them need that nobody is asking for already, as if it were alone; unless it has `paid`.
    async fn fetch(
        self: &Arc<Self>,
        app: usize,
        question: &CheckRequest<'_>,
        slots: &mut [PairSlot],
        manner: &LookupOptions,
        paid: bool,
    ) -> Result<(), LookupError> {
        // Only a later round comes here too late: the calls of those before it took the time there was.
        if clock::now() >= manner.asker.deadline {
            return Err(LookupError::Gateway(GatewayError::UpstreamTimeout));
        }
        let state = self.app(app);
        state.parking().check(FOLLOW_CHECK, clock::tick()).map_err(GatewayError::Parked)?;
        let fence = &state.follow.fence;
        let desk = state.follow.lookups();
        // A lookup that was under way may have landed since: it leaves its facts while it has the desk,
        // so what is missing now is neither known nor being asked.
        self.scan_cache(app, slots, &manner.wishes);
        let missing: Vec<usize> = (0..slots.len()).filter(|slot| slots[*slot].known.is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let wanted: Vec<Wanted<'_>> = missing
            .iter()
            .map(|&slot| {
                let PairSlot { pair, first, .. } = slots[slot];
                Wanted { pair, from: &question.from, to: &question.to[first], slot }
            })
            .collect();
        let wishes = &manner.wishes;
        let CallContext { caller, listed, deadline, trace } = manner.asker;
        // What is not under way when only the time for a call is left would be answered too late.
        let latest = self.latest_permit(deadline);
        let terms = JoinOptions { caller, join: wishes.may_join(), keep: !wishes.no_store };
        let (tell, told) = oneshot::channel();
        let joined;
        let mut leaving = {
            let mut desk = desk;
            // Counted only if somebody wants to know, and once.
            let new = LazyCell::new(|| desk.pending.new_among(terms, &wanted, |pair| fence.last_mark(pair)));
            if desk.pending.has_queued() {
                reject_hopeless(&state.follow.quota, desk.pending.calls_ahead(caller, *new), latest)?;
            }
            if !paid {
                let calls = || new.div_ceil(CALL_ACCOUNTS_MAX);
                let patience = || latest.saturating_duration_since(clock::now());
                let wait = self.gateway.access.reserve(listed, calls, patience)?.wait;
                // Its pairs do not join the others before: they would be asked for in others' calls.
                if !wait.is_zero() {
                    return Err(LookupError::NotYet(wait));
                }
            }
            let asked = desk.pending.enqueue(terms, &wanted, |pair| fence.last_mark(pair));
            let (ticket, was_joined) = asked.map_err(|_| GatewayError::Overloaded(concat_waiting()))?;
            joined = was_joined;
            let got = Vec::with_capacity(wanted.len());
            desk.waiters.insert(ticket, Waiter { left: wanted.len(), results: got, tx: tell, trace });
            TicketGuard { worker: self, app, ticket: Some(ticket) }
        };
        self.ensure_dispatcher(app);
        tokio::pin!(told);
        let told = match tokio::time::timeout_at(latest.into(), told.as_mut()).await {
            Ok(told) => told,
            Err(_) if leaving.is_queued() => {
                leaving.leave();
                // What is missing is room, if there is none.
                let error = match state.room.available_permits() {
                    0 => GatewayError::InFlightFull,
                    _ => rate_limited(state.follow.quota.interval()),
                };
                return Err(LookupError::Gateway(error));
            }
            Err(_) => match tokio::time::timeout_at(deadline.into(), told).await {
                Ok(told) => told,
                Err(_) => return Err(LookupError::Gateway(GatewayError::UpstreamTimeout)),
            },
        };
        let got: PairResults = told.map_err(|_| GatewayError::Internal)?.map_err(LookupError::Refused)?;
        let mut joined_slots = vec![false; slots.len()];
        for (slot, joined) in missing.into_iter().zip(joined) {
            joined_slots[slot] = joined;
        }
        for (slot, settled) in got {
            let pair = slots[slot].pair;
            let source = |flipped| match (joined_slots[slot], flipped) {
                (true, _) => Source::Joined,
                (false, true) => Source::Flipped,
                (false, false) => Source::Fetched,
            };
            slots[slot].known = match settled {
                PairResult::Known { fact, flipped } => Some(PairAnswer::from_fact(pair, fact, source(flipped))),
                PairResult::Verbatim(json, sent) => {
                    Some(PairAnswer { item: Item::Verbatim((&*json).into()), sent, source: source(false) })
                }
                PairResult::Malformed | PairResult::Failed => None,
            };
        }
        Ok(())
    }
}

/// Refuses at once what would not get its last permit by `latest`. The estimate is taken a little longer than it
/// is: whoever is let in and comes just too late has waited to the end for nothing, and another would have been
/// served in its place.
fn reject_hopeless(quota: &CommandQuota, calls_ahead: usize, latest: Instant) -> Result<(), LookupError> {
    if calls_ahead == 0 {
        return Ok(());
    }
    let calls_ahead = u32::try_from(calls_ahead).unwrap_or(u32::MAX);
    let wait = quota.next_permit() + quota.interval().saturating_mul(calls_ahead);
    if clock::now() + wait + wait / MARGIN_PART > latest {
        Err(LookupError::Gateway(rate_limited(wait)))
    } else {
        Ok(())
    }
}

/// Why a wait ended without an answer.
enum LookupError {
    /// It has not begun: the caller's share allows it after so long, which is reserved.
    NotYet(Duration),
    Refused(Arc<CallFailure>),
    Gateway(GatewayError),
}

impl LookupError {
    /// Whether Chat, the way there or the quota failed, and not the question.
    fn allows_stale(&self) -> bool {
        match self {
            LookupError::Refused(refusal) => match &**refusal {
                CallFailure::Chat(answer) => allows_stale(answer.error_code),
                CallFailure::Gateway(error) => error.allows_stale(),
            },
            LookupError::Gateway(error) => error.allows_stale(),
            LookupError::NotYet(_) => false,
        }
    }
}

impl From<GatewayError> for LookupError {
    fn from(error: GatewayError) -> Self {
        LookupError::Gateway(error)
    }
}

/// Takes a request out of what is pending when it no longer waits, for whatever reason.
struct TicketGuard<'a> {
    worker: &'a Arc<Worker>,
    app: usize,
    ticket: Option<Ticket>,
}

impl TicketGuard<'_> {
    /// Whether something it waits for is not under way yet.
    fn is_queued(&self) -> bool {
        self.ticket.is_some_and(|ticket| self.worker.app(self.app).follow.lookups().pending.is_queued(ticket))
    }

    fn leave(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let mut desk = self.worker.app(self.app).follow.lookups();
        desk.waiters.remove(&ticket);
        desk.pending.cancel(ticket);
    }
}

impl Drop for TicketGuard<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl PairAnswer {
    fn from_fact(pair: Pair, fact: CachedPair, source: Source) -> Self {
        Self { item: Item::Known(pair.seen_from(fact.stored)), sent: fact.sent, source }
    }
}

fn rate_limited(wait: Duration) -> GatewayError {
    GatewayError::RateLimited { command: FOLLOW_CHECK.to_string(), retry_after: wait }
}

const fn concat_waiting() -> &'static str {
    const { assert!(WAITING_MAX == 100_000) };
    "100,000 waiting pairs"
}

/// Chat's refusal goes on as it came.
fn failure_reply(refusal: &CallFailure) -> Result<Reply, GatewayError> {
    match refusal {
        CallFailure::Chat(answer) => {
            Ok(Reply::from_chat(answer.status, answer.content_type.clone(), answer.body.clone(), answer.error_code))
        }
        CallFailure::Gateway(error) => Err(error.clone()),
    }
}

/// What is known for an account, by its place in the question.
fn known<'a>(slots: &'a [PairSlot], slot_of: &[u32], index: usize) -> Option<&'a PairAnswer> {
    slots[slot_of.get(index).map_or(index, |slot| *slot as usize)].known.as_ref()
}

/// About how long the answer will be, in bytes.
fn answer_len(question: &CheckRequest<'_>, slots: &[PairSlot], slot_of: &[u32]) -> usize {
    let item = |(index, to): (usize, &Cow<'_, str>)| match known(slots, slot_of, index) {
        Some(PairAnswer { item: Item::Verbatim(json), .. }) => json.len(),
        _ => to.len() + 72,
    };
    question.to.iter().enumerate().map(item).sum()
}

fn reply(
    question: &CheckRequest<'_>,
    slots: &[PairSlot],
    slot_of: &[u32],
    manner: &LookupOptions,
    now: Tick,
    [refused, expired, fell_back]: [bool; 3],
) -> Reply {
    let known = |index: usize| known(slots, slot_of, index).expect("every pair has its answer");
    let body = encode_response(question.to.iter().enumerate().map(|(index, to)| (to, &known(index).item)));
    let (mut tally, mut oldest) =
        (PairSources { served_stale: fell_back, ..PairSources::default() }, Tick::from_micros(u64::MAX));
    for known in slots.iter().filter_map(|slot| slot.known.as_ref()) {
        tally.count(known.source);
        oldest = oldest.min(known.sent);
    }
    let explain = manner.explain.then(|| {
        let account = |index: usize| {
            let known = known(index);
            format!("{};age={}", known.source.name(), now.since(known.sent).as_secs())
        };
        (0..question.to.len()).take(EXPLAINED_MAX).map(account).collect::<Vec<_>>().join(", ")
    });
    Reply {
        status: StatusCode::OK,
        content_type: Some(HeaderValue::from_static("application/json")),
        body: Bytes::from(body),
        cache_status: Some(tally.cache_status(&manner.wishes, refused, expired)),
        age: Some(now.since(oldest).as_secs()),
        explain,
        error_code: 0,
        pairs: Some(tally),
    }
}
