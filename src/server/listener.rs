//! TCP and Unix sockets: binding and accepting.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::socket_activation::ActivatedSockets;
use crate::config::ListenAddr;
use crate::domain::caller::QueueKey;
use crate::http::peer::{ConnectionInfo, Peer};

/// Connections waiting to be accepted; more than the usual 128, so that a burst fits.
const BACKLOG: i32 = 1024;

/// A listening socket that belongs to no runtime. Each thread accepts through a clone of it, all from one queue, so an
/// idle thread takes the next connection.
#[derive(Debug)]
pub(crate) enum Listener {
    /// TCP, with its actual address.
    Tcp(std::net::TcpListener, SocketAddr),
    /// A Unix socket, with its file.
    Unix(StdUnixListener, Arc<SocketFile>),
}

/// The file of a Unix socket. Dropping it removes the file, unless another process created it.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// This process created the file and has not removed it yet.
    is_owned: AtomicBool,
}

impl SocketFile {
    fn owned(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, is_owned: AtomicBool::new(true) })
    }

    /// A file that another process created. It is never removed.
    pub(super) fn foreign(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, is_owned: AtomicBool::new(false) })
    }

    /// Removes the file, once: a later process may have created its own in the same place.
    pub(crate) fn remove(&self) {
        if self.is_owned.swap(false, Ordering::AcqRel) {
            // An error means that it is already gone.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

/// An address that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {cause}")]
pub struct BindError {
    address: ListenAddr,
    cause: String,
}

impl Listener {
    /// Binds an address. A Unix socket gets `unix_mode` and replaces a stale socket.
    ///
    /// # Errors
    /// Among others, if another process listens there, or if the path of a Unix socket is another kind of file.
    pub(super) fn bind(address: &ListenAddr, unix_mode: u32) -> Result<Self, BindError> {
        let bound = match address {
            ListenAddr::Tcp(address) => bind_tcp(*address),
            ListenAddr::Unix(path) => bind_unix(path, unix_mode),
        };
        bound.map_err(|error| BindError { address: address.clone(), cause: error.to_string() })
    }

    /// Binds all addresses, in their order, or none: on an error, no file remains. An activated socket replaces its
    /// address.
    ///
    /// # Errors
    /// The error of the first address that cannot be bound.
    pub(crate) fn bind_all<'a>(
        addresses: impl IntoIterator<Item = &'a ListenAddr>,
        unix_mode: u32,
        activated: &mut ActivatedSockets,
    ) -> Result<Vec<Self>, BindError> {
        let bind = |address| activated.take(address).map_or_else(|| Self::bind(address, unix_mode), Ok);
        addresses.into_iter().map(bind).collect()
    }

    /// Returns the address in the form of the configuration, with the actual port.
    pub(crate) fn address(&self) -> ListenAddr {
        match self {
            Listener::Tcp(_, address) => ListenAddr::Tcp(*address),
            Listener::Unix(_, file) => ListenAddr::Unix(file.path.clone()),
        }
    }

    /// Clones the socket for the current runtime.
    ///
    /// # Errors
    /// If no file descriptor is left.
    pub(crate) fn acceptor(&self) -> io::Result<Acceptor> {
        Ok(match self {
            Listener::Tcp(listener, _) => Acceptor::Tcp(TcpListener::from_std(listener.try_clone()?)?),
            Listener::Unix(listener, _) => Acceptor::Unix(UnixListener::from_std(listener.try_clone()?)?),
        })
    }

    /// Removes the file of a Unix socket that this process created: clones of the socket may live a little longer.
    pub(crate) fn remove_file(&self) {
        if let Some(file) = self.file() {
            file.remove();
        }
    }

    /// Returns the file of a Unix socket.
    pub(crate) fn file(&self) -> Option<&Arc<SocketFile>> {
        match self {
            Listener::Tcp(..) => None,
            Listener::Unix(_, file) => Some(file),
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a process that has just exited must not prevent the next one from starting.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener: std::net::TcpListener = socket.into();
    let address = listener.local_addr()?;
    Ok(Listener::Tcp(listener, address))
}

fn bind_unix(path: &Path, mode: u32) -> io::Result<Listener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("the path is a file, not a socket; remove it or choose another path"));
        }
        Ok(_) => match StdUnixStream::connect(path) {
            Ok(_) => {
                return Err(io::Error::other("another process is listening there; stop it or choose another path"));
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // From here on an error removes the file.
    let file = SocketFile::owned(path.to_owned());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    // Not before the file has its mode: until a socket listens, nothing can connect to it.
    socket.listen(BACKLOG)?;
    Ok(Listener::Unix(socket.into(), file))
}

/// A listening socket of one runtime.
#[derive(Debug)]
pub(crate) enum Acceptor {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

/// An accepted connection.
#[derive(Debug)]
pub(super) enum AcceptedStream {
    /// TCP, with Nagle's delay off.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Acceptor {
    /// Waits for the next connection. Its TLS is decided later.
    ///
    /// # Errors
    /// Those of accept(2). The listener remains usable after each of them.
    pub(super) async fn accept(&self) -> io::Result<(AcceptedStream, ConnectionInfo)> {
        match self {
            Acceptor::Tcp(listener) => {
                let (stream, remote) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let local = stream.local_addr()?;
                let (peer, caller) = (Peer::Tcp { local: local.ip().to_canonical() }, key_of_address(remote.ip()));
                Ok((AcceptedStream::Tcp(stream), ConnectionInfo::plain(peer, caller, local.port())))
            }
            Acceptor::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let credentials = stream.peer_cred().ok();
                let peer = Peer::Unix { uid: credentials.map(|peer| peer.uid()) };
                let caller = key_of_process(credentials.and_then(|peer| peer.pid()));
                Ok((AcceptedStream::Unix(stream), ConnectionInfo::plain(peer, caller, 0)))
            }
        }
    }
}

// Keys of callers without a token. Their lowest two bits keep the kinds apart; keys of named callers have 0 there.

/// The key of a process of this machine, over a Unix socket.
fn key_of_process(pid: Option<i32>) -> QueueKey {
    pid.map_or_else(key_of_connection, |pid| QueueKey(u64::from(pid.unsigned_abs()) << 2 | 1))
}

/// The key of another machine, over TCP. Processes of this machine all have a loopback address, so each of their
/// connections has its own key.
fn key_of_address(remote: IpAddr) -> QueueKey {
    let remote = remote.to_canonical();
    if remote.is_loopback() {
        return key_of_connection();
    }
    let mut hasher = DefaultHasher::new();
    remote.hash(&mut hasher);
    QueueKey(hasher.finish() << 2 | 2)
}

fn key_of_connection() -> QueueKey {
    static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
    QueueKey(CONNECTIONS.fetch_add(1, Ordering::Relaxed) << 2 | 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::UNIX_PATH_LEN_MAX;

    fn unix(path: &Path) -> Result<Listener, BindError> {
        Listener::bind(&ListenAddr::Unix(path.to_owned()), 0o600)
    }

    #[test]
    fn only_a_stale_socket_file_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("gate.sock");
        let first = unix(&path).expect("free");
        assert_eq!(std::fs::metadata(&path).expect("exists").permissions().mode() & 0o777, 0o600);
        assert!(unix(&path).expect_err("in use").to_string().contains("another process"));
        drop(first);
        assert!(!path.exists(), "the file is removed with the socket");
        drop(StdUnixListener::bind(&path).expect("free"));
        assert!(path.exists(), "a killed process leaves the file behind");
        let second = unix(&path).expect("stale");
        second.remove_file();
        assert!(!path.exists());
        std::fs::write(&path, "precious").expect("written");
        drop(second);
        assert!(unix(&path).expect_err("a file").to_string().contains("not a socket"));
        assert_eq!(std::fs::read_to_string(&path).expect("exists"), "precious");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1, "no other file remains");
    }

    #[test]
    fn path_of_the_maximum_length_is_bound() {
        let dir = tempfile::tempdir().expect("a directory");
        let name = "x".repeat(UNIX_PATH_LEN_MAX - dir.path().as_os_str().len() - 1);
        let path = dir.path().join(name);
        let _listener = unix(&path).expect("free");
        StdUnixStream::connect(&path).expect("it listens");
        let entries: Vec<_> = std::fs::read_dir(dir.path()).expect("exists").collect();
        assert_eq!(entries.len(), 1, "{entries:?}");
    }

    #[test]
    fn failed_bind_leaves_no_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = |name: &str| ListenAddr::Unix(dir.path().join(name));
        let bind_all =
            |addresses: [&ListenAddr; 2]| Listener::bind_all(addresses, 0o600, &mut ActivatedSockets::default());
        let good = bind_all([&socket("a"), &socket("b")]).expect("free");
        assert_eq!(good.iter().map(Listener::address).collect::<Vec<_>>(), [socket("a"), socket("b")]);
        let again = bind_all([&socket("c"), &socket("a")]).expect_err("a is in use").to_string();
        assert!(again.contains("another process"), "{again}");
        assert!(dir.path().join("a").exists() && !dir.path().join("c").exists(), "only the new file is removed");
    }

    #[test]
    fn port_0_becomes_an_actual_port() {
        let any = "127.0.0.1:0".parse().expect("an address");
        let listener = Listener::bind(&ListenAddr::Tcp(any), 0).expect("free");
        let ListenAddr::Tcp(actual) = listener.address() else { panic!("not TCP") };
        assert_ne!(actual.port(), 0);
        let taken = Listener::bind(&ListenAddr::Tcp(actual), 0).expect_err("taken").to_string();
        assert!(taken.contains(&actual.to_string()), "{taken}");
    }
}
