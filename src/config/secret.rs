//! Secrets by reference: reads a secret from a file or an environment variable.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::problem::NOT_UTF8;

/// Maximum size of a secret in bytes. A secret key has 64.
pub(super) const SECRET_LEN_MAX: usize = 64 * 1024;

/// What [`SecretError::Pem`] says is wrong.
pub(crate) const PEM_KEY: &str = "a PEM key of the first-generation signatures";

/// A secret line of text. It has no `Display`, `Debug` hides it, and it is wiped on drop.
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Returns the text, only for the code that uses the secret.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(hidden)")
    }
}

/// The reason why a secret cannot be read.
///
/// The messages never name the file or variable: an operator may have written the secret itself there. The section that
/// names it quotes what cannot be a secret.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SecretError {
    #[error("cannot read the file ({}); check its path and permissions", cause(.0))]
    Unreadable(io::Error),
    #[error("not a regular file; set the path of a file")]
    NotAFile,
    #[error("the environment variable is not set; set it, or name another one")]
    NoVariable,
    #[error("the secret is longer than 64 KiB; check that this is the right file or variable")]
    TooLarge,
    #[error("{NOT_UTF8}")]
    NotText,
    #[error("the secret is empty; it must be one line of text")]
    Empty,
    #[error("the secret has more than one line; it must be one line of text")]
    ManyLines,
    #[error("the secret contains a control character; write the file again as plain text")]
    Control,
    #[error("{PEM_KEY}; use the secret key that the console shows, 64 hex digits")]
    Pem,
}

/// A suspicious property of a secret that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SecretWarning {
    #[error("the file is world-readable; run chmod o-r on it")]
    WorldReadable,
    #[error("the secret begins or ends with whitespace, which is part of it; remove it unless it is intended")]
    Whitespace,
    #[error("the secret begins with a byte order mark, which is part of it; save the file without one")]
    ByteOrderMark,
}

/// Reads a secret from a file: one line of text, without a final LF or CRLF. It is always text, even if it looks like
/// another format.
///
/// It also reads a pipe, so that a shell can pass a secret without a file.
///
/// # Errors
/// If the file does not contain exactly one line.
pub fn read_secret_file(path: &Path) -> Result<(SecretText, Vec<SecretWarning>), SecretError> {
    let mut file = File::open(path).map_err(SecretError::Unreadable)?;
    let metadata = file.metadata().map_err(SecretError::Unreadable)?;
    if metadata.is_dir() {
        return Err(SecretError::NotAFile);
    }
    // Full capacity from the start: a growing buffer leaves copies that are not wiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_LEN_MAX + 1));
    (&mut file).take(SECRET_LEN_MAX as u64 + 1).read_to_end(&mut bytes).map_err(SecretError::Unreadable)?;
    if bytes.len() > SECRET_LEN_MAX {
        return Err(SecretError::TooLarge);
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| SecretError::NotText)?;
    let (secret, mut warnings) = parse_secret(text)?;
    if is_world_readable(&metadata) {
        warnings.push(SecretWarning::WorldReadable);
    }
    Ok((secret, warnings))
}

/// Reads a secret from a file of the configuration. It rejects pipes, because a reload would block on them.
pub(super) fn read_regular_secret_file(path: &Path) -> Result<(SecretText, Vec<SecretWarning>), SecretError> {
    require_regular(path)?;
    read_secret_file(path)
}

/// Parses a secret from the content of a file or an environment variable.
///
/// # Errors
/// If the text is not exactly one line.
pub(super) fn parse_secret(text: &str) -> Result<(SecretText, Vec<SecretWarning>), SecretError> {
    if text.len() > SECRET_LEN_MAX {
        return Err(SecretError::TooLarge);
    }
    let line = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.contains(['\n', '\r']) {
        let is_pem = line.trim_start().starts_with("-----BEGIN");
        return Err(if is_pem { SecretError::Pem } else { SecretError::ManyLines });
    }
    if line.is_empty() {
        return Err(SecretError::Empty);
    }
    // Text in UTF-16 has one in every ASCII character, a tab comes with a copied column, and no secret has any.
    if line.contains(char::is_control) {
        return Err(SecretError::Control);
    }
    let mut warnings = Vec::new();
    if line.starts_with('\u{feff}') {
        warnings.push(SecretWarning::ByteOrderMark);
    }
    if line.trim() != line {
        warnings.push(SecretWarning::Whitespace);
    }
    Ok((SecretText(Zeroizing::new(line.to_owned())), warnings))
}

