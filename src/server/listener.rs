//! Binding and accepting: TCP and Unix sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::socket_activation::ActivatedSockets;
use crate::config::ListenAddr;
use crate::http::peer::Peer;

/// Connections that wait to be accepted; more than the kernel's usual 128, so that a burst fits.
const BACKLOG: i32 = 1024;

/// A listening socket, before it belongs to a runtime. Each thread takes a clone of it and all
/// accept from one queue: whoever has time takes the next connection.
#[derive(Debug)]
pub enum Listener {
    /// With the address it has got.
    Tcp(std::net::TcpListener, SocketAddr),
    /// With its file.
    Unix(StdUnixListener, Arc<SocketFile>),
}

/// The file of a Unix socket. It goes with the socket, unless others have made it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// It is ours and still there.
    ours: AtomicBool,
}

impl SocketFile {
    fn of_ours(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, ours: AtomicBool::new(true) })
    }

    /// One that stays when we go.
    pub fn of_others(path: PathBuf) -> Arc<Self> {
        Arc::new(Self { path, ours: AtomicBool::new(false) })
    }

    /// Removes it, once: a later process may have put another one into its place.
    pub fn remove(&self) {
        if self.ours.swap(false, Ordering::AcqRel) {
            // It may be gone already; then that is what was wanted.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove();
    }
}

/// A socket that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {what}")]
pub struct BindError {
    address: ListenAddr,
    what: String,
}

impl Listener {
    /// Binds. A Unix socket gets `unix_mode`; one that nobody listens on any more is replaced, one in
    /// use is an error, and any other kind of file is left alone.
    ///
    /// # Errors
    /// With the address and the cause in words.
    pub fn bind(address: &ListenAddr, unix_mode: u32) -> Result<Self, BindError> {
        let bound = match address {
            ListenAddr::Tcp(address) => bind_tcp(*address),
            ListenAddr::Unix(path) => bind_unix(path, unix_mode),
        };
        bound.map_err(|error| BindError { address: address.clone(), what: error.to_string() })
    }

    /// Binds all of them, in their order, or none: those that are bound already leave no file behind. One that
    /// is among the adopted is taken from there.
    ///
    /// # Errors
    /// That of the first that cannot be bound.
    pub fn bind_all<'a>(
        addresses: impl IntoIterator<Item = &'a ListenAddr>,
        unix_mode: u32,
        adopted: &mut ActivatedSockets,
    ) -> Result<Vec<Self>, BindError> {
        let place = |address| adopted.take(address).map_or_else(|| Self::bind(address, unix_mode), Ok);
        addresses.into_iter().map(place).collect()
    }

    /// The address in the form of the configuration, with the port it has got.
    pub fn address(&self) -> ListenAddr {
        match self {
            Listener::Tcp(_, address) => ListenAddr::Tcp(*address),
            Listener::Unix(_, file) => ListenAddr::Unix(file.path.clone()),
        }
    }

    /// A clone for this thread's runtime.
    ///
    /// # Errors
    /// If there are no more file descriptors.
    pub fn for_this_runtime(&self) -> io::Result<Accept> {
        Ok(match self {
            Listener::Tcp(listener, _) => Accept::Tcp(TcpListener::from_std(listener.try_clone()?)?),
            Listener::Unix(listener, _) => Accept::Unix(UnixListener::from_std(listener.try_clone()?)?),
        })
    }

    /// Removes the file of a Unix socket, if it is ours: other copies of the socket may live a little longer.
    pub fn remove(&self) {
        if let Some(file) = self.file() {
            file.remove();
        }
    }

    /// The file of a Unix socket.
    pub fn file(&self) -> Option<&Arc<SocketFile>> {
        match self {
            Listener::Tcp(..) => None,
            Listener::Unix(_, file) => Some(file),
        }
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of a process that has just ended must not keep the next one from starting.
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
            return Err(io::Error::other("there is a file that is no socket; it is left alone"));
        }
        Ok(_) => match StdUnixStream::connect(path) {
            Ok(_) => return Err(io::Error::other("another process is listening there")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
            Err(error) => return Err(error),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // Bound under another name and moved into place once it has its mode, so that at no moment
    // anybody can connect who may not.
    let mut hidden = path.as_os_str().to_owned();
    hidden.push(format!(".{}", std::process::id()));
    let hidden = PathBuf::from(hidden);
    let _ = std::fs::remove_file(&hidden);
    let listener = StdUnixListener::bind(&hidden)?;
    let placed = std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(mode))
        .and_then(|()| std::fs::rename(&hidden, path))
        .and_then(|()| listener.set_nonblocking(true));
    if let Err(error) = placed {
        let _ = std::fs::remove_file(&hidden);
        return Err(error);
    }
    Ok(Listener::Unix(listener, SocketFile::of_ours(path.to_owned())))
}

