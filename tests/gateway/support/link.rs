//! The network between the gateway and the fake Chat: a byte relay that fails on demand.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::wire::reset_on_drop;

/// The state of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NetworkState {
    /// Passes bytes immediately.
    Healthy,
    /// Delays every read by this much, in both directions.
    Delayed(Duration),
    /// Passes responses byte by byte, one byte per interval.
    ByteByByte(Duration),
    /// Accepts connections and passes nothing, like a firewall that lost its connection table.
    Stalled,
    /// Passes requests but no responses.
    ResponsesStalled,
    /// Resets a connection as soon as it carries bytes.
    Resetting,
    /// Passes requests, and resets the connection instead of passing a response.
    ResettingResponses,
    /// Refuses new connections, and resets existing ones.
    Refusing,
    /// Drops the SYN packets of new connections, and resets existing connections.
    DroppingSyn,
}

/// A TCP relay on a loopback port.
pub(crate) struct Link {
    address: SocketAddr,
    target: SocketAddr,
    network: watch::Sender<NetworkState>,
    /// Incremented each time that all connections are reset.
    resets: watch::Sender<u32>,
    port: Port,
}

/// What happens to new connections on the port.
enum Port {
    /// It is bound, and nothing listens.
    Bound(TcpSocket),
    Accepting(JoinHandle<()>),
    /// The accept queue is full, and nothing accepts.
    Full {
        listener: TcpListener,
        pending: Vec<JoinHandle<()>>,
    },
    Changing,
}

impl Link {
    /// Binds a port and refuses connections.
    pub(crate) fn new() -> Link {
        Link::at("127.0.0.1:0".parse().expect("an address"))
    }

    /// Binds this address and refuses connections.
    pub(crate) fn at(address: SocketAddr) -> Link {
        let socket = bound(address);
        let address = socket.local_addr().expect("bound");
        let (network, resets) = (watch::Sender::new(NetworkState::Refusing), watch::Sender::new(0));
        Link { address, target: address, network, resets, port: Port::Bound(socket) }
    }

    /// Returns the address for the gateway.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts to relay to `target`.
    pub(crate) async fn relay_to(&mut self, target: SocketAddr) {
        self.target = target;
        self.set(NetworkState::Healthy).await;
    }

    /// Changes the state of the network, also for existing connections.
    pub(crate) async fn set(&mut self, network: NetworkState) {
        self.network.send_replace(network);
        self.port = match std::mem::replace(&mut self.port, Port::Changing) {
            Port::Accepting(task) if matches!(network, NetworkState::Refusing | NetworkState::DroppingSyn) => {
                task.abort();
                // The port cannot be bound again until the listener is dropped.
                let _ = task.await;
                self.reset_all();
                Port::Bound(bound(self.address))
            }
            port => port,
        };
        self.port = match (std::mem::replace(&mut self.port, Port::Changing), network) {
            (port @ Port::Bound(_), NetworkState::Refusing) => port,
            (Port::Bound(socket), NetworkState::DroppingSyn) => full(socket, self.address),
            (Port::Bound(socket), _) => self.accept(socket.listen(1024).expect("a bound socket")),
            (Port::Full { listener, pending }, _) => {
                pending.iter().for_each(JoinHandle::abort);
                self.accept(listener)
            }
            (port, _) => port,
        };
    }

    /// Resets every existing connection. New connections follow the state of the network.
    pub(crate) fn reset_all(&self) {
        self.resets.send_modify(|count| *count += 1);
    }

    fn accept(&self, listener: TcpListener) -> Port {
        let (target, network, resets) = (self.target, self.network.clone(), self.resets.clone());
        Port::Accepting(tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (network, mut resets) = (network.subscribe(), resets.subscribe());
                resets.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    relay(near, far, network, resets).await;
                });
            }
        }))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        match &self.port {
            Port::Accepting(task) => task.abort(),
            Port::Full { pending, .. } => pending.iter().for_each(JoinHandle::abort),
            Port::Bound(_) | Port::Changing => {}
        }
        self.reset_all();
    }
}

/// Returns a socket that is bound and does not listen, so that connections are refused.
fn bound(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_reuseaddr(true).expect("an own socket");
    socket.bind(address).expect("a free port");
    socket
}

/// Returns a listener with a full accept queue, so that the kernel drops new connections.
fn full(socket: TcpSocket, address: SocketAddr) -> Port {
    let listener = socket.listen(0).expect("a bound socket");
    let connect = || {
        tokio::spawn(async move {
            let _stream = TcpStream::connect(address).await;
            std::future::pending::<()>().await;
        })
    };
    Port::Full { listener, pending: (0..4).map(|_| connect()).collect() }
}

/// How a relayed connection ended.
enum RelayEnd {
    Closed,
    Reset,
}

/// Relays both directions until either ends.
async fn relay(
    mut near: TcpStream,
    mut far: TcpStream,
    network: watch::Receiver<NetworkState>,
    mut resets: watch::Receiver<u32>,
) {
    let end = {
        let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
        let up = relay_direction(near_read, far_write, network.clone(), false);
        let down = relay_direction(far_read, near_write, network, true);
        tokio::select! {
            end = up => end,
            end = down => end,
            _ = resets.changed() => RelayEnd::Reset,
        }
    };
    if matches!(end, RelayEnd::Reset) {
        reset_on_drop(&near);
    }
}

/// Relays one direction.
async fn relay_direction(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut network: watch::Receiver<NetworkState>,
    is_response: bool,
) -> RelayEnd {
    let mut piece = vec![0; 16 * 1024];
    loop {
        let len = match from.read(&mut piece).await {
            Ok(len @ 1..) => len,
            Ok(0) => return RelayEnd::Closed,
            Err(_) => return RelayEnd::Reset,
        };
        let passes = |state: &NetworkState| match state {
            NetworkState::Stalled => false,
            NetworkState::ResponsesStalled => !is_response,
            _ => true,
        };
        // Stalled bytes pass when the state changes, as retransmitted packets do.
        let Ok(state) = network.wait_for(passes).await.map(|state| *state) else { return RelayEnd::Closed };
        let sent = match state {
            NetworkState::Resetting => return RelayEnd::Reset,
            NetworkState::ResettingResponses if is_response => return RelayEnd::Reset,
            NetworkState::Delayed(delay) => {
                tokio::time::sleep(delay).await;
                to.write_all(&piece[..len]).await
            }
            NetworkState::ByteByByte(interval) if is_response => {
                write_byte_by_byte(&mut to, &piece[..len], interval).await
            }
            _ => to.write_all(&piece[..len]).await,
        };
        if sent.is_err() {
            return RelayEnd::Reset;
        }
    }
}

async fn write_byte_by_byte(
    to: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
    interval: Duration,
) -> std::io::Result<()> {
    for byte in bytes {
        to.write_all(&[*byte]).await?;
        to.flush().await?;
        match interval {
            Duration::ZERO => tokio::task::yield_now().await,
            interval => tokio::time::sleep(interval).await,
        }
    }
    Ok(())
}
