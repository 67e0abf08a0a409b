//! `chatgate serve`: bind, run, drain, close. The functions of [`Server`] follow that order.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::reload::{ConfigSource, Reloader};
use super::signals::{Signals, StopSignals, reload_on_hangup};
use super::systemd::Notifier;
use super::workers::{self, Workers, new_runtime};
use crate::admin::Admin;
use crate::clock;
use crate::config::Config;
use crate::gateway::generation::Generations;
use crate::gateway::{Gateway, GatewayBuildError, InvalidationSubscriber};
use crate::server::listener::{BindError, Listener, SocketFile};
use crate::server::shutdown::Drain;
use crate::server::socket_activation::{ActivatedSockets, ActivationError};
use crate::server::timeouts::Timeouts;
use crate::server::{self, Connections};
use crate::webhook::Webhooks;

/// Maximum time that an admin connection stays open between requests. Longer than the usual interval of a scrape, and
/// short enough that forgotten connections do not pile up.
const ADMIN_IDLE_MAX: Duration = Duration::from_secs(20);
/// How long the start waits for the first connection to Redis.
const FLEET_TIMEOUT: Duration = Duration::from_millis(300);
/// Maximum time that the end waits for the export of the last spans. A quick end is worth more than they are.
const FLUSH_MAX: Duration = Duration::from_secs(3);
/// Maximum time that the end waits for admin requests in flight.
const ADMIN_CLOSE_MAX: Duration = Duration::from_millis(250);

/// A gateway whose sockets are bound, before it serves.
pub struct Server {
    generations: Arc<Generations>,
    listeners: Arc<Vec<Listener>>,
    admin_listener: Listener,
    webhook_listener: Option<Listener>,
    admin: Admin,
    reloader: Arc<Reloader>,
    /// Cancelled by `POST /quit`.
    quit: CancellationToken,
    notifier: Notifier,
}

