//! The life of the program: bind, sign, serve on one thread a core, drain, end.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::service::TowerToHyperService;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::admin::Admin;
use crate::clock;
use crate::config::Config;
use crate::gateway::generation::{Generations, ThreadWorker};
use crate::gateway::{Gateway, GatewayBuildError, InvalidationSubscriber};
use crate::runtime::reload::{ConfigSource, ReloadScope, Reloader};
use crate::runtime::systemd::Notifier;
use crate::server::listener::{Accept, Accepted, BindError, Listener, SocketFile};
use crate::server::shutdown::Drain;
use crate::server::socket_activation::{ActivatedSockets, ActivationError};
use crate::server::timeouts::InFlight;
use crate::server::{self, Connections};
use crate::webhook::Webhooks;

/// Admin connections at once; probes and people need few.
const ADMIN_CONNECTIONS_MAX: usize = 64;
/// See [`tick`].
const TICK: Duration = Duration::from_millis(500);
/// How long callers wait at the start for Redis to be found.
const FLEET_TIMEOUT: Duration = Duration::from_millis(300);
/// How long the end waits for the last spans to be sent, at most; they are of less worth than a quick end.
const FLUSH_MAX: Duration = Duration::from_secs(3);

/// A gateway whose sockets are bound, not yet serving.
pub struct Server {
    current: Arc<Generations>,
    reloader: Arc<Reloader>,
    listeners: Vec<Listener>,
    admin_listener: Listener,
    /// Where Chat posts, and who answers it.
    webhook: Option<(Listener, Arc<Webhooks>)>,
    admin: Admin,
    /// Stop after what is at work; also cancelled by `POST /quit`.
    quit: CancellationToken,
    /// Who started us, if it wants to be told.
    manager: Notifier,
}

