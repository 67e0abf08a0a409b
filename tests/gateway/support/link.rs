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
    weather: watch::Sender<NetworkState>,
    /// Incremented each time that all connections are reset.
    cuts: watch::Sender<u32>,
    state: State,
}

enum State {
    /// The port is bound, and nothing listens.
    Bound(TcpSocket),
    Accepting(JoinHandle<()>),
    /// The accept queue is full, and nothing accepts.
    Full {
        listener: TcpListener,
        crowd: Vec<JoinHandle<()>>,
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
        let (weather, cuts) = (watch::Sender::new(NetworkState::Refusing), watch::Sender::new(0));
        Link { address, target: address, weather, cuts, state: State::Bound(socket) }
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

    /// Changes the weather, also for existing connections.
    pub(crate) async fn set(&mut self, weather: NetworkState) {
        self.weather.send_replace(weather);
        self.state = match std::mem::replace(&mut self.state, State::Changing) {
            State::Accepting(task) if matches!(weather, NetworkState::Refusing | NetworkState::DroppingSyn) => {
                task.abort();
                // The port cannot be bound again until the listener is dropped.
                let _ = task.await;
                self.reset_all();
                State::Bound(bound(self.address))
            }
            state => state,
        };
        self.state = match (std::mem::replace(&mut self.state, State::Changing), weather) {
            (state @ State::Bound(_), NetworkState::Refusing) => state,
            (State::Bound(socket), NetworkState::DroppingSyn) => crowded(socket, self.address),
            (State::Bound(socket), _) => self.accept(socket.listen(1024).expect("a bound socket")),
            (State::Full { listener, crowd }, _) => {
                crowd.iter().for_each(JoinHandle::abort);
                self.accept(listener)
            }
            (state, _) => state,
        };
    }

    /// Resets every existing connection. New connections follow the weather.
    pub(crate) fn reset_all(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    fn accept(&self, listener: TcpListener) -> State {
        let (target, weather, cuts) = (self.target, self.weather.clone(), self.cuts.clone());
        State::Accepting(tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (weather, mut cut) = (weather.subscribe(), cuts.subscribe());
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    carry(near, far, weather, cut).await;
                });
            }
        }))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        match &self.state {
            State::Accepting(task) => task.abort(),
            State::Full { crowd, .. } => crowd.iter().for_each(JoinHandle::abort),
            State::Bound(_) | State::Changing => {}
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
fn crowded(socket: TcpSocket, address: SocketAddr) -> State {
    let listener = socket.listen(0).expect("a bound socket");
    let join = || {
        tokio::spawn(async move {
            let _stream = TcpStream::connect(address).await;
            std::future::pending::<()>().await;
        })
    };
    State::Full { listener, crowd: (0..4).map(|_| join()).collect() }
}

/// How a direction ended.
enum Ended {
    Closed,
    Reset,
}

/// Relays both directions until either ends.
async fn carry(
    mut near: TcpStream,
    mut far: TcpStream,
    weather: watch::Receiver<NetworkState>,
    mut cut: watch::Receiver<u32>,
) {
    let ended = {
        let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
        let up = direct(near_read, far_write, weather.clone(), false);
        let down = direct(far_read, near_write, weather, true);
        tokio::select! {
            ended = up => ended,
            ended = down => ended,
            _ = cut.changed() => Ended::Reset,
        }
    };
    if matches!(ended, Ended::Reset) {
        reset_on_drop(&near);
    }
}

/// Relays one direction.
async fn direct(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut weather: watch::Receiver<NetworkState>,
    is_response: bool,
) -> Ended {
    let mut piece = vec![0; 16 * 1024];
    loop {
        let len = match from.read(&mut piece).await {
            Ok(len @ 1..) => len,
            Ok(0) => return Ended::Closed,
            Err(_) => return Ended::Reset,
        };
        let passes = |weather: &NetworkState| match weather {
            NetworkState::Stalled => false,
            NetworkState::ResponsesStalled => !is_response,
            _ => true,
        };
        // Delayed bytes pass when the weather changes, as retransmitted packets do.
        let Ok(now) = weather.wait_for(passes).await.map(|now| *now) else { return Ended::Closed };
        let sent = match now {
            NetworkState::Resetting => return Ended::Reset,
            NetworkState::ResettingResponses if is_response => return Ended::Reset,
            NetworkState::Delayed(span) => {
                tokio::time::sleep(span).await;
                to.write_all(&piece[..len]).await
            }
            NetworkState::ByteByByte(span) if is_response => drip(&mut to, &piece[..len], span).await,
            _ => to.write_all(&piece[..len]).await,
        };
        if sent.is_err() {
            return Ended::Reset;
        }
    }
}

async fn drip(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8], span: Duration) -> std::io::Result<()> {
    for byte in bytes {
        to.write_all(&[*byte]).await?;
        to.flush().await?;
        match span {
            Duration::ZERO => tokio::task::yield_now().await,
            span => tokio::time::sleep(span).await,
        }
    }
    Ok(())
}
