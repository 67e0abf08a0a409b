//! Suppresses needless wakeups of connection tasks.
//!
//! When a frame of a body is read, hyper wakes the task that reads the socket, since that may have another frame. For
//! nearly every body the first frame is the last, and the very task that reads it is woken. It is polled once more, from
//! the socket up, and finds nothing to do. Suppressing this saves 1,480 instructions (5 %) of a cached response, and
//! 1,700 to 3,800 (3 to 7 %) of a relay, where it happens on both sides.
//!
//! So the tasks of connections are wrapped in [`WakeFilter`], and bodies over HTTP/1 in [`FilteredBody`]. It reads a
//! frame within [`suppress_wakes`], and repeats the wakeup if the body continues.
//!
//! Wakeups over HTTP/2 are not suppressed: each request has its own task, and wakes its connection's task to open the
//! flow-control window, even after the last frame.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use http::Version;
use http_body::{Body, Frame, SizeHint};

thread_local! {
    /// `None` outside of [`suppress_wakes`]; inside, whether a wakeup was suppressed.
    static SUPPRESSED: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Runs `read` while this thread wakes no [`WakeFilter`] task. Returns whether a wakeup was suppressed, which the caller
/// must repeat if it was needed.
pub(crate) fn suppress_wakes<T>(read: impl FnOnce() -> T) -> (T, bool) {
    /// Restores the state, even after a panic.
    struct Restore(Option<bool>);
    impl Drop for Restore {
        fn drop(&mut self) {
            SUPPRESSED.set(self.0);
        }
    }
    let _restore = Restore(SUPPRESSED.replace(Some(false)));
    let output = read();
    (output, SUPPRESSED.get() == Some(true))
}

/// A task that ignores wakeups by a thread within [`suppress_wakes`].
#[derive(Debug)]
pub(crate) struct WakeFilter<F> {
    task: F,
    /// The waker of the task, and the filtering waker that the task gets.
    wakers: Option<(Waker, Waker)>,
}

impl<F> WakeFilter<F> {
    /// Wraps a task.
    pub(crate) fn new(task: F) -> Self {
        Self { task, wakers: None }
    }
}

impl<F: Future + Unpin> Future for WakeFilter<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { task, wakers } = &mut *self;
        // A spawned task always has the same waker.
        if wakers.as_ref().is_none_or(|(outer, _)| !outer.will_wake(cx.waker())) {
            *wakers = Some((cx.waker().clone(), Arc::new(FilteringWaker(cx.waker().clone())).into()));
        }
        let (_, inner) = wakers.as_ref().expect("set above");
        Pin::new(task).poll(&mut Context::from_waker(inner))
    }
}

struct FilteringWaker(Waker);

impl Wake for FilteringWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        match SUPPRESSED.get() {
            Some(_) => SUPPRESSED.set(Some(true)),
            None => self.0.wake_by_ref(),
        }
    }
}

/// A body whose last frame causes no wakeup over HTTP/1: its task is polled anyway, to finish the request or response.
#[derive(Debug)]
pub(crate) struct FilteredBody<B> {
    body: B,
    is_filtered: bool,
}

impl<B> FilteredBody<B> {
    /// Wraps a body of this HTTP version.
    pub(crate) fn new(body: B, version: Version) -> Self {
        Self { body, is_filtered: version < Version::HTTP_2 }
    }
}

impl<B: Body + Unpin> Body for FilteredBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if !self.is_filtered {
            return Pin::new(&mut self.body).poll_frame(cx);
        }
        let (frame, is_suppressed) = suppress_wakes(|| Pin::new(&mut self.body).poll_frame(cx));
        if is_suppressed && !self.body.is_end_stream() {
            cx.waker().wake_by_ref();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Counts wakeups.
    #[derive(Default)]
    pub(crate) struct Count(pub(crate) AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the waker of a filtered task, and a function that counts its wakeups.
    fn filtered_waker() -> (Waker, impl Fn() -> usize) {
        let count = Arc::new(Count::default());
        let (outer, mut inner) = (Waker::from(Arc::clone(&count)), None);
        let mut task = WakeFilter::new(poll_fn(|cx| {
            inner = Some(cx.waker().clone());
            Poll::<()>::Pending
        }));
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&outer)).is_pending());
        drop(task);
        (inner.expect("polled"), move || count.0.load(Ordering::Relaxed))
    }

    #[test]
    fn only_wakeups_by_the_suppressing_thread_are_suppressed() {
        let (waker, woken) = filtered_waker();
        waker.wake_by_ref();
        assert_eq!(woken(), 1);
        assert_eq!(suppress_wakes(|| waker.wake_by_ref()), ((), true));
        assert_eq!(suppress_wakes(|| 5), (5, false));
        assert_eq!(woken(), 1);
        let other = waker.clone();
        let woken_there = suppress_wakes(|| std::thread::spawn(move || other.wake()).join().is_ok());
        assert_eq!((woken_there, woken()), ((true, false), 2), "another thread wakes it");
        waker.wake();
        assert_eq!(woken(), 3);
    }

    #[test]
    fn panic_ends_the_suppression() {
        let (waker, woken) = filtered_waker();
        let panicked = std::panic::catch_unwind(|| suppress_wakes(|| panic!("on purpose")));
        assert!(panicked.is_err());
        waker.wake();
        assert_eq!(woken(), 1);
    }

    #[test]
    fn nested_suppression_does_not_affect_the_outer_one() {
        let (waker, woken) = filtered_waker();
        let ((_, inner), outer) = suppress_wakes(|| suppress_wakes(|| waker.wake_by_ref()));
        assert_eq!((inner, outer, woken()), (true, false, 0));
    }

    /// A body that wakes a task for each frame.
    struct WakingBody(usize, Waker);

    impl Body for WakingBody {
        type Data = bytes::Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<bytes::Bytes>, Self::Error>>> {
            self.0 -= 1;
            self.1.wake_by_ref();
            Poll::Ready(Some(Ok(Frame::data(bytes::Bytes::from_static(b"x")))))
        }

        fn is_end_stream(&self) -> bool {
            self.0 == 0
        }
    }

    #[test]
    fn last_frame_causes_no_wakeup_over_http1_only() {
        for (version, first, last) in [(Version::HTTP_11, (0, 1), (0, 1)), (Version::HTTP_2, (1, 0), (2, 0))] {
            let (connection, woken) = filtered_waker();
            let reader = Arc::new(Count::default());
            let waker = Waker::from(Arc::clone(&reader));
            let mut body = FilteredBody::new(WakingBody(2, connection), version);
            for counts in [first, last] {
                let frame = Pin::new(&mut body).poll_frame(&mut Context::from_waker(&waker));
                assert!(matches!(frame, Poll::Ready(Some(Ok(_)))));
                assert_eq!((woken(), reader.0.load(Ordering::Relaxed)), counts, "{version:?}");
            }
            assert!(body.is_end_stream() && body.size_hint().lower() == 0);
        }
    }

    #[test]
    fn moved_task_wakes_its_new_waker() {
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut inner = Vec::new();
        let mut task = WakeFilter::new(poll_fn(|cx| {
            inner.push(cx.waker().clone());
            Poll::<()>::Pending
        }));
        for count in [&first, &second] {
            let waker = Waker::from(Arc::clone(count));
            assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        drop(task);
        inner.pop().expect("polled twice").wake();
        assert_eq!((first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed)), (0, 1));
    }
}
