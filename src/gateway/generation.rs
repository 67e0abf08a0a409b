//! The generation that serves: a gateway and a worker for each thread, replaced whole by a reload.
//!
//! A request takes its worker when it begins and keeps it to its end.

use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Gateway, GatewayBuildError, Worker};
use crate::config::Config;

/// The gateway of now, and the worker of each thread.
pub struct Generations {
    gateway: ArcSwap<Gateway>,
    threads: Vec<ThreadWorker>,
}

/// The worker that one thread has now.
#[derive(Clone)]
pub struct ThreadWorker(Arc<ArcSwap<Worker>>);

impl ThreadWorker {
    /// The one for a request that begins now.
    pub fn load(&self) -> Arc<Worker> {
        self.0.load_full()
    }
}

impl Generations {
    /// The first generation, for so many threads.
    ///
    /// # Errors
    /// See [`GatewayBuildError`].
    pub fn new(config: Config, threads: usize) -> Result<Arc<Self>, GatewayBuildError> {
        let gateway = Gateway::new(config)?;
        let thread = |_| Ok(ThreadWorker(Arc::new(ArcSwap::new(Worker::new(Arc::clone(&gateway))?))));
        let threads = (0..threads).map(thread).collect::<Result<_, GatewayBuildError>>()?;
        Ok(Arc::new(Self { gateway: ArcSwap::new(gateway), threads }))
    }

    /// The gateway of now.
    pub fn gateway(&self) -> Arc<Gateway> {
        self.gateway.load_full()
    }

    /// The worker of each thread.
    pub fn threads(&self) -> &[ThreadWorker] {
        &self.threads
    }

    /// Puts the next generation in place, or changes nothing. Not for two at one time.
    ///
    /// # Errors
    /// See [`GatewayBuildError`].
    pub fn replace(&self, config: Config) -> Result<(), GatewayBuildError> {
        let before = self.gateway();
        let next = before.reloaded(config)?;
        let workers = self.threads.iter().map(|_| Worker::new(Arc::clone(&next))).collect::<Result<Vec<_>, _>>()?;
        // From here on nothing can fail.
        next.activate(&before);
        for (thread, worker) in self.threads.iter().zip(workers) {
            thread.0.store(worker);
        }
        self.gateway.store(next);
        Ok(())
    }
}
