//! A cached read, driven from the cache to the response.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use tokio::sync::watch;

use super::super::cache_control;
use super::super::relay::RelayRequest;
use super::super::request::CallContext;
use super::super::response::{BUFFERED, Reply, UNCOUNTED_MAX, counted};
use super::super::worker::AppWorker;
use super::call::{CallParts, SharedCall, Started};
use super::{SharedResponse, SharedResult};
use crate::clock;
use crate::domain::chat::command::{CommandKind, CommandName};
use crate::domain::pairs::check::CheckSummary;
use crate::domain::pairs::directives::{CacheDirectives, PairSources, Source};
use crate::domain::policy::outcome;
use crate::domain::reads::cache::{KeptResponse, ReadKey};
use crate::domain::reads::calls::{JoinRequest, Progress};
use crate::domain::reads::found::{Found, ReadOptions};
use crate::domain::reads::rules::CachedRead;
use crate::domain::tick::Tick;
use crate::error::GatewayError;
use crate::limits::Reservation;
use crate::telemetry::metrics::ReadSource;

/// What a request asks for.
struct Question<'a> {
    read: &'a CachedRead,
    key: ReadKey,
    options: ReadOptions,
    context: CallContext,
}

/// How a request gets its response.
enum Turn {
    /// It was kept meanwhile.
    Kept(Arc<KeptResponse>, Source),
    /// Another request has started the call.
    Joined(Wait),
    /// This request starts the call.
    Started(Started, Wait),
    /// The caller's own quota grants the call after this time.
    CallerQuota(Duration),
    /// There are too many shared calls.
    Full,
}

/// What a request waits for.
struct Wait {
    result: watch::Receiver<Option<SharedResult>>,
    progress: Arc<Progress>,
}

/// A response, and where it comes from.
enum Answer {
    Kept(Arc<KeptResponse>, Source),
    Shared(Arc<SharedResponse>, Source),
    /// Of a call that no other request shares.
    Alone(Reply),
}

impl AppWorker {
    /// Answers a read that the configuration caches: from the cache, or from a call that equal requests share.
    pub(in super::super) async fn read(
        self: &Arc<Self>,
        read: &CachedRead,
        directives: CacheDirectives,
        request: RelayRequest,
    ) -> Result<Reply, GatewayError> {
        if directives.no_store || !read.may_cache_request(&request.body) {
            if directives.only_if_cached {
                return Err(GatewayError::NotCached);
            }
            return Box::pin(self.read_alone(read, request)).await;
        }
        let stale_if_error = self.gateway.config.cache.stale_if_error;
        let options = ReadOptions { directives, ttl: read.ttl, stale_if_error };
        let key = ReadKey { app: self.app.number, command: Arc::clone(&read.name), request: request.body.clone() };
        let found = self.app.reads.find(&key, read, &options);
        let mut summary = CheckSummary {
            sources: PairSources::default(),
            oldest: Duration::ZERO,
            rejected: found == Found::Rejected,
            expired: found == Found::Expired,
            served_stale: false,
        };
        if let Found::Usable { response, stale } = found {
            return self.kept_reply(&response, source_of(stale), summary, &directives);
        }
        if directives.only_if_cached {
            return Err(GatewayError::NotCached);
        }
        let question = Question { read, key, options, context: request.context };
        let answer = Box::pin(self.ask(&question, request)).await;
        if answer.as_ref().map_or_else(GatewayError::allows_stale, Answer::allows_stale)
            && let Some(kept) = self.app.reads.stale(&question.key, read, &options)
        {
            summary.served_stale = true;
            return self.kept_reply(&kept, Source::Stale, summary, &directives);
        }
        match answer? {
            Answer::Kept(kept, source) => self.kept_reply(&kept, source, summary, &directives),
            Answer::Shared(response, source) => Ok(shared_reply(&response, source, summary, &directives)),
            Answer::Alone(reply) => Ok(reply),
        }
    }

