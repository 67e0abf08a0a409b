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

use super::freshness::{Source, Tally, Use, Wishes};
use super::record::Trail;
use super::state::{Got, Waiter};
use super::{Asker, BUFFERED, Refusal, Reply, UNCOUNTED_MAX, Worker, counted};
use crate::clock;
use crate::domain::command::FOLLOW_CHECK;
use crate::domain::follow::answer::{CALL_ACCOUNTS_MAX, Item, write_answer};
use crate::domain::follow::distinct::keep_distinct;
use crate::domain::follow::facts::Fact;
use crate::domain::follow::pair::Pair;
use crate::domain::follow::pending::{Settled, Terms, Ticket, WAITING_MAX, Wanted};
use crate::domain::follow::question::Question;
use crate::domain::outcome::is_trouble;
use crate::domain::tick::Tick;
use crate::error::GatewayError;
use crate::quota::CommandQuota;

/// `Chatgate-Explain` says this much, so that a header stays a header.
const EXPLAINED_MAX: usize = 200;

/// One part in so many is added to the estimate of a wait.
const MARGIN_PART: u32 = 10;

/// How a question is to be answered.
pub(super) struct Manner {
    pub wishes: Wishes,
    pub explain: bool,
    pub asker: Asker,
}

/// One distinct pair of a question.
pub(super) struct Slot {
    pub pair: Pair,
    /// Where it stands first among the accounts.
    pub first: usize,
    pub known: Option<Known>,
}

/// What a look at the cache has found, beside facts.
struct Looked {
    /// When it was.
    at: Tick,
    /// A fact was there that the caller does not want.
    refused: bool,
    /// All that are missing were there and are past their ttl.
    expired: bool,
}

/// What may answer for a pair.
pub(super) struct Known {
    item: Item,
    sent: Tick,
    source: Source,
}

impl Worker {
    /// Answers a question.
    pub(super) async fn answer_question(
        self: &Arc<Self>,
        app: usize,
        question: &Question<'_>,
        manner: Manner,
        trail: &mut Trail,
    ) -> Result<Reply, GatewayError> {
        let follow = &self.app(app).follow;
        let from = follow.hasher.user(&question.from);
        let slot = |(first, to): (usize, &Cow<'_, str>)| Slot {
            pair: Pair { from, to: follow.hasher.user(to) },
            first,
            known: None,
        };
        let mut slots: Vec<Slot> = question.to.iter().enumerate().map(slot).collect();
        // Which of the slots each account has; nothing if each has its own.
        let slot_of = keep_distinct(&mut slots, |slot| slot.pair);
        let Looked { mut at, refused, expired } = self.look_up(app, &mut slots, &manner.wishes);
        let wants_kept = !manner.wishes.no_cache && !manner.wishes.no_store;
        if wants_kept && slots.iter().any(|slot| slot.known.is_none()) && self.app(app).member.is_some() {
            // Boxed: what a hit does not need must not be part of every request's future.
            Box::pin(self.look_in_fleet(app, question, &slots)).await;
            at = self.look_up(app, &mut slots, &manner.wishes).at;
        }
        let (mut fell_back, mut paid) = (false, false);
        while slots.iter().any(|slot| slot.known.is_none()) {
            if manner.wishes.only_if_cached {
                return Err(GatewayError::NotCached);
            }
            // While Chat is sick, what can be answered without it is, but for a probe now and then.
            if follow.sickness.is_sick(clock::tick()) && self.fall_back(app, &mut slots, &manner.wishes) {
                fell_back = true;
                break;
            }
            let begun = clock::now();
            let fetched = Box::pin(self.fetch(app, question, &mut slots, &manner, paid)).await;
            if let Err(Ended::NotYet(wait)) = &fetched {
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
                Err(Ended::NotYet(_)) => paid = true,
                Err(ended) if ended.is_trouble() && self.fall_back(app, &mut slots, &manner.wishes) => {
                    fell_back = true;
                    break;
                }
                Err(Ended::Refused(refusal)) => return refuse(&refusal),
                Err(Ended::Gateway(error)) => return Err(error),
            }
        }
        // An item as it came from Chat may be long, and stands once for each time it was asked for.
        let len = answer_len(question, &slots, &slot_of);
        let held = match len {
            ..=UNCOUNTED_MAX => None,
            _ => Some(self.gateway.buffered.take(len).ok_or(GatewayError::Overloaded(BUFFERED))?),
        };
        let mut reply = reply(question, &slots, &slot_of, &manner, at, [refused, expired, fell_back]);
        reply.body = counted(reply.body, held);
        Ok(reply)
    }

