//! Work that is finished whether or not anybody waits for it to the end.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Runs as a part of whoever waits for it, and dropped before its end it goes on as a task of its own. That is
/// cheaper than a task from the beginning, since hardly anybody leaves.
pub(super) struct DetachOnDrop<T: Send + 'static> {
    /// `None` at its end, or after a panic.
    work: Option<Work<T>>,
    tasks: TaskTracker,
    /// A stop waits for it from its beginning: between one task and the other it must not be overlooked.
    _tracked: TaskTrackerToken,
}

impl<T: Send + 'static> DetachOnDrop<T> {
    /// Not begun yet. `tasks` are what a stop waits for.
    pub(super) fn new(work: impl Future<Output = T> + Send + 'static, tasks: &TaskTracker) -> Self {
        Self { work: Some(Box::pin(work)), tasks: tasks.clone(), _tracked: tasks.token() }
    }
}

impl<T: Send + 'static> Future for DetachOnDrop<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // Taken out, so that after a panic nothing is left to go on with.
        let mut work = self.work.take().expect("not polled after its end");
        let result = work.as_mut().poll(cx);
        if result.is_pending() {
            self.work = Some(work);
        }
        result
    }
}

impl<T: Send + 'static> Drop for DetachOnDrop<T> {
    fn drop(&mut self) {
        // Without a runtime the program has ended.
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

    /// Work that waits for a word, and tells what it has heard.
    fn work() -> (oneshot::Sender<u8>, oneshot::Receiver<u8>, impl Future<Output = u8> + Send + 'static) {
        let ((say, hear), (tell, told)) = (oneshot::channel(), oneshot::channel());
        let work = async move {
            let heard = hear.await.expect("something is said");
            tell.send(heard).expect("somebody listens");
            heard
        };
        (say, told, work)
    }

    #[tokio::test]
    async fn whoever_waits_gets_the_result_and_no_task_is_made() {
        let (tasks, (say, told, work)) = (TaskTracker::new(), work());
        let finished = DetachOnDrop::new(work, &tasks);
        assert_eq!(tasks.len(), 1, "a stop waits for it");
        say.send(7).expect("it listens");
        assert_eq!((finished.await, told.await), (7, Ok(7)));
        assert!(tasks.is_empty());
    }

    #[tokio::test]
    async fn it_goes_on_when_nobody_waits_any_more_and_a_stop_waits_for_it() {
        let (tasks, (say, told, work)) = (TaskTracker::new(), work());
        let mut finished = Box::pin(DetachOnDrop::new(work, &tasks));
        assert!(poll_once(finished.as_mut()).is_pending());
        drop(finished);
        tasks.close();
        assert_eq!(tasks.len(), 1);
        say.send(7).expect("it listens");
        assert_eq!(told.await, Ok(7));
        tasks.wait().await;
    }

    #[tokio::test]
    async fn after_a_panic_it_does_not_go_on() {
        let tasks = TaskTracker::new();
        let mut finished = Box::pin(DetachOnDrop::new(async { panic!("as told") }, &tasks));
        let polled = std::panic::catch_unwind(AssertUnwindSafe(|| -> Poll<()> { poll_once(finished.as_mut()) }));
        assert!(polled.is_err());
        drop(finished);
        assert!(tasks.is_empty());
    }

    #[test]
    fn without_a_runtime_it_ends() {
        let tasks = TaskTracker::new();
        drop(DetachOnDrop::new(async {}, &tasks));
        assert!(tasks.is_empty());
    }

    fn poll_once<T>(future: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(std::task::Waker::noop()))
    }
}
