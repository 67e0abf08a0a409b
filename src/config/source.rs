//! What a configuration was read from, so that changes are seen.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use zeroize::Zeroizing;

use super::secret::CA_LEN_MAX;

/// The text of the file, and what the files that it names held. Both are empty for a configuration
/// that was not read from a file.
#[derive(Debug, Clone, Default)]
pub struct Source {
    /// Without anything that the environment has laid over it. It holds no secret, for those are refused.
    pub text: String,
    /// The files of secrets and certificates that it names.
    pub files: Vec<NamedFile>,
}

/// A file that the configuration names, and what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedFile {
    path: PathBuf,
    seen: Fingerprint,
}

impl NamedFile {
    /// Looks at it now.
    pub(super) fn fingerprint(path: &Path) -> Self {
        Self { path: path.to_owned(), seen: Fingerprint::of(path) }
    }

    /// The same file as it is now. Blocks.
    pub fn refresh(&self) -> Self {
        Self::fingerprint(&self.path)
    }
}

/// Tells contents apart without keeping them: whatever way a file was replaced, by writing, by rename or
/// by turning a link above it, it is what is read that counts.
#[derive(Clone, PartialEq, Eq)]
struct Fingerprint(Option<Zeroizing<[u8; SHA256_OUTPUT_LEN]>>);

impl std::fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Fingerprint(hidden)")
    }
}

impl Fingerprint {
    /// `None` inside for what cannot be read. What is no regular file is not opened: a pipe would block.
    fn of(path: &Path) -> Self {
        let read = || {
            let len = std::fs::metadata(path).ok().filter(|file| file.is_file())?.len();
            // Room for all of it from the start: a buffer that grows leaves unwiped copies behind.
            let room = usize::try_from(len).unwrap_or(CA_LEN_MAX).min(CA_LEN_MAX) + 2;
            let mut bytes = Zeroizing::new(Vec::with_capacity(room));
            File::open(path).ok()?.take(room as u64 - 1).read_to_end(&mut bytes).ok()?;
            let mut print = Zeroizing::new([0; SHA256_OUTPUT_LEN]);
            print.copy_from_slice(digest(&SHA256, &bytes).as_ref());
            Some(print)
        };
        Self(read())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_a_file_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("key");
        let write = |text: &str| std::fs::write(&path, text).expect("own folder");
        let absent = NamedFile::fingerprint(&path);
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
        assert_eq!(NamedFile::fingerprint(folder.path()).seen, absent.seen, "a folder is not read");
    }
}
