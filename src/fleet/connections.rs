//! The connections of a replica: one for all apps, or one for each app in a Redis Cluster, whose nodes share the apps.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::{Fleet, FleetError, FleetStats, Mode, OnInvalidation};
use crate::config::{self, RedisForm};
use crate::domain::chat::app::SdkAppId;

/// The connections of this replica to the fleet.
pub struct Connections {
    config: Mutex<config::Fleet>,
    /// By app in a Redis Cluster; otherwise one, without an app.
    open: Mutex<BTreeMap<Option<SdkAppId>, Open>>,
    /// The sum of the connections of apps that were removed. Counters must not fall.
    closed: Mutex<FleetStats>,
    /// What new connections need once [`Connections::run`] was called.
    running: OnceLock<(Handle, Arc<dyn OnInvalidation>)>,
}

/// One connection, and the task that connects it.
struct Open {
    fleet: Arc<Fleet>,
    task: Option<AbortOnDropHandle<()>>,
}

impl Connections {
    /// Returns the connections of a configuration. [`Connections::run`] connects them.
    pub fn new(config: &config::Fleet) -> Arc<Self> {
        let (config, open, closed) = (Mutex::new(config.clone()), Mutex::default(), Mutex::default());
        Arc::new(Self { config, open, closed, running: OnceLock::new() })
    }

    /// Returns the connection of an app.
    ///
    /// # Errors
    /// [`FleetError`].
    pub fn of(&self, app: SdkAppId) -> Result<Arc<Fleet>, FleetError> {
        let config = self.config.lock();
        let (key, prefix) = match &config.redis {
            // The braces make a hash tag: a Redis Cluster puts keys with the same tag on the same node.
            RedisForm::Cluster(_) => (Some(app), format!("{}:{{{}}}", config.prefix, app.get())),
            RedisForm::Primary(_) | RedisForm::Sentinel { .. } => (None, config.prefix.clone()),
        };
        let mut open = self.open.lock();
        if let Some(open) = open.get(&key) {
            return Ok(Arc::clone(&open.fleet));
        }
        let fleet = Fleet::new(&config, key, prefix)?;
        let task = self.running.get().map(|(runtime, subscriber)| {
            let (first_attempt, _) = oneshot::channel();
            runtime.spawn(Arc::clone(&fleet).run(Arc::clone(subscriber), first_attempt))
        });
        open.insert(key, Open { fleet: Arc::clone(&fleet), task: task.map(AbortOnDropHandle::new) });
        Ok(fleet)
    }

    /// Connects all apps so far, and each later one. Returns once all have made their first attempt.
    pub async fn run(&self, subscriber: Arc<dyn OnInvalidation>) {
        let mut attempts = Vec::new();
        let _ = self.running.set((Handle::current(), Arc::clone(&subscriber)));
        for open in self.open.lock().values_mut().filter(|open| open.task.is_none()) {
            let (attempted, first_attempt) = oneshot::channel();
            attempts.push(first_attempt);
            let task = tokio::spawn(Arc::clone(&open.fleet).run(Arc::clone(&subscriber), attempted));
            open.task = Some(AbortOnDropHandle::new(task));
        }
        for first_attempt in attempts {
            let _ = first_attempt.await;
        }
    }

    /// Applies a new configuration: certificates apply to later connections, and connections of other apps than these
    /// are closed.
    pub fn reconfigure(&self, config: &config::Fleet, apps: &[config::App]) {
        config.clone_into(&mut self.config.lock());
        let mut open = self.open.lock();
        let mut closed = self.closed.lock();
        open.retain(|app, open| {
            let stays = app.is_none_or(|app| apps.iter().any(|configured| configured.sdkappid == app));
            if !stays {
                *closed = closed.plus(&open.fleet.stats());
            }
            stays
        });
        open.values().for_each(|open| open.fleet.reconfigure(config));
    }

    /// Returns why a connection is down, without secrets. `None` if all are up or have not been tried yet.
    pub fn cause(&self) -> Option<Arc<String>> {
        self.open.lock().values().find_map(|open| open.fleet.cause())
    }

    /// Returns a snapshot: the sum of all connections, also of closed ones. The mode is connected if every open
    /// connection is up.
    pub fn stats(&self) -> FleetStats {
        let open = self.open.lock();
        let closed = FleetStats { mode: Mode::Connected, ..*self.closed.lock() };
        let all = open.values().map(|open| open.fleet.stats()).fold(closed, |sum, one| sum.plus(&one));
        let mode = if open.is_empty() { Mode::Disconnected } else { all.mode };
        FleetStats { mode, ..all }
    }
}
