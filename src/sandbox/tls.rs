//! The CA and the certificate of the simulator, generated at every start.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
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

/// Subject alternative names of the certificate, in addition to the address that the simulator listens on.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// Name of the CA's file in the TLS directory. The private keys stay in memory.
pub(super) const CA_FILE: &str = "ca.pem";

/// Why no certificate could be created.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Generating a key or a certificate failed.
    #[error("cannot generate the certificate")]
    Generate(#[from] rcgen::Error),
    /// The TLS library rejects the certificate.
    #[error("cannot use the generated certificate")]
    Config(#[from] rustls::Error),
}

/// Generates the TLS configuration of a simulator that listens on this address. Returns it with the CA (PEM) that
/// clients must trust.
pub(super) fn generate(listen: IpAddr) -> Result<(TlsAcceptor, String), CertificateError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, "chatgate sandbox CA");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    // 0.0.0.0 and :: are no addresses of a server.
    let own = Some(listen.to_string()).filter(|own| !listen.is_unspecified() && !NAMES.contains(&own.as_str()));
    let names: Vec<String> = NAMES.map(str::to_owned).into_iter().chain(own).collect();
    let mut params = CertificateParams::new(names)?;
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

/// Writes the CA into a directory, which is created if it is missing. The file changes atomically: a reader gets
/// the old CA or the new one.
pub(super) fn write_ca(dir: &Path, pem: &str) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    let (partial, whole) = (dir.join(".ca.pem.partial"), dir.join(CA_FILE));
    // A file left by an earlier start would keep its mode.
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
    fn write_ca_replaces_the_file_and_makes_it_readable() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("tls");
        let (_, pem) = generate("192.0.2.1".parse().unwrap()).unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----") && !pem.contains("PRIVATE"));
        write_ca(&inner, "old").unwrap();
        write_ca(&inner, &pem).unwrap();
        assert_eq!(fs::read_to_string(inner.join(CA_FILE)).unwrap(), pem);
        assert_eq!(fs::metadata(inner.join(CA_FILE)).unwrap().permissions().mode() & 0o444, 0o444);
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 1);
    }
}
