//! Work that runs to its end even if its caller disconnects.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A future that runs inline in its caller and, if dropped before completion, continues as a spawned task. That is
/// cheaper than a task from the start, since callers rarely disconnect.
pub(super) struct DetachOnDrop<T: Send + 'static> {
    /// `None` after completion or a panic.
    work: Option<Work<T>>,
    tasks: TaskTracker,
    /// Makes a stop wait for the work from the start, also between the caller's task and its own.
    _tracked: TaskTrackerToken,
}

impl<T: Send + 'static> DetachOnDrop<T> {
    /// The work starts when it is polled. A stop waits for `tasks`.
    pub(super) fn new(work: impl Future<Output = T> + Send + 'static, tasks: &TaskTracker) -> Self {
        Self { work: Some(Box::pin(work)), tasks: tasks.clone(), _tracked: tasks.token() }
    }
}

impl<T: Send + 'static> Future for DetachOnDrop<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // Taken out, so that nothing continues after a panic.
        let mut work = self.work.take().expect("not polled after completion");
        let result = work.as_mut().poll(cx);
        if result.is_pending() {
            self.work = Some(work);
        }
        result
    }
}

impl<T: Send + 'static> Drop for DetachOnDrop<T> {
    fn drop(&mut self) {
        // Without a runtime the program is ending.
        if let Some(work) = self.work.take()
            && let Ok(runtime) = Handle::try_current()
        {
            self.tasks.spawn_on(work, &runtime);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use tokio::sync::oneshot;

    use super::*;

    /// Returns work that waits for a number and sends it on, with both ends.
    fn work() -> (oneshot::Sender<u8>, oneshot::Receiver<u8>, impl Future<Output = u8> + Send + 'static) {
        let ((input, receive), (send, output)) = (oneshot::channel(), oneshot::channel());
        let work = async move {
            let number = receive.await.expect("a number");
            send.send(number).expect("a receiver");
            number
        };
        (input, output, work)
    }

    #[tokio::test]
    async fn inline_work_returns_its_result_and_spawns_nothing() {
        let (tasks, (input, output, work)) = (TaskTracker::new(), work());
        let detach = DetachOnDrop::new(work, &tasks);
        assert_eq!(tasks.len(), 1, "a stop waits for it");
        input.send(7).expect("a receiver");
        assert_eq!((detach.await, output.await), (7, Ok(7)));
        assert!(tasks.is_empty());
    }

    #[tokio::test]
    async fn dropped_work_continues_and_a_stop_waits_for_it() {
        let (tasks, (input, output, work)) = (TaskTracker::new(), work());
        let mut detach = Box::pin(DetachOnDrop::new(work, &tasks));
        assert!(poll_once(detach.as_mut()).is_pending());
        drop(detach);
        tasks.close();
        assert_eq!(tasks.len(), 1);
        input.send(7).expect("a receiver");
        assert_eq!(output.await, Ok(7));
        tasks.wait().await;
    }

    #[tokio::test]
    async fn panicked_work_does_not_continue() {
        let tasks = TaskTracker::new();
        let mut detach = Box::pin(DetachOnDrop::new(async { panic!("on purpose") }, &tasks));
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| -> Poll<()> { poll_once(detach.as_mut()) }));
        assert!(polled.is_err());
        drop(detach);
        assert!(tasks.is_empty());
    }

    #[test]
    fn work_dropped_without_a_runtime_ends() {
        let tasks = TaskTracker::new();
        drop(DetachOnDrop::new(async {}, &tasks));
        assert!(tasks.is_empty());
    }

    fn poll_once<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(std::task::Waker::noop()))
    }
}
