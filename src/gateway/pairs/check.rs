//! A check of pairs, driven from the cache to the response.
//!
//! Nearly every check is of pairs that are all cached. [`AppWorker::answer_known`] answers those. For all others,
//! [`CheckSession`] decides; this file reads the clock, locks the lookups, and waits.

use std::borrow::Cow;
use std::cell::LazyCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use tokio::sync::oneshot;

use super::super::cache_control;
use super::super::request::{CallContext, RequestContext};
use super::super::response::{BUFFERED, CallResult, CheckedPairs, Reply, UNCOUNTED_MAX, counted};
use super::super::worker::AppWorker;
use super::{PairService, WaiterHandle};
use crate::capacity::CapacityGuard;
use crate::clock;
use crate::domain::caller::Class;
use crate::domain::pairs::check::{CheckOptions, CheckSession, CheckStep, CheckSummary, LookupFailure};
use crate::domain::pairs::directives::CacheDirectives;
use crate::domain::pairs::item::Item;
use crate::domain::pairs::known::KnownPairs;
use crate::domain::pairs::lookups::{PairResults, Ticket, WAITING_MAX};
use crate::domain::pairs::pair::{Pair, UserKey};
use crate::domain::relation::request::CheckRequest;
use crate::error::GatewayError;

/// `Chatgate-Explain` lists this many accounts, so that a header stays a header.
const EXPLAINED_MAX: usize = 200;

/// A tenth is added to the estimate of a wait.
const MARGIN_PART: u32 = 10;

/// How a request wants its check answered.
pub(crate) struct LookupOptions {
    pub directives: CacheDirectives,
    /// Whether the response explains the source of each answer.
    pub explain: bool,
    /// Whether the response at the deadline has what is known by then.
    pub partial: bool,
    pub context: CallContext,
}

/// How a lookup ended.
enum LookupEnd {
    /// Every pair was in the cache by then.
    Cached,
    /// Pairs have results. `joined` says for each wanted pair whether it joined a lookup in flight.
    Results { joined: Vec<bool>, results: PairResults },
    /// Nothing was looked up yet: the caller's own quota grants the next lookup.
    CallerQuotaGranted,
    /// The call failed, or could not be made.
    Failed(Arc<CallResult>),
    /// Time or quota ran out before every pair had a result. Those that had one by then are in `results`.
    Late { joined: Vec<bool>, results: PairResults, error: GatewayError },
}

impl AppWorker {
    /// Answers a check of one relation.
    pub(in crate::gateway) async fn check(
        self: &Arc<Self>,
        pairs: &Arc<PairService>,
        request: &CheckRequest<'_>,
        options: LookupOptions,
        request_context: &mut RequestContext<'_>,
    ) -> Result<Reply, GatewayError> {
        let from = pairs.hasher.user(&request.from);
        let to: Vec<UserKey> = request.to.iter().map(|to| pairs.hasher.user(to)).collect();
        if let Some(reply) = self.answer_known(pairs, request, from, &to, &options) {
            return Ok(reply);
        }
        // Boxed, here and below: what a hit does not need must not be part of every request's future.
        Box::pin(self.check_in_steps(pairs, request, from, to, options, request_context)).await
    }

    /// Answers a check whose pairs are all cached. Returns `None` for any other check, and if there is no room for the
    /// response: [`AppWorker::check_in_steps`] answers those from the beginning.
    fn answer_known(
        &self,
        pairs: &PairService,
        request: &CheckRequest<'_>,
        from: UserKey,
        to: &[UserKey],
        options: &LookupOptions,
    ) -> Option<Reply> {
        let LookupOptions { directives, explain, .. } = options;
        if *explain {
            return None;
        }
        let ttl = self.gateway.config.cache.ttl;
        let KnownPairs { relations, summary } =
            KnownPairs::find(pairs.view(), from, to, directives, ttl, clock::tick())?;
        let len = request.to.iter().map(|to| to.len() + pairs.kind.item_len()).sum();
        let reserved = self.reserve_response(len).ok()?;
        let body = pairs.kind.encode_known(request.sides, request.to.iter().zip(relations));
        Some(check_reply(pairs, counted(Bytes::from(body), reserved), &summary, directives))
    }

