//! Texts of errors, without anything that a peer sent.

use std::borrow::Cow;
use std::error::Error;
use std::fmt::Write as _;
use std::io;

use rustls::CertificateError;

/// Returns an error and its causes on one line, without anything that a peer sent: neither the names in its certificate,
/// nor the data in its GOAWAY frame.
pub fn display_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let tls = tls_error(error).map(describe_tls);
        let separator = if text.is_empty() { "" } else { ": " };
        let _ = match &tls {
            Some(tls) => write!(text, "{separator}{tls}"),
            None => write!(text, "{separator}{error}"),
        };
        // The only other errors below hyper's are those of h2, which repeat the peer's data.
        let is_of_h2 = |cause: &&(dyn Error + 'static)| {
            error.is::<hyper::Error>() && !cause.is::<io::Error>() && !cause.is::<hyper::Error>()
        };
        next = error.source().filter(|cause| tls.is_none() && !is_of_h2(cause));
    }
    text
}

/// Returns the error itself if it is of TLS, or the one inside I/O errors, which each layer may wrap once more.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    match error.downcast_ref::<io::Error>() {
        Some(error) => tls_error(error.get_ref()?),
        None => error.downcast_ref(),
    }
}

/// Describes an error of TLS. The texts of rustls about certificates repeat parts of them.
fn describe_tls(error: &rustls::Error) -> Cow<'static, str> {
    match error {
        rustls::Error::InvalidCertificate(error) => describe_certificate(error).into(),
        rustls::Error::General(_) | rustls::Error::Other(_) => "TLS failed".into(),
        _ => error.to_string().into(),
    }
}

/// Describes a problem of a peer's certificate.
pub(crate) fn describe_certificate(error: &CertificateError) -> &'static str {
    match error {
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "its certificate is for another name"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "its certificate has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not yet valid; check the clocks"
        }
        // A CA with another key may have the name of a trusted one.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => "its certificate is from an untrusted CA",
        CertificateError::Revoked => "its certificate is revoked",
        _ => "its certificate is invalid",
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::Full;

    use super::*;

    #[test]
    fn described_errors_repeat_nothing_of_the_peer() {
        let name = rustls::pki_types::ServerName::try_from("chat.example").expect("a name");
        let presented = vec!["DnsName(\"private\")".to_owned()];
        let certificate = CertificateError::NotValidForNameContext { expected: name, presented };
        for error in [
            rustls::Error::InvalidCertificate(certificate),
            rustls::Error::General("private".to_owned()),
            rustls::Error::Other(rustls::OtherError(std::sync::Arc::new(io::Error::other("private")))),
        ] {
            assert!(error.to_string().contains("private"));
            let once = io::Error::new(io::ErrorKind::InvalidData, error);
            let shown = display_chain(&once);
            assert!(!shown.contains("private") && !shown.is_empty(), "{shown}");
            assert_eq!(display_chain(&io::Error::other(once)), shown);
        }
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        assert_eq!(display_chain(&refused), "connection refused");
    }

    /// A server that ends an HTTP/2 connection with data of its own.
    #[tokio::test]
    async fn described_errors_of_http2_omit_the_peers_data() {
        let (ours, mut peer) = tokio::io::duplex(4096);
        let executor = hyper_util::rt::TokioExecutor::new();
        let io = hyper_util::rt::TokioIo::new(ours);
        let (_sender, connection) =
            hyper::client::conn::http2::handshake::<_, _, Full<Bytes>>(executor, io).await.expect("a connection");
        // SETTINGS, then GOAWAY: length, type, flags, stream 0; last stream, PROTOCOL_ERROR, data.
        let goaway = [&b"\0\0\0\x04\0\0\0\0\0\0\0\x0f\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01"[..], b"private"].concat();
        tokio::io::AsyncWriteExt::write_all(&mut peer, &goaway).await.expect("room");
        let error = connection.await.expect_err("the peer ended it");
        let cause = error.source().expect("the error of h2").to_string();
        assert!(cause.contains("private"), "{cause}");
        assert_eq!(display_chain(&error), "http2 error");
    }
}
