//! Names that only one gateway knows, and that change while it runs: an `/etc/hosts` of its own.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const HOSTS: &str = "hosts";
const SWITCH: &str = "nsswitch.conf";

/// Puts the directory's files in place of the system's, then becomes the program.
const SCRIPT: &str = r#"
mount --bind "$1/hosts" /etc/hosts || exit 1
if [ -e /etc/nsswitch.conf ]; then mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf || exit 1; fi
shift
exec "$@"
"#;

/// What the names of a gateway's directory mean.
pub(crate) struct Hosts(PathBuf);

impl Hosts {
    /// For the gateway of this directory, which must not have been started yet. It knows these names and
    /// no others: nobody is asked for more.
    pub(crate) fn new(dir: &Path, lines: &str) -> Hosts {
        std::fs::write(dir.join(SWITCH), "hosts: files\n").expect("own directory");
        let hosts = Hosts(dir.join(HOSTS));
        hosts.set(lines);
        hosts
    }

    /// Changes them. The file stays the same one, so the gateway sees it.
    pub(crate) fn set(&self, lines: &str) {
        std::fs::write(&self.0, lines).expect("own directory");
    }
}

/// A command that runs the program with the names of `dir`, if there are some: in a mount namespace, which
/// needs root or user namespaces. It becomes the program, so the process stays the same.
pub(super) fn command(program: &str, dir: &Path) -> Command {
    if !dir.join(HOSTS).exists() {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    command.arg(if is_root { "--mount" } else { "--map-root-user" }).arg("--mount");
    command.args(["sh", "-c", SCRIPT, "sh"]).arg(dir).arg(program);
    command
}
