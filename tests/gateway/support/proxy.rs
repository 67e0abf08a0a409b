//! A fake egress proxy: CONNECT or SOCKS 5, with faults. It records every byte that it sees.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::secrets;

/// How clients ask for a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProxyKind {
    Http,
    Socks5,
}

pub(crate) const BOTH: [ProxyKind; 2] = [ProxyKind::Http, ProxyKind::Socks5];

/// What the proxy does instead of opening a tunnel.
#[derive(Debug, Clone)]
pub(crate) enum ProxyFault {
    /// It accepts connections and never answers.
    Silent,
    /// It reads the request for the tunnel and never answers it.
    SilentAfterRequest,
    /// It answers the first bytes with these, and closes the connection.
    Answers(Vec<u8>),
    /// It answers the first bytes with these, and then with filler without an end.
    Endless(Vec<u8>),
}

/// A proxy on a loopback port. Names lead where [`FakeProxy::lead`] says, and no other name exists.
pub(crate) struct FakeProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

struct Shared {
    kind: ProxyKind,
    /// `USER:PASSWORD`; `None`: no credentials are required.
    credentials: Mutex<Option<String>>,
    targets: Mutex<BTreeMap<String, SocketAddr>>,
    fault: Mutex<Option<ProxyFault>>,
    /// The targets of all requests for a tunnel, as `HOST:PORT`.
    asked: Mutex<Vec<String>>,
    /// The requests for a tunnel, byte for byte.
    requests: Mutex<Vec<Vec<u8>>>,
    /// All bytes that clients sent through tunnels, one entry for each tunnel.
    tunneled: Mutex<Vec<Vec<u8>>>,
    accepted: Mutex<usize>,
}

impl FakeProxy {
    pub(crate) async fn start(kind: ProxyKind) -> FakeProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            kind,
            credentials: Mutex::default(),
            targets: Mutex::default(),
            fault: Mutex::default(),
            asked: Mutex::default(),
            requests: Mutex::default(),
            tunneled: Mutex::default(),
            accepted: Mutex::default(),
        });
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, shared.clone())));
        FakeProxy { address, shared, stop }
    }

    /// Returns the value of `upstream.proxy`.
    pub(crate) fn url(&self) -> String {
        url(self.shared.kind, self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Requires credentials from now on. All output is searched for the password.
    pub(crate) fn require(&self, user: &str, password: &str) {
        let credentials = format!("{user}:{password}");
        secrets::add(password);
        secrets::add(&STANDARD.encode(&credentials));
        *self.shared.credentials.lock() = Some(credentials);
    }

    /// Makes a target (`HOST:PORT`) lead to this address.
    pub(crate) fn lead(&self, target: &str, address: SocketAddr) {
        self.shared.targets.lock().insert(target.to_owned(), address);
    }

    /// Makes a target unreachable.
    pub(crate) fn lose(&self, target: &str) {
        self.shared.targets.lock().remove(target);
    }

    pub(crate) fn fail(&self, fault: Option<ProxyFault>) {
        *self.shared.fault.lock() = fault;
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().clone()
    }

    pub(crate) fn accepted_connections(&self) -> usize {
        *self.shared.accepted.lock()
    }

    pub(crate) fn requests(&self) -> Vec<Vec<u8>> {
        self.shared.requests.lock().clone()
    }

    pub(crate) fn tunneled(&self) -> Vec<Vec<u8>> {
        self.shared.tunneled.lock().clone()
    }
}

impl Drop for FakeProxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Returns the URL of a proxy at an address.
pub(crate) fn url(kind: ProxyKind, address: SocketAddr) -> String {
    match kind {
        ProxyKind::Http => format!("http://{address}"),
        ProxyKind::Socks5 => format!("socks5h://{address}"),
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        *shared.accepted.lock() += 1;
        let shared = shared.clone();
        tokio::spawn(async move {
            // A client that gives up ends its connection with an error.
            let _ = serve(stream, &shared).await;
        });
    }
}

async fn serve(mut client: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let fault = shared.fault.lock().clone();
    match &fault {
        Some(ProxyFault::Answers(bytes)) => {
            let _ = client.read(&mut [0; 4096]).await?;
            client.write_all(bytes).await?;
            return client.shutdown().await;
        }
        Some(ProxyFault::Endless(bytes)) => {
            let _ = client.read(&mut [0; 4096]).await?;
            client.write_all(bytes).await?;
            loop {
                client.write_all(&[b'x'; 4096]).await?;
            }
        }
        Some(ProxyFault::Silent) => return wait_for_end(&mut client).await,
        Some(ProxyFault::SilentAfterRequest) | None => {}
    }
    let mut request = Vec::new();
    let asked = match shared.kind {
        ProxyKind::Http => read_connect(&mut client, shared, &mut request).await?,
        ProxyKind::Socks5 => read_socks(&mut client, shared, &mut request).await?,
    };
    shared.requests.lock().push(request);
    let Some(target) = asked else { return client.shutdown().await };
    shared.asked.lock().push(target.clone());
    if fault.is_some() {
        return wait_for_end(&mut client).await;
    }
    let address = shared.targets.lock().get(&target).copied();
    let connected = match address {
        Some(address) => TcpStream::connect(address).await.ok(),
        None => None,
    };
    let answer: &[u8] = match (shared.kind, &connected) {
        (ProxyKind::Http, Some(_)) => b"HTTP/1.1 200 Connection established\r\nVia: 1.1 fake\r\n\r\n",
        (ProxyKind::Http, None) => b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
        (ProxyKind::Socks5, Some(_)) => &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        (ProxyKind::Socks5, None) => &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0],
    };
    client.write_all(answer).await?;
    let Some(target) = connected else { return client.shutdown().await };
    tunnel(client, target, shared).await
}

