//! Worker threads, which serve the data listeners.
//!
//! There is one thread for each available core. A request stays on its thread, and so do its connections to Chat, which
//! avoids wakeups across threads.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::sync::CancellationToken;

use crate::gateway::generation::ThreadWorker;
use crate::server::listener::Listener;
use crate::server::{self, Connections};

/// Period of [`keep_timer_near`].
const TIMER_PERIOD: Duration = Duration::from_millis(500);

/// The running worker threads.
pub(super) struct Workers {
    threads: Vec<JoinHandle<()>>,
    runtimes: Vec<Handle>,
    /// Ends all of them.
    stop: CancellationToken,
}

/// What one thread starts with.
struct ThreadSetup {
    worker: ThreadWorker,
    listeners: Arc<Vec<Listener>>,
    connections: Connections,
    stop: CancellationToken,
}

impl Workers {
    /// Starts one thread for each of `workers`. All of them accept from the same `listeners`.
    ///
    /// # Errors
    /// If a thread or its runtime cannot be created.
    pub(super) fn start(
        workers: &[ThreadWorker],
        listeners: &Arc<Vec<Listener>>,
        connections: &Connections,
    ) -> io::Result<Self> {
        let (mut threads, mut runtimes, stop) = (Vec::new(), Vec::new(), CancellationToken::new());
        for (number, worker) in workers.iter().enumerate() {
            let setup = ThreadSetup {
                worker: worker.clone(),
                listeners: Arc::clone(listeners),
                connections: connections.clone(),
                stop: stop.clone(),
            };
            let runtime = new_runtime()?;
            runtimes.push(runtime.handle().clone());
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            threads.push(thread.spawn(move || {
                runtime.block_on(setup.run());
                runtime.shutdown_background();
            })?);
        }
        Ok(Self { threads, runtimes, stop })
    }

    /// Returns the runtimes, in the order of the threads.
    pub(super) fn runtimes(&self) -> Vec<Handle> {
        self.runtimes.clone()
    }

    /// Ends the threads, and with them everything they still do.
    pub(super) fn stop(self) {
        self.stop.cancel();
        for thread in self.threads {
            // A panic of a worker thread was logged and does not concern the others.
            let _ = thread.join();
        }
    }
}

impl ThreadSetup {
    async fn run(self) {
        for listener in self.listeners.iter() {
            match listener.acceptor() {
                Ok(acceptor) => {
                    tokio::spawn(server::serve(acceptor, self.worker.clone(), self.connections.clone()));
                }
                Err(error) => tracing::error!(%error, "worker thread lost a listener"),
            }
        }
        // The drain closes a socket with the last clone of its listener.
        drop(self.listeners);
        tokio::spawn(keep_timer_near());
        // A lookup for a caller of one thread may run on another, so all threads run until the drain has ended.
        self.stop.cancelled().await;
    }
}

/// Creates a runtime for one thread.
pub(super) fn new_runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// Returns the number of worker threads.
pub(super) fn thread_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Keeps a timer that is never far. A timer that is nearer than all others wakes the event loop of its thread by a
/// system call, even from the same thread; without this one, most calls to Chat would do so for their timeout.
async fn keep_timer_near() {
    loop {
        tokio::time::sleep(TIMER_PERIOD).await;
    }
}
