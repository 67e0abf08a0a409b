//! One generation of the gateway: what all threads share under one configuration.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use tokio_util::task::TaskTracker;

use super::access::Access;
use super::app::{App, ReplacedApp, Shared};
use super::directory::Directory;
use super::observe::samples::LogSampler;
use crate::capacity::Capacity;
use crate::config::Config;
use crate::domain::caller::QueueKey;
use crate::domain::chat::app::AppName;
use crate::domain::reads::cache::ReadCache;
use crate::fleet::{Connections, FleetError};
use crate::http::host::Hosts;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::{TraceError, Tracing};
use crate::upstream::UpstreamError;

/// The gateway under one configuration, shared by all threads.
pub(crate) struct Gateway {
    /// The configuration.
    pub config: Config,
    /// Host names that requests may use.
    pub hosts: Hosts,
    /// The callers, and what each may call.
    pub(super) access: Access,
    /// The apps.
    pub apps: Directory<Arc<App>>,
    /// Responses of cached reads, of all apps.
    pub reads: Arc<ReadCache>,
    /// Counters of all generations.
    pub metrics: Metrics,
    /// Which requests are logged.
    pub(super) samples: LogSampler,
    /// Requests in flight.
    pub requests: Arc<Capacity>,
    /// Bytes of request and response bodies.
    pub buffered: Arc<Capacity>,
    /// Set at the end of the program: nothing may be started any more.
    pub stopped: Arc<AtomicBool>,
    /// Tasks that a stop waits for: connections, writes, lookups.
    pub tasks: TaskTracker,
    /// What replicas share.
    pub fleet: Option<Arc<Connections>>,
    /// Where spans go.
    pub tracing: Option<Arc<Tracing>>,
}

/// Why a gateway cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum GatewayBuildError {
    /// No random key for hashing names and UserSigs.
    #[error("the operating system returns no random numbers: {0}")]
    Random(#[from] getrandom::Error),
    /// An app's client for Chat.
    #[error("app {0}")]
    Upstream(AppName, #[source] UpstreamError),
    /// The client for Redis.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The client for the trace collector.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

impl Gateway {
    /// Builds the first generation and signs for the first time. Nothing is sent.
    ///
    /// # Errors
    /// See [`GatewayBuildError`].
    pub(crate) fn new(config: Config) -> Result<Arc<Self>, GatewayBuildError> {
        let fleet = config.fleet.as_ref().map(Connections::new);
        let tracing = config.trace.as_ref().map(Tracing::new).transpose()?;
        let tasks = TaskTracker::new();
        let reads = Arc::new(ReadCache::new(config.cache.max_bytes));
        let shared = Shared { fleet: fleet.as_ref(), reads: &reads, tasks: &tasks };
        let apps = Directory::new(&config.apps, |app| App::new(app, &config, &shared).map(Arc::new))?;
        Ok(Arc::new(Self {
            hosts: Hosts::new(&config.server.hosts),
            access: Access::new(&config, None)?,
            apps,
            reads,
            metrics: Metrics::new(config.apps.len()),
            samples: LogSampler::default(),
            requests: Capacity::new(config.server.max_requests),
            buffered: Capacity::new(config.server.max_buffered),
            stopped: Arc::default(),
            tasks,
            fleet,
            tracing,
            config,
        }))
    }

    /// Builds the next generation. An app continues if its SDKAppID stays, whatever its name: to Chat it is the same
    /// app. Nothing has changed before [`Gateway::activate`].
    pub(super) fn reloaded(&self, config: Config) -> Result<Arc<Self>, GatewayBuildError> {
        let shared = Shared { fleet: self.fleet.as_ref(), reads: &self.reads, tasks: &self.tasks };
        let apps = Directory::new(&config.apps, |app| match self.apps.numbered(app.sdkappid) {
            Some(before) => Ok(Arc::new(before.with_config(app, &config, &shared))),
            None => App::new(app, &config, &shared).map(Arc::new),
        })?;
        let before = config.apps.iter().map(|app| self.apps.position(app.sdkappid)).collect::<Vec<_>>();
        Ok(Arc::new(Self {
            hosts: Hosts::new(&config.server.hosts),
            access: Access::new(&config, Some(&self.access))?,
            apps,
            reads: Arc::clone(&self.reads),
            metrics: self.metrics.reloaded(&before),
            samples: LogSampler::default(),
            requests: Arc::clone(&self.requests),
            buffered: Arc::clone(&self.buffered),
            stopped: Arc::clone(&self.stopped),
            tasks: self.tasks.clone(),
            fleet: self.fleet.clone(),
            tracing: self.tracing.clone(),
            config,
        }))
    }

    /// Takes over from `before`.
    pub(super) fn activate(&self, before: &Self) {
        self.access.activate();
        self.metrics.retain_callers(&self.config.callers.iter().map(|caller| QueueKey::named(&caller.name)).collect());
        if let (Some(fleet), Some(config)) = (&self.fleet, &self.config.fleet) {
            fleet.reconfigure(config, &self.config.apps);
        }
        for (config, app) in self.config.apps.iter().zip(self.apps.iter()) {
            let Some(old) = before.config.apps.iter().find(|old| old.sdkappid == config.sdkappid) else { continue };
            let replaced = ReplacedApp {
                endpoint: &old.endpoint,
                identifier: &old.identifier,
                cached_reads: &before.config.cache.commands,
                body_timeout: before.config.server.body_timeout,
                timeout: before.config.upstream.timeout,
            };
            app.activate(&replaced, config);
        }
    }
}