/// Why the program cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket cannot be bound.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A socket from systemd cannot be used.
    #[error(transparent)]
    Activation(#[from] ActivationError),
    /// The gateway cannot be built.
    #[error(transparent)]
    Build(#[from] GatewayBuildError),
    /// Threads or runtimes cannot be created.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

impl Server {
    /// Builds the gateway, which signs for the first time, and binds every socket. Nothing is sent, so Chat need not be
    /// reachable.
    ///
    /// Reloads read `source`. Without one, the environment is ignored too: the sockets that systemd passed, and the
    /// service manager to notify.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn bind(config: Config, source: Option<ConfigSource>) -> Result<Self, ServeError> {
        let generations = Generations::new(config, workers::thread_count())?;
        let gateway = generations.gateway();
        let server = &gateway.config.server;
        let webhook = gateway.config.webhook.as_ref().map(|webhook| &webhook.listen);
        let addresses = [&server.admin].into_iter().chain(&server.listen).chain(webhook);
        let env = source.as_ref().map(|source| &source.env);
        let mut activated = env.map_or_else(|| Ok(ActivatedSockets::default()), ActivatedSockets::of_process)?;
        let mut bound = Listener::bind_all(addresses, server.unix_mode, &mut activated)?.into_iter();
        activated.reject_unused()?;
        let notifier = env.map_or_else(Notifier::disabled, Notifier::new);
        let admin_listener = bound.next().expect("one listener for each address");
        let listeners = bound.by_ref().take(server.listen.len()).collect();
        let webhook_listener = bound.next();
        let quit = CancellationToken::new();
        let reloader = Reloader::new(Arc::clone(&generations), source, notifier.clone());
        let admin = Admin::new(Arc::clone(&generations), reloader.handle("POST /reload"), quit.clone());
        let listeners = Arc::new(listeners);
        Ok(Self { generations, listeners, admin_listener, webhook_listener, admin, reloader, quit, notifier })
    }

    /// Returns the addresses of the data listeners, with their actual ports.
    pub fn addresses(&self) -> Vec<String> {
        self.listeners.iter().map(|listener| listener.address().to_string()).collect()
    }

    /// Returns the address of the admin listener, with its actual port.
    pub fn admin_address(&self) -> String {
        self.admin_listener.address().to_string()
    }

    /// Returns a token whose cancellation drains the server as SIGTERM does.
    pub fn quit(&self) -> CancellationToken {
        self.quit.clone()
    }

    /// Serves until SIGTERM, SIGINT, or `POST /quit`, and then drains. Blocks.
    ///
    /// Returns success after a complete drain. Returns failure if `server.drain_timeout` or a second signal ended it.
    ///
    /// # Errors
    /// If threads or runtimes cannot be created.
    pub fn run(self) -> Result<ExitCode, ServeError> {
        // Dropped last, even on errors.
        let _files = self.socket_files();
        let main = new_runtime()?;
        // Before anything announces this process: a reader of the announcement may send a signal.
        let signals = main.block_on(async { Signals::handle() })?;
        let (generations, drain) = (Arc::clone(&self.generations), Drain::default());
        // A reload replaces this generation. Below, only settings that no reload changes are read from it.
        let gateway = generations.gateway();
        let connections = Connections::new(&gateway.config.server, drain.clone(), gateway.tasks.clone());
        self.admin.watch_connections(&connections);

        main.block_on(find_fleet(&generations));
        let workers = Workers::start(generations.threads(), &self.listeners, &connections)?;
        let outcome = main.block_on(self.run_main_thread(&gateway, drain, signals, workers.runtimes()));
        gateway.stopped.store(true, Ordering::Release);
        workers.stop();
        Ok(outcome?)
    }

    /// Runs everything but the worker threads: the other two listeners, background tasks, and the drain.
    async fn run_main_thread(
        self,
        gateway: &Gateway,
        drain: Drain,
        Signals { mut stop, hangup }: Signals,
        worker_runtimes: Vec<Handle>,
    ) -> io::Result<ExitCode> {
        let admin_connections = self.serve_admin(gateway, &drain)?;
        self.serve_webhooks(gateway, &drain)?;
        tokio::spawn(self.admin.clone().record_history());
        if let Some(tracing) = gateway.tracing.clone() {
            tokio::spawn(tracing.run());
        }
        self.announce();
        tokio::spawn(self.notifier.clone().watch(worker_runtimes));
        tokio::spawn(reload_on_hangup(Arc::clone(&self.reloader), hangup));
        tokio::spawn(Arc::clone(&self.reloader).watch());

        wait_for_stop(&mut stop, &self.quit).await;
        self.admin.set_ready(false);
        self.notifier.stopping();
        let open = OpenListeners { data: self.listeners, webhook: self.webhook_listener };
        let outcome = tokio::select! {
            outcome = drain_all(gateway, &drain, open) => {
                close_admin(&admin_connections).await;
                outcome
            }
            signal = stop.next() => {
                tracing::warn!(signal, "second stop signal; closing the remaining connections");
                ExitCode::FAILURE
            }
        };
        Ok(outcome)
    }

    /// Serves the admin listener until the very end, even while the others drain.
    fn serve_admin(&self, gateway: &Gateway, drain: &Drain) -> io::Result<Connections> {
        let all = Connections::new(&gateway.config.server, drain.clone(), TaskTracker::new());
        let connections = Connections {
            limit: self.admin.limit(),
            limit_name: "server.admin_max_connections",
            timeouts: admin_timeouts(all.timeouts),
            close: Drain::default(),
            linger: Duration::ZERO,
            answers_half_closed: true,
            ..all
        };
        tokio::spawn(server::serve(self.admin_listener.acceptor()?, self.admin.clone(), connections.clone()));
        Ok(connections)
    }

    /// Serves the webhook listener, if there is one, on the main thread: an invalidation takes microseconds, and
    /// forwarding little more. It has its own limit of connections, so a flood of webhooks takes none from callers.
    fn serve_webhooks(&self, gateway: &Gateway, drain: &Drain) -> io::Result<()> {
        if let Some(listener) = &self.webhook_listener {
            let webhooks = Webhooks::new(Arc::clone(&self.generations));
            let connections = Connections {
                answers_half_closed: true,
                ..Connections::new(&gateway.config.server, drain.clone(), gateway.tasks.clone())
            };
            self.admin.watch_webhook_connections(&connections);
            tokio::spawn(server::serve(listener.acceptor()?, webhooks, connections));
        }
        Ok(())
    }

    /// Announces that the gateway serves: in the log, at `/readyz`, and to the service manager.
    fn announce(&self) {
        let data = self.listeners.iter().map(|listener| ("data", listener));
        let webhook = self.webhook_listener.iter().map(|listener| ("webhook", listener));
        for (kind, listener) in data.chain([("admin", &self.admin_listener)]).chain(webhook) {
            tracing::info!(listener = kind, address = %listener.address(), "listening");
        }
        self.admin.set_ready(true);
        self.notifier.ready();
    }

    fn socket_files(&self) -> SocketFiles {
        let all = self.listeners.iter().chain([&self.admin_listener]).chain(&self.webhook_listener);
        SocketFiles(all.filter_map(Listener::file).cloned().collect())
    }
}

/// Returns the timeouts of the admin listener's connections.
fn admin_timeouts(configured: Timeouts) -> Timeouts {
    Timeouts { idle: configured.idle.min(ADMIN_IDLE_MAX), ..configured }
}

/// The files of all Unix sockets, which it removes on drop: a thread may still hold a clone of a socket when the program
/// ends, and would leave its file.
struct SocketFiles(Vec<Arc<SocketFile>>);

impl Drop for SocketFiles {
    fn drop(&mut self) {
        self.0.iter().for_each(|file| file.remove());
    }
}

/// Starts connecting to Redis, and waits for the first attempt, but not for long. Callers are served only after it: a
/// replica that joins before it has cached anything has nothing to invalidate.
async fn find_fleet(generations: &Arc<Generations>) {
    let Some(fleet) = generations.gateway().fleet.clone() else { return };
    let connecting = async move { fleet.run(Arc::new(InvalidationSubscriber(Arc::clone(generations)))).await };
    let _ = tokio::time::timeout(FLEET_TIMEOUT, connecting).await;
}

/// Waits for SIGTERM, SIGINT, or `POST /quit`.
async fn wait_for_stop(stop: &mut StopSignals, quit: &CancellationToken) {
    tokio::select! {
        signal = stop.next() => tracing::info!(signal, "stopping on a signal"),
        () = quit.cancelled() => tracing::info!("stopping on POST /quit"),
    }
}

/// The listeners that the drain closes.
struct OpenListeners {
    data: Arc<Vec<Listener>>,
    webhook: Option<Listener>,
}

/// Drains the data and webhook listeners: refuses new connections, and finishes requests in flight.
async fn drain_all(gateway: &Gateway, drain: &Drain, OpenListeners { data, webhook }: OpenListeners) -> ExitCode {
    let server = &gateway.config.server;
    tokio::time::sleep(server.drain_delay).await;
    drain.begin();
    // A socket is closed with its last clone. Then new connections are refused, and do not wait in its queue.
    data.iter().chain(&webhook).for_each(Listener::remove_file);
    drop((data, webhook));
    gateway.tasks.close();
    tracing::info!(connections_and_calls = gateway.tasks.len(), "draining");
    let begin = clock::now();
    let is_complete = tokio::time::timeout(server.drain_timeout, gateway.tasks.wait()).await.is_ok();
    if let Some(tracing) = &gateway.tracing {
        let left = server.drain_timeout.saturating_sub(clock::now() - begin);
        tracing.flush(left.min(FLUSH_MAX)).await;
    }
    if is_complete {
        tracing::info!("drained");
        return ExitCode::SUCCESS;
    }
    tracing::warn!(connections_and_calls = gateway.tasks.len(), "drain timed out; closing the remaining connections");
    ExitCode::FAILURE
}

/// Closes the admin listener, once everything else has ended.
async fn close_admin(connections: &Connections) {
    connections.close.begin();
    connections.tasks.close();
    let _ = tokio::time::timeout(ADMIN_CLOSE_MAX, connections.tasks.wait()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_connections_stay_idle_for_at_most_twenty_seconds() {
        let second = Duration::from_secs(1);
        for (configured, idle) in [(75, 20), (20, 20), (3, 3)] {
            let timeouts = admin_timeouts(Timeouts { head: second, idle: configured * second, write: 2 * second });
            assert_eq!(timeouts.idle, idle * second, "server.idle_timeout of {configured} s");
            assert_eq!((timeouts.head, timeouts.write), (second, 2 * second));
        }
    }
}