async fn wait_for_end(client: &mut TcpStream) -> std::io::Result<()> {
    while client.read(&mut [0; 4096]).await? > 0 {}
    Ok(())
}

/// Relays both directions, and records what the client sends.
async fn tunnel(mut client: TcpStream, mut target: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let number = {
        let mut tunneled = shared.tunneled.lock();
        tunneled.push(Vec::new());
        tunneled.len() - 1
    };
    let ((mut client_read, mut client_write), (mut target_read, mut target_write)) = (client.split(), target.split());
    let up = async {
        let mut piece = vec![0; 16 * 1024];
        loop {
            let len = client_read.read(&mut piece).await?;
            if len == 0 {
                return target_write.shutdown().await;
            }
            shared.tunneled.lock()[number].extend(&piece[..len]);
            target_write.write_all(&piece[..len]).await?;
        }
    };
    let down = async {
        tokio::io::copy(&mut target_read, &mut client_write).await?;
        client_write.shutdown().await
    };
    tokio::try_join!(up, down).map(|_| ())
}

/// Reads a CONNECT request. Returns its target, or answers 407 and returns `None`.
async fn read_connect(
    client: &mut TcpStream,
    shared: &Shared,
    request: &mut Vec<u8>,
) -> std::io::Result<Option<String>> {
    while !request.ends_with(b"\r\n\r\n") {
        request.push(client.read_u8().await?);
    }
    let head = String::from_utf8_lossy(request).into_owned();
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split_once(" HTTP/1.1\r\n")).expect("CONNECT").0;
    let required = shared.credentials.lock().clone();
    let is_authorized = required.is_none_or(|credentials| {
        head.contains(&format!("\r\nProxy-Authorization: Basic {}\r\n", STANDARD.encode(credentials)))
    });
    if !is_authorized {
        let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n";
        client.write_all(answer).await?;
        return Ok(None);
    }
    Ok(Some(target.to_owned()))
}

/// Reads the requests of SOCKS 5. Returns the target, or rejects the credentials and returns `None`.
async fn read_socks(client: &mut TcpStream, shared: &Shared, request: &mut Vec<u8>) -> std::io::Result<Option<String>> {
    let greeting = read_into(client, request, 2).await?;
    let methods = read_into(client, request, greeting[1].into()).await?;
    let required = shared.credentials.lock().clone();
    let method = match &required {
        None => 0,
        Some(_) if methods.contains(&2) => 2,
        Some(_) => 0xff,
    };
    client.write_all(&[5, method]).await?;
    if method == 0xff {
        return Ok(None);
    }
    if let Some(credentials) = required {
        let user_len = read_into(client, request, 2).await?[1];
        let user = read_into(client, request, user_len.into()).await?;
        let password_len = read_into(client, request, 1).await?[0];
        let password = read_into(client, request, password_len.into()).await?;
        let is_right = [user, b":".to_vec(), password].concat() == credentials.as_bytes();
        client.write_all(&[1, u8::from(!is_right)]).await?;
        if !is_right {
            return Ok(None);
        }
    }
    let head = read_into(client, request, 4).await?;
    assert_eq!(head, [5, 1, 0, 3], "CONNECT to a name, which was not resolved before");
    let len = read_into(client, request, 1).await?[0];
    let name = read_into(client, request, len.into()).await?;
    let port = read_into(client, request, 2).await?;
    let port = u16::from_be_bytes([port[0], port[1]]);
    Ok(Some(format!("{}:{port}", String::from_utf8_lossy(&name))))
}

async fn read_into(client: &mut TcpStream, request: &mut Vec<u8>, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    client.read_exact(&mut bytes).await?;
    request.extend(&bytes);
    Ok(bytes)
}