    /// Answers a check from the cache and from lookups.
    async fn check_in_steps(
        self: &Arc<Self>,
        pairs: &Arc<PairService>,
        request: &CheckRequest<'_>,
        from: UserKey,
        to: Vec<UserKey>,
        options: LookupOptions,
        request_context: &mut RequestContext<'_>,
    ) -> Result<Reply, GatewayError> {
        let cache = &self.gateway.config.cache;
        let LookupOptions { directives, partial, .. } = options;
        let check = CheckOptions {
            directives,
            ttl: cache.ttl,
            stale_if_error: cache.stale_if_error,
            stale_while_revalidate: cache.stale_while_revalidate,
            partial,
            sides: request.sides,
        };
        let distinct = to.into_iter().map(|to| Pair { from, to });
        let mut session = CheckSession::new(distinct, check);
        session.scan(pairs.view(), clock::tick());
        if self.app.fleet.is_some() && session.wants_shared_cache() {
            self.read_from_fleet(pairs, request, &session).await;
            session.scan(pairs.view(), clock::tick());
        }
        if session.has_due() {
            self.revalidate(pairs, request, &mut session, options.context.queue.caller);
        }
        let mut failure = None;
        loop {
            match session.next(pairs.view()) {
                CheckStep::Respond => return self.reply_of_session(pairs, request, &session, &options),
                CheckStep::NotCached => return Err(GatewayError::NotCached),
                CheckStep::Fail => return failure_reply(failure.as_deref()),
                CheckStep::Lookup => {}
            }
            let started = clock::now();
            let end = self.lookup(pairs, request, &mut session, options.context).await;
            let ended = clock::now();
            request_context.add_wait(ended - started);
            let now = clock::tick_at(ended);
            match end {
                LookupEnd::Cached => session.on_cached(now),
                LookupEnd::Results { joined, results } => session.on_results(&joined, results, now),
                LookupEnd::CallerQuotaGranted => session.on_caller_quota_granted(now),
                LookupEnd::Failed(result) => {
                    session.on_failure(LookupFailure::of(&result), now);
                    failure = Some(result);
                }
                LookupEnd::Late { joined, results, error } => {
                    let result = Arc::new(Err(error));
                    session.on_results(&joined, results, now);
                    session.on_failure(LookupFailure::of(&result), now);
                    failure = Some(result);
                }
            }
        }
    }

    /// Looks the missing pairs up.
    async fn lookup(
        self: &Arc<Self>,
        pairs: &Arc<PairService>,
        request: &CheckRequest<'_>,
        session: &mut CheckSession,
        context: CallContext,
    ) -> LookupEnd {
        // Pairs that are not in flight by then could not be answered in time.
        let (latest, begun) = (context.deadline.permit, clock::tick());
        let wait = match self.enqueue(pairs, request, session, context) {
            Ok(Enqueued::Waiting(wait)) => wait,
            Ok(Enqueued::Cached) => return LookupEnd::Cached,
            Ok(Enqueued::CallerQuotaWait(wait)) => {
                tokio::time::sleep(wait).await;
                return LookupEnd::CallerQuotaGranted;
            }
            Err(error) => return LookupEnd::Failed(Arc::new(Err(error))),
        };
        self.ensure_dispatcher(pairs);
        let LookupWait { mut rx, joined, ticket } = wait;
        let mut received = tokio::time::timeout_at(latest.into(), &mut rx).await;
        let has_no_permit = received.is_err() && ticket.is_queued();
        if received.is_err() && !has_no_permit {
            received = tokio::time::timeout_at(context.deadline.response.into(), &mut rx).await;
        }
        let known = ticket.leave();
        // The last result may have arrived just before.
        match received.or_else(|_| rx.try_recv().map(Ok)) {
            Ok(Ok(Ok(results))) => LookupEnd::Results { joined, results },
            Ok(Ok(Err(failure))) => LookupEnd::Failed(failure),
            // The sender is dropped only by a panic.
            Ok(Err(_)) => LookupEnd::Failed(Arc::new(Err(GatewayError::Internal))),
            Err(_) if has_no_permit => {
                let error = self.app.no_permit(pairs.kind.check, context.queue.class, begun);
                LookupEnd::Late { joined, results: known, error }
            }
            Err(_) => LookupEnd::Late { joined, results: known, error: GatewayError::UpstreamTimeout },
        }
    }

