//! Opening a connection to Redis: DNS, TCP, and TLS that is verified before the first byte.
//!
//! Error messages contain neither the address nor keys.

use std::error::Error as _;
use std::io;
use std::sync::Arc;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, ConnectionAddr, ProtocolVersion, RedisConnectionInfo};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, CertificateError, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::FleetError;
use crate::config::{RedisLogin, RedisUrl};
use crate::error::describe_certificate;

/// Maximum number of addresses of a name that are tried, all at the same time.
const ADDRESSES_MAX: usize = 8;

/// The address of Redis or of a sentinel, and the user and database to select.
#[derive(Clone)]
pub(super) struct Address {
    pub(super) node: Node,
    settings: RedisConnectionInfo,
}

/// Host and port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Why there is no connection, or none any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("DNS lookup failed")]
    Dns,
    #[error("cannot connect: {}", .0.kind())]
    Connect(io::Error),
    #[error("{0}")]
    Tls(&'static str),
    #[error("{}", describe(.0))]
    Redis(#[from] redis::RedisError),
    #[error("responses are too slow")]
    Slow,
    #[error("no response in time")]
    TimedOut,
    #[error("it is a replica of another Redis; set fleet.redis to the primary")]
    Replica,
    #[error("it is a node of a Redis Cluster; set fleet.redis to a list of nodes")]
    ClusterNode,
    #[error("it does not name its run (run_id of INFO server), so a failover would remain unnoticed")]
    NoRunId,
    #[error("no sharded publish/subscribe; a Redis Cluster requires Redis 7")]
    NoSharding,
    #[error("no sentinel names a primary; check fleet.sentinels and fleet.master")]
    NoPrimary,
    #[error("the sentinels name another primary")]
    PrimaryMoved,
}

/// TCP, or TLS over TCP.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Address {
    /// Selects RESP3, in which invalidations arrive on the same connection as responses.
    pub(super) fn new(url: &RedisUrl, login: &RedisLogin) -> Result<Self, FleetError> {
        let info = url.connection_info().map_err(|_| FleetError::Address)?;
        let settings = settings(info.redis_settings().clone(), login);
        match info.addr() {
            ConnectionAddr::Tcp(host, port) => Ok(Self { node: Node { host: host.clone(), port: *port }, settings }),
            _ => Err(FleetError::Address),
        }
    }

    /// Returns the address of a node that sentinels or cluster nodes name.
    pub(super) fn of_node(node: Node, login: &RedisLogin) -> Self {
        Self { node, settings: settings(RedisConnectionInfo::default(), login) }
    }

    /// Connects and authenticates. The task that reads and writes the socket ends with its handle.
    pub(super) async fn connect(
        &self,
        tls: Option<Arc<ClientConfig>>,
        config: AsyncConnectionConfig,
    ) -> Result<(MultiplexedConnection, AbortOnDropHandle<()>), LinkError> {
        let tcp = self.tcp().await?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(tcp),
            Some(tls) => {
                let name = ServerName::try_from(self.node.host.clone());
                let name = name.map_err(|_| LinkError::Tls("no certificate can be valid for a host name like this"))?;
                let stream = TlsConnector::from(tls).connect(name, tcp).await;
                Box::new(
                    stream.map_err(|error| describe_tls(&error).map_or(LinkError::Connect(error), LinkError::Tls))?,
                )
            }
        };
        let (connection, driver) = MultiplexedConnection::new_with_config(&self.settings, stream, config).await?;
        Ok((connection, AbortOnDropHandle::new(tokio::spawn(driver))))
    }

    /// Returns a connection to the first address that accepts one.
    async fn tcp(&self) -> Result<TcpStream, LinkError> {
        let mut attempts = JoinSet::new();
        let addresses = lookup_host((&*self.node.host, self.node.port)).await.map_err(|_| LinkError::Dns)?;
        addresses.take(ADDRESSES_MAX).for_each(|address| drop(attempts.spawn(TcpStream::connect(address))));
        let mut last_error = LinkError::Dns;
        while let Some(attempt) = attempts.join_next().await {
            match attempt {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => last_error = LinkError::Connect(error),
                Err(_) => {}
            }
        }
        Err(last_error)
    }
}