    /// Makes a call that is neither shared nor kept.
    async fn read_alone(&self, read: &CachedRead, request: RelayRequest) -> Result<Reply, GatewayError> {
        let name = CommandName::parse(&read.name).expect("it was parsed before");
        let response = self.relay_once(name, CommandKind::Read, request, None).await?;
        let body = counted(response.body, Some(response.held));
        let mut reply = Reply::from_chat(response.status, response.content_type, body, response.error_code);
        reply.cache_status = Some("chatgate; fwd=bypass".to_owned());
        reply.read = Some(ReadSource::Bypass);
        Ok(reply)
    }

    /// Gets a response that the cache does not have: waits for a call that an equal request has started, or starts one.
    async fn ask(self: &Arc<Self>, question: &Question<'_>, request: RelayRequest) -> Result<Answer, GatewayError> {
        let Question { read, key, context, .. } = question;
        let mut reservation = CallReservation { worker: self, context: *context, reserved: None };
        let mut has_failed = false;
        loop {
            match self.next_turn(question, &mut reservation)? {
                Turn::Kept(kept, source) => return Ok(Answer::Kept(kept, source)),
                Turn::CallerQuota(wait) => {
                    tokio::time::sleep(wait).await;
                    request.stats.add_wait(wait);
                }
                Turn::Joined(mut wait) => {
                    let begun = clock::tick();
                    let result = self.wait(&mut wait, question).await;
                    request.stats.add_wait(clock::tick().since(begun));
                    // The call may have had less time than this request. A second failure is final.
                    let out_of_time = result.as_ref().is_err_and(|error| error.missing_reason().is_some());
                    if !out_of_time || has_failed || clock::now() >= context.deadline.permit {
                        return result.map(|response| Answer::Shared(response, Source::Joined));
                    }
                    has_failed = true;
                }
                Turn::Started(started, mut wait) => {
                    // From here on the call is made, even if this caller leaves.
                    let reserved = reservation.spend();
                    let (parts, _slots) = CallParts::of(request);
                    let call = SharedCall::new(&self.app.reads, read, key.clone(), started, self.app.write_settle);
                    self.gateway.tasks.spawn(call.run(Arc::clone(self), parts));
                    let result = self.wait(&mut wait, question).await;
                    if result.as_ref().is_err_and(GatewayError::made_no_call) {
                        self.gateway.access.cancel(context.caller, reserved);
                    }
                    return result.map(|response| Answer::Shared(response, Source::Fetched));
                }
                Turn::Full => {
                    // It reserves its call as a relayed read does.
                    drop(reservation);
                    return self.read_alone(read, request).await.map(Answer::Alone);
                }
            }
        }
    }

    /// Decides under the lock how a request gets its response.
    fn next_turn(&self, question: &Question<'_>, reservation: &mut CallReservation<'_>) -> Result<Turn, GatewayError> {
        let (reads, Question { read, key, options, context }) = (&self.app.reads, question);
        let mut calls = reads.calls.lock();
        // A call may have ended since the cache was read. It keeps its response under this lock.
        if let Found::Usable { response, stale } = reads.find(key, read, options) {
            return Ok(Turn::Kept(response, source_of(stale)));
        }
        let join = JoinRequest {
            class: context.queue.class,
            last_mark: reads.fence.last_mark(&read.services),
            // A request for a fresh response joins only a call that is still to be sent.
            may_join_sent: options.directives.may_join(),
        };
        if let Some((result, progress)) = calls.join(key, join) {
            return Ok(Turn::Joined(Wait { result: result.subscribe(), progress: Arc::clone(progress) }));
        }
        let wait = reservation.reserve()?;
        if !wait.is_zero() {
            return Ok(Turn::CallerQuota(wait));
        }
        let ((result, receiver), progress) = (watch::channel(None), Arc::new(Progress::new(join.class)));
        let (result, wait) = (Arc::new(result), Wait { result: receiver, progress: Arc::clone(&progress) });
        Ok(match calls.start(key.clone(), Arc::clone(&result), Arc::clone(&progress)) {
            Some(id) => Turn::Started(Started { id, progress, result }, wait),
            None => Turn::Full,
        })
    }