    /// Takes from the cache what the caller's wishes allow.
    fn look_up(&self, app: usize, slots: &mut [Slot], wishes: &Wishes) -> Looked {
        let follow = &self.app(app).follow;
        let ttl = self.gateway.config.cache.ttl;
        let now = clock::tick();
        // What was sent later is a hit without further judgement.
        let hit_after = match wishes.hit_below(ttl) {
            Duration::ZERO => Tick::LAST,
            below => now.before(below),
        };
        let (mut refused, mut expired) = (false, 0);
        let wanted = |slot: &Slot| slot.known.is_none().then(|| slot.pair.key());
        follow.facts.get_each(slots, wanted, |slot, fact| {
            if !follow.fence.admits(slot.pair, fact.sent) {
                return;
            }
            let judged = if fact.sent > hit_after { Use::Hit } else { wishes.judge(now.since(fact.sent), ttl) };
            match judged {
                Use::Hit => slot.known = Some(Known::from_fact(slot.pair, fact, Source::Hit)),
                Use::Stale => slot.known = Some(Known::from_fact(slot.pair, fact, Source::Stale)),
                Use::Refused => refused = true,
                Use::Expired => expired += 1,
            }
        });
        let missing = slots.iter().filter(|slot| slot.known.is_none());
        Looked { at: now, refused, expired: expired > 0 && expired == missing.count() }
    }

    /// Lets facts past their ttl stand in for all that is missing, or for nothing
    /// (`cache.stale_if_error`).
    fn fall_back(&self, app: usize, slots: &mut [Slot], wishes: &Wishes) -> bool {
        let (follow, cache) = (&self.app(app).follow, &self.gateway.config.cache);
        if cache.stale_if_error == Duration::ZERO || !wishes.may_fall_back() {
            return false;
        }
        let (now, oldest) = (clock::tick(), cache.ttl + cache.stale_if_error);
        let mut found = Vec::new();
        for (at, slot) in slots.iter().enumerate().filter(|(_, slot)| slot.known.is_none()) {
            let fact = follow.facts.get(slot.pair.key()).filter(|fact| follow.fence.admits(slot.pair, fact.sent));
            let Some(fact) = fact.filter(|fact| now.since(fact.sent) < oldest) else { return false };
            let source = if now.since(fact.sent) < cache.ttl { Source::Hit } else { Source::Stale };
            found.push((at, Known::from_fact(slot.pair, fact, source)));
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
        question: &Question<'_>,
        slots: &mut [Slot],
        manner: &Manner,
        paid: bool,
    ) -> Result<(), Ended> {
        // Only a later round comes here too late: the calls of those before it took the time there was.
        if clock::now() >= manner.asker.deadline {
            return Err(Ended::Gateway(GatewayError::UpstreamTimeout));
        }
        let state = self.app(app);
        state.parking().check(FOLLOW_CHECK, clock::tick()).map_err(GatewayError::Parked)?;
        let fence = &state.follow.fence;
        let desk = state.follow.desk();
        // A lookup that was under way may have landed since: it leaves its facts while it has the desk,
        // so what is missing now is neither known nor being asked.
        self.look_up(app, slots, &manner.wishes);
        let missing: Vec<usize> = (0..slots.len()).filter(|slot| slots[*slot].known.is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let wanted: Vec<Wanted<'_>> = missing
            .iter()
            .map(|&slot| {
                let Slot { pair, first, .. } = slots[slot];
                Wanted { pair, from: &question.from, to: &question.to[first], slot }
            })
            .collect();
        let wishes = &manner.wishes;
        let Asker { caller, listed, deadline, trace } = manner.asker;
        // What is not under way when only the time for a call is left would be answered too late.
        let latest = self.latest_permit(deadline);
        let terms = Terms { caller, join: wishes.may_join(), keep: !wishes.no_store };
        let (tell, told) = oneshot::channel();
        let joined;
        let mut leaving = {
            let mut desk = desk;
            // Counted only if somebody wants to know, and once.
            let new = LazyCell::new(|| desk.pending.new_among(terms, &wanted, |pair| fence.last_mark(pair)));
            if desk.pending.has_queued() {
                refuse_hopeless(&state.follow.quota, desk.pending.calls_ahead(caller, *new), latest)?;
            }
            if !paid {
                let calls = || new.div_ceil(CALL_ACCOUNTS_MAX);
                let patience = || latest.saturating_duration_since(clock::now());
                let wait = self.gateway.access.charge(listed, calls, patience)?.wait;
                // Its pairs do not join the others before: they would be asked for in others' calls.
                if !wait.is_zero() {
                    return Err(Ended::NotYet(wait));
                }
            }
            let asked = desk.pending.ask(terms, &wanted, |pair| fence.last_mark(pair));
            let (ticket, was_joined) = asked.map_err(|_| GatewayError::Overloaded(concat_waiting()))?;
            joined = was_joined;
            let got = Vec::with_capacity(wanted.len());
            desk.waiters.insert(ticket, Waiter { left: wanted.len(), got, tell, trace });
            Leaving { worker: self, app, ticket: Some(ticket) }
        };
        self.pump(app);
        tokio::pin!(told);
        let told = match tokio::time::timeout_at(latest.into(), told.as_mut()).await {
            Ok(told) => told,
            Err(_) if leaving.is_queued() => {
                leaving.leave();
                // What is missing is room, if there is none.
                let error = match state.room.available_permits() {
                    0 => GatewayError::NoRoomInFlight,
                    _ => rate_limited(state.follow.quota.interval()),
                };
                return Err(Ended::Gateway(error));
            }
            Err(_) => match tokio::time::timeout_at(deadline.into(), told).await {
                Ok(told) => told,
                Err(_) => return Err(Ended::Gateway(GatewayError::UpstreamTimeout)),
            },
        };
        let got: Got = told.map_err(|_| GatewayError::Internal)?.map_err(Ended::Refused)?;
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
                Settled::Fact { fact, flipped } => Some(Known::from_fact(pair, fact, source(flipped))),
                Settled::Verbatim(json, sent) => {
                    Some(Known { item: Item::Verbatim((&*json).into()), sent, source: source(false) })
                }
                Settled::Unfit | Settled::Failed => None,
            };
        }
        Ok(())
    }
}

