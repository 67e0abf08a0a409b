//! Unix systems other than Linux, such as macOS: what POSIX and the BSD sockets offer.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::SocketAddr;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use socket2::SockRef;

use super::ResourceUsage;

/// Maximum length of a Unix socket path in bytes: 104 with the final NUL on macOS and the BSDs, the smallest of all.
pub(crate) const UNIX_PATH_LEN_MAX: usize = 103;

/// Connections waiting to be accepted, in [`is_listening`]. As many as a listener of chatgate has.
const BACKLOG: i32 = 1024;

/// Excludes the memory of this process from core files. Debuggers of the same user can still read it: only Linux has a
/// call against them that needs no unsafe code.
///
/// # Errors
/// If a sandbox forbids setrlimit.
pub(crate) fn protect_memory() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

/// Returns the address in `NOTIFY_SOCKET`: the path of a Unix socket. Only Linux has abstract names.
///
/// # Errors
/// If it is not an absolute path.
pub(crate) fn notify_address(name: &OsStr) -> io::Result<SocketAddr> {
    if Path::new(name).is_absolute() {
        SocketAddr::from_pathname(name)
    } else {
        Err(io::Error::other("not an absolute path"))
    }
}

/// Makes this socket listen, and returns whether it does. macOS cannot report whether a socket listens already; for one
/// that does, the call only sets the length of its queue.
///
/// # Errors
/// None. The type is that of other systems.
pub(crate) fn is_listening(socket: impl AsFd) -> io::Result<bool> {
    Ok(SockRef::from(&socket.as_fd()).listen(BACKLOG).is_ok())
}

/// Returns the CPU time and the file descriptors of this process. No portable call reports the other values.
pub(crate) fn resource_usage() -> ResourceUsage {
    let cpu_time = clock_gettime(ClockId::ProcessCPUTime);
    ResourceUsage {
        cpu_secs: Some(cpu_time.tv_sec as f64 + cpu_time.tv_nsec as f64 / 1e9),
        // One of them is the open directory itself.
        open_fds: fs::read_dir("/dev/fd").ok().map(|all| (all.count() as u64).saturating_sub(1)),
        max_fds: getrlimit(Resource::Nofile).current,
        ..ResourceUsage::default()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn core_files_are_off() {
        protect_memory().expect("permitted");
        let core = getrlimit(Resource::Core);
        assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
    }

    #[test]
    fn notify_address_is_an_absolute_path() {
        let address = |name: &str| notify_address(name.as_ref());
        assert_eq!(address("/run/notify").expect("a path").as_pathname(), Some("/run/notify".as_ref()));
        for name in ["", "relative", "@notify"] {
            assert!(address(name).is_err(), "{name}");
        }
    }

    #[test]
    fn bound_and_listening_sockets_accept_connections_and_connected_ones_do_not() {
        let bound = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        bound.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        for _ in 0..2 {
            assert!(is_listening(&bound).expect("no error"));
        }
        let address = bound.local_addr().expect("bound").as_socket().expect("an IP address");
        std::net::TcpStream::connect(address).expect("it listens");
        let dir = tempfile::tempdir().expect("a directory");
        assert!(is_listening(UnixListener::bind(dir.path().join("a.sock")).expect("free")).expect("no error"));
        let (connected, _peer) = UnixStream::pair().expect("sockets");
        assert!(!is_listening(connected).expect("no error"));
    }

    #[test]
    fn resource_usage_has_cpu_time_and_files() {
        let usage = resource_usage();
        assert!(usage.cpu_secs.is_some_and(|secs| secs > 0.0), "{usage:?}");
        assert!(usage.open_fds.is_some_and(|fds| (3..100_000).contains(&fds)), "{usage:?}");
        assert!(usage.max_fds.is_none_or(|max| max >= 3), "{usage:?}");
        assert_eq!((usage.resident_bytes, usage.threads), (None, None));
    }
}
