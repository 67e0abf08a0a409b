//! The order to drain, as every connection watches it.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, Waker};

use tokio_util::sync::CancellationToken;

/// Given once, and then to all who hold a clone.
#[derive(Debug, Clone, Default)]
pub struct Drain(Arc<DrainState>);

#[derive(Debug, Default)]
struct DrainState {
    /// The token tells the same, under a lock.
    has_begun: AtomicBool,
    token: CancellationToken,
}

impl Drain {
    /// From now on there are no new connections, and the present ones end after what they have at work.
    pub fn begin(&self) {
        self.0.has_begun.store(true, Ordering::Release);
        self.0.token.cancel();
    }

    /// Whether it has been given.
    pub fn has_begun(&self) -> bool {
        self.0.has_begun.load(Ordering::Acquire)
    }

    /// Waits for it.
    ///
    /// To ask a token again takes its lock, and a connection is polled several times for each request. So it is asked
    /// only to say whom to wake, and when the order has been given. (Asked once it remembers whom, as it takes no part in
    /// tokio's budget for tasks that are busy.)
    pub async fn begun(&self) {
        let mut cancelled = pin!(self.0.token.cancelled());
        let mut watching: Option<Waker> = None;
        poll_fn(|cx| {
            let is_watched = watching.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
            if is_watched && !self.has_begun() {
                return Poll::Pending;
            }
            watching = Some(cx.waker().clone());
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
    fn the_order_wakes_who_polled_last_and_ends_the_wait() {
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
    async fn who_comes_after_the_order_does_not_wait() {
        let drain = Drain::default();
        drain.begin();
        drain.begun().await;
    }
}
