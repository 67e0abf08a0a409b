//! Reloads: on SIGHUP, by `POST /reload`, and when a file that the configuration names has changed.
//!
//! All or nothing: if anything is wrong with the new configuration, the current one keeps serving unchanged.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::systemd::Notifier;
use crate::admin::ReloadHandle;
use crate::config::{self, Config, Env, Fleet, NamedFile, Problem, Problems, Tls};
use crate::error::display_chain;
use crate::gateway::GatewayBuildError;
use crate::gateway::generation::Generations;

/// How often files are checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a changed file must stay unchanged before it is read: a process may still be writing it.
const SETTLE_TIME: Duration = Duration::from_millis(100);

/// Log message of every failed reload.
const FAILED: &str = "reload failed; keeping the current configuration";

/// Where the configuration comes from.
#[derive(Debug)]
pub struct ConfigSource {
    /// The configuration file.
    pub path: PathBuf,
    /// The environment at the start of the program.
    pub env: Env,
}

/// Reads the configuration again and activates it.
pub(super) struct Reloader {
    generations: Arc<Generations>,
    /// `None` if the configuration was not read from a file.
    source: Option<Arc<ConfigSource>>,
    /// Held by a reload: only one runs at a time.
    running: Mutex<()>,
    /// Notified of each reload.
    notifier: Notifier,
}

/// Why a reload failed. The messages contain no secrets.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReloadError {
    /// The configuration was not read from a file.
    #[error("the configuration was not read from a file; restart to change it")]
    NoFile,
    /// The configuration has problems.
    #[error("{0}")]
    Problems(Problems),
    /// The gateway cannot be built from a valid configuration.
    #[error(transparent)]
    Build(#[from] GatewayBuildError),
    /// No thread was available to read the configuration.
    #[error("cannot read the configuration: {0}")]
    Read(tokio::task::JoinError),
}

/// What a reload reads again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReloadScope {
    /// The configuration file and all files that it names.
    Everything,
    /// Only the files that it names. The configuration file itself may be incomplete: a process may be writing it.
    NamedFiles,
}

impl Reloader {
    /// Replaces generations from `source`, and notifies the service manager of each reload.
    pub(super) fn new(generations: Arc<Generations>, source: Option<ConfigSource>, notifier: Notifier) -> Arc<Self> {
        Arc::new(Self { generations, source: source.map(Arc::new), running: Mutex::default(), notifier })
    }

    /// Returns a handle that reloads everything, for `cause`.
    pub(super) fn handle(self: &Arc<Self>, cause: &'static str) -> ReloadHandle {
        let reloader = Arc::clone(self);
        Box::new(move || {
            let reloader = Arc::clone(&reloader);
            Box::pin(async move { reloader.reload(ReloadScope::Everything, cause).await.map_err(Into::into) })
        })
    }

    /// Reloads. Returns the keys whose new values require a restart; their old values stay in effect.
    ///
    /// # Errors
    /// See [`ReloadError`]. Then nothing has changed.
    pub(super) async fn reload(&self, scope: ReloadScope, cause: &str) -> Result<Vec<&'static str>, ReloadError> {
        let _running = self.running.lock().await;
        self.notifier.reloading();
        let result = self.try_reload(scope).await;
        match &result {
            Ok(kept) => {
                for key in kept {
                    tracing::warn!(key, "change requires a restart; keeping the old value");
                }
                tracing::info!(cause, apps = self.generations.gateway().config.apps.len(), "reloaded");
            }
            Err(ReloadError::Problems(problems)) => {
                for problem in problems.all() {
                    tracing::warn!(cause, %problem, "{FAILED}");
                }
            }
            Err(error) => tracing::warn!(cause, problem = display_chain(error), "{FAILED}"),
        }
        self.notifier.ready();
        result
    }

    async fn try_reload(&self, scope: ReloadScope) -> Result<Vec<&'static str>, ReloadError> {
        let source = Arc::clone(self.source.as_ref().ok_or(ReloadError::NoFile)?);
        let before = self.generations.gateway();
        let text = (scope == ReloadScope::NamedFiles).then(|| before.config.source.text.clone());
        let reading = tokio::task::spawn_blocking(move || match text {
            Some(text) => config::load_text(&source.path, text, &source.env),
            None => config::load(&source.path, &source.env),
        });
        let mut config = reading.await.map_err(ReloadError::Read)?.map_err(ReloadError::Problems)?;
        for Problem { file, line, key, message, .. } in &config.warnings {
            tracing::warn!(file, line, "{key}: {message}");
        }
        let kept = keep_restart_keys(&mut config, &before.config);
        // The open listeners stay, but were not part of the check of the new access rules.
        config.refuse_open_listeners().map_err(ReloadError::Problems)?;
        self.generations.replace(config)?;
        Ok(kept)
    }

    /// Reloads when a file that the configuration names changes. Returns only if the configuration has no file.
    pub(super) async fn watch(self: Arc<Self>) {
        if self.source.is_none() {
            return;
        }
        // The files of the last failed reload.
        let mut failed: Option<Vec<NamedFile>> = None;
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            let loaded = self.generations.gateway().config.source.files.clone();
            let Some(mut now) = fingerprints(&loaded).await else { continue };
            if now == loaded || failed.as_ref() == Some(&now) {
                continue;
            }
            loop {
                tokio::time::sleep(SETTLE_TIME).await;
                match fingerprints(&now).await {
                    Some(again) if again != now => now = again,
                    _ => break,
                }
            }
            // A failure is in the log. The next attempt follows when a file changes again.
            let result = self.reload(ReloadScope::NamedFiles, "a file that the configuration names has changed").await;
            failed = result.is_err().then_some(now);
        }
    }
}

