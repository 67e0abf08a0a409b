//! `server.tls`: the certificate that callers see, and whom it lets in.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoClientAuth, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use zeroize::Zeroizing;

use super::secret::{Remark, read_ca_file, read_pem_file};
use super::section::Section;
use super::{ListenAddr, Server};
use crate::clock;

/// A certificate that ends sooner than this is warned of.
const ENDS_SOON: Duration = Duration::from_secs(30 * 24 * 3600);

/// Most names of a certificate that are shown.
const NAMES_SHOWN_MAX: usize = 5;

/// How the TCP listeners of callers serve TLS. `Debug` shows no key.
#[derive(Clone)]
pub struct Tls {
    /// What serves: TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN (RFC 7301).
    pub serving: Arc<ServerConfig>,
    /// What callers see.
    pub certificate: Certificate,
    /// Whether callers must show a certificate of `client_ca_file`.
    pub asks_callers: bool,
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Whose it is: its distinguished name, in one line, and the names that it is good for.
    pub subject: String,
    /// When it ends, since 1970.
    pub ends_at: Duration,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { certificate, asks_callers, .. } = self;
        f.debug_struct("Tls").field("certificate", certificate).field("asks_callers", asks_callers).finish()
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.serving, &other.serving)
    }
}

impl Eq for Tls {}

impl Certificate {
    /// When it ends, as RFC 3339 writes it.
    pub fn ends_at_text(&self) -> String {
        humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + self.ends_at).to_string()
    }
}

/// Reads `server.tls`. Gives whether callers are to show a certificate, also if what is written is no good.
pub(super) fn tls(section: &mut Section<'_>, server: &mut Server) -> bool {
    if section.has("tls") && !server.listen.iter().any(|address| matches!(address, ListenAddr::Tcp(_))) {
        section.warning("tls", "is for TCP, and listen has only Unix sockets");
    }
    let (required, mut section) = (section.has("tls"), section.section("tls"));
    let chain = file(&mut section, "cert_file", required, read_chain);
    let key = file(&mut section, "key_file", required, read_key);
    let authorities = file(&mut section, "client_ca_file", false, read_ca_file);
    let asks_callers = section.has("client_ca_file");
    if let Some((_, Some(remark))) = &key {
        section.warning("key_file", remark);
    }
    let certificate = chain.as_ref().and_then(|chain| certificate(&section, chain.first()?, "callers refuse it"));
    let serving = chain.zip(key).and_then(|(chain, (key, _))| {
        let roots = if asks_callers { Some(authorities?) } else { None };
        serve_with(chain, &key, roots).map_err(|(key, message)| section.problem(key, message)).ok()
    });
    section.finish();
    server.tls = serving.zip(certificate).map(|(serving, certificate)| Tls { serving, certificate, asks_callers });
    asks_callers
}

/// How TLS is spoken to others: it trusts the public roots and `extra`, and shows `shown` to who asks for it.
///
/// # Errors
/// If one of `extra` is no certificate that can be trusted.
pub fn client_config(
    extra: &[CertificateDer<'static>],
    shown: Option<CertifiedKey>,
) -> Result<ClientConfig, rustls::Error> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    for certificate in extra {
        roots.add(certificate.clone())?;
    }
    // The provider is named: the process-wide default may be anybody's. No key log either, whatever
    // the environment says.
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match shown {
        Some(shown) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(shown))),
        None => builder.with_no_client_auth(),
    })
}

/// What others are shown. What is wrong with it or doubtful is noted, with what comes of it.
pub(super) fn certificate(section: &Section<'_>, der: &CertificateDer<'_>, then: &str) -> Option<Certificate> {
    match Certificate::read(der) {
        Ok((certificate, begins_at)) => {
            if let Some(doubt) = certificate.doubt(begins_at, then) {
                section.warning("cert_file", doubt);
            }
            Some(certificate)
        }
        Err(message) => {
            section.problem("cert_file", message);
            None
        }
    }
}

/// What the file that a key names holds. What is wrong with it is noted.
pub(super) fn file<T>(
    section: &mut Section<'_>,
    key: &'static str,
    required: bool,
    read: impl FnOnce(&Path) -> Result<T, String>,
) -> Option<T> {
    if required && !section.has(key) {
        section.problem(key, format_args!("is missing; write {key} = \"FILE\""));
    }
    let path = section.named_file(key)?;
    read(&path).map_err(|message| section.problem(key, message)).ok()
}

/// The certificate, then those that lead to its authority.
pub(super) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let (pem, _) = read_pem_file(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(format!("the file it names has no certificate (-----BEGIN CERTIFICATE-----){}", instead(&pem))),
        Err(_) => Err("the file it names is not sound PEM; was it cut off?".to_owned()),
    }
}

