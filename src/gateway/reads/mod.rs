//! Cached reads of one app: what is kept, and which calls requests share.

mod call;
mod serve;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::clock;
use crate::domain::reads::cache::{KeptResponse, ReadCache, ReadKey};
use crate::domain::reads::calls::SharedCalls;
use crate::domain::reads::fence::ReadFence;
use crate::domain::reads::found::{Found, ReadOptions};
use crate::domain::reads::rules::CachedRead;
use crate::domain::tick::Tick;
use crate::error::GatewayError;

/// Cached reads of one app.
pub(super) struct ReadService {
    /// Of all apps.
    cache: Arc<ReadCache>,
    pub(super) fence: ReadFence,
    /// Responses are kept under this lock, so that a request finds either the call or its response.
    calls: Mutex<SharedCalls<Arc<ResultSender>>>,
}

/// The result of a shared call, once it has one.
type ResultSender = watch::Sender<Option<SharedResult>>;

/// How a shared call ended, for all requests that wait for it.
type SharedResult = Result<Arc<SharedResponse>, GatewayError>;

/// A response of Chat for all requests that wait for it.
#[derive(Debug)]
struct SharedResponse {
    status: StatusCode,
    content_type: Option<HeaderValue>,
    /// Counts among the buffered bytes until the last request has sent it.
    body: Bytes,
    error_code: i64,
    /// When its call was sent.
    sent: Tick,
}

impl ReadService {
    pub(super) fn new(cache: &Arc<ReadCache>) -> Self {
        Self { cache: Arc::clone(cache), fence: ReadFence::default(), calls: Mutex::default() }
    }

    /// Looks a request up.
    fn find(&self, key: &ReadKey, read: &CachedRead, options: &ReadOptions) -> Found {
        // The mark is read last: a write that is acknowledged by then has made its mark.
        let kept = self.cache.get(key);
        options.judge(kept, self.fence.last_mark(&read.services), clock::tick())
    }

    /// Looks up a response that may answer because Chat failed.
    fn stale(&self, key: &ReadKey, read: &CachedRead, options: &ReadOptions) -> Option<Arc<KeptResponse>> {
        let kept = self.cache.get(key)?;
        let last_mark = self.fence.last_mark(&read.services);
        options.may_answer_failure(&kept, last_mark, clock::tick()).then_some(kept)
    }
}
