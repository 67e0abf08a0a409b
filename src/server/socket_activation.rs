//! Sockets that systemd has opened for us (sd_listen_fds(3), systemd.socket(5)).
//!
//! Each takes the place of the configured address that it has. They outlive this process: a restart loses no
//! connection, and the file of a Unix socket is systemd's.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;

use listenfd::ListenFd;
use socket2::SockRef;

use super::listener::{Listener, SocketFile};
use crate::config::{Env, ListenAddr};

/// Most sockets that are taken: more than there can be listeners.
const SOCKETS_MAX: usize = 32;

/// Sockets that have no place yet.
#[derive(Debug, Default)]
pub struct ActivatedSockets(Vec<Listener>);

/// A socket of systemd's that cannot be served.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum ActivationError {
    #[error(
        "systemd has passed on {0} sockets, and there are at most {SOCKETS_MAX}; take some out of the .socket unit"
    )]
    TooMany(usize),
    #[error(
        "systemd has passed on socket {fd}{name}, on which nobody can connect: it must be a listening TCP socket, or a \
         listening Unix socket (ListenStream=, and Accept=no)"
    )]
    Kind { fd: usize, name: String },
    #[error(
        "systemd has passed on a socket at {0}, which is no address of server.listen, server.admin or webhook.listen; \
         write it there as it stands here, or take it out of the .socket unit"
    )]
    NoEntry(ListenAddr),
    #[error("the sockets of systemd cannot be taken over: {0}")]
    Io(#[from] io::Error),
}

impl ActivatedSockets {
    /// Those that were passed to this process, as the environment says. The first call takes them.
    ///
    /// # Errors
    /// If one of them is no socket that can be listened on.
    pub fn of_process(env: &Env) -> Result<Self, ActivationError> {
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

    /// The one that has this address.
    pub fn take(&mut self, address: &ListenAddr) -> Option<Listener> {
        let at = self.0.iter().position(|listener| listener.address() == *address)?;
        Some(self.0.swap_remove(at))
    }

    /// Refuses those that are left: somebody connects to them and would wait for ever.
    ///
    /// # Errors
    /// If there are any.
    pub fn reject_unused(self) -> Result<(), ActivationError> {
        self.0.first().map_or(Ok(()), |listener| Err(ActivationError::NoEntry(listener.address())))
    }
}

/// Number of the first descriptor (SD_LISTEN_FDS_START).
const FIRST_FD: usize = 3;

/// How many were passed to the process of this number.
fn count(env: &Env, pid: u32) -> usize {
    let number = |name: &str| env.get(name).and_then(|value| value.to_str()?.parse::<usize>().ok());
    let ours = number("LISTEN_PID").is_some_and(|wanted| u32::try_from(wanted) == Ok(pid));
    number("LISTEN_FDS").filter(|_| ours).unwrap_or(0)
}

/// `None`: it is not what can be listened on.
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
    if !SockRef::from(&listener).is_listener()? {
        return Ok(None);
    }
    listener.set_nonblocking(true)?;
    Ok(Some(Listener::Tcp(listener, address)))
}

fn unix(listener: UnixListener) -> io::Result<Option<Listener>> {
    let address = listener.local_addr()?;
    let Some(path) = address.as_pathname().filter(|_| SockRef::from(&listener).is_listener().unwrap_or(false)) else {
        return Ok(None);
    };
    listener.set_nonblocking(true)?;
    Ok(Some(Listener::Unix(listener, SocketFile::of_others(path.to_owned()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_another_process_are_not_ours() {
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
    fn each_takes_the_place_of_its_address_and_the_rest_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("gate.sock");
        let file = unix(UnixListener::bind(&path).expect("free")).expect("a socket").expect("a listening one");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let port = tcp(listener, address).expect("a socket").expect("a listening one");
        let mut adopted = ActivatedSockets(vec![file, port]);
        assert!(adopted.take(&"127.0.0.1:1".parse().expect("an address")).is_none());
        let file = adopted.take(&ListenAddr::Unix(path.clone())).expect("it is there");
        assert!(adopted.take(&ListenAddr::Unix(path.clone())).is_none(), "taken once");
        file.remove();
        drop(file);
        assert!(path.exists(), "its file is systemd's");
        let error = adopted.reject_unused().expect_err("one is left").to_string();
        assert!(error.contains(&address.to_string()) && error.contains("server.listen"), "{error}");
        assert!(ActivatedSockets::default().reject_unused().is_ok());
    }

    #[test]
    fn a_socket_that_nobody_can_connect_to_is_not_taken() {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        let address = "127.0.0.1:0".parse::<SocketAddr>().expect("an address");
        socket.bind(&address.into()).expect("a free port");
        let listener: TcpListener = socket.into();
        assert!(tcp(listener, address).expect("a socket").is_none());
    }
}
