//! A network of its own for a run, in which packets can be dropped.

use std::process::{Command, Stdio};

use crate::support::gateway::Gateway;

/// Set in the process that runs inside the network.
const INSIDE: &str = "CHATGATE_CHAOS_INSIDE";

/// Returns whether this process runs in a network of its own. If not, runs the test again in one, and asserts that it
/// succeeds there.
pub(super) fn is_inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let program = std::env::current_exe().expect("a path");
    let script = "ip link set lo up && nft add table inet chaos \
                  && nft add chain inet chaos out '{ type filter hook output priority 0; }' && exec \"$@\"";
    // Without root, a user namespace gives the permission.
    let user = (!rustix::process::getuid().is_root()).then_some("--map-root-user");
    let mut command = Command::new("unshare");
    command.args(user).args(["--net", "sh", "-c", script, "sh"]).arg(program);
    command.args(["--exact", test, "--nocapture", "--include-ignored"]).env(INSIDE, "1").stdin(Stdio::null());
    let status = command.status().expect("unshare is installed; see tests/run");
    assert!(status.success(), "the run in a network namespace failed: {status}");
    false
}

/// Drops every packet from and to these ports.
pub(super) fn drop_packets(ports: &[u16]) {
    for port in ports {
        for side in ["dport", "sport"] {
            nft(&["add", "rule", "inet", "chaos", "out", "tcp", side, &port.to_string(), "drop"]);
        }
    }
}

/// Drops no more packets.
pub(super) fn heal() {
    nft(&["flush", "chain", "inet", "chaos", "out"]);
}

/// Returns the local ports of the gateway's connections to these ports.
pub(super) fn local_ports(gateway: &Gateway, remote: &[u16]) -> Vec<u16> {
    let output = Command::new("ss").args(["-tnpH", "state", "established"]).output().expect("ss is installed");
    let (text, pid) = (String::from_utf8_lossy(&output.stdout).into_owned(), format!("pid={},", gateway.pid()));
    let port = |address: &str| address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    let of_line = |line: &str| {
        let mut addresses = line.split_whitespace().skip(2);
        let (local, peer) = (port(addresses.next()?)?, port(addresses.next()?)?);
        remote.contains(&peer).then_some(local)
    };
    text.lines().filter(|line| line.contains(&pid)).filter_map(of_line).collect()
}

fn nft(arguments: &[&str]) {
    let status = Command::new("nft").args(arguments).status().expect("nft is installed; see tests/run");
    assert!(status.success(), "{arguments:?}");
}
