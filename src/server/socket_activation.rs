//! Socket activation: sockets that systemd has opened for this process (sd_listen_fds(3), systemd.socket(5)).
//!
//! Each replaces the configured address that it is bound to. It outlives this process, so a restart loses no
//! connection. The file of a Unix socket belongs to systemd.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;

use super::listener::{Listener, SocketFile};
use crate::config::{Env, ListenAddr};
use crate::platform;

/// Maximum number of sockets; more than there can be listeners.
const SOCKETS_MAX: usize = 32;

/// Sockets that replace no configured address yet.
#[derive(Debug, Default)]
pub(crate) struct ActivatedSockets(Vec<Listener>);

/// A socket from systemd that cannot be served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says it")]
pub enum ActivationError {
    #[error("systemd passed {0} sockets, more than the maximum of {SOCKETS_MAX}; remove some from the .socket unit")]
    TooMany(usize),
    #[error(
        "systemd passed socket {fd}{name}, which accepts no connections; use a TCP or Unix socket with ListenStream= and \
         Accept=no"
    )]
    Kind { fd: usize, name: String },
    #[error(
        "systemd passed a socket at {0}, which matches no address of server.listen, server.admin, or webhook.listen; \
         add it there, or remove it from the .socket unit"
    )]
    NoEntry(ListenAddr),
    #[error("cannot use the sockets passed by systemd: {0}")]
    Io(#[from] io::Error),
}

impl ActivatedSockets {
    /// Takes the sockets that the environment says were passed to this process. Only the first call finds any.
    ///
    /// # Errors
    /// If one of them is not a listening socket.
    pub(crate) fn of_process(env: &Env) -> Result<Self, ActivationError> {
        let count = count(env, std::process::id());
        if count > SOCKETS_MAX {
            return Err(ActivationError::TooMany(count));
        }
        if count == 0 {
            return Ok(Self::default());
        }
        let names = env.get("LISTEN_FDNAMES").and_then(|names| names.to_str()).unwrap_or_default();
        let names: Vec<&str> = names.split(':').collect();
        let mut sockets = ListenFd::from_env();
        let take = |number: usize| {
            let found = take(&mut sockets, number)?;
            let name = names.get(number).filter(|name| !name.is_empty());
            let name = name.map(|name| format!(" ({})", name.escape_debug())).unwrap_or_default();
            found.ok_or(ActivationError::Kind { fd: number + FIRST_FD, name })
        };
        (0..count).map(take).collect::<Result<_, _>>().map(Self)
    }

    /// Takes the socket that is bound to this address.
    pub(super) fn take(&mut self, address: &ListenAddr) -> Option<Listener> {
        let at = self.0.iter().position(|listener| listener.address() == *address)?;
        Some(self.0.swap_remove(at))
    }

    /// Rejects sockets that match no configured address: connections to them would never be accepted.
    ///
    /// # Errors
    /// If any socket is left.
    pub(crate) fn reject_unused(self) -> Result<(), ActivationError> {
        self.0.first().map_or(Ok(()), |listener| Err(ActivationError::NoEntry(listener.address())))
    }
}

/// Number of the first passed descriptor (SD_LISTEN_FDS_START).
const FIRST_FD: usize = 3;

/// Returns how many sockets were passed to the process `pid`.
fn count(env: &Env, pid: u32) -> usize {
    let number = |name: &str| env.get(name).and_then(|value| value.to_str()?.parse::<usize>().ok());
    let is_for_pid = number("LISTEN_PID").is_some_and(|expected| u32::try_from(expected) == Ok(pid));
    number("LISTEN_FDS").filter(|_| is_for_pid).unwrap_or(0)
}

/// Takes a socket; `None` if it is not a listening TCP or Unix socket.
fn take(sockets: &mut ListenFd, number: usize) -> io::Result<Option<Listener>> {
    if let Ok(Some(listener)) = sockets.take_tcp_listener(number) {
        let address = listener.local_addr()?;
        return tcp(listener, address);
    }
    if let Ok(Some(listener)) = sockets.take_unix_listener(number) {
        return unix(listener);
    }
    Ok(None)
}

fn tcp(listener: TcpListener, address: SocketAddr) -> io::Result<Option<Listener>> {
    if !platform::is_listening(&listener)? {
        return Ok(None);
    }
    listener.set_nonblocking(true)?;
    Ok(Some(Listener::Tcp(listener, address)))
}

fn unix(listener: UnixListener) -> io::Result<Option<Listener>> {
    let address = listener.local_addr()?;
    let Some(path) = address.as_pathname().filter(|_| platform::is_listening(&listener).unwrap_or(false)) else {
        return Ok(None);
    };
    listener.set_nonblocking(true)?;
    Ok(Some(Listener::Unix(listener, SocketFile::foreign(path.to_owned()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_for_another_process_are_ignored() {
        let count = |variables: &[(&str, &str)]| count(&variables.iter().copied().collect(), 7);
        assert_eq!(count(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "2")]), 2);
        for pid in ["8", "", "x", "-7"] {
            assert_eq!(count(&[("LISTEN_PID", pid), ("LISTEN_FDS", "2")]), 0, "{pid}");
        }
        assert_eq!(count(&[("LISTEN_FDS", "2")]), 0);
        assert_eq!(count(&[("LISTEN_PID", "7"), ("LISTEN_FDS", "two")]), 0);
        let env: Env =
            [("LISTEN_PID", std::process::id().to_string()), ("LISTEN_FDS", "33".to_owned())].into_iter().collect();
        assert!(matches!(ActivatedSockets::of_process(&env), Err(ActivationError::TooMany(33))));
    }

    #[test]
    fn each_socket_replaces_its_address_and_the_rest_is_rejected() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("gate.sock");
        let file = unix(UnixListener::bind(&path).expect("free")).expect("a socket").expect("a listening one");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let port = tcp(listener, address).expect("a socket").expect("a listening one");
        let mut activated = ActivatedSockets(vec![file, port]);
        assert!(activated.take(&"127.0.0.1:1".parse().expect("an address")).is_none());
        let file = activated.take(&ListenAddr::Unix(path.clone())).expect("it was passed");
        assert!(activated.take(&ListenAddr::Unix(path.clone())).is_none(), "already taken");
        file.remove_file();
        drop(file);
        assert!(path.exists(), "its file belongs to systemd");
        let error = activated.reject_unused().expect_err("one socket is left").to_string();
        assert!(error.contains(&address.to_string()) && error.contains("server.listen"), "{error}");
        assert!(ActivatedSockets::default().reject_unused().is_ok());
    }

    #[test]
    fn socket_that_does_not_listen_is_rejected() {
        let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = server.local_addr().expect("bound");
        let connected = std::net::TcpStream::connect(address).expect("it listens");
        let connected: std::os::fd::OwnedFd = connected.into();
        assert!(tcp(connected.into(), address).expect("a socket").is_none());
    }
}
