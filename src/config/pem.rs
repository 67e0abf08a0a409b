//! PEM files that the configuration names: certificates, private keys, and CAs.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::secret::{SecretError, SecretWarning, is_world_readable, require_regular};
use super::section::Section;

/// Maximum size of a PEM file in bytes. The public roots of a browser take 230 KiB.
pub(super) const PEM_LEN_MAX: usize = 1024 * 1024;

/// Message for a file that begins as PEM and cannot be decoded.
const NOT_PEM: &str = "the file is not valid PEM; check whether it was truncated";
/// Message for an encrypted private key.
const ENCRYPTED: &str = "its private key is encrypted, so decrypt it: chatgate cannot ask for a password";
/// The byte order mark of UTF-8, which some editors write at the start of a file.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A problem of a certificate and its key.
pub(super) struct KeyPairError {
    /// Key of the configuration that has the problem.
    pub(super) key: &'static str,
    pub(super) message: &'static str,
}

/// A private key, and a warning if the file is world-readable.
pub(super) type KeyFile = (Zeroizing<PrivateKeyDer<'static>>, Option<SecretWarning>);

/// Reads the file that a key names and notes its problems.
pub(super) fn read_named<T>(
    section: &mut Section<'_>,
    key: &'static str,
    required: bool,
    read: impl FnOnce(&Path) -> Result<T, String>,
) -> Option<T> {
    if required && !section.has(key) {
        section.problem(key, format_args!("missing; set {key} = \"FILE\""));
    }
    let path = section.named_file(key)?;
    read(&path).map_err(|message| section.wrong_value(key, message)).ok()
}

/// Reads certificates that are trusted in addition to the public roots.
///
/// # Errors
/// A message that describes the problem of the file.
pub(super) fn read_cas(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = read_chain(path)?;
    for (certificate, number) in certificates.iter().zip(1..) {
        RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|_| format!("certificate {number} in the file cannot be a trust anchor; replace or remove it"))?;
    }
    Ok(certificates)
}

/// Reads a certificate chain: the certificate, then its intermediate certificates.
///
/// # Errors
/// A message that describes the problem of the file.
pub(super) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let (pem, _) = read_pem(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match chain {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(format!("no certificate in the file; {}", describe(&pem))),
        Err(_) => Err(NOT_PEM.to_owned()),
    }
}

/// Reads a private key.
///
/// # Errors
/// A message that describes the problem of the file.
pub(super) fn read_key(path: &Path) -> Result<KeyFile, String> {
    let (pem, warning) = read_pem(path)?;
    match PrivateKeyDer::from_pem_slice(&pem) {
        Ok(key) => Ok((Zeroizing::new(key), warning)),
        Err(pem::Error::NoItemsFound) => Err(format!("no private key in the file; {}", describe(&pem))),
        // The headers of RFC 1421, as OpenSSL wrote them before PKCS #8, are not base64.
        Err(_) if is_encrypted(&pem) => Err(format!("no usable private key in the file; {ENCRYPTED}")),
        Err(_) => Err(NOT_PEM.to_owned()),
    }
}

/// Combines a certificate with its key.
///
/// # Errors
/// If TLS cannot use one of them, or if they do not belong together.
pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
) -> Result<CertifiedKey, KeyPairError> {
    let signing_key = aws_lc_rs::sign::any_supported_type(key).map_err(|_| KeyPairError {
        key: "key_file",
        message: "TLS does not support this type of key; use an RSA, ECDSA, or Ed25519 key",
    })?;
    let certified = CertifiedKey::new(chain, signing_key);
    certified.keys_match().map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => KeyPairError {
            key: "key_file",
            message: "the key does not belong to the certificate; name the files of one pair",
        },
        _ => KeyPairError { key: "cert_file", message: "TLS cannot use the first certificate in the file; replace it" },
    })?;
    Ok(certified)
}

/// Reads a PEM file into memory that is wiped on drop. Returns a warning if the file is world-readable.
fn read_pem(path: &Path) -> Result<(Zeroizing<Vec<u8>>, Option<SecretWarning>), String> {
    let read = || {
        require_regular(path)?;
        let file = File::open(path).map_err(SecretError::Unreadable)?;
        let metadata = file.metadata().map_err(SecretError::Unreadable)?;
        // Full capacity from the start: a growing buffer leaves copies that are not wiped.
        let len = usize::try_from(metadata.len()).unwrap_or(PEM_LEN_MAX).min(PEM_LEN_MAX);
        let mut bytes = Zeroizing::new(Vec::with_capacity(len + 2));
        file.take(PEM_LEN_MAX as u64 + 1).read_to_end(&mut bytes).map_err(SecretError::Unreadable)?;
        Ok((bytes, is_world_readable(&metadata).then_some(SecretWarning::WorldReadable)))
    };
    let (mut pem, warning) = read().map_err(|error: SecretError| error.to_string())?;
    if pem.len() > PEM_LEN_MAX {
        return Err("the file is larger than 1 MiB; check that it is the right file".to_owned());
    }
    if pem.starts_with(BYTE_ORDER_MARK) {
        pem.drain(..BYTE_ORDER_MARK.len());
    }
    Ok((pem, warning))
}

/// Whether a private key of any format is encrypted.
fn is_encrypted(pem: &[u8]) -> bool {
    memchr::memmem::find(pem, b"ENCRYPTED").is_some()
}

/// Describes the content of a file that lacks the expected PEM section.
fn describe(pem: &[u8]) -> &'static str {
    let contains = |label: &[u8]| memchr::memmem::find(pem, label).is_some();
    match () {
        () if pem.iter().all(u8::is_ascii_whitespace) => "it is empty",
        () if is_encrypted(pem) => ENCRYPTED,
        () if contains(b"PRIVATE KEY-----") => "it contains a private key, so check whether the files are swapped",
        () if contains(b"-----BEGIN CERTIFICATE-----") => {
            "it contains a certificate, so check whether the files are swapped"
        }
        () if contains(b"-----BEGIN ") => "it contains PEM of another type",
        () => "it is not PEM",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ca_certificates_must_be_usable_trust_anchors() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ca.pem");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            read_cas(&path)
        };
        let one = || rcgen::generate_simple_self_signed(["ca.test".to_owned()]).expect("a certificate").cert.pem();
        assert_eq!(read(&format!("words\n{}{}", one(), one())).expect("two").len(), 2);
        for (text, message) in [
            ("", "no certificate in the file; it is empty"),
            ("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n", "not valid PEM"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1 in"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n", "not valid PEM"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(message), "{error}");
        }
        assert!(read(&"#".repeat(PEM_LEN_MAX + 1)).expect_err("large").contains("1 MiB"));
        assert!(read_cas(folder.path()).is_err());
    }
}
