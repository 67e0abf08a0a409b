//! The start of the drain, as every connection observes it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

use tokio_util::sync::CancellationToken;

/// A signal that is given once. All clones observe it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Drain(Arc<DrainState>);

#[derive(Debug, Default)]
struct DrainState {
    /// The same as the token's state, readable without a lock.
    has_begun: AtomicBool,
    token: CancellationToken,
}

impl Drain {
    /// Begins the drain: no connection is accepted any more, and open ones end after their requests in flight.
    pub(crate) fn begin(&self) {
        self.0.has_begun.store(true, Ordering::Release);
        self.0.token.cancel();
    }

    /// Whether the drain has begun.
    pub(crate) fn has_begun(&self) -> bool {
        self.0.has_begun.load(Ordering::Acquire)
    }

    /// Waits until the drain begins.
    ///
    /// Polling a token takes its lock, and a connection is polled several times for each request. So the token is polled
    /// only to register a new waker, and once the drain has begun. (One poll is enough to register a waker: the token
    /// ignores tokio's budget for busy tasks.)
    pub(crate) async fn begun(&self) {
        let mut cancelled = pin!(self.0.token.cancelled());
        let mut registered: Option<Waker> = None;
        poll_fn(|cx| {
            let is_registered = registered.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
            if is_registered && !self.has_begun() {
                return Poll::Pending;
            }
            registered = Some(cx.waker().clone());
            cancelled.as_mut().poll(cx)
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::task::Context;

    use super::*;
    use crate::http::wakeups::tests::Count;

    #[test]
    fn drain_wakes_the_last_waker_and_ends_the_wait() {
        let drain = Drain::default();
        let mut wait = pin!(drain.begun());
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let (one, other) = (Waker::from(Arc::clone(&first)), Waker::from(Arc::clone(&second)));
        let mut poll = |waker: &Waker| wait.as_mut().poll(&mut Context::from_waker(waker));
        for waker in [&one, &one, &other, &other] {
            assert!(poll(waker).is_pending());
        }
        assert!(!drain.has_begun());
        drain.clone().begin();
        assert_eq!((first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed)), (0, 1));
        assert!(poll(&other).is_ready() && drain.has_begun());
    }

    #[tokio::test]
    async fn wait_after_the_begin_returns_at_once() {
        let drain = Drain::default();
        drain.begin();
        drain.begun().await;
    }
}