/// Refuses at once what would not get its last permit by `latest`. The estimate is taken a little longer than it
/// is: whoever is let in and comes just too late has waited to the end for nothing, and another would have been
/// served in its place.
fn refuse_hopeless(quota: &CommandQuota, calls_ahead: usize, latest: Instant) -> Result<(), Ended> {
    if calls_ahead == 0 {
        return Ok(());
    }
    let calls_ahead = u32::try_from(calls_ahead).unwrap_or(u32::MAX);
    let wait = quota.next_permit() + quota.interval().saturating_mul(calls_ahead);
    if clock::now() + wait + wait / MARGIN_PART > latest { Err(Ended::Gateway(rate_limited(wait))) } else { Ok(()) }
}

/// Why a wait ended without an answer.
enum Ended {
    /// It has not begun: the caller's share allows it after so long, which is reserved.
    NotYet(Duration),
    Refused(Arc<Refusal>),
    Gateway(GatewayError),
}

impl Ended {
    /// Whether Chat, the way there or the quota failed, and not the question.
    fn is_trouble(&self) -> bool {
        match self {
            Ended::Refused(refusal) => match &**refusal {
                Refusal::Chat(answer) => is_trouble(answer.error_code),
                Refusal::Gateway(error) => error.is_trouble(),
            },
            Ended::Gateway(error) => error.is_trouble(),
            Ended::NotYet(_) => false,
        }
    }
}

impl From<GatewayError> for Ended {
    fn from(error: GatewayError) -> Self {
        Ended::Gateway(error)
    }
}

/// Takes a request out of what is pending when it no longer waits, for whatever reason.
struct Leaving<'a> {
    worker: &'a Arc<Worker>,
    app: usize,
    ticket: Option<Ticket>,
}

impl Leaving<'_> {
    /// Whether something it waits for is not under way yet.
    fn is_queued(&self) -> bool {
        self.ticket.is_some_and(|ticket| self.worker.app(self.app).follow.desk().pending.is_queued(ticket))
    }

    fn leave(&mut self) {
        let Some(ticket) = self.ticket.take() else { return };
        let mut desk = self.worker.app(self.app).follow.desk();
        desk.waiters.remove(&ticket);
        desk.pending.leave(ticket);
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Known {
    fn from_fact(pair: Pair, fact: Fact, source: Source) -> Self {
        Self { item: Item::Known(pair.turned(fact.stored)), sent: fact.sent, source }
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
fn refuse(refusal: &Refusal) -> Result<Reply, GatewayError> {
    match refusal {
        Refusal::Chat(answer) => {
            Ok(Reply::from_chat(answer.status, answer.content_type.clone(), answer.body.clone(), answer.error_code))
        }
        Refusal::Gateway(error) => Err(error.clone()),
    }
}

/// What is known for an account, by its place in the question.
fn known<'a>(slots: &'a [Slot], slot_of: &[u32], index: usize) -> Option<&'a Known> {
    slots[slot_of.get(index).map_or(index, |slot| *slot as usize)].known.as_ref()
}

/// About how long the answer will be, in bytes.
fn answer_len(question: &Question<'_>, slots: &[Slot], slot_of: &[u32]) -> usize {
    let item = |(index, to): (usize, &Cow<'_, str>)| match known(slots, slot_of, index) {
        Some(Known { item: Item::Verbatim(json), .. }) => json.len(),
        _ => to.len() + 72,
    };
    question.to.iter().enumerate().map(item).sum()
}

fn reply(
    question: &Question<'_>,
    slots: &[Slot],
    slot_of: &[u32],
    manner: &Manner,
    now: Tick,
    [refused, expired, fell_back]: [bool; 3],
) -> Reply {
    let known = |index: usize| known(slots, slot_of, index).expect("every pair has its answer");
    let body = write_answer(question.to.iter().enumerate().map(|(index, to)| (to, &known(index).item)));
    let (mut tally, mut oldest) = (Tally { fell_back, ..Tally::default() }, Tick::from_micros(u64::MAX));
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
