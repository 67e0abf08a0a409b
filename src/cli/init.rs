//! `chatgate init`: writes a starter configuration.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::output::print_error;

/// The commented configuration with every key.
const STARTER: &str = include_str!("../../config/chatgate.toml");

/// Options of `chatgate init`.
#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {
    /// File to write; an existing file is never overwritten
    #[arg(value_name = "FILE", default_value = "chatgate.toml")]
    file: PathBuf,
}

pub(super) fn run(args: &InitArgs) -> ExitCode {
    let file = args.file.display();
    match write(&args.file) {
        Ok(()) => {
            print_error(format_args!(
                "wrote {file}; next, set sdkappid, region, and secret_key_file in it, then run `chatgate check --config \
                 {file}` and `chatgate doctor --config {file}`"
            ));
            ExitCode::SUCCESS
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            print_error(format_args!("{file} already exists; choose another name, or move the existing file"));
            ExitCode::FAILURE
        }
        Err(error) => {
            print_error(format_args!("cannot write {file}: {error}; check the path, its permissions, and free space"));
            ExitCode::FAILURE
        }
    }
}

/// Creates the file, which must not exist. Removes it again if it cannot be written completely.
fn write(path: &Path) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(STARTER.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
        // A partial file would block the next attempt.
        let _ = std::fs::remove_file(path);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn existing_files_and_links_are_never_overwritten() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.toml");
        write(&path).expect("a new file");
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), STARTER);
        std::fs::write(&path, "mine").expect("written");
        assert!(write(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "mine");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("target"), &link).expect("a link to nothing");
        assert!(write(&link).is_err() && !folder.path().join("target").exists());
    }
}
