//! The way to Redis: TCP, with TLS that is verified before the first byte, and why there is none in words that
//! hold nothing of the address or of keys.

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
use crate::config::RedisUrl;

/// Addresses of one name that are tried, all at once.
const ADDRESSES_MAX: usize = 8;

/// Where Redis is, and who we say we are there.
pub(super) struct Address {
    host: String,
    port: u16,
    settings: RedisConnectionInfo,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("its name cannot be resolved")]
    Name,
    #[error("it cannot be reached: {}", .0.kind())]
    Reach(io::Error),
    #[error("{0}")]
    Tls(&'static str),
    #[error("{}", words(.0))]
    Redis(#[from] redis::RedisError),
    #[error("it answers too slowly")]
    Slow,
    #[error("it is a replica of another Redis, and takes no writes")]
    Replica,
}

/// What bytes go over.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Address {
    /// Speaks RESP3, since evictions come over the same connection as answers.
    pub(super) fn new(url: &RedisUrl) -> Result<Self, FleetError> {
        let info = url.connection_info().map_err(|_| FleetError::Address)?;
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        match info.addr() {
            ConnectionAddr::Tcp(host, port) => Ok(Self { host: host.clone(), port: *port, settings }),
            _ => Err(FleetError::Address),
        }
    }

    /// Connects and says who we are. The task that carries the bytes ends with its handle.
    pub(super) async fn connect(
        &self,
        tls: Option<Arc<ClientConfig>>,
        config: AsyncConnectionConfig,
    ) -> Result<(MultiplexedConnection, AbortOnDropHandle<()>), LinkError> {
        let tcp = self.tcp().await?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(tcp),
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone());
                let name = name.map_err(|_| LinkError::Tls("no certificate can be for a name like its"))?;
                let shaken = TlsConnector::from(tls).connect(name, tcp).await;
                Box::new(shaken.map_err(|error| tls_words(&error).map_or(LinkError::Reach(error), LinkError::Tls))?)
            }
        };
        let (connection, driver) = MultiplexedConnection::new_with_config(&self.settings, stream, config).await?;
        Ok((connection, AbortOnDropHandle::new(tokio::spawn(driver))))
    }

    /// The first of its addresses that answers.
    async fn tcp(&self) -> Result<TcpStream, LinkError> {
        let mut tries = JoinSet::new();
        let addresses = lookup_host((&*self.host, self.port)).await.map_err(|_| LinkError::Name)?;
        addresses.take(ADDRESSES_MAX).for_each(|address| drop(tries.spawn(TcpStream::connect(address))));
        let mut trouble = LinkError::Name;
        while let Some(tried) = tries.join_next().await {
            match tried {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => trouble = LinkError::Reach(error),
                Err(_) => {}
            }
        }
        Err(trouble)
    }
}

/// What went wrong with an answer.
pub(super) fn words(error: &redis::RedisError) -> String {
    // What a peer has against our certificate it says only after the handshake.
    let inner = error.source().and_then(|source| source.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>());
    let io = inner.and_then(|inner| inner.downcast_ref::<io::Error>());
    let tls = io.and_then(tls_words).map(str::to_owned);
    tls.or_else(|| error.code().map(str::to_owned)).unwrap_or_else(|| error.category().to_owned())
}

/// What TLS has against it; `None` if it is nothing of TLS.
fn tls_words(error: &io::Error) -> Option<&'static str> {
    Some(match error.get_ref()?.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(certificate) => match certificate {
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is for another name"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not good yet"
            }
            // An authority of another key may go by the name of one that is trusted.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is of an authority that nobody trusts here; fleet.ca_file can name one"
            }
            _ => "its certificate is not sound",
        },
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::UnknownCA
            // An authority of another key that goes by the same name.
            | AlertDescription::DecryptError
            // What OpenSSL says in TLS 1.2 if there is none.
            | AlertDescription::HandshakeFailure,
        ) => "it does not take our certificate, or wants one; see fleet.cert_file",
        rustls::Error::InvalidMessage(_) => "it does not speak TLS at this port",
        _ => "TLS failed",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_apart_also_where_they_come_with_an_answer() {
        let io = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let of = |error: rustls::Error| words(&io(error).into());
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRequired);
        assert!(of(alert).contains("fleet.cert_file"));
        for (error, part) in [
            (CertificateError::UnknownIssuer, "fleet.ca_file"),
            (CertificateError::NotValidForName, "another name"),
            (CertificateError::Expired, "expired"),
            (CertificateError::NotValidYet, "not good yet"),
            (CertificateError::BadSignature, "fleet.ca_file"),
            (CertificateError::BadEncoding, "not sound"),
        ] {
            let said = of(rustls::Error::InvalidCertificate(error));
            assert!(said.contains(part), "{said}");
        }
        assert_eq!(words(&io::Error::from(io::ErrorKind::BrokenPipe).into()), "I/O error");
    }

    #[test]
    fn an_address_is_a_host_and_a_port_with_and_without_tls() {
        for (url, host, port) in [
            ("redis://h", "h", 6379),
            ("rediss://h:6380/2", "h", 6380),
            ("rediss://u:p@[::1]", "::1", 6379),
            ("redis://10.0.0.1:1", "10.0.0.1", 1),
        ] {
            let address = Address::new(&url.parse().expect("an address")).expect("one that can be used");
            assert_eq!((&*address.host, address.port), (host, port), "{url}");
        }
    }
}