    /// Queues the missing pairs, unless that is hopeless. A caller with a quota of its own is charged for the calls that
    /// its new pairs need, as if it were alone; pairs that are being looked up already cost it nothing.
    fn enqueue<'p>(
        &self,
        pairs: &'p PairService,
        request: &CheckRequest<'_>,
        session: &mut CheckSession,
        context: CallContext,
    ) -> Result<Enqueued<'p>, GatewayError> {
        let latest = context.deadline.permit;
        // Only a later round finds the deadline passed: the calls before it took the time.
        if clock::now() >= context.deadline.response {
            return Err(GatewayError::UpstreamTimeout);
        }
        self.app.chat.parking().check(pairs.kind.check, clock::tick()).map_err(GatewayError::Parked)?;
        let last_mark = |pair: Pair| pairs.fence.last_mark(pair);
        let mut lookups = pairs.lookups();
        // A lookup in flight may have ended since the last scan. It stores its results under this lock.
        session.scan(pairs.view(), clock::tick());
        if session.is_complete() {
            return Ok(Enqueued::Cached);
        }
        let wanted = session.wanted(&request.from, |account| &request.to[account]);
        let join = session.join_options(context.queue);
        let class = context.queue.class;
        // Counted at most once, and only if it is needed.
        let new = LazyCell::new(|| lookups.scheduler.new_among(join, &wanted, last_mark));
        let forecast = if lookups.scheduler.has_queued(class) {
            reject_hopeless(pairs, class, lookups.scheduler.calls_ahead(context.queue, new.queued), latest)
        } else {
            let wait = pairs.quota.next_permit(class);
            let is_late = clock::now() + wait > latest && new.queued > 0;
            if is_late { Err(pairs.rate_limited(wait)) } else { Ok(()) }
        };
        // Pairs that are in flight or ahead may be known by the deadline, whatever becomes of the others.
        let may_know_some = session.takes_partial_answers() && new.queued < wanted.len();
        forecast.or_else(|error| if may_know_some { Ok(()) } else { Err(error) })?;
        if !session.caller_quota_granted() {
            let calls = || new.lookups.div_ceil(lookups.scheduler.call_max());
            let patience = || latest.saturating_duration_since(clock::now());
            let wait = self.gateway.access.reserve(context.caller, calls, patience)?.wait;
            // Its pairs are not queued before its quota grants them: calls of others would carry them.
            if !wait.is_zero() {
                return Ok(Enqueued::CallerQuotaWait(wait));
            }
        }
        let (ticket, joined) = lookups
            .scheduler
            .enqueue(join, &wanted, last_mark)
            .map_err(|_| GatewayError::Overloaded(waiting_pairs()))?;
        let (tx, rx) = oneshot::channel();
        let quota = self.gateway.access.quota(context.caller).cloned();
        lookups.waiters.insert(ticket, wanted.len(), WaiterHandle { tx, trace: context.trace, quota });
        Ok(Enqueued::Waiting(LookupWait { rx, joined, ticket: TicketGuard { pairs, ticket } }))
    }

    fn reply_of_session(
        &self,
        pairs: &PairService,
        request: &CheckRequest<'_>,
        session: &CheckSession,
        options: &LookupOptions,
    ) -> Result<Reply, GatewayError> {
        // An item of Chat may be long, and the response has it once for each account that the request repeats.
        let reserved = self.reserve_response(response_len(pairs, request, session))?;
        let answer = |account: usize| session.answer(account).expect("the check is complete");
        let items = request.to.iter().enumerate().map(|(account, to)| (to, &answer(account).item));
        let body = pairs.kind.encode_response(request.sides, items);
        let body = counted(Bytes::from(body), reserved);
        let mut reply = check_reply(pairs, body, &session.summary(), &options.directives);
        reply.explain = options.explain.then(|| {
            let account = |account: usize| {
                let answer = answer(account);
                format!("{};age={}", answer.source.name(), session.age(answer).as_secs())
            };
            (0..request.to.len()).take(EXPLAINED_MAX).map(account).collect::<Vec<_>>().join(", ")
        });
        Ok(reply)
    }

    /// Reserves memory for a response of about this many bytes, unless it is short.
    fn reserve_response(&self, len: usize) -> Result<Option<CapacityGuard>, GatewayError> {
        if len <= UNCOUNTED_MAX {
            return Ok(None);
        }
        self.gateway.buffered.try_acquire(len).map(Some).ok_or(GatewayError::Overloaded(BUFFERED))
    }
}

