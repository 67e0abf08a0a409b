//! TLS handshakes of the data listener, within a time limit, and the names that client certificates show.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::{InvalidMessage, ServerConfig, ServerConnection};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::shutdown::Drain;
use crate::domain::caller::CertificateName;
use crate::error::display_chain;

/// The name of HTTP/2 in ALPN (RFC 9113 section 3.2).
pub(super) const ALPN_H2: &[u8] = b"h2";

/// How a handshake ended.
pub(super) enum Handshake {
    /// With a connection.
    Completed(Box<TlsStream<TcpStream>>),
    /// The first byte begins the method of an HTTP request. Nothing has been read.
    PlainHttp(TcpStream),
    /// With an error, or not in time.
    Failed,
}

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeError {
    /// `server.handshake_timeout` passed, or the drain began.
    Timeout,
    /// The peer does not speak TLS, but most likely HTTP.
    NotTls,
    /// The peer presented no certificate, or one that no authority of `client_ca_file` issued.
    ClientCertificate,
    /// The peer disconnected, rejected chatgate's certificate, or speaks an outdated version of TLS.
    Other,
}

impl HandshakeError {
    /// Every variant.
    pub(crate) const ALL: [HandshakeError; 4] =
        [HandshakeError::Timeout, HandshakeError::NotTls, HandshakeError::ClientCertificate, HandshakeError::Other];

    /// Returns the value of the label `cause`.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            HandshakeError::Timeout => "timeout",
            HandshakeError::NotTls => "not_tls",
            HandshakeError::ClientCertificate => "client_certificate",
            HandshakeError::Other => "other",
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.get_ref().and_then(|error| error.downcast_ref()) {
            Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => HandshakeError::NotTls,
            Some(rustls::Error::NoCertificatesPresented | rustls::Error::InvalidCertificate(_)) => {
                HandshakeError::ClientCertificate
            }
            _ => HandshakeError::Other,
        }
    }
}

/// Numbers of failed handshakes, by cause.
#[derive(Debug, Default)]
pub(crate) struct HandshakeFailures([AtomicU64; HandshakeError::ALL.len()]);

impl HandshakeFailures {
    fn add(&self, cause: HandshakeError) {
        self.0[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number since startup.
    pub(crate) fn count(&self, cause: HandshakeError) -> u64 {
        self.0[cause as usize].load(Ordering::Relaxed)
    }
}

/// Accepts handshakes and counts those that fail.
#[derive(Debug, Clone)]
pub(crate) struct Handshakes {
    timeout: Duration,
    failures: Arc<HandshakeFailures>,
}

impl Handshakes {
    /// Each handshake may take `timeout`.
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, failures: Arc::default() }
    }

    /// Returns the counters of failed handshakes.
    pub(crate) fn failures(&self) -> &HandshakeFailures {
        &self.failures
    }

    /// Accepts a handshake. Failures are logged and counted. Once `close` has begun, it has `linger` left.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
        config: Arc<ServerConfig>,
        close: &Drain,
        linger: Duration,
    ) -> Handshake {
        let closing = async {
            close.begun().await;
            tokio::time::sleep(linger).await;
        };
        let (cause, error) = tokio::select! {
            accepted = tokio::time::timeout(self.timeout, accept(stream, config)) => match accepted {
                Ok(Ok(Handshake::PlainHttp(stream))) => {
                    self.failures.add(HandshakeError::NotTls);
                    return Handshake::PlainHttp(stream);
                }
                Ok(Ok(handshake)) => return handshake,
                Ok(Err(error)) => (HandshakeError::of(&error), Some(error)),
                Err(_) => (HandshakeError::Timeout, None),
            },
            () = closing => (HandshakeError::Timeout, None),
        };
        self.failures.add(cause);
        let error = error.as_ref().map(|error| display_chain(error));
        tracing::debug!(cause = cause.label(), error, "TLS handshake failed");
        Handshake::Failed
    }
}