    /// Waits for a shared call, at most until the request's own deadline.
    async fn wait(&self, wait: &mut Wait, question: &Question<'_>) -> Result<Arc<SharedResponse>, GatewayError> {
        let (CallContext { deadline, queue, .. }, begun) = (question.context, clock::tick());
        let mut ended = pin!(ended(&mut wait.result));
        match tokio::time::timeout_at(deadline.permit.into(), &mut ended).await {
            Ok(result) => result,
            // A call that is not in flight by then could not end in time.
            Err(_) if wait.progress.sent().is_none() => {
                let name = CommandName::parse(&question.read.name).expect("it was parsed before");
                Err(self.app.no_permit(name, queue.class, begun))
            }
            Err(_) => {
                let result = tokio::time::timeout_at(deadline.response.into(), ended).await;
                result.unwrap_or(Err(GatewayError::UpstreamTimeout))
            }
        }
    }

    fn kept_reply(
        &self,
        kept: &KeptResponse,
        source: Source,
        summary: CheckSummary,
        directives: &CacheDirectives,
    ) -> Result<Reply, GatewayError> {
        // The cache may evict the response while it is being sent.
        let reserved = match kept.body.len() {
            ..=UNCOUNTED_MAX => None,
            len => Some(self.gateway.buffered.try_acquire(len).ok_or(GatewayError::Overloaded(BUFFERED))?),
        };
        let content_type = kept.content_type.clone().and_then(|value| HeaderValue::from_maybe_shared(value).ok());
        let reply = Reply::from_chat(StatusCode::OK, content_type, counted(kept.body.clone(), reserved), 0);
        Ok(labeled(reply, kept.sent, source, summary, directives))
    }
}

/// The call that a request has reserved of its caller's own quota, if the caller has one. Dropped before it is spent, it
/// is cancelled.
struct CallReservation<'a> {
    worker: &'a AppWorker,
    context: CallContext,
    reserved: Option<Reservation>,
}

impl CallReservation<'_> {
    /// Reserves the call, unless it is reserved. Returns how long to wait before making it.
    fn reserve(&mut self) -> Result<Duration, GatewayError> {
        if self.reserved.is_some() {
            return Ok(Duration::ZERO);
        }
        let CallContext { caller, deadline, .. } = self.context;
        let patience = || deadline.permit.saturating_duration_since(clock::now());
        let reserved = self.worker.gateway.access.reserve(caller, || 1, patience)?;
        let wait = reserved.wait;
        self.reserved = Some(reserved);
        Ok(wait)
    }

    fn spend(&mut self) -> Reservation {
        self.reserved.take().unwrap_or_default()
    }
}

impl Drop for CallReservation<'_> {
    fn drop(&mut self) {
        if let Some(reserved) = self.reserved.take() {
            self.worker.gateway.access.cancel(self.context.caller, reserved);
        }
    }
}

impl Answer {
    /// Returns whether Chat failed, so that a stale answer is better.
    fn allows_stale(&self) -> bool {
        match self {
            Answer::Kept(..) => false,
            Answer::Shared(response, _) => outcome::allows_stale(response.error_code),
            Answer::Alone(reply) => outcome::allows_stale(reply.error_code),
        }
    }
}

/// Waits for the end of a shared call.
async fn ended(result: &mut watch::Receiver<Option<SharedResult>>) -> SharedResult {
    match result.wait_for(Option::is_some).await {
        Ok(result) => result.clone().unwrap_or(Err(GatewayError::Internal)),
        // The sender always sends before it is dropped.
        Err(_) => Err(GatewayError::Internal),
    }
}

fn source_of(stale: bool) -> Source {
    if stale { Source::Stale } else { Source::Hit }
}

fn shared_reply(
    response: &SharedResponse,
    source: Source,
    summary: CheckSummary,
    directives: &CacheDirectives,
) -> Reply {
    let SharedResponse { status, content_type, body, error_code, sent } = response;
    let reply = Reply::from_chat(*status, content_type.clone(), body.clone(), *error_code);
    labeled(reply, *sent, source, summary, directives)
}

/// Adds the source of a response to it.
fn labeled(
    mut reply: Reply,
    sent: Tick,
    source: Source,
    mut summary: CheckSummary,
    directives: &CacheDirectives,
) -> Reply {
    summary.sources.count(source);
    reply.cache_status = Some(cache_control::cache_status(&summary, directives));
    reply.age = Some(clock::tick().since(sent).as_secs());
    reply.read = Some(ReadSource::of(source));
    reply
}
