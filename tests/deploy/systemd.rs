//! deploy/systemd.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{check_configuration, read, said, tool};

/// Exposure that `systemd-analyze security` may find, in tenths: 0 is none, 100 is all.
const EXPOSURE_MAX: &str = "20";

fn analyze() -> Command {
    tool("systemd-analyze", "systemd")
}

/// Copies the units to a folder, with the program of these tests in the place of the installed one.
fn install(folder: &Path, version: u32) {
    let service = read("deploy/systemd/chatgate.service");
    assert!(service.contains("ExecStart=/usr/bin/chatgate serve"), "{service}");
    let service = service.replace("/usr/bin/chatgate", env!("CARGO_BIN_EXE_chatgate"));
    fs::write(folder.join("chatgate.service"), service).expect("own folder");
    fs::write(folder.join("chatgate.socket"), read("deploy/systemd/chatgate.socket")).expect("own folder");
    if version < 253 {
        let drop_ins = folder.join("chatgate.service.d");
        fs::create_dir(&drop_ins).expect("own folder");
        fs::write(drop_ins.join("before-253.conf"), read("deploy/systemd/before-253.conf")).expect("own folder");
    }
}

/// Of the systemd that is installed here: the second word of `systemd 252 (252.38-1)`.
fn version() -> u32 {
    let output = analyze().arg("--version").output().expect("it starts");
    let text = said(&output);
    text.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no version: {text}"))
}

/// What `systemd-analyze verify` says of the units in a folder, without what older ones cannot know.
fn complaints(folder: &Path, version: u32) -> Vec<String> {
    let units = ["chatgate.service", "chatgate.socket"].map(|unit| folder.join(unit));
    let output = analyze().arg("verify").args(units).output().expect("it starts");
    let unknown = |line: &&str| version < 253 && line.ends_with("ignoring: notify-reload");
    said(&output).lines().filter(|line| line.contains("chatgate") && !unknown(line)).map(str::to_owned).collect()
}

#[test]
fn the_units_are_understood() {
    let (folder, version) = (tempfile::tempdir().expect("a temporary folder"), version());
    install(folder.path(), version);
    let found = complaints(folder.path(), version);
    assert!(found.is_empty(), "{found:#?}");

    // And what is wrong would be seen.
    let socket = folder.path().join("chatgate.socket");
    fs::write(&socket, read("deploy/systemd/chatgate.socket").replace("SocketMode=", "SocketMood="))
        .expect("own folder");
    assert!(!complaints(folder.path(), version).is_empty(), "a key that is not there passed");
}

#[test]
fn the_service_is_locked_down() {
    let output = analyze()
        .args(["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE_MAX])
        .arg("deploy/systemd/chatgate.service")
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_socket_is_the_one_that_the_configuration_names() {
    check_configuration("deploy/systemd/chatgate.toml", &["/run/credentials/chatgate.service/chat-key"]);
    let socket = read("deploy/systemd/chatgate.socket");
    let path = socket.lines().find_map(|line| line.strip_prefix("ListenStream=")).expect("a ListenStream");
    assert!(read("deploy/systemd/chatgate.toml").contains(&format!("listen = \"unix:{path}\"")), "{path}");
    let group = socket.lines().find_map(|line| line.strip_prefix("SocketGroup=")).expect("a SocketGroup");
    assert!(read("deploy/systemd/chatgate.sysusers").lines().any(|line| line == format!("g {group} -")), "{group}");
    assert!(read("deploy/systemd/chatgate.service").contains("LoadCredential=chat-key:"), "the key is loaded");
}
