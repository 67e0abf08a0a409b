//! `chatgate init`: a starter to fill in.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::output::complain;

/// The file with every key explained.
const STARTER: &str = include_str!("../../config/chatgate.toml");

/// Options of `chatgate init`.
#[derive(Debug, clap::Args)]
pub(super) struct InitArgs {
    /// The file to write; one that is there is never overwritten
    #[arg(value_name = "FILE", default_value = "chatgate.toml")]
    file: PathBuf,
}

pub(super) fn run(args: &InitArgs) -> ExitCode {
    let file = args.file.display();
    match write(&args.file) {
        Ok(()) => {
            complain(format_args!(
                "wrote {file}; now set sdkappid and region in it, put the app's key into a file and name that with \
                 secret_key_file, then run `chatgate check --config {file}`"
            ));
            ExitCode::SUCCESS
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            complain(format_args!(
                "{file} is there already and is left as it is; name another file, or move that one away"
            ));
            ExitCode::FAILURE
        }
        Err(error) => {
            complain(format_args!("cannot write {file}: {error}; nothing was changed"));
            ExitCode::FAILURE
        }
    }
}

/// Makes the file, which must not be there, and writes it whole or not at all.
fn write(path: &Path) -> std::io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(STARTER.as_bytes()).and_then(|()| file.sync_all()).inspect_err(|_| {
        // It is ours, and half a file would be in the way of the next try.
        let _ = std::fs::remove_file(path);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_writes_once_and_never_over_anything() {
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
