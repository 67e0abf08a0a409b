//! `[server.tls]` and `[webhook.tls]`: the certificate of a listener, and client certificates.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::pem::{KeyPairError, certified, read_cas, read_chain, read_key, read_named};
use super::section::Section;
use crate::clock;

/// A certificate that expires within this time causes a warning.
const ENDS_SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// Maximum number of names of a certificate that are shown.
const NAMES_SHOWN_MAX: usize = 5;

/// TLS of a listener over TCP. `Debug` shows no key.
#[derive(Clone)]
pub struct Tls {
    /// Configuration of rustls: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN (RFC 7301).
    pub serving: Arc<ServerConfig>,
    /// The certificate that clients see.
    pub certificate: Certificate,
    /// Whether clients need a certificate that a CA in `client_ca_file` has signed.
    pub requires_client_cert: bool,
}

/// Subject and expiry of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Distinguished name and alternative names, on one line.
    pub subject: String,
    /// Expiry, since the Unix epoch.
    pub ends_at: Duration,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { certificate, requires_client_cert, .. } = self;
        f.debug_struct("Tls")
            .field("certificate", certificate)
            .field("requires_client_cert", requires_client_cert)
            .finish()
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.serving, &other.serving)
    }
}

impl Eq for Tls {}

impl Certificate {
    /// Returns the expiry in the format of RFC 3339.
    pub fn ends_at_text(&self) -> String {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + self.ends_at).to_string()
    }
}

impl Tls {
    /// Reads `tls` of a listener's section. `rejection` says what clients do with a certificate that is not valid. Also
    /// returns whether clients need a certificate, even if the settings are invalid.
    pub(super) fn read(parent: &mut Section<'_>, has_tcp_listener: bool, rejection: &str) -> (Option<Self>, bool) {
        let is_present = parent.has("tls");
        if is_present && !has_tcp_listener {
            parent.warning("tls", "has no effect, because listen has only Unix sockets; remove it or add an IP:PORT");
        }
        let mut section = parent.section("tls");
        let chain = read_named(&mut section, "cert_file", is_present, read_chain);
        let key = read_named(&mut section, "key_file", is_present, read_key);
        let cas = read_named(&mut section, "client_ca_file", false, read_cas);
        let requires_client_cert = section.has("client_ca_file");
        if let Some((_, Some(warning))) = &key {
            section.warning("key_file", section.with_value("key_file", warning));
        }
        let certificate = chain.as_ref().and_then(|chain| read_certificate(&section, chain.first()?, rejection));
        let serving = chain.zip(key).and_then(|(chain, (key, _))| {
            let cas = if requires_client_cert { Some(cas?) } else { None };
            server_config(chain, &key, cas).map_err(|error| section.wrong_value(error.key, error.message)).ok()
        });
        section.finish();
        let tls = serving.zip(certificate);
        (tls.map(|(serving, certificate)| Self { serving, certificate, requires_client_cert }), requires_client_cert)
    }
}

/// Returns the TLS configuration of outgoing connections. It trusts the public roots and `extra_roots`, and presents
/// `client_cert` on request.
///
/// # Errors
/// If one of `extra_roots` cannot be a trust anchor.
pub fn client_config(
    extra_roots: &[CertificateDer<'static>],
    client_cert: Option<CertifiedKey>,
) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for certificate in extra_roots {
        roots.add(certificate.clone())?;
    }
    // Explicit provider, because the process-wide default could be another one. rustls writes no key log unless it is
    // configured to, so SSLKEYLOGFILE has no effect.
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match client_cert {
        Some(certified) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified))),
        None => builder.with_no_client_auth(),
    })
}

/// Reads a certificate that chatgate presents. Notes its problems, and a warning with the `effect` if it is not valid
/// now.
pub(super) fn read_certificate(section: &Section<'_>, der: &CertificateDer<'_>, effect: &str) -> Option<Certificate> {
    match Certificate::read(der) {
        Ok((certificate, begins_at)) => {
            if let Some(warning) = certificate.validity_warning(begins_at, effect) {
                section.warning("cert_file", section.with_value("cert_file", warning));
            }
            Some(certificate)
        }
        Err(message) => {
            section.wrong_value("cert_file", message);
            None
        }
    }
}

/// Returns the TLS configuration of a listener. With `cas`, clients need a certificate from one of them.
fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
    cas: Option<Vec<CertificateDer<'static>>>,
) -> Result<Arc<ServerConfig>, KeyPairError> {
    let certified = certified(chain, key)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let client_verifier = match cas {
        None => Arc::new(NoClientAuth) as _,
        Some(cas) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(cas);
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().map_err(
                |_| KeyPairError {
                    key: "client_ca_file",
                    message: "TLS cannot use the certificates in the file; replace them",
                },
            )?
        }
    };
    // rustls writes no key log unless it is configured to, so SSLKEYLOGFILE has no effect.
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| KeyPairError { key: "cert_file", message: "cannot configure TLS; check the certificate" })?
        .with_client_cert_verifier(client_verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Certificate {
    /// Reads subject and validity. Returns the start of the validity separately.
    fn read(der: &CertificateDer<'_>) -> Result<(Self, Duration), String> {
        let parsed = x509_cert::Certificate::from_der(der)
            .map_err(|_| "cannot parse the first certificate in the file; replace it".to_owned())?;
        let parsed = parsed.tbs_certificate();
        let names = parsed.get_extension::<SubjectAltName>().ok().flatten();
        let names: Vec<String> = names.iter().flat_map(|(_, names)| &names.0).filter_map(alternative_name).collect();
        let more = if names.len() > NAMES_SHOWN_MAX { ", ..." } else { "" };
        let shown = names.iter().take(NAMES_SHOWN_MAX).cloned().collect::<Vec<_>>().join(", ");
        let subject = parsed.subject().to_string();
        let subject = match (subject.is_empty(), shown.is_empty()) {
            (_, true) => subject,
            (true, false) => format!("for {shown}{more}"),
            (false, false) => format!("{subject}, for {shown}{more}"),
        };
        // Text from outside: keep it on one line.
        let subject = subject.chars().map(|char| if char.is_control() { '?' } else { char }).collect();
        let validity = parsed.validity();
        let ends_at = validity.not_after.to_unix_duration();
        Ok((Self { subject, ends_at }, validity.not_before.to_unix_duration()))
    }

    /// Returns a warning if the certificate is not valid now or expires soon.
    fn validity_warning(&self, begins_at: Duration, effect: &str) -> Option<String> {
        let (now, ends) = (clock::unix_now(), self.ends_at_text());
        let days = self.ends_at.saturating_sub(now).as_secs() / (24 * 3600);
        if self.ends_at <= now {
            Some(format!("the certificate expired at {ends}, so {effect}; renew it"))
        } else if begins_at > now {
            Some(format!("the certificate is not yet valid, so {effect}; check it and the clock of this machine"))
        } else if self.ends_at - now < ENDS_SOON {
            Some(format!("the certificate expires in {days} days, at {ends}; renew it"))
        } else {
            None
        }
    }
}

/// Returns a DNS name or an IP address as text.
fn alternative_name(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(address) => {
            let bytes = address.as_bytes();
            let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}
