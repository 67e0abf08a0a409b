//! A private CA, its certificates, and TLS callers.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, Certificate, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::secrets;

static BOTH: &[&SupportedProtocolVersion] = &[&version::TLS13, &version::TLS12];
static OLDER: &[&SupportedProtocolVersion] = &[&version::TLS12];

/// A certificate authority that only the test trusts.
pub(crate) struct Ca {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, in PEM.
pub(crate) struct Pem {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Ca {
    pub(crate) fn new() -> Ca {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("signed");
        Ca { certificate, issuer: Issuer::new(params, key) }
    }

    /// Returns the CA certificate in PEM, for `ca_file`.
    pub(crate) fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// Issues a certificate for this name, valid for `good_for`. From then on all output is searched for its key.
    pub(crate) fn issue(&self, name: &str, good_for: Duration) -> Pem {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        #[allow(clippy::disallowed_methods, reason = "tests measure the program with their own clock")]
        let now = SystemTime::now();
        params.not_after = (now + good_for).into();
        self.pem_of(params)
    }

    /// Issues a client certificate with these alternative names: a text with a colon is a URI, any other a DNS name.
    pub(crate) fn issue_client(&self, names: &[&str]) -> Pem {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        let name = |name: &&str| match name.contains(':') {
            true => SanType::URI((*name).try_into().expect("ASCII")),
            false => SanType::DnsName((*name).try_into().expect("ASCII")),
        };
        params.subject_alt_names = names.iter().map(name).collect();
        self.pem_of(params)
    }

    /// Issues a certificate that expired years ago.
    pub(crate) fn issue_expired(&self, name: &str) -> Pem {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.pem_of(params)
    }

    fn pem_of(&self, mut params: CertificateParams) -> Pem {
        // OpenSSL considers a certificate self-signed if its name equals its issuer's.
        params.distinguished_name.push(rcgen::DnType::CommonName, "one of the tests");
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("signed");
        let pem = Pem { certificate: leaf.pem(), key: key.serialize_pem() };
        // The last line of a key may be short.
        let lines = pem.key.lines().filter(|line| !line.starts_with("-----") && line.len() >= secrets::LEN_MIN);
        lines.for_each(secrets::add);
        pem
    }

    /// Returns a TLS acceptor with a valid certificate for this name.
    pub(crate) fn acceptor(&self, name: &str) -> TlsAcceptor {
        self.accept_with(CertificateParams::new(vec![name.to_owned()]).expect("a name"))
    }

    /// Returns a TLS acceptor with a certificate that expired years ago.
    pub(crate) fn expired_acceptor(&self, name: &str) -> TlsAcceptor {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(2019, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        self.accept_with(params)
    }

    /// Returns a TLS acceptor with a certificate that is not valid yet.
    pub(crate) fn early_acceptor(&self, name: &str) -> TlsAcceptor {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(2090, 1, 1);
        params.not_after = rcgen::date_time_ymd(2091, 1, 1);
        self.accept_with(params)
    }

    fn accept_with(&self, params: CertificateParams) -> TlsAcceptor {
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("signed");
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions of the provider")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key.into())
            .expect("a matching key");
        TlsAcceptor::from(Arc::new(config))
    }

    /// Returns a caller that trusts this CA and expects the name `localhost`.
    pub(crate) fn caller(&self) -> TlsCaller<'_> {
        TlsCaller { ca: self, client_certificate: None, alpn: &[], versions: BOTH }
    }
}

/// A builder of TLS callers.
pub(crate) struct TlsCaller<'a> {
    ca: &'a Ca,
    client_certificate: Option<&'a Pem>,
    alpn: &'a [&'a str],
    versions: &'static [&'static SupportedProtocolVersion],
}

impl<'a> TlsCaller<'a> {
    /// Presents this certificate if the server requests one.
    pub(crate) fn client_certificate(self, pem: &'a Pem) -> Self {
        TlsCaller { client_certificate: Some(pem), ..self }
    }

    /// Offers these protocols.
    pub(crate) fn alpn(self, alpn: &'a [&'a str]) -> Self {
        TlsCaller { alpn, ..self }
    }

    /// Allows TLS 1.2 only.
    pub(crate) fn tls12(self) -> Self {
        TlsCaller { versions: OLDER, ..self }
    }

    /// Connects with a full handshake each time.
    pub(crate) async fn connect(&self, address: &str) -> std::io::Result<TlsStream<TcpStream>> {
        self.connector().connect(address).await
    }

    /// Returns a connector that resumes its sessions.
    pub(crate) fn connector(&self) -> ResumingCaller {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.certificate.der().clone()).expect("a CA");
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(self.versions)
            .expect("versions of the provider")
            .with_root_certificates(roots);
        let mut config = match self.client_certificate {
            None => builder.with_no_client_auth(),
            Some(Pem { certificate, key }) => {
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM");
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
                builder.with_client_auth_cert(vec![certificate], key).expect("a matching key")
            }
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        ResumingCaller(TlsConnector::from(Arc::new(config)))
    }
}

/// A TLS caller that resumes its sessions.
pub(crate) struct ResumingCaller(TlsConnector);

impl ResumingCaller {
    /// Connects, with an abbreviated handshake if the server allows it.
    pub(crate) async fn connect(&self, address: &str) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address).await?;
        let name = "localhost".try_into().expect("a name");
        self.0.connect(name, stream).await
    }
}