/// A listener that belongs to a runtime.
#[derive(Debug)]
pub enum Accept {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket.
    Unix(UnixListener),
}

/// An accepted connection.
#[derive(Debug)]
pub enum Accepted {
    /// TCP, with Nagle's delay off.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl Accept {
    /// The next connection and where it came in.
    ///
    /// # Errors
    /// Those of accept(2); the listener can go on after each of them.
    pub async fn next(&self) -> io::Result<(Accepted, Peer)> {
        match self {
            Accept::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let local: IpAddr = stream.local_addr()?.ip().to_canonical();
                Ok((Accepted::Tcp(stream), Peer::Tcp { local }))
            }
            Accept::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let uid = stream.peer_cred().ok().map(|peer| peer.uid());
                Ok((Accepted::Unix(stream), Peer::Unix { uid }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unix(path: &Path) -> Result<Listener, BindError> {
        Listener::bind(&ListenAddr::Unix(path.to_owned()), 0o600)
    }

    #[test]
    fn a_stale_socket_is_replaced_one_in_use_is_not_and_files_are_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("gate.sock");
        let first = unix(&path).expect("free");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(unix(&path).expect_err("in use").to_string().contains("another process"));
        drop(first);
        assert!(!path.exists(), "it goes with the socket");
        drop(StdUnixListener::bind(&path).expect("free"));
        assert!(path.exists(), "a process that was killed leaves it behind");
        let second = unix(&path).expect("stale");
        second.remove();
        assert!(!path.exists());
        std::fs::write(&path, "precious").expect("written");
        drop(second);
        assert!(unix(&path).expect_err("a file").to_string().contains("left alone"));
        assert_eq!(std::fs::read_to_string(&path).expect("still there"), "precious");
        assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 1, "nothing else is left");
    }

    #[test]
    fn all_are_bound_or_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let socket = |name: &str| ListenAddr::Unix(dir.path().join(name));
        let bind_all =
            |addresses: [&ListenAddr; 2]| Listener::bind_all(addresses, 0o600, &mut ActivatedSockets::default());
        let good = bind_all([&socket("a"), &socket("b")]).expect("free");
        assert_eq!(good.iter().map(Listener::address).collect::<Vec<_>>(), [socket("a"), socket("b")]);
        let again = bind_all([&socket("c"), &socket("a")]).expect_err("a is in use").to_string();
        assert!(again.contains("another process"), "{again}");
        assert!(dir.path().join("a").exists() && !dir.path().join("c").exists(), "it takes back its own only");
    }

    #[test]
    fn port_0_becomes_a_real_one() {
        let any = "127.0.0.1:0".parse().expect("an address");
        let listener = Listener::bind(&ListenAddr::Tcp(any), 0).expect("free");
        let ListenAddr::Tcp(got) = listener.address() else { panic!("not TCP") };
        assert_ne!(got.port(), 0);
        let taken = Listener::bind(&ListenAddr::Tcp(got), 0).expect_err("taken").to_string();
        assert!(taken.contains(&got.to_string()), "{taken}");
    }
}
