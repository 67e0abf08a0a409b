//! What each worker thread has of its own: connections to Chat, and counters.

use std::sync::Arc;

use super::app::App;
use super::directory::Directory;
use super::state::{Gateway, GatewayBuildError};
use crate::config;
use crate::telemetry::metrics::AppRecorder;
use crate::upstream::Upstream;

/// The gateway on one worker thread, with this thread's connections and counters.
pub(crate) struct Worker {
    /// What all threads share.
    pub gateway: Arc<Gateway>,
    pub(super) apps: Directory<Arc<AppWorker>>,
    /// Counters of requests that reached no app.
    pub(super) recorder: Arc<AppRecorder>,
}

impl Worker {
    /// Opens no connection yet.
    ///
    /// # Errors
    /// If an app's client for Chat cannot be built.
    pub(crate) fn new(gateway: Arc<Gateway>) -> Result<Arc<Self>, GatewayBuildError> {
        let recorder = gateway.metrics.recorder();
        let mut parts = gateway.config.apps.iter().zip(recorder.apps());
        let apps = gateway.apps.map(|app| {
            let (config, recorder) = parts.next().expect("one for each app");
            AppWorker::new(&gateway, app, config, recorder)
        })?;
        Ok(Arc::new(Self { apps, recorder: Arc::clone(recorder.no_app()), gateway }))
    }
}

/// One app on one worker thread, with this thread's connections and counters.
pub(crate) struct AppWorker {
    pub(super) app: Arc<App>,
    pub(super) gateway: Arc<Gateway>,
    pub(super) upstream: Upstream,
    pub(super) recorder: Arc<AppRecorder>,
}

impl AppWorker {
    /// Opens no connection yet.
    pub(super) fn new(
        gateway: &Arc<Gateway>,
        app: &Arc<App>,
        config: &config::App,
        recorder: &Arc<AppRecorder>,
    ) -> Result<Arc<Self>, GatewayBuildError> {
        let (failover, buffered) = (Arc::clone(&app.chat.failover), Arc::clone(&gateway.buffered));
        let upstream = Upstream::new(config, &gateway.config.upstream, failover, buffered)
            .map_err(|error| GatewayBuildError::Upstream(app.name.clone(), error))?;
        let (gateway, app, recorder) = (Arc::clone(gateway), Arc::clone(app), Arc::clone(recorder));
        Ok(Arc::new(Self { app, gateway, upstream, recorder }))
    }
}
