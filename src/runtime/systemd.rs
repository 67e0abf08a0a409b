//! Notifications to the service manager: ready, reloading, stopping, and the watchdog (sd_notify(3)).
//!
//! They go to systemd, or to any other program that sets `NOTIFY_SOCKET`.
//!
//! The crate sd-notify (0.5) is not used: it connects to no abstract socket, has no timeout for a manager that does not
//! read, and reads the environment of the process, which tests can change only with unsafe code.

use std::ffi::OsStr;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::clock;
use crate::config::Env;
use crate::platform;

/// How long a message may wait for a manager that does not read. It blocks only the main thread.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// Notifies the service manager, if there is one.
#[derive(Debug, Clone)]
pub(super) struct Notifier(Option<Arc<Manager>>);

#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// After this, no reload is reported: its end would revoke the stop.
    is_stopping: AtomicBool,
    /// Maximum time between watchdog pings; `None` if it expects none.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC`, and `WATCHDOG_PID`.
    pub(super) fn new(env: &Env) -> Self {
        let Some(name) = env.get("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self::disabled() };
        let manager = connect(name).map(|(socket, address)| Manager {
            socket,
            address,
            is_stopping: AtomicBool::new(false),
            watchdog: watchdog_period(env, std::process::id()),
        });
        match manager {
            Ok(manager) => Self(Some(Arc::new(manager))),
            Err(error) => {
                tracing::warn!(%error, "cannot notify systemd; NOTIFY_SOCKET is unusable");
                Self::disabled()
            }
        }
    }

    /// Notifies no service manager.
    pub(super) fn disabled() -> Self {
        Self(None)
    }

    /// Reports that the gateway serves, at the start and after a reload.
    pub(super) fn ready(&self) {
        self.unless_stopping(|| "READY=1".to_owned());
    }

    /// Reports the start of a reload. [`Notifier::ready`] reports its end, even if it failed.
    pub(super) fn reloading(&self) {
        self.unless_stopping(|| format!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic_micros()));
    }

    /// Reports the start of the drain. Only watchdog pings follow.
    pub(super) fn stopping(&self) {
        if let Some(manager) = &self.0 {
            manager.is_stopping.store(true, Ordering::Release);
            manager.send("STOPPING=1");
        }
    }

    /// Sends a watchdog ping at half the expected period, while the runtimes of all worker threads respond. Returns at
    /// once if no ping is expected.
    pub(super) async fn watch(self, worker_runtimes: Vec<Handle>) {
        let Some((manager, period)) = self.0.and_then(|manager| Some((Arc::clone(&manager), manager.watchdog?))) else {
            return;
        };
        let mut heartbeats: Vec<Heartbeat> = worker_runtimes.into_iter().map(Heartbeat::new).collect();
        let mut ticks = tokio::time::interval(period / 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match find_unresponsive(&mut heartbeats, period / 4).await {
                None => manager.send("WATCHDOG=1"),
                Some(worker) => {
                    tracing::error!(worker, "worker thread is unresponsive; skipping the systemd watchdog ping");
                }
            }
        }
    }

    fn unless_stopping(&self, message: impl FnOnce() -> String) {
        if let Some(manager) = self.0.as_ref().filter(|manager| !manager.is_stopping.load(Ordering::Acquire)) {
            manager.send(&message());
        }
    }
}

impl Manager {
    fn send(&self, message: &str) {
        if let Err(error) = self.socket.send_to_addr(message.as_bytes(), &self.address) {
            tracing::warn!(%error, message, "cannot notify systemd");
        }
    }
}

/// Returns a socket and the address to send to.
fn connect(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = platform::notify_address(name)?;
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    Ok((socket, address))
}

/// Returns the maximum time between watchdog pings, if the process `pid` is to send them (sd_watchdog_enabled(3)).
fn watchdog_period(env: &Env, pid: u32) -> Option<Duration> {
    let number = |name: &str| env.get(name).map(|value| value.to_str().and_then(|value| value.parse::<u64>().ok()));
    if number("WATCHDOG_PID").is_some_and(|expected| expected != Some(pid.into())) {
        return None;
    }
    number("WATCHDOG_USEC").flatten().filter(|micros| *micros > 0).map(Duration::from_micros)
}

/// Checks whether a runtime responds, by spawning an empty task.
struct Heartbeat {
    runtime: Handle,
    /// The task, until it has run: an unresponsive runtime gets only one.
    task: Option<JoinHandle<()>>,
}