/// Rejects a path that is not a regular file.
pub(super) fn require_regular(path: &Path) -> Result<(), SecretError> {
    let metadata = std::fs::metadata(path).map_err(SecretError::Unreadable)?;
    if metadata.is_file() { Ok(()) } else { Err(SecretError::NotAFile) }
}

pub(super) fn is_world_readable(metadata: &Metadata) -> bool {
    metadata.is_file() && metadata.permissions().mode() & 0o004 != 0
}

/// Describes an I/O error without any data of the operator.
fn cause(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Result<String, SecretError> {
        parse_secret(text).map(|(secret, _)| secret.expose().to_owned())
    }

    #[test]
    fn final_line_end_is_not_part_of_the_secret() {
        for text in ["key", "key\n", "key\r\n"] {
            assert_eq!(line(text).expect("a line"), "key", "{text:?}");
        }
        assert_eq!(line("  ключ = \\n\n").expect("a line"), "  ключ = \\n");
    }

    #[test]
    fn text_other_than_one_line_is_rejected() {
        for text in ["", "\n", "\r\n"] {
            assert!(matches!(line(text), Err(SecretError::Empty)), "{text:?}");
        }
        for text in ["a\nb", "a\n\n", "a\rb", "\na", "a\r", "a\r\r\n"] {
            assert!(matches!(line(text), Err(SecretError::ManyLines)), "{text:?}");
        }
        for text in ["k\0e\0y\0", "\0", "key\0\n", "\tkey", "key\t\n", "k\x1by", "key\x7f", "k\u{85}y"] {
            assert!(matches!(line(text), Err(SecretError::Control)), "{text:?}");
        }
        let pem = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n";
        assert!(matches!(line(pem), Err(SecretError::Pem)));
        assert!(line(&"k".repeat(SECRET_LEN_MAX)).is_ok());
        assert!(matches!(line(&"k".repeat(SECRET_LEN_MAX + 1)), Err(SecretError::TooLarge)));
    }

    #[test]
    fn suspicious_secrets_are_accepted_with_a_warning() {
        let warnings = |text| parse_secret(text).expect("a line").1;
        assert_eq!(warnings("key "), [SecretWarning::Whitespace]);
        assert_eq!(warnings("\u{a0}key"), [SecretWarning::Whitespace]);
        assert_eq!(warnings("\u{feff}key"), [SecretWarning::ByteOrderMark]);
        assert_eq!(warnings("a key"), []);
    }

    #[test]
    fn secret_files_are_read_whole_or_rejected() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let write = |bytes: &[u8], mode| {
            std::fs::write(&path, bytes).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("its mode set");
        };
        write(b"key\n", 0o600);
        let (secret, warnings) = read_secret_file(&path).expect("a secret");
        assert_eq!((secret.expose(), warnings), ("key", Vec::new()));
        assert_eq!(format!("{secret:?}"), "SecretText(hidden)");
        write(b"key\n", 0o644);
        assert_eq!(read_secret_file(&path).expect("a secret").1, [SecretWarning::WorldReadable]);
        write(b"k\xffy\n", 0o600);
        assert!(matches!(read_secret_file(&path), Err(SecretError::NotText)));
        write(&vec![b'k'; SECRET_LEN_MAX + 1], 0o600);
        assert!(matches!(read_secret_file(&path), Err(SecretError::TooLarge)));
        assert!(matches!(read_secret_file(folder.path()), Err(SecretError::NotAFile)));
        assert!(matches!(read_regular_secret_file("/dev/null".as_ref()), Err(SecretError::NotAFile)));
        let missing = read_secret_file(&folder.path().join("none")).expect_err("nothing there").to_string();
        assert!(missing.contains("no such file") && !missing.contains("none"), "{missing}");
    }
}
