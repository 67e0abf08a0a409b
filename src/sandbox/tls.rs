//! A CA and a certificate of the sandbox's own, made at every start.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::TlsAcceptor;

/// Whom the certificate is for.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The file in the TLS directory that holds the CA. The private keys stay in memory.
pub const CA_FILE: &str = "ca.pem";

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// Making keys or certificates failed.
    #[error("the certificate could not be made")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library does not take what was made.
    #[error("the certificate could not be used")]
    Config(#[from] rustls::Error),
}

/// What serves TLS, and the CA (PEM) that clients need to trust.
pub(super) fn make() -> Result<(TlsAcceptor, String), MakeError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "chatgate sandbox CA");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let mut params = CertificateParams::new(NAMES.map(str::to_owned))?;
    params.distinguished_name.push(DnType::CommonName, "chatgate sandbox");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &ca)?;

    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok((TlsAcceptor::from(Arc::new(config)), ca.pem()))
}

/// Writes the CA into a directory, which is made if it is missing. Whoever reads the file sees the
/// old CA or the new one, never a part.
pub(super) fn write_ca(dir: &Path, pem: &str) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let (partial, whole) = (dir.join(".ca.pem.partial"), dir.join(CA_FILE));
    // One that an earlier start left behind would keep its own mode.
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&partial)?;
    file.write_all(pem.as_bytes())?;
    drop(file);
    fs::rename(&partial, &whole)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_ca_is_written_whole_and_readable_and_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("tls");
        let (_, pem) = make().unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----") && !pem.contains("PRIVATE"));
        write_ca(&inner, "old").unwrap();
        write_ca(&inner, &pem).unwrap();
        assert_eq!(fs::read_to_string(inner.join(CA_FILE)).unwrap(), pem);
        assert_eq!(fs::metadata(inner.join(CA_FILE)).unwrap().permissions().mode() & 0o444, 0o444);
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 1);
    }
}
