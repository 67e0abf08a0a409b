//! Secrets by reference: what a file or a variable holds.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use zeroize::Zeroizing;

/// Largest secret file. A key has 64 bytes; what is larger than this was not meant.
pub const SECRET_LEN_MAX: usize = 64 * 1024;

/// Largest file of certificates. The public roots of a browser take 230 KiB.
pub const CA_LEN_MAX: usize = 1024 * 1024;

/// A line of text that nobody may see. No `Display`, `Debug` shows nothing, wiped on drop.
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// The text, for the code that uses it and for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(hidden)")
    }
}

/// Why there is no secret to be had. The messages never name the file: who writes the secret itself
/// where its file should be named must not find it in the log.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SecretError {
    #[error("the file it names cannot be read ({})", kind(.0))]
    Unreadable(io::Error),
    #[error("what it names is not a file")]
    NotAFile,
    #[error("there is no variable of that name in the environment")]
    NoVariable,
    #[error("it is longer than 64 KiB, so it is not what was meant")]
    TooLarge,
    #[error("it is not UTF-8 text")]
    NotText,
    #[error("it is empty; it must hold the secret as its one line")]
    Empty,
    #[error("it has more than one line; it must hold the secret as its one line")]
    ManyLines,
    #[error(
        "it is a key in PEM, which is of the first generation of signatures; take the secret key that the console \
         shows for HMAC-SHA256, one line of 64 hex digits"
    )]
    Pem,
}

/// What is doubtful about a secret that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Remark {
    #[error("every user of this machine can read the file it names; take the right from others (chmod o-r)")]
    WorldReadable,
    #[error("the secret begins or ends with a blank, which is taken as a part of it; is that meant?")]
    Blanks,
    #[error("the secret begins with a byte order mark, which is taken as a part of it; save the file without one")]
    ByteOrderMark,
}

/// Reads a secret from a file: one line of text, whose LF or CRLF at the end is not part of it. It is
/// text whatever it looks like.
///
/// A pipe is read too, so that a shell can hand a secret over without a file.
///
/// # Errors
/// If there is no such line.
pub fn read_secret_file(path: &Path) -> Result<(SecretText, Vec<Remark>), SecretError> {
    let mut file = File::open(path).map_err(SecretError::Unreadable)?;
    let metadata = file.metadata().map_err(SecretError::Unreadable)?;
    if metadata.is_dir() {
        return Err(SecretError::NotAFile);
    }
    // Room for all of it from the start: a buffer that grows leaves unwiped copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_LEN_MAX + 1));
    (&mut file).take(SECRET_LEN_MAX as u64 + 1).read_to_end(&mut bytes).map_err(SecretError::Unreadable)?;
    if bytes.len() > SECRET_LEN_MAX {
        return Err(SecretError::TooLarge);
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| SecretError::NotText)?;
    let (secret, mut remarks) = one_line(text)?;
    if world_readable(&metadata) {
        remarks.push(Remark::WorldReadable);
    }
    Ok((secret, remarks))
}

/// The same of a text that is there already, as from a variable of the environment.
///
/// # Errors
/// If it is not one line.
pub(super) fn one_line(text: &str) -> Result<(SecretText, Vec<Remark>), SecretError> {
    if text.len() > SECRET_LEN_MAX {
        return Err(SecretError::TooLarge);
    }
    let line = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.contains(['\n', '\r']) {
        let pem = line.trim_start().starts_with("-----BEGIN");
        return Err(if pem { SecretError::Pem } else { SecretError::ManyLines });
    }
    if line.is_empty() {
        return Err(SecretError::Empty);
    }
    let mut remarks = Vec::new();
    if line.starts_with('\u{feff}') {
        remarks.push(Remark::ByteOrderMark);
    }
    if line.trim() != line {
        remarks.push(Remark::Blanks);
    }
    Ok((SecretText(Zeroizing::new(line.to_owned())), remarks))
}

/// Reads a file for a configuration, which is read again at each reload: a pipe would block it.
pub(super) fn read_regular_secret_file(path: &Path) -> Result<(SecretText, Vec<Remark>), SecretError> {
    require_regular(path)?;
    read_secret_file(path)
}

/// Reads certificates in PEM that are trusted in addition.
///
/// # Errors
/// A sentence that says what is wrong with the file.
pub(super) fn read_ca_file(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let (pem, _) = read_pem_file(path)?;
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| "the file it names is not PEM (text with -----BEGIN CERTIFICATE-----)".to_owned())?;
    if certificates.is_empty() {
        return Err("the file it names has no certificate in PEM (-----BEGIN CERTIFICATE-----)".to_owned());
    }
    for (certificate, number) in certificates.iter().zip(1..) {
        RootCertStore::empty()
            .add(certificate.clone())
            .map_err(|_| format!("certificate {number} of the file it names cannot be used as a root of trust"))?;
    }
    Ok(certificates)
}

