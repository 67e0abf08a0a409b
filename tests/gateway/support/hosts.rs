//! Host names of one gateway that can change while it runs: its own `/etc/hosts`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const HOSTS: &str = "hosts";
const SWITCH: &str = "nsswitch.conf";

/// Mounts the directory's files over the system's, then becomes the program.
const SCRIPT: &str = r#"
mount --bind "$1/hosts" /etc/hosts || exit 1
if [ -e /etc/nsswitch.conf ]; then mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf || exit 1; fi
shift
exec "$@"
"#;

/// The hosts file of a gateway's directory.
pub(crate) struct Hosts(PathBuf);

impl Hosts {
    /// Sets the host names for the gateway of this directory, which must not be running yet. It resolves no other
    /// names: DNS is switched off.
    pub(crate) fn new(dir: &Path, lines: &str) -> Hosts {
        std::fs::write(dir.join(SWITCH), "hosts: files\n").expect("own directory");
        let hosts = Hosts(dir.join(HOSTS));
        hosts.set(lines);
        hosts
    }

    /// Replaces the host names. The file keeps its inode, so the gateway sees the change.
    pub(crate) fn set(&self, lines: &str) {
        std::fs::write(&self.0, lines).expect("own directory");
    }
}

/// Returns a command that runs the program with the host names of `dir`, if it has a hosts file. It uses a mount
/// namespace, which needs root or user namespaces, and becomes the program, so the process ID stays the same.
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
