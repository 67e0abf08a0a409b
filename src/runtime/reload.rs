//! Reloading: on SIGHUP, by order, and when a file that the configuration names has changed.
//!
//! All or nothing: whatever is wrong with the new configuration, the old one serves on untouched.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use crate::config::{self, Config, Env, Fleet, NamedFile, Problem, Problems, Tls};
use crate::error::display_chain;
use crate::gateway::GatewayBuildError;
use crate::gateway::generation::Generations;
use crate::runtime::systemd::Notifier;

/// How often files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A file that has changed must then stay as it is for so long: it may just be being written.
const SETTLES_FOR: Duration = Duration::from_millis(100);

/// Where a configuration is read again.
#[derive(Debug)]
pub struct ConfigSource {
    /// The file.
    pub path: PathBuf,
    /// The environment as the program began.
    pub env: Env,
}

/// Reads the configuration again and puts it in place.
pub struct Reloader {
    current: Arc<Generations>,
    /// `None`: the configuration came from no file.
    origin: Option<Arc<ConfigSource>>,
    /// One at a time.
    turn: Mutex<()>,
    /// Is told of each.
    manager: Notifier,
}

/// Why nothing was reloaded. The messages hold no secret.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The configuration came from no file.
    #[error("this configuration was not read from a file")]
    NoFile,
    /// What is wrong with it.
    #[error("{0}")]
    Problems(Problems),
    /// It is right, but no gateway comes of it.
    #[error(transparent)]
    Build(#[from] GatewayBuildError),
    /// It could not be read for want of threads.
    #[error("the configuration could not be read: {0}")]
    Reading(tokio::task::JoinError),
}

/// What is read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReloadScope {
    /// The configuration's file and all that it names.
    Everything,
    /// Only what it names. Its own text is that of the last time: it may just be being written.
    NamedFiles,
}

impl Reloader {
    /// For the gateway of now. The service manager is told of each reload.
    pub fn new(current: Arc<Generations>, origin: Option<ConfigSource>, manager: Notifier) -> Arc<Self> {
        Arc::new(Self { current, origin: origin.map(Arc::new), turn: Mutex::default(), manager })
    }

    /// Reloads. Gives the keys whose new values take a restart, for which the old ones hold.
    ///
    /// # Errors
    /// See [`ReloadError`]. Then nothing has changed.
    pub async fn reload(&self, extent: ReloadScope, cause: &str) -> Result<Vec<&'static str>, ReloadError> {
        let _turn = self.turn.lock().await;
        self.manager.reloading();
        let result = self.try_reload(extent).await;
        match &result {
            Ok(kept) => {
                for key in kept {
                    tracing::warn!(key, "its new value takes a restart; the old one holds");
                }
                tracing::info!(cause, apps = self.current.gateway().config.apps.len(), "reloaded");
            }
            Err(ReloadError::Problems(problems)) => {
                for problem in problems.all() {
                    tracing::warn!(cause, "not reloaded, nothing has changed: {problem}");
                }
            }
            Err(error) => tracing::warn!(cause, "not reloaded, nothing has changed: {}", display_chain(error)),
        }
        self.manager.ready();
        result
    }

    async fn try_reload(&self, extent: ReloadScope) -> Result<Vec<&'static str>, ReloadError> {
        let origin = Arc::clone(self.origin.as_ref().ok_or(ReloadError::NoFile)?);
        let before = self.current.gateway();
        let text = (extent == ReloadScope::NamedFiles).then(|| before.config.source.text.clone());
        let reading = tokio::task::spawn_blocking(move || match text {
            Some(text) => config::load_text(&origin.path, text, &origin.env),
            None => config::load(&origin.path, &origin.env),
        });
        let mut config = reading.await.map_err(ReloadError::Reading)?.map_err(ReloadError::Problems)?;
        for Problem { file, line, key, message, .. } in &config.warnings {
            tracing::warn!(file, line, "{key}: {message}");
        }
        let kept = keep_what_cannot_change(&mut config, &before.config);
        // The old listeners go on under the new rules, which were judged for others.
        config.refuse_open_listeners().map_err(ReloadError::Problems)?;
        self.current.replace(config)?;
        Ok(kept)
    }

    /// Watches the files that the configuration names, as long as the program lives.
    pub async fn watch(self: Arc<Self>) {
        if self.origin.is_none() {
            return;
        }
        // What was seen when it was last tried, well or ill.
        let mut tried: Option<Vec<NamedFile>> = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let loaded = self.current.gateway().config.source.files.clone();
            let Some(mut now) = look(&loaded).await else { continue };
            if now == loaded || tried.as_ref() == Some(&now) {
                continue;
            }
            loop {
                tokio::time::sleep(SETTLES_FOR).await;
                match look(&now).await {
                    Some(again) if again != now => now = again,
                    _ => break,
                }
            }
            // Why not, is in the log; it is tried again when something else is there.
            let done = self.reload(ReloadScope::NamedFiles, "a file that the configuration names has changed").await;
            tried = done.is_err().then_some(now);
        }
    }
}

/// The files as they are now.
async fn look(files: &[NamedFile]) -> Option<Vec<NamedFile>> {
    let files = files.to_vec();
    tokio::task::spawn_blocking(move || files.iter().map(NamedFile::refresh).collect()).await.ok()
}

/// Puts the running values in place of those that only a restart changes. Gives the keys that differ.
fn keep_what_cannot_change(new: &mut Config, old: &Config) -> Vec<&'static str> {
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
        "follow_check.flip": follow_check.flip,
        "upstream.max_in_flight": upstream.max_in_flight,
        "log": log,
        "trace": trace,
    );
    // Whom a connection is let in for is decided when it begins. Those that are there would not be asked.
    let terms = |tls: &Option<Tls>| tls.as_ref().map(|tls| tls.requires_client_cert);
    if terms(&new.server.tls) != terms(&old.server.tls) {
        new.server.tls.clone_from(&old.server.tls);
        kept.push("server.tls");
    }
    // Certificates are taken up by the next connection.
    let terms =
        |fleet: &Option<Fleet>| fleet.as_ref().map(|fleet| (fleet.redis.clone(), fleet.prefix.clone(), fleet.share));
    if terms(&new.fleet) != terms(&old.fleet) {
        new.fleet.clone_from(&old.fleet);
        kept.push("fleet");
    }
    match (&mut new.webhook, &old.webhook) {
        (Some(new), Some(old)) if new.listen != old.listen => {
            new.listen = old.listen.clone();
            kept.push("webhook.listen");
        }
        (Some(_), Some(_)) | (None, None) => {}
        (webhook, old) => {
            webhook.clone_from(old);
            kept.push("webhook");
        }
    }
    kept
}