fn settings(settings: RedisConnectionInfo, login: &RedisLogin) -> RedisConnectionInfo {
    let settings = settings.set_protocol(ProtocolVersion::RESP3);
    let settings = match &login.username {
        Some(username) => settings.set_username(username),
        None => settings,
    };
    match &login.password {
        Some(password) => settings.set_password(password.as_str()),
        None => settings,
    }
}

/// Describes an error without the address, keys, or data.
pub(super) fn describe(error: &redis::RedisError) -> String {
    // A server that rejects our certificate says so only after the handshake, in place of a response.
    let inner = error.source().and_then(|source| source.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>());
    let io = inner.and_then(|inner| inner.downcast_ref::<io::Error>());
    let tls = io.and_then(describe_tls);
    let code = || error.code().and_then(|code| CODES.into_iter().find(|known| *known == code));
    let code = || match code() {
        Some("ASK" | "TRYAGAIN") => Some("the app's keys are being moved to another node of the Redis Cluster"),
        code => code,
    };
    tls.or_else(code).map_or_else(|| error.category().to_owned(), str::to_owned)
}

/// Codes at the beginning of an error of Redis or Valkey. Scripts and proxies can send any other text as a code.
const CODES: [&str; 20] = [
    "ERR",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "DENIED",
    "LOADING",
    "BUSY",
    "NOTBUSY",
    "OOM",
    "MISCONF",
    "READONLY",
    "MASTERDOWN",
    "NOREPLICAS",
    "NOSCRIPT",
    "EXECABORT",
    "CLUSTERDOWN",
    "CROSSSLOT",
    "MOVED",
    "ASK",
    "TRYAGAIN",
];

/// Describes an error of TLS; `None` if it is another error.
fn describe_tls(error: &io::Error) -> Option<&'static str> {
    Some(match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is from an untrusted CA; name the CA in fleet.ca_file"
        }
        rustls::Error::InvalidCertificate(certificate) => describe_certificate(certificate),
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::UnknownCA
            // Sent for a CA with another key and the name of a trusted one.
            | AlertDescription::DecryptError
            // Sent by OpenSSL in TLS 1.2 if there is no certificate.
            | AlertDescription::HandshakeFailure,
        ) => "it rejects our client certificate, or requires one; set fleet.cert_file",
        rustls::Error::InvalidMessage(_) => "the port does not speak TLS",
        _ => "TLS failed",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_errors_are_described_even_inside_a_response() {
        let io = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let of = |error: rustls::Error| describe(&io(error).into());
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        assert!(of(alert).contains("fleet.cert_file"));
        for (error, part) in [
            (CertificateError::UnknownIssuer, "fleet.ca_file"),
            (CertificateError::NotValidForName, "another name"),
            (CertificateError::Expired, "expired"),
            (CertificateError::NotValidYet, "not yet valid"),
            (CertificateError::BadSignature, "fleet.ca_file"),
            (CertificateError::BadEncoding, "is invalid"),
        ] {
            let text = of(rustls::Error::InvalidCertificate(error));
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(describe(&io::Error::from(io::ErrorKind::BrokenPipe).into()), "I/O error");
    }

    #[test]
    fn only_known_codes_of_redis_are_repeated() {
        let of = |line: &str| {
            let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("an error reply");
            describe(&value.extract_error().map(drop).expect_err("an error"))
        };
        assert_eq!(of("WRONGPASS invalid username-password pair"), "WRONGPASS");
        assert_eq!(of("READONLY You can't write against a read only replica."), "READONLY");
        let other = of("PRIVATE text");
        assert!(!other.contains("PRIVATE") && !other.contains("text") && !other.is_empty(), "{other}");
    }

    #[test]
    fn address_has_host_and_port_with_and_without_tls() {
        for (url, host, port) in [
            ("redis://h", "h", 6379),
            ("rediss://h:6380/2", "h", 6380),
            ("rediss://u:p@[::1]", "::1", 6379),
            ("redis://10.0.0.1:1", "10.0.0.1", 1),
        ] {
            let address = Address::new(&url.parse().expect("an address"), &RedisLogin::default());
            let node = address.expect("a usable address").node;
            assert_eq!((&*node.host, node.port), (host, port), "{url}");
        }
    }
}