/// Returns the response to a check that is complete.
fn check_reply(pairs: &PairService, body: Bytes, summary: &CheckSummary, directives: &CacheDirectives) -> Reply {
    Reply {
        status: StatusCode::OK,
        content_type: Some(HeaderValue::from_static("application/json")),
        body,
        cache_status: Some(cache_control::cache_status(summary, directives)),
        age: Some(summary.oldest.as_secs()),
        explain: None,
        error_code: 0,
        pairs: Some(CheckedPairs { kind: pairs.kind, sources: summary.sources }),
        read: None,
    }
}

/// How queueing pairs ended.
enum Enqueued<'a> {
    /// Every pair is cached.
    Cached,
    /// The caller's own quota grants the lookup after this wait. It is reserved.
    CallerQuotaWait(Duration),
    Waiting(LookupWait<'a>),
}

/// A lookup that a request waits for.
struct LookupWait<'a> {
    rx: oneshot::Receiver<Result<PairResults, Arc<CallResult>>>,
    joined: Vec<bool>,
    ticket: TicketGuard<'a>,
}

/// Removes a request from the lookups when it no longer waits, for whatever reason.
struct TicketGuard<'a> {
    pairs: &'a PairService,
    ticket: Ticket,
}

impl TicketGuard<'_> {
    /// Returns whether a pair that it waits for is not in flight yet.
    fn is_queued(&self) -> bool {
        self.pairs.lookups().scheduler.is_queued(self.ticket)
    }

    /// Removes the request, and returns the results that it has by then.
    fn leave(&self) -> PairResults {
        let mut lookups = self.pairs.lookups();
        lookups.scheduler.cancel(self.ticket);
        lookups.waiters.remove(self.ticket)
    }
}

impl Drop for TicketGuard<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Rejects at once pairs that would not get their last permit by `latest`. The estimate is raised by a tenth: a
/// request that is admitted and comes just too late has waited for nothing, and another one would have been served in its
/// place.
fn reject_hopeless(pairs: &PairService, class: Class, calls_ahead: usize, latest: Instant) -> Result<(), GatewayError> {
    if calls_ahead == 0 {
        return Ok(());
    }
    let calls_ahead = u32::try_from(calls_ahead).unwrap_or(u32::MAX);
    let wait = pairs.quota.next_permit(class) + pairs.quota.interval(class).saturating_mul(calls_ahead);
    if clock::now() + wait + wait / MARGIN_PART > latest { Err(pairs.rate_limited(wait)) } else { Ok(()) }
}

impl PairService {
    fn rate_limited(&self, wait: Duration) -> GatewayError {
        GatewayError::RateLimited { command: self.kind.check.to_string(), retry_after: wait }
    }
}

const fn waiting_pairs() -> &'static str {
    const { assert!(WAITING_MAX == 100_000) };
    "100,000 waiting pairs"
}

/// Passes on the failure of a lookup. An error response of Chat reaches the caller unchanged.
fn failure_reply(failure: Option<&CallResult>) -> Result<Reply, GatewayError> {
    match failure {
        Some(Ok(response)) => Ok(Reply::from_chat(
            response.status,
            response.content_type.clone(),
            response.body.clone(),
            response.error_code,
        )),
        Some(Err(error)) => Err(error.clone()),
        None => Err(GatewayError::Internal),
    }
}

/// Returns about how long the response will be, in bytes.
fn response_len(pairs: &PairService, request: &CheckRequest<'_>, session: &CheckSession) -> usize {
    let item = |(account, to): (usize, &Cow<'_, str>)| match session.answer(account).map(|answer| &answer.item) {
        // A failed item names its account once more in the list of failures.
        Some(Item::Verbatim(json)) => json.len() + to.len(),
        Some(Item::Missing(_)) => 2 * to.len() + pairs.kind.item_len() + 96,
        Some(Item::Known(_)) | None => to.len() + pairs.kind.item_len(),
    };
    request.to.iter().enumerate().map(item).sum()
}