/// Why the program cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A socket.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A socket that systemd has opened.
    #[error(transparent)]
    Adopt(#[from] ActivationError),
    /// The gateway.
    #[error(transparent)]
    Build(#[from] GatewayBuildError),
    /// Threads or runtimes.
    #[error("cannot start: {0}")]
    Io(#[from] io::Error),
}

impl Server {
    /// Binds every socket and signs for the first time. Nothing is sent, so Chat need not be there.
    /// Reloads read from `origin`, and only with one the environment is heeded: sockets of systemd and whom to
    /// tell.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn bind(config: Config, origin: Option<ConfigSource>) -> Result<Self, ServeError> {
        let current = Generations::new(config, worker_threads())?;
        let gateway = current.gateway();
        let server = &gateway.config.server;
        let webhook = gateway.config.webhook.as_ref();
        let addresses = [&server.admin].into_iter().chain(&server.listen).chain(webhook.map(|webhook| &webhook.listen));
        let env = origin.as_ref().map(|origin| &origin.env);
        let mut adopted = env.map_or_else(|| Ok(ActivatedSockets::default()), ActivatedSockets::of_process)?;
        let mut bound = Listener::bind_all(addresses, server.unix_mode, &mut adopted)?.into_iter();
        adopted.reject_unused()?;
        let manager = env.map_or_else(Notifier::nobody, Notifier::new);
        let admin_listener = bound.next().expect("as many as addresses");
        let listeners = bound.by_ref().take(server.listen.len()).collect();
        let webhook = bound.next().zip(webhook);
        let webhook = webhook.map(|(listener, _)| (listener, Webhooks::new(Arc::clone(&current))));
        let quit = CancellationToken::new();
        let reloader = Reloader::new(Arc::clone(&current), origin, manager.clone());
        let admin = Admin::new(Arc::clone(&current), Arc::clone(&reloader), quit.clone());
        Ok(Self { listeners, admin_listener, webhook, admin, quit, current, reloader, manager })
    }

    /// The data listeners, with the ports they have got.
    pub fn addresses(&self) -> Vec<String> {
        self.listeners.iter().map(|listener| listener.address().to_string()).collect()
    }

    /// The admin listener.
    pub fn admin_address(&self) -> String {
        self.admin_listener.address().to_string()
    }

    /// Cancelled, it makes the server drain as SIGTERM does.
    pub fn quit(&self) -> CancellationToken {
        self.quit.clone()
    }

    /// Serves until SIGTERM, SIGINT or `POST /quit`, then drains. Blocks.
    ///
    /// Gives success after a clean drain, failure if `server.drain_timeout` cut it short or a second
    /// signal came.
    ///
    /// # Errors
    /// If threads or runtimes cannot be made.
    pub fn run(self) -> Result<ExitCode, ServeError> {
        // Dropped last, whatever goes wrong below.
        let _files = self.socket_files();
        let runtime = runtime()?;
        // Before anything says that we are here: who has read it may send one.
        let signals = {
            let _in = runtime.enter();
            Signals::new()?
        };
        let drain = Drain::default();
        let done = CancellationToken::new();
        // Of this, what is used below is what no reload changes.
        let first = self.current.gateway();
        let connections = Connections::new(&first.config.server, drain.clone());
        self.admin.watch_connections(&connections);
        let listeners = Arc::new(self.listeners);
        runtime.block_on(find_fleet(&self.current));
        let (mut threads, mut handles) = (Vec::new(), Vec::new());
        for (number, worker) in self.current.threads().iter().enumerate() {
            let (listeners, connections) = (Arc::clone(&listeners), connections.clone());
            let runtime = self::runtime()?;
            handles.push(runtime.handle().clone());
            threads.push(spawn_worker((number, runtime), worker.clone(), listeners, connections, done.clone())?);
        }
        let outcome = runtime.block_on(async {
            for listener in listeners.iter() {
                tracing::info!(listener = "data", address = %listener.address(), "listening");
            }
            tracing::info!(listener = "admin", address = %self.admin_listener.address(), "listening");
            let limits = connections.limits;
            tokio::spawn(serve_admin(self.admin_listener.for_this_runtime()?, self.admin.clone(), limits));
            tokio::spawn(self.admin.clone().watch());
            if let Some(tracing) = first.tracing.clone() {
                tokio::spawn(tracing.run());
            }
            let mut open = OpenListeners { data: listeners, webhook: None };
            if let Some((listener, webhooks)) = self.webhook {
                tracing::info!(listener = "webhook", address = %listener.address(), "listening");
                // Places of its own: a flood from outside takes none from callers. And it is served on this
                // thread, since forgetting is a matter of microseconds.
                let connections = Connections::new(&first.config.server, drain.clone());
                tokio::spawn(server::accept(listener.for_this_runtime()?, webhooks, connections));
                open.webhook = Some(listener);
            }
            self.admin.set_ready(true);
            self.manager.ready();
            tokio::spawn(self.manager.clone().watch(handles));
            let Signals { stops, hangups } = signals;
            tokio::spawn(reload_on_hangup(Arc::clone(&self.reloader), hangups));
            tokio::spawn(self.reloader.watch());
            let orders = StopRequests { stops, quit: self.quit, drain };
            supervise(&first, &self.admin, &self.manager, orders, open).await
        });
        first.stopped.store(true, Ordering::Release);
        done.cancel();
        for thread in threads {
            // A worker that panicked has been logged; the others' work is what counts.
            let _ = thread.join();
        }
        Ok(outcome?)
    }

    fn socket_files(&self) -> SocketFiles {
        let webhook = self.webhook.as_ref().map(|(listener, _)| listener);
        let all = self.listeners.iter().chain([&self.admin_listener]).chain(webhook);
        SocketFiles(all.filter_map(Listener::file).cloned().collect())
    }
}

/// The files of all Unix sockets, which go with this. A thread may still hold a socket when the program ends; then
/// its file would stay.
struct SocketFiles(Vec<Arc<SocketFile>>);

impl Drop for SocketFiles {
    fn drop(&mut self) {
        self.0.iter().for_each(|file| file.remove());
    }
}

/// Looks for Redis, from now on for good. Callers are let in when the first attempt is over, or takes too
/// long: who joins the others before it has learned anything has nothing to forget.
async fn find_fleet(current: &Arc<Generations>) {
    let Some(fleet) = current.gateway().fleet.clone() else { return };
    let (tried, first) = oneshot::channel();
    tokio::spawn(fleet.run(Arc::new(InvalidationSubscriber(Arc::clone(current))), tried));
    let _ = tokio::time::timeout(FLEET_TIMEOUT, first).await;
}

/// The listeners that a drain closes.
struct OpenListeners {
    data: Arc<Vec<Listener>>,
    webhook: Option<Listener>,
}

/// Waits for the order to stop, then sees the drain through.
async fn supervise(
    gateway: &Gateway,
    admin: &Admin,
    manager: &Notifier,
    StopRequests { mut stops, quit, drain }: StopRequests,
    open: OpenListeners,
) -> io::Result<ExitCode> {
    tokio::select! {
        name = stops.next() => tracing::info!(signal = name, "asked to stop"),
        () = quit.cancelled() => tracing::info!("asked to stop by POST /quit"),
    }
    let server = &gateway.config.server;
    admin.set_ready(false);
    manager.stopping();
    let draining = async {
        tokio::time::sleep(server.drain_delay).await;
        drain.begin();
        // With the last of its clones a socket is closed, and who connects is refused instead of
        // waiting for nobody.
        open.data.iter().chain(&open.webhook).for_each(Listener::remove);
        drop(open);
        gateway.tasks.close();
        tracing::info!(connections_and_calls = gateway.tasks.len(), "draining");
        let begun = clock::now();
        let clean = tokio::time::timeout(server.drain_timeout, gateway.tasks.wait()).await.is_ok();
        if let Some(tracing) = &gateway.tracing {
            let left = server.drain_timeout.saturating_sub(clock::now() - begun);
            tracing.flush(left.min(FLUSH_MAX)).await;
        }
        clean
    };
    Ok(tokio::select! {
        clean = draining => {
            if clean {
                tracing::info!("drained");
                ExitCode::SUCCESS
            } else {
                tracing::warn!(left = gateway.tasks.len(), "server.drain_timeout is over; what was left is cut off");
                ExitCode::FAILURE
            }
        }
        name = stops.next() => {
            tracing::warn!(signal = name, "asked again to stop; what was left is cut off");
            ExitCode::FAILURE
        }
    })
}

/// SIGHUP reads everything again.
async fn reload_on_hangup(reloader: Arc<Reloader>, mut hangups: Signal) {
    while hangups.recv().await.is_some() {
        // What comes of it is in the log.
        let _ = reloader.reload(ReloadScope::Everything, "SIGHUP").await;
    }
}

/// What ends it: the first order to stop, and then the second.
struct StopRequests {
    stops: Stops,
    /// Cancelled by `POST /quit`.
    quit: CancellationToken,
    drain: Drain,
}

/// The signals that mean something to us.
struct Signals {
    stops: Stops,
    /// SIGHUP.
    hangups: Signal,
}

impl Signals {
    /// Takes them over; until then each of them ends the program. Within a runtime.
    fn new() -> io::Result<Self> {
        let stops = Stops { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? };
        Ok(Self { stops, hangups: signal(SignalKind::hangup())? })
    }
}

/// SIGTERM and SIGINT.
struct Stops {
    terminate: Signal,
    interrupt: Signal,
}

impl Stops {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// One thread for each core we may use: a request stays on its thread, and so do its connections to
/// Chat, which spares wake-ups across threads.
fn worker_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

fn spawn_worker(
    (number, runtime): (usize, Runtime),
    worker: ThreadWorker,
    listeners: Arc<Vec<Listener>>,
    connections: Connections,
    done: CancellationToken,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
        runtime.block_on(async {
            for listener in listeners.iter() {
                match listener.for_this_runtime() {
                    Ok(accept) => {
                        tokio::spawn(server::accept(accept, worker.clone(), connections.clone()));
                    }
                    Err(error) => tracing::error!(%error, "a listener is lost on this thread"),
                }
            }
            drop(listeners);
            tokio::spawn(tick());
            // A lookup for one thread's caller may be in the hands of another thread, so all go on
            // until everything is finished.
            done.cancelled().await;
        });
        runtime.shutdown_background();
    })
}

