//! The files that a configuration was read from, to detect changes.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use zeroize::Zeroizing;

use super::pem::PEM_LEN_MAX;

/// The text of the configuration file, and fingerprints of the files that it names. Both are empty for a configuration
/// that was not read from a file.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// Text without overrides of the environment. It contains no secret, because inline secrets are rejected.
    pub text: String,
    /// Named files: secrets, keys, and certificates.
    pub files: Vec<NamedFile>,
}

/// A file that the configuration names, with a fingerprint of its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    path: PathBuf,
    fingerprint: Fingerprint,
}

impl NamedFile {
    /// Reads the file and takes its fingerprint.
    pub(super) fn read(path: &Path) -> Self {
        Self { path: path.to_owned(), fingerprint: Fingerprint::of(path) }
    }

    /// Returns the same file with its current fingerprint. Blocks.
    pub fn refresh(&self) -> Self {
        Self::read(&self.path)
    }
}

/// A hash of a file's content. It detects a change no matter how the file was replaced: by writing, by a rename, or by
/// a changed symbolic link in its path.
#[derive(Clone, PartialEq, Eq)]
struct Fingerprint(Option<Zeroizing<[u8; SHA256_OUTPUT_LEN]>>);

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fingerprint(hidden)")
    }
}

impl Fingerprint {
    /// Contains `None` if the file cannot be read. Only regular files are opened, because a pipe would block.
    fn of(path: &Path) -> Self {
        let read = || {
            let len = std::fs::metadata(path).ok().filter(|file| file.is_file())?.len();
            // Full capacity from the start: a growing buffer leaves copies that are not wiped.
            let capacity = usize::try_from(len).unwrap_or(PEM_LEN_MAX).min(PEM_LEN_MAX) + 2;
            let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
            File::open(path).ok()?.take(capacity as u64 - 1).read_to_end(&mut bytes).ok()?;
            let mut hash = Zeroizing::new([0; SHA256_OUTPUT_LEN]);
            hash.copy_from_slice(digest(&SHA256, &bytes).as_ref());
            Some(hash)
        };
        Self(read())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprint_depends_on_the_content_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let write = |text: &str| std::fs::write(&path, text).expect("own folder");
        let absent = NamedFile::read(&path);
        assert_eq!(absent, absent.refresh());
        write("one");
        let one = absent.refresh();
        assert_ne!(one, absent);
        write("two");
        assert_ne!(one, one.refresh());
        std::fs::remove_file(&path).expect("own file");
        write("one");
        assert_eq!(one, one.refresh());
        assert!(!format!("{one:?}").contains("one\""));
        assert_eq!(NamedFile::read(folder.path()).fingerprint, absent.fingerprint, "a folder is not read");
    }
}