impl Heartbeat {
    fn new(runtime: Handle) -> Self {
        Self { runtime, task: None }
    }

    async fn responds(&mut self) -> bool {
        let task = self.task.get_or_insert_with(|| self.runtime.spawn(async {}));
        let has_run = task.await.is_ok();
        self.task = None;
        has_run
    }
}

/// Returns the index of the first runtime that does not respond within `timeout`, which is for all of them together.
async fn find_unresponsive(heartbeats: &mut [Heartbeat], timeout: Duration) -> Option<usize> {
    let deadline = clock::now() + timeout;
    for (index, heartbeat) in heartbeats.iter_mut().enumerate() {
        if tokio::time::timeout_at(deadline.into(), heartbeat.responds()).await != Ok(true) {
            return Some(index);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn env(variables: &[(&str, &str)]) -> Env {
        variables.iter().copied().collect()
    }

    #[test]
    fn messages_reach_the_socket_until_the_stop() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let receiver = UnixDatagram::bind(&path).expect("free");
        let notifier = Notifier::new(&env(&[("NOTIFY_SOCKET", path.to_str().expect("a plain path"))]));
        let before = clock::monotonic_micros();
        notifier.reloading();
        notifier.ready();
        notifier.clone().stopping();
        notifier.reloading();
        notifier.ready();
        receiver.set_nonblocking(true).expect("a socket");
        let next = || {
            let mut bytes = [0; 256];
            let len = receiver.recv(&mut bytes).ok()?;
            Some(String::from_utf8_lossy(&bytes[..len]).into_owned())
        };
        let reloading = next().expect("a message");
        let micros = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
        assert!((before..=clock::monotonic_micros()).contains(&micros.parse().expect("a number")), "{reloading}");
        assert_eq!(next().as_deref(), Some("READY=1"));
        assert_eq!(next().as_deref(), Some("STOPPING=1"));
        assert_eq!(next(), None);
    }

    #[test]
    fn unusable_address_or_missing_manager_is_tolerated() {
        for address in ["", "relative", "vsock:2:1"] {
            assert!(Notifier::new(&env(&[("NOTIFY_SOCKET", address)])).0.is_none(), "{address}");
        }
        assert!(Notifier::new(&env(&[])).0.is_none());
        Notifier::new(&env(&[("NOTIFY_SOCKET", "/nowhere/at/all")])).ready();
    }

    #[test]
    fn watchdog_pings_are_sent_by_the_named_process() {
        let period = |variables: &[(&str, &str)]| watchdog_period(&env(variables), 7);
        assert_eq!(period(&[("WATCHDOG_USEC", "3000000")]), Some(Duration::from_secs(3)));
        assert_eq!(period(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "7")]), Some(Duration::from_secs(3)));
        for other in ["8", "", "x"] {
            assert_eq!(period(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", other)]), None, "{other}");
        }
        for odd in ["0", "", "-1", "soon"] {
            assert_eq!(period(&[("WATCHDOG_USEC", odd)]), None, "{odd}");
        }
        assert_eq!(period(&[]), None);
    }

    #[tokio::test]
    async fn hanging_thread_is_unresponsive_until_it_continues() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || runtime.block_on(ended));
        let mut heartbeats = [Heartbeat::new(handle.clone()), Heartbeat::new(Handle::current())];
        assert_eq!(find_unresponsive(&mut heartbeats, Duration::from_secs(20)).await, None);
        let (resume, held) = mpsc::channel::<()>();
        let (hanging, hangs) = tokio::sync::oneshot::channel();
        handle.spawn(async move {
            hanging.send(()).expect("the test waits");
            held.recv().expect("continues");
        });
        hangs.await.expect("it hangs");
        for _ in 0..2 {
            assert_eq!(find_unresponsive(&mut heartbeats, Duration::from_millis(20)).await, Some(0));
        }
        resume.send(()).expect("it waits");
        assert_eq!(find_unresponsive(&mut heartbeats, Duration::from_secs(20)).await, None);
        end.send(()).expect("it runs");
        thread.join().expect("no panic").expect("the end was sent");
        let ended = find_unresponsive(&mut heartbeats, Duration::from_secs(20)).await;
        assert_eq!(ended, Some(0), "an ended thread is unresponsive");
    }
}
