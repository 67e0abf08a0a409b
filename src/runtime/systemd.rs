//! What systemd is told: that we are ready, that we stop, and that we are alive (sd_notify(3)).
//!
//! Anything else that sets `NOTIFY_SOCKET` is told the same. Where nobody does, nobody is told.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::clock;
use crate::config::Env;

/// How long a message may wait for room at a manager that does not read. It holds up nothing but the admin
/// listener's thread.
const SEND_WITHIN: Duration = Duration::from_millis(100);

/// Tells the service manager. Copies tell the same one.
#[derive(Debug, Clone)]
pub struct Notifier(Option<Arc<Manager>>);

#[derive(Debug)]
struct Manager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// After this it is told of no more reloads, which would take the stop back.
    stopping: AtomicBool,
    /// How often it wants to hear that we are alive, if at all.
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Whom the environment names: `NOTIFY_SOCKET`, `WATCHDOG_USEC`, `WATCHDOG_PID`.
    pub fn new(env: &Env) -> Self {
        let Some(name) = env.get("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self::nobody() };
        let manager = connect(name).map(|(socket, address)| Manager {
            socket,
            address,
            stopping: AtomicBool::new(false),
            watchdog: watchdog_period(env, std::process::id()),
        });
        match manager {
            Ok(manager) => Self(Some(Arc::new(manager))),
            Err(error) => {
                tracing::warn!(%error, "the service manager is not told anything: NOTIFY_SOCKET cannot be used");
                Self::nobody()
            }
        }
    }

    /// Tells nobody.
    pub fn nobody() -> Self {
        Self(None)
    }

    /// Serving; also the end of a reload.
    pub fn ready(&self) {
        self.unless_stopping(|| "READY=1".to_owned());
    }

    /// A reload begins; [`Notifier::ready`] ends it, whatever comes of it.
    pub fn reloading(&self) {
        self.unless_stopping(|| format!("RELOADING=1\nMONOTONIC_USEC={}", clock::monotonic_micros()));
    }

    /// The drain begins. Nothing but signs of life follow.
    pub fn stopping(&self) {
        if let Some(manager) = &self.0 {
            manager.stopping.store(true, Ordering::Release);
            manager.send("STOPPING=1");
        }
    }

    /// Gives signs of life, at half the time in which one is wanted, as long as all of these answer. Ends at once
    /// if none are wanted, else never.
    pub async fn watch(self, threads: Vec<Handle>) {
        let Some((manager, period)) = self.0.and_then(|manager| Some((Arc::clone(&manager), manager.watchdog?))) else {
            return;
        };
        let mut pulses: Vec<Heartbeat> = threads.into_iter().map(Heartbeat::new).collect();
        let mut ticks = tokio::time::interval(period / 2);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if all_answer(&mut pulses, period / 4).await {
                manager.send("WATCHDOG=1");
            } else {
                tracing::error!("a thread does not answer; the service manager gets no sign of life");
            }
        }
    }

    fn unless_stopping(&self, message: impl FnOnce() -> String) {
        if let Some(manager) = self.0.as_ref().filter(|manager| !manager.stopping.load(Ordering::Acquire)) {
            manager.send(&message());
        }
    }
}

impl Manager {
    fn send(&self, message: &str) {
        if let Err(error) = self.socket.send_to_addr(message.as_bytes(), &self.address) {
            tracing::warn!(%error, message, "the service manager could not be told");
        }
    }
}

/// A socket and where to send: the path of a Unix socket, or a name after `@` that no file has (unix(7)).
fn connect(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::other("it is neither an absolute path nor a name after @")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_WITHIN))?;
    Ok((socket, address))
}

/// sd_watchdog_enabled(3): in how much time a sign of life is wanted, if it is from us.
fn watchdog_period(env: &Env, pid: u32) -> Option<Duration> {
    let number = |name: &str| env.get(name).map(|value| value.to_str().and_then(|value| value.parse::<u64>().ok()));
    if number("WATCHDOG_PID").is_some_and(|wanted| wanted != Some(pid.into())) {
        return None;
    }
    number("WATCHDOG_USEC").flatten().filter(|micros| *micros > 0).map(Duration::from_micros)
}

/// A runtime that is asked to do something, the least there is.
struct Heartbeat {
    runtime: Handle,
    /// What it has not done yet: a runtime that hangs is not asked again and again.
    asked: Option<JoinHandle<()>>,
}

impl Heartbeat {
    fn new(runtime: Handle) -> Self {
        Self { runtime, asked: None }
    }

    async fn answers(&mut self) -> bool {
        let asked = self.asked.get_or_insert_with(|| self.runtime.spawn(async {}));
        let done = asked.await.is_ok();
        self.asked = None;
        done
    }
}

async fn all_answer(pulses: &mut [Heartbeat], limit: Duration) -> bool {
    let asking = async {
        for pulse in pulses {
            if !pulse.answers().await {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(limit, asking).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn env(variables: &[(&str, &str)]) -> Env {
        variables.iter().copied().collect()
    }

    #[test]
    fn messages_go_to_a_path_or_to_an_abstract_name_and_reloads_end_with_the_stop() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("chatgate-test-{:x}", clock::request_number());
        let abstract_address = SocketAddr::from_abstract_name(&name).expect("a name");
        let receivers = [
            (UnixDatagram::bind(&path).expect("free"), path.display().to_string()),
            (UnixDatagram::bind_addr(&abstract_address).expect("free"), format!("@{name}")),
        ];
        for (receiver, address) in receivers {
            let notifier = Notifier::new(&env(&[("NOTIFY_SOCKET", &address)]));
            let before = clock::monotonic_micros();
            notifier.reloading();
            notifier.ready();
            notifier.clone().stopping();
            notifier.reloading();
            notifier.ready();
            receiver.set_nonblocking(true).expect("an own socket");
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
    }

    #[test]
    fn an_address_that_cannot_be_used_is_nobodys_and_a_manager_that_is_gone_harms_nobody() {
        for address in ["", "relative", "vsock:2:1"] {
            assert!(Notifier::new(&env(&[("NOTIFY_SOCKET", address)])).0.is_none(), "{address}");
        }
        assert!(Notifier::new(&env(&[])).0.is_none());
        Notifier::new(&env(&[("NOTIFY_SOCKET", "/nowhere/at/all")])).ready();
    }

    #[test]
    fn signs_of_life_are_wanted_from_the_process_that_is_named() {
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
    async fn a_thread_that_hangs_does_not_answer_until_it_goes_on() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let handle = runtime.handle().clone();
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let thread = std::thread::spawn(move || runtime.block_on(ended));
        let mut pulses = [Heartbeat::new(handle.clone()), Heartbeat::new(Handle::current())];
        assert!(all_answer(&mut pulses, Duration::from_secs(20)).await);
        let (go_on, held) = mpsc::channel::<()>();
        let (hangs, hanging) = tokio::sync::oneshot::channel();
        handle.spawn(async move {
            hangs.send(()).expect("the test waits");
            held.recv().expect("told to go on");
        });
        hanging.await.expect("it hangs");
        for _ in 0..2 {
            assert!(!all_answer(&mut pulses, Duration::from_millis(20)).await);
        }
        go_on.send(()).expect("it waits");
        assert!(all_answer(&mut pulses, Duration::from_secs(20)).await);
        end.send(()).expect("it runs");
        thread.join().expect("it ends well").expect("told to end");
        assert!(!all_answer(&mut pulses, Duration::from_secs(20)).await, "a thread that has ended does not answer");
    }
}
