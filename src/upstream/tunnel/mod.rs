//! A tunnel through an egress proxy, which is opened on a connection to the proxy.
//!
//! The proxy learns host and port of the target and nothing else: TLS begins inside the tunnel. hyper-util has clients
//! for both protocols, but its errors do not say with which status or reply the proxy refused. Here that decides whether
//! calls move to the standby domain.

mod http_connect;
mod socks5;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::config::{Proxy, ProxyProtocol};
use crate::domain::policy::proxy::{ConnectFailure, ProxyFailure};

/// The target of a tunnel.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Name or IP address; IPv6 in brackets. The proxy resolves the name.
    pub host: &'a str,
    /// Port.
    pub port: u16,
}

/// Why there is no tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelError {
    /// What that shows.
    pub failure: ConnectFailure,
    /// The cause for the log, which repeats nothing of the proxy's but numbers.
    pub cause: String,
}

impl TunnelError {
    fn invalid(cause: impl Into<String>) -> Self {
        Self { failure: ConnectFailure::Proxy(ProxyFailure::Invalid), cause: cause.into() }
    }

    fn unauthorized(cause: impl Into<String>) -> Self {
        Self { failure: ConnectFailure::Proxy(ProxyFailure::Unauthorized), cause: cause.into() }
    }
}

/// An error of the connection while the tunnel is opened. Proxies of the other protocol often close it.
impl From<std::io::Error> for TunnelError {
    fn from(error: std::io::Error) -> Self {
        Self::invalid(format!("the connection to the proxy ended before its answer: {error}"))
    }
}

/// Opens a tunnel. It has no timeout of its own; dropping the future leaves the connection unusable.
///
/// `asked` becomes true when the proxy has all it needs to connect to the target. After that, a proxy that is silent is
/// probably waiting for the target.
///
/// # Errors
/// [`TunnelError`].
pub async fn open(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    proxy: &Proxy,
    target: Target<'_>,
    asked: &mut bool,
) -> Result<(), TunnelError> {
    match proxy.protocol {
        ProxyProtocol::Http => http_connect::open(stream, proxy.auth.as_ref(), target, asked).await,
        ProxyProtocol::Socks5 => socks5::open(stream, proxy.auth.as_ref(), target, asked).await,
    }
}

#[cfg(test)]
mod testing {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;
    use crate::config::ProxyAuth;

    /// Opens a tunnel through a proxy that writes these answers and then closes its side. Returns the result, and what
    /// the proxy received.
    pub(super) async fn play(
        protocol: ProxyProtocol,
        auth: Option<ProxyAuth>,
        host: &str,
        answers: &[&[u8]],
    ) -> (Result<(), TunnelError>, Vec<u8>) {
        // Room for everything, so that neither side waits for the other to read.
        let (mut near, mut far) = duplex(64 * 1024);
        let proxy =
            Proxy { protocol, host: "proxy.test".to_owned(), port: 3128, auth, bypass: Vec::new(), variable: None };
        let opening = async {
            let result = open(&mut near, &proxy, Target { host, port: 443 }, &mut false).await;
            drop(near);
            result
        };
        let serving = async {
            for answer in answers {
                // The other side may have given up.
                let _ = far.write_all(answer).await;
                tokio::task::yield_now().await;
            }
            let _ = far.shutdown().await;
            let mut received = Vec::new();
            let _ = far.read_to_end(&mut received).await;
            received
        };
        tokio::join!(opening, serving)
    }

    /// Returns these credentials.
    pub(super) fn auth(text: &str) -> ProxyAuth {
        ProxyAuth::of_line(text).expect("credentials")
    }
}
