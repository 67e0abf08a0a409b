//! `[package.metadata.deb]` of Cargo.toml. No package is built here, because that needs a release build.

use std::process::Command;

use serde_json::Value;

use crate::{project, read};

#[test]
fn debian_package_contains_all_referenced_files() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--locked", "--offline", "--format-version", "1"])
        .current_dir(project("."))
        .output()
        .expect("cargo starts");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let deb = &metadata["packages"][0]["metadata"]["deb"];
    let mut targets = Vec::new();
    for asset in deb["assets"].as_array().expect("assets") {
        let [from, to] = [0, 1].map(|place| asset[place].as_str().expect("a path"));
        let exists = match from {
            "target/release/chatgate" => true,
            _ => project(from.strip_suffix("/*.md").unwrap_or(from)).exists(),
        };
        assert!(exists, "{from}");
        let name = if to.ends_with('/') { from.rsplit('/').next().expect("a name") } else { "" };
        targets.push(format!("/{to}{name}"));
    }
    let require = |path: &str| assert!(targets.iter().any(|target| target == path), "{path} is not in {targets:?}");
    // Files kept during an upgrade, files that the unit starts and reads, and the group of callers.
    deb["conf-files"].as_array().expect("conf-files").iter().filter_map(Value::as_str).for_each(require);
    let unit = read("deploy/systemd/chatgate.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("an ExecStart");
    start.split(' ').filter(|word| word.starts_with('/')).for_each(require);
    let documentation = unit.lines().find_map(|line| line.strip_prefix("Documentation=file://")).expect("a document");
    require(documentation);
    require("/usr/lib/systemd/system/chatgate.socket");
    require("/usr/lib/sysusers.d/chatgate.conf");
}