/// Reads a file of certificates or of a key, which is wiped on drop, with a remark if it is one that all
/// users of this machine can read.
///
/// # Errors
/// A sentence that says what is wrong with the file.
pub(super) fn read_pem_file(path: &Path) -> Result<(Zeroizing<Vec<u8>>, Option<Remark>), String> {
    let read = || {
        require_regular(path)?;
        let file = File::open(path).map_err(SecretError::Unreadable)?;
        let metadata = file.metadata().map_err(SecretError::Unreadable)?;
        // Room for all of it from the start: a buffer that grows leaves unwiped copies behind.
        let len = usize::try_from(metadata.len()).unwrap_or(CA_LEN_MAX).min(CA_LEN_MAX);
        let mut bytes = Zeroizing::new(Vec::with_capacity(len + 2));
        file.take(CA_LEN_MAX as u64 + 1).read_to_end(&mut bytes).map_err(SecretError::Unreadable)?;
        Ok((bytes, world_readable(&metadata).then_some(Remark::WorldReadable)))
    };
    let (pem, remark) = read().map_err(|error: SecretError| error.to_string())?;
    if pem.len() > CA_LEN_MAX {
        return Err("the file it names is larger than 1 MiB".to_owned());
    }
    Ok((pem, remark))
}

fn require_regular(path: &Path) -> Result<(), SecretError> {
    let metadata = std::fs::metadata(path).map_err(SecretError::Unreadable)?;
    if metadata.is_file() { Ok(()) } else { Err(SecretError::NotAFile) }
}

fn world_readable(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.permissions().mode() & 0o004 != 0
}

/// The system's word for an error, without anything of ours in it.
fn kind(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<String, SecretError> {
        one_line(text).map(|(secret, _)| secret.expose().to_owned())
    }

    #[test]
    fn the_last_line_end_is_not_part_of_the_secret() {
        for text in ["key", "key\n", "key\r\n"] {
            assert_eq!(line(text).expect("a line"), "key", "{text:?}");
        }
        assert_eq!(line("  ключ = \\n\n").expect("a line"), "  ключ = \\n");
    }

    #[test]
    fn what_is_not_one_line_is_refused() {
        for text in ["", "\n", "\r\n"] {
            assert!(matches!(line(text), Err(SecretError::Empty)), "{text:?}");
        }
        for text in ["a\nb", "a\n\n", "a\rb", "\na", "a\r", "a\r\r\n"] {
            assert!(matches!(line(text), Err(SecretError::ManyLines)), "{text:?}");
        }
        let pem = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n";
        assert!(matches!(line(pem), Err(SecretError::Pem)));
        assert!(line(&"k".repeat(SECRET_LEN_MAX)).is_ok());
        assert!(matches!(line(&"k".repeat(SECRET_LEN_MAX + 1)), Err(SecretError::TooLarge)));
    }

    #[test]
    fn doubtful_secrets_are_taken_with_a_remark() {
        let remarks = |text| one_line(text).expect("a line").1;
        assert_eq!(remarks("key "), [Remark::Blanks]);
        assert_eq!(remarks("\tkey"), [Remark::Blanks]);
        assert_eq!(remarks("\u{feff}key"), [Remark::ByteOrderMark]);
        assert_eq!(remarks("a key"), []);
    }

    #[test]
    fn files_are_read_whole_or_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let write = |bytes: &[u8], mode| {
            std::fs::write(&path, bytes).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("its mode set");
        };
        write(b"key\n", 0o600);
        let (secret, remarks) = read_secret_file(&path).expect("a secret");
        assert_eq!((secret.expose(), remarks), ("key", Vec::new()));
        assert_eq!(format!("{secret:?}"), "SecretText(hidden)");
        write(b"key\n", 0o644);
        assert_eq!(read_secret_file(&path).expect("a secret").1, [Remark::WorldReadable]);
        write(b"k\xffy\n", 0o600);
        assert!(matches!(read_secret_file(&path), Err(SecretError::NotText)));
        write(&vec![b'k'; SECRET_LEN_MAX + 1], 0o600);
        assert!(matches!(read_secret_file(&path), Err(SecretError::TooLarge)));
        assert!(matches!(read_secret_file(folder.path()), Err(SecretError::NotAFile)));
        assert!(matches!(read_regular_secret_file("/dev/null".as_ref()), Err(SecretError::NotAFile)));
        let missing = read_secret_file(&folder.path().join("none")).expect_err("nothing there").to_string();
        assert!(missing.contains("no such file") && !missing.contains("none"), "{missing}");
    }

    #[test]
    fn certificates_must_be_usable_as_roots() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ca.pem");
        let read = |text: &str| {
            std::fs::write(&path, text).expect("written");
            read_ca_file(&path)
        };
        let one = || rcgen::generate_simple_self_signed(["ca.test".to_owned()]).expect("a certificate").cert.pem();
        assert_eq!(read(&format!("words\n{}{}", one(), one())).expect("two").len(), 2);
        for (text, message) in [
            ("", "has no certificate"),
            ("-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n", "is not PEM"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "certificate 1 of"),
            ("-----BEGIN CERTIFICATE-----\nAAAA\n", "is not PEM"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(message), "{error}");
        }
        assert!(read(&"#".repeat(CA_LEN_MAX + 1)).expect_err("large").contains("1 MiB"));
        assert!(read_ca_file(folder.path()).is_err());
    }
}
