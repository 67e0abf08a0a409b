//! Leaving out wake-ups that are for nothing.
//!
//! Whenever a piece of a body is taken, hyper wakes the task that reads the socket, since that may have another
//! piece to give. Of nearly every body the first piece is the last, and it is taken by the very task that is woken,
//! which is then polled once more, from the socket down, to find nothing to do. For a call that is handed on this
//! happens at both ends, and takes a tenth of what the call costs.
//!
//! So the tasks of connections are wrapped in [`WakeFilter`], and bodies over HTTP/1 in [`FilteredBody`], which takes a piece
//! within [`suppress_wakes`] and decides by what came whether the wake-up was for something.
//!
//! Not so over HTTP/2: there each request has a task of its own, and when it wakes its connection's, that is for a
//! window to be opened, with the last piece as with others.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use http::Version;
use http_body::{Body, Frame, SizeHint};

thread_local! {
    /// `None` outside of [`suppress_wakes`]; inside, whether a wake-up was held back.
    static HELD: Cell<Option<bool>> = const { Cell::new(None) };
}

/// Takes something while this thread wakes no [`WakeFilter`] task. Says whether one was to be woken; if that was for
/// something, it must be made up for.
pub fn suppress_wakes<T>(take: impl FnOnce() -> T) -> (T, bool) {
    /// Puts back what was there, after a panic too.
    struct Before(Option<bool>);
    impl Drop for Before {
        fn drop(&mut self) {
            HELD.set(self.0);
        }
    }
    let _before = Before(HELD.replace(Some(false)));
    let taken = take();
    (taken, HELD.get() == Some(true))
}

/// A task that [`suppress_wakes`] keeps from being woken, by the thread that holds and by no other.
#[derive(Debug)]
pub struct WakeFilter<F> {
    task: F,
    /// Whom to wake, and what the task is given instead.
    wakers: Option<(Waker, Waker)>,
}

impl<F> WakeFilter<F> {
    /// Not begun yet.
    pub fn new(task: F) -> Self {
        Self { task, wakers: None }
    }
}

impl<F: Future + Unpin> Future for WakeFilter<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { task, wakers } = &mut *self;
        // It is the same one for as long as a task lives.
        if wakers.as_ref().is_none_or(|(outer, _)| !outer.will_wake(cx.waker())) {
            *wakers = Some((cx.waker().clone(), Arc::new(UnlessHeld(cx.waker().clone())).into()));
        }
        let (_, inner) = wakers.as_ref().expect("just made");
        Pin::new(task).poll(&mut Context::from_waker(inner))
    }
}

struct UnlessHeld(Waker);

impl Wake for UnlessHeld {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        match HELD.get() {
            Some(_) => HELD.set(Some(true)),
            None => self.0.wake_by_ref(),
        }
    }
}

/// A body that wakes nobody for its last piece, if it comes over HTTP/1: to finish the request, or the answer, the
/// task is polled anyway.
#[derive(Debug)]
pub struct FilteredBody<B> {
    body: B,
    applies: bool,
}

impl<B> FilteredBody<B> {
    /// A body that comes over that version.
    pub fn new(body: B, version: Version) -> Self {
        Self { body, applies: version < Version::HTTP_2 }
    }
}

impl<B: Body + Unpin> Body for FilteredBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if !self.applies {
            return Pin::new(&mut self.body).poll_frame(cx);
        }
        let (frame, held) = suppress_wakes(|| Pin::new(&mut self.body).poll_frame(cx));
        if held && !self.body.is_end_stream() {
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

    /// How often its waker was used.
    #[derive(Default)]
    pub(crate) struct Count(pub(crate) AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The waker that a quiet task hands out, and how often its own was woken.
    fn quiet() -> (Waker, impl Fn() -> usize) {
        let count = Arc::new(Count::default());
        let (outer, mut handed_out) = (Waker::from(Arc::clone(&count)), None);
        let mut task = WakeFilter::new(poll_fn(|cx| {
            handed_out = Some(cx.waker().clone());
            Poll::<()>::Pending
        }));
        assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&outer)).is_pending());
        drop(task);
        (handed_out.expect("polled"), move || count.0.load(Ordering::Relaxed))
    }

    #[test]
    fn a_task_is_woken_unless_this_thread_holds_and_then_the_holder_knows() {
        let (waker, woken) = quiet();
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
    fn after_a_panic_nothing_is_held_any_more() {
        let (waker, woken) = quiet();
        let panicked = std::panic::catch_unwind(|| suppress_wakes(|| panic!("as told")));
        assert!(panicked.is_err());
        waker.wake();
        assert_eq!(woken(), 1);
    }

    #[test]
    fn who_holds_within_a_hold_leaves_the_outer_one_as_it_was() {
        let (waker, woken) = quiet();
        let ((_, inner), outer) = suppress_wakes(|| suppress_wakes(|| waker.wake_by_ref()));
        assert_eq!((inner, outer, woken()), (true, false, 0));
    }

    /// Two pieces, for each of which somebody is woken.
    struct Pieces(usize, Waker);

    impl Body for Pieces {
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
    fn over_http_1_the_last_piece_wakes_nobody_and_over_http_2_each_wakes_whom_it_is_to_wake() {
        for (version, first, last) in [(Version::HTTP_11, (0, 1), (0, 1)), (Version::HTTP_2, (1, 0), (2, 0))] {
            let (connection, woken) = quiet();
            let reader = Arc::new(Count::default());
            let waker = Waker::from(Arc::clone(&reader));
            let mut body = FilteredBody::new(Pieces(2, connection), version);
            for counts in [first, last] {
                let taken = Pin::new(&mut body).poll_frame(&mut Context::from_waker(&waker));
                assert!(matches!(taken, Poll::Ready(Some(Ok(_)))));
                assert_eq!((woken(), reader.0.load(Ordering::Relaxed)), counts, "{version:?}");
            }
            assert!(body.is_end_stream() && body.size_hint().lower() == 0);
        }
    }

    #[test]
    fn a_task_that_moves_to_another_is_woken_there() {
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let mut handed_out = Vec::new();
        let mut task = WakeFilter::new(poll_fn(|cx| {
            handed_out.push(cx.waker().clone());
            Poll::<()>::Pending
        }));
        for count in [&first, &second] {
            let waker = Waker::from(Arc::clone(count));
            assert!(Pin::new(&mut task).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        drop(task);
        handed_out.pop().expect("polled twice").wake();
        assert_eq!((first.0.load(Ordering::Relaxed), second.0.load(Ordering::Relaxed)), (0, 1));
    }
}