async fn accept(stream: TcpStream, config: Arc<ServerConfig>) -> io::Result<Handshake> {
    // Looked at before rustls reads it: rustls answers plain text with an alert, which no HTTP client can read.
    let mut first = [0; 1];
    if stream.peek(&mut first).await? == 1 && first[0].is_ascii_uppercase() {
        return Ok(Handshake::PlainHttp(stream));
    }
    TlsAcceptor::from(config).accept(stream).await.map(|stream| Handshake::Completed(Box::new(stream)))
}

/// Maximum number of names of a certificate. One with more names proves nothing, because its callers could not all be
/// compared.
const NAMES_MAX: usize = 64;

/// Returns the names in the certificate that a client presented and TLS verified; `None` without a certificate.
///
/// Names that no caller can have are omitted. Resumed sessions have the certificate of their first handshake.
pub(super) fn client_names(session: &ServerConnection) -> Option<Arc<[CertificateName]>> {
    let certificate = session.peer_certificates()?.first()?;
    Some(names_of(certificate).into())
}

fn names_of(certificate: &CertificateDer<'_>) -> Vec<CertificateName> {
    let Ok(parsed) = x509_cert::Certificate::from_der(certificate) else { return Vec::new() };
    let Ok(Some((_, SubjectAltName(names)))) = parsed.tbs_certificate().get_extension::<SubjectAltName>() else {
        return Vec::new();
    };
    if names.len() > NAMES_MAX {
        tracing::debug!(names = names.len(), "client certificate has more than 64 names; ignored them");
        return Vec::new();
    }
    let name = |name: &GeneralName| match name {
        GeneralName::UniformResourceIdentifier(uri) => CertificateName::uri(uri.as_str()),
        GeneralName::DnsName(dns) => CertificateName::dns(dns.as_str()),
        _ => None,
    };
    names.iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::SanType;

    use super::*;

    #[test]
    fn names_of_a_certificate_are_its_uris_and_dns_names() {
        let names = |names: Vec<SanType>| {
            let mut params = rcgen::CertificateParams::default();
            params.subject_alt_names = names;
            let key = rcgen::KeyPair::generate().expect("a key");
            names_of(params.self_signed(&key).expect("a certificate").der())
        };
        let dns = |text: &str| SanType::DnsName(text.try_into().expect("ASCII"));
        let uri = |text: &str| SanType::URI(text.try_into().expect("ASCII"));
        let other = [
            SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
            SanType::Rfc822Name("feed@prod".try_into().expect("ASCII")),
        ];
        let found = names(
            [dns("Feed.prod"), uri("spiffe://prod/feed"), dns("*.prod"), dns("spiffe://prod/x")]
                .into_iter()
                .chain(other)
                .collect(),
        );
        assert_eq!(
            found,
            [CertificateName::Dns("feed.prod".into()), CertificateName::Uri("spiffe://prod/feed".into())]
        );
        assert_eq!(names(Vec::new()), []);
        let many = |count: usize| (0..count).map(|number| dns(&format!("n{number}"))).collect();
        assert_eq!(names(many(NAMES_MAX)).len(), NAMES_MAX);
        assert_eq!(names(many(NAMES_MAX + 1)), []);
        assert_eq!(names_of(&CertificateDer::from(vec![0; 16])), []);
    }

    #[test]
    fn failures_are_classified_and_counted_by_cause() {
        let of = |error| HandshakeError::of(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(of(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)), HandshakeError::NotTls);
        assert_eq!(of(rustls::Error::NoCertificatesPresented), HandshakeError::ClientCertificate);
        assert_eq!(
            of(rustls::Error::InvalidCertificate(rustls::CertificateError::Expired)),
            HandshakeError::ClientCertificate
        );
        assert_eq!(of(rustls::Error::NoApplicationProtocol), HandshakeError::Other);
        assert_eq!(HandshakeError::of(&io::ErrorKind::UnexpectedEof.into()), HandshakeError::Other);
        let failures = HandshakeFailures::default();
        for (count, cause) in HandshakeError::ALL.into_iter().enumerate() {
            (0..=count).for_each(|_| failures.add(cause));
        }
        assert_eq!(HandshakeError::ALL.map(|cause| failures.count(cause)), [1, 2, 3, 4]);
    }
}
