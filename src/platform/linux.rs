//! Linux.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::SocketAddr;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use socket2::SockRef;

use super::ResourceUsage;

/// Maximum length of a Unix socket path in bytes: 108 with the final NUL (unix(7)).
pub(crate) const UNIX_PATH_LEN_MAX: usize = 107;

/// Ticks of CPU time per second: Linux reports 100 to programs on every architecture.
const TICKS_PER_SEC: f64 = 100.0;

/// Excludes the memory of this process from core dumps and from debuggers of the same user.
///
/// PR_SET_DUMPABLE of prctl(2) excludes debuggers and /proc/PID/mem of other processes. RLIMIT_CORE prevents core files.
///
/// # Errors
/// If a sandbox forbids setrlimit or prctl.
pub(crate) fn protect_memory() -> io::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Returns the address in `NOTIFY_SOCKET`: the path of a Unix socket, or an abstract name after `@` (unix(7)).
///
/// # Errors
/// If it is neither.
pub(crate) fn notify_address(name: &OsStr) -> io::Result<SocketAddr> {
    match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(name),
        _ => Err(io::Error::other("neither an absolute path nor an abstract name after @")),
    }
}

/// Returns whether connections to this socket can be accepted (SO_ACCEPTCONN of socket(7)).
///
/// # Errors
/// Those of getsockopt(2).
pub(crate) fn is_listening(socket: impl AsFd) -> io::Result<bool> {
    SockRef::from(&socket.as_fd()).is_listener()
}

/// Returns the resource usage of this process, from /proc (proc(5)).
pub(crate) fn resource_usage() -> ResourceUsage {
    let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
    let status = read("status");
    ResourceUsage {
        resident_bytes: number_after(&status, "VmRSS:").map(|kib| kib * 1024),
        cpu_secs: cpu_secs(&read("stat")),
        // One of them is the open directory itself.
        open_fds: fs::read_dir("/proc/self/fd").ok().map(|all| (all.count() as u64).saturating_sub(1)),
        max_fds: number_after(&read("limits"), "Max open files"),
        threads: number_after(&status, "Threads:"),
    }
}

/// Returns the first number in the line that starts with `name`.
fn number_after(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Returns the sum of fields 14 and 15, user and system time. The name in parentheses before them may contain any
/// character.
fn cpu_secs(stat: &str) -> Option<f64> {
    let (_, after) = stat.rsplit_once(") ")?;
    let mut fields = after.split(' ').skip(11).map(|field| field.parse::<u64>().ok());
    Some((fields.next()?? + fields.next()??) as f64 / TICKS_PER_SEC)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use rustix::process::{dumpable_behavior, getrlimit};
    use socket2::{Domain, Socket, Type};

    use super::*;

    #[test]
    fn memory_is_hidden_from_core_dumps_and_debuggers() {
        protect_memory().expect("permitted");
        assert_eq!(dumpable_behavior().expect("readable"), DumpableBehavior::NotDumpable);
        let core = getrlimit(Resource::Core);
        assert_eq!((core.current, core.maximum), (Some(0), Some(0)));
    }

    #[test]
    fn notify_address_is_a_path_or_an_abstract_name() {
        let address = |name: &str| notify_address(name.as_ref());
        assert_eq!(address("/run/notify").expect("a path").as_pathname(), Some("/run/notify".as_ref()));
        assert_eq!(address("@notify").expect("a name").as_abstract_name(), Some(&b"notify"[..]));
        for name in ["", "relative", "vsock:2:1"] {
            assert!(address(name).is_err(), "{name}");
        }
        let name = format!("@chatgate-test-{}", std::process::id());
        let receiver = UnixDatagram::bind_addr(&address(&name).expect("a name")).expect("free");
        let sender = UnixDatagram::unbound().expect("a socket");
        sender.send_to_addr(b"READY=1", &address(&name).expect("a name")).expect("a receiver");
        assert_eq!(receiver.recv(&mut [0; 16]).expect("a message"), 7);
    }

    #[test]
    fn bound_socket_does_not_listen_yet() {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        assert!(!is_listening(&socket).expect("a socket"));
        socket.listen(1).expect("it is bound");
        assert!(is_listening(&socket).expect("a socket"));
    }

    #[test]
    fn process_name_with_parentheses_does_not_shift_fields() {
        let stat = "7 (a) b ) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 4 0 1 1 1";
        assert_eq!(cpu_secs(stat), Some(3.0));
        assert_eq!(cpu_secs("7 (a) S 1"), None);
        assert_eq!(number_after("Name:\tx\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234));
        assert_eq!(number_after("Max open files            unlimited", "Max open files"), None);
    }

    #[test]
    fn resource_usage_has_memory_threads_and_open_files() {
        let usage = resource_usage();
        assert!(usage.resident_bytes.is_some_and(|bytes| bytes > 100_000), "{usage:?}");
        assert!(usage.threads.is_some_and(|threads| threads >= 1), "{usage:?}");
        assert!(usage.open_fds.is_some_and(|fds| fds >= 3), "{usage:?}");
    }
}
