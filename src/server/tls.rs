//! TLS of callers' connections: the handshake, within its time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::{InvalidMessage, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::shutdown::Drain;

/// Why a handshake came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeError {
    /// `server.handshake_timeout` was over, or the drain had begun.
    Timeout,
    /// The peer spoke something else, most likely HTTP.
    NotTls,
    /// The peer showed no certificate, or one that no authority of `client_ca_file` stands for.
    ClientCertificate,
    /// The peer went away, did not like our certificate, or speaks a TLS that nobody should.
    Other,
}

impl HandshakeError {
    /// All of them.
    pub const ALL: [HandshakeError; 4] =
        [HandshakeError::Timeout, HandshakeError::NotTls, HandshakeError::ClientCertificate, HandshakeError::Other];

    /// The value of the label `cause`.
    pub const fn label(self) -> &'static str {
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

/// Handshakes that came to nothing, by cause.
#[derive(Debug, Default)]
pub struct Failures([AtomicU64; HandshakeError::ALL.len()]);

impl Failures {
    fn add(&self, cause: HandshakeError) {
        self.0[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far.
    pub fn count(&self, cause: HandshakeError) -> u64 {
        self.0[cause as usize].load(Ordering::Relaxed)
    }
}

/// What a handshake may take, and where it is counted if it fails.
#[derive(Debug, Clone)]
pub struct Handshakes {
    limit: Duration,
    failures: Arc<Failures>,
}

impl Handshakes {
    /// Each within `limit`.
    pub fn new(limit: Duration) -> Self {
        Self { limit, failures: Arc::default() }
    }

    /// Those that came to nothing.
    pub fn failures(&self) -> &Arc<Failures> {
        &self.failures
    }

    /// Greets a peer. `None`: there is nobody to serve, which was logged and counted. Once `drain` begins it
    /// has `linger` left.
    pub(super) async fn handshake(
        &self,
        stream: TcpStream,
        config: Arc<ServerConfig>,
        drain: &Drain,
        linger: Duration,
    ) -> Option<TlsStream<TcpStream>> {
        let draining = async {
            drain.begun().await;
            tokio::time::sleep(linger).await;
        };
        let (cause, error) = tokio::select! {
            shaken = tokio::time::timeout(self.limit, TlsAcceptor::from(config).accept(stream)) => match shaken {
                Ok(Ok(stream)) => return Some(stream),
                Ok(Err(error)) => (HandshakeError::of(&error), Some(error)),
                Err(_) => (HandshakeError::Timeout, None),
            },
            () = draining => (HandshakeError::Timeout, None),
        };
        self.failures.add(cause);
        // The text is that of rustls and holds no key.
        let error = error.as_ref().map(tracing::field::display);
        tracing::debug!(cause = cause.label(), error, "a TLS handshake came to nothing");
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_apart_and_counted_each() {
        let of = |error| HandshakeError::of(&io::Error::new(io::ErrorKind::InvalidData, error));
        assert_eq!(of(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)), HandshakeError::NotTls);
        assert_eq!(of(rustls::Error::NoCertificatesPresented), HandshakeError::ClientCertificate);
        assert_eq!(
            of(rustls::Error::InvalidCertificate(rustls::CertificateError::Expired)),
            HandshakeError::ClientCertificate
        );
        assert_eq!(of(rustls::Error::NoApplicationProtocol), HandshakeError::Other);
        assert_eq!(HandshakeError::of(&io::ErrorKind::UnexpectedEof.into()), HandshakeError::Other);
        let failures = Failures::default();
        for (count, cause) in HandshakeError::ALL.into_iter().enumerate() {
            (0..=count).for_each(|_| failures.add(cause));
        }
        assert_eq!(HandshakeError::ALL.map(|cause| failures.count(cause)), [1, 2, 3, 4]);
    }
}