/// Returns the files with their current fingerprints.
async fn fingerprints(files: &[NamedFile]) -> Option<Vec<NamedFile>> {
    let files = files.to_vec();
    tokio::task::spawn_blocking(move || files.iter().map(NamedFile::refresh).collect()).await.ok()
}

/// Replaces new values of keys that require a restart by the old ones. Returns the keys that differ.
fn keep_restart_keys(new: &mut Config, old: &Config) -> Vec<&'static str> {
    let mut kept = Vec::new();
    macro_rules! keep {
        ($($name:literal: $($key:ident).+),+ $(,)?) => {
            $(if new.$($key).+ != old.$($key).+ {
                new.$($key).+ = old.$($key).+.clone();
                kept.push($name);
            })+
        };
    }
    keep!(
        "server.listen": server.listen,
        "server.admin": server.admin,
        "server.unix_mode": server.unix_mode,
        "server.max_connections": server.max_connections,
        "server.max_requests": server.max_requests,
        "server.max_buffered": server.max_buffered,
        "server.handshake_timeout": server.handshake_timeout,
        "server.head_timeout": server.head_timeout,
        "server.write_timeout": server.write_timeout,
        "server.idle_timeout": server.idle_timeout,
        "server.drain_delay": server.drain_delay,
        "server.drain_timeout": server.drain_timeout,
        "cache.max_pairs": cache.max_pairs,
        "cache.max_bytes": cache.max_bytes,
        "relation.kinds": relation.kinds,
        "relation.call_max": relation.call_max,
        "relation.flip": relation.flip,
        "upstream.max_in_flight": upstream.max_in_flight,
        "log": log,
        "trace": trace,
    );
    // Whether clients need a certificate is decided when a connection begins; open ones would not be checked.
    let requires_cert = |tls: &Option<Tls>| tls.as_ref().map(|tls| tls.requires_client_cert);
    if requires_cert(&new.server.tls) != requires_cert(&old.server.tls) {
        new.server.tls.clone_from(&old.server.tls);
        kept.push("server.tls");
    }
    // New certificates apply to the next connection.
    let settings = |fleet: &Option<Fleet>| {
        let settings = |fleet: &Fleet| (fleet.redis.clone(), fleet.login.clone(), fleet.prefix.clone(), fleet.share);
        fleet.as_ref().map(settings)
    };
    if settings(&new.fleet) != settings(&old.fleet) {
        new.fleet.clone_from(&old.fleet);
        kept.push("fleet");
    }
    match (&mut new.webhook, &old.webhook) {
        (Some(new), Some(old)) => {
            if new.listen != old.listen {
                new.listen = old.listen.clone();
                kept.push("webhook.listen");
            }
            if requires_cert(&new.tls) != requires_cert(&old.tls) {
                new.tls.clone_from(&old.tls);
                kept.push("webhook.tls");
            }
        }
        (None, None) => {}
        (webhook, old) => {
            webhook.clone_from(old);
            kept.push("webhook");
        }
    }
    kept
}
