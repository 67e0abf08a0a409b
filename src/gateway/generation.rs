//! The running configuration: a gateway and a worker for each thread, replaced as a whole by a reload.
//!
//! A request takes its worker when it starts, and keeps it to its end.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::state::{Gateway, GatewayBuildError};
use super::worker::Worker;
use crate::config::Config;

/// The current gateway, and the current worker of each thread.
pub(crate) struct Generations {
    gateway: ArcSwap<Gateway>,
    threads: Vec<ThreadWorker>,
}

/// The current worker of one thread.
#[derive(Clone)]
pub(crate) struct ThreadWorker(Arc<ArcSwap<Worker>>);

impl ThreadWorker {
    /// Returns the worker for a request that starts now.
    pub(crate) fn load(&self) -> Arc<Worker> {
        self.0.load_full()
    }
}

impl Generations {
    /// Builds the first generation, for this number of threads.
    ///
    /// # Errors
    /// See [`GatewayBuildError`].
    pub(crate) fn new(config: Config, threads: usize) -> Result<Arc<Self>, GatewayBuildError> {
        let gateway = Gateway::new(config)?;
        let thread = |_| Ok(ThreadWorker(Arc::new(ArcSwap::new(Worker::new(Arc::clone(&gateway))?))));
        let threads = (0..threads).map(thread).collect::<Result<_, GatewayBuildError>>()?;
        Ok(Arc::new(Self { gateway: ArcSwap::new(gateway), threads }))
    }

    /// Returns the current gateway.
    pub(crate) fn gateway(&self) -> Arc<Gateway> {
        self.gateway.load_full()
    }

    /// Returns the worker slot of each thread.
    pub(crate) fn threads(&self) -> &[ThreadWorker] {
        &self.threads
    }

    /// Activates the next generation, or changes nothing. Calls must not overlap.
    ///
    /// # Errors
    /// See [`GatewayBuildError`].
    pub(crate) fn replace(&self, config: Config) -> Result<(), GatewayBuildError> {
        let before = self.gateway();
        let next = before.reloaded(config)?;
        let workers = self.threads.iter().map(|_| Worker::new(Arc::clone(&next))).collect::<Result<Vec<_>, _>>()?;
        // From here on nothing fails.
        next.activate(&before);
        for (thread, worker) in self.threads.iter().zip(workers) {
            thread.0.store(worker);
        }
        self.gateway.store(next);
        Ok(())
    }
}