/// Keeps a timer that is near. Whoever sets one that is nearer than all others wakes its thread's event loop, by a
/// system call, though it is the thread itself; most calls to Chat would do so for a timeout of seconds.
async fn tick() {
    loop {
        tokio::time::sleep(TICK).await;
    }
}

/// Serves the admin listener as long as the program lives, also while draining.
async fn serve_admin(accept: Accept, admin: Admin, limits: server::timeouts::Limits) {
    let places = crate::capacity::Capacity::new(ADMIN_CONNECTIONS_MAX);
    loop {
        let Ok((stream, peer)) = accept.next().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let Some(place) = places.try_acquire(1) else { continue };
        let admin = admin.clone();
        tokio::spawn(async move {
            let _place = place;
            let at_work = InFlight::default();
            let counted = at_work.clone();
            let service = tower::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (admin, work) = (admin.clone(), counted.begin(request.version() >= http::Version::HTTP_2));
                async move {
                    let answer = admin.handle(request, peer).await;
                    drop(work);
                    answer
                }
            });
            let service = TowerToHyperService::new(service);
            let builder = server::builder();
            let served = match stream {
                Accepted::Tcp(stream) => {
                    builder.serve_connection(server::wrap_stream(stream, limits, at_work), service).await
                }
                Accepted::Unix(stream) => {
                    builder.serve_connection(server::wrap_stream(stream, limits, at_work), service).await
                }
            };
            if let Err(error) = served {
                tracing::debug!(%error, "an admin connection ended early");
            }
        });
    }
}