/// The key, and whether others can read it.
pub(super) fn read_key(path: &Path) -> Result<(Zeroizing<PrivateKeyDer<'static>>, Option<Remark>), String> {
    let (pem, remark) = read_pem_file(path)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(key) => Ok((Zeroizing::new(key), remark)),
        Err(pem::Error::NoItemsFound) => {
            Err(format!("the file it names has no private key (-----BEGIN PRIVATE KEY-----){}", instead(&pem)))
        }
        Err(_) => Err("the file it names is not sound PEM; was it cut off?".to_owned()),
    }
}

/// What a file without the thing that was wanted holds instead, as the end of a sentence.
fn instead(pem: &[u8]) -> &'static str {
    let has = |label: &[u8]| memchr::memmem::find(pem, label).is_some();
    match () {
        () if pem.iter().all(u8::is_ascii_whitespace) => ": it is empty",
        () if has(b"ENCRYPTED") => ": the key in it is encrypted, and there is nobody to ask for its password",
        () if has(b"PRIVATE KEY-----") => ": it has a private key; were the files mixed up?",
        () if has(b"-----BEGIN CERTIFICATE-----") => ": it has a certificate; were the files mixed up?",
        () if has(b"-----BEGIN ") => ": it has PEM of another kind",
        () => ": it is no PEM at all",
    }
}

/// A certificate with its key; else the key at fault and what is wrong.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
) -> Result<CertifiedKey, (&'static str, String)> {
    let signing = aws_lc_rs::sign::any_supported_type(key)
        .map_err(|_| ("key_file", "the key in the file it names is of a kind that TLS cannot use".to_owned()))?;
    let certified = CertifiedKey::new(chain, signing);
    certified.keys_match().map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            ("key_file", "the key does not belong to the certificate of cert_file".to_owned())
        }
        _ => ("cert_file", "the first certificate of the file it names cannot be used".to_owned()),
    })?;
    Ok(certified)
}

/// Puts it together; else the key at fault and what is wrong.
fn serve_with(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
    authorities: Option<Vec<CertificateDer<'static>>>,
) -> Result<Arc<ServerConfig>, (&'static str, String)> {
    let certified = certified(chain, key)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let of_callers = match authorities {
        None => Arc::new(NoClientAuth) as _,
        Some(authorities) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(authorities);
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|_| ("client_ca_file", "the certificates of the file it names cannot be used".to_owned()))?
        }
    };
    // No key log, whatever the environment says: rustls keeps none unless it is told to.
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|_| ("cert_file", "TLS cannot be served".to_owned()))?
        .with_client_cert_verifier(of_callers)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Certificate {
    /// What it says, and when it begins.
    fn read(der: &CertificateDer<'_>) -> Result<(Self, Duration), String> {
        let read = x509_cert::Certificate::from_der(der)
            .map_err(|_| "the first certificate of the file it names cannot be read".to_owned())?;
        let read = read.tbs_certificate();
        let names = read.get_extension::<SubjectAltName>().ok().flatten();
        let names: Vec<String> = names.iter().flat_map(|(_, names)| &names.0).filter_map(name).collect();
        let more = if names.len() > NAMES_SHOWN_MAX { ", ..." } else { "" };
        let shown = names.iter().take(NAMES_SHOWN_MAX).cloned().collect::<Vec<_>>().join(", ");
        let subject = read.subject().to_string();
        let subject = match (subject.is_empty(), shown.is_empty()) {
            (_, true) => subject,
            (true, false) => format!("for {shown}{more}"),
            (false, false) => format!("{subject}, for {shown}{more}"),
        };
        // Text of others: one line, whatever it holds.
        let subject = subject.chars().map(|char| if char.is_control() { '?' } else { char }).collect();
        let validity = read.validity();
        let ends_at = validity.not_after.to_unix_duration();
        Ok((Self { subject, ends_at }, validity.not_before.to_unix_duration()))
    }

    /// What is doubtful about it now.
    fn doubt(&self, begins_at: Duration, then: &str) -> Option<String> {
        let (now, ends) = (clock::unix_now(), self.ends_at_text());
        let days = self.ends_at.saturating_sub(now).as_secs() / (24 * 3600);
        match () {
            () if self.ends_at <= now => Some(format!("the certificate ended at {ends}; {then}")),
            () if begins_at > now => Some(format!("the certificate is not good yet; {then}")),
            () if self.ends_at - now < ENDS_SOON => Some(format!("the certificate ends in {days} days, at {ends}")),
            () => None,
        }
    }
}

fn name(name: &GeneralName) -> Option<String> {
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
