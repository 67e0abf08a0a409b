//! `[package.metadata.deb]` of Cargo.toml. No package is built here, for that takes a build for release.

use std::process::Command;

use serde_json::Value;

use crate::{project, read};

#[test]
fn the_package_s_files_are_there() {
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
        let there = match from {
            "target/release/chatgate" => true,
            _ => project(from.strip_suffix("/*.md").unwrap_or(from)).exists(),
        };
        assert!(there, "{from}");
        let name = if to.ends_with('/') { from.rsplit('/').next().expect("a name") } else { "" };
        targets.push(format!("/{to}{name}"));
    }
    let wanted = |path: &str| assert!(targets.iter().any(|target| target == path), "{path} is not in {targets:?}");
    // What is kept at an upgrade, what the unit starts and reads, and who may call.
    deb["conf-files"].as_array().expect("conf-files").iter().filter_map(Value::as_str).for_each(wanted);
    let unit = read("deploy/systemd/chatgate.service");
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).expect("an ExecStart");
    start.split(' ').filter(|word| word.starts_with('/')).for_each(wanted);
    let documentation = unit.lines().find_map(|line| line.strip_prefix("Documentation=file://")).expect("a document");
    wanted(documentation);
    wanted("/usr/lib/systemd/system/chatgate.socket");
    wanted("/usr/lib/sysusers.d/chatgate.conf");
}
