//! deploy/systemd.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{check_configuration, guide, printed, project, read, tool};

/// Maximum exposure level of `systemd-analyze security`, in tenths: 0 is no exposure, 100 is full exposure.
const EXPOSURE_MAX: &str = "20";

fn analyze() -> Command {
    tool("systemd-analyze", "systemd")
}

/// Copies the units to a folder, with the tested program instead of the installed one.
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

/// Returns the version of the installed systemd: the second word of `systemd 252 (252.38-1)`.
fn version() -> u32 {
    let output = analyze().arg("--version").output().expect("it starts");
    let text = printed(&output);
    text.split_whitespace().nth(1).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no version: {text}"))
}

/// Returns the problems that `systemd-analyze verify` finds in the units, except settings unknown to older versions.
fn problems(folder: &Path, version: u32) -> Vec<String> {
    let units = ["chatgate.service", "chatgate.socket"].map(|unit| folder.join(unit));
    let output = analyze().arg("verify").args(units).output().expect("it starts");
    let unknown = |line: &&str| version < 253 && line.ends_with("ignoring: notify-reload");
    printed(&output).lines().filter(|line| line.contains("chatgate") && !unknown(line)).map(str::to_owned).collect()
}

#[test]
fn systemd_accepts_the_units() {
    let (folder, version) = (tempfile::tempdir().expect("a temporary folder"), version());
    install(folder.path(), version);
    let found = problems(folder.path(), version);
    assert!(found.is_empty(), "{found:#?}");

    // A wrong unit must fail.
    let socket = folder.path().join("chatgate.socket");
    fs::write(&socket, read("deploy/systemd/chatgate.socket").replace("SocketMode=", "SocketMood="))
        .expect("own folder");
    assert!(!problems(folder.path(), version).is_empty(), "an unknown key passed");
}

#[test]
fn service_exposure_is_below_the_limit() {
    let output = analyze()
        .args(["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE_MAX])
        .arg("deploy/systemd/chatgate.service")
        .output()
        .expect("systemd-analyze starts");
    assert!(output.status.success(), "{}", printed(&output));
}

#[test]
fn configuration_names_the_socket_of_the_unit() {
    check_configuration("deploy/systemd/chatgate.toml", &["/run/credentials/chatgate.service/chat-key"]);
    let socket = read("deploy/systemd/chatgate.socket");
    let path = socket.lines().find_map(|line| line.strip_prefix("ListenStream=")).expect("a ListenStream");
    assert!(read("deploy/systemd/chatgate.toml").contains(&format!("listen = \"unix:{path}\"")), "{path}");
    let group = socket.lines().find_map(|line| line.strip_prefix("SocketGroup=")).expect("a SocketGroup");
    assert!(read("deploy/systemd/chatgate.sysusers").lines().any(|line| line == format!("g {group} -")), "{group}");
    assert!(
        read("deploy/systemd/chatgate.service").contains("LoadCredential=chat-key:"),
        "the service does not load the key"
    );
}

/// The path of the credential exists only inside the unit, so the guide sets a variable for commands outside of it.
#[test]
fn documented_variable_makes_the_configuration_usable_outside_the_unit() {
    const VARIABLE: &str = "CHATGATE__APP__0__SECRET_KEY_FILE";
    let (guide, config) = (guide("systemd"), read("deploy/systemd/chatgate.toml"));
    for text in [&guide, &config] {
        assert!(text.contains(&format!("{VARIABLE}=/etc/chatgate/chat-key")), "{text}");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let key = folder.path().join("chat-key");
    fs::write(&key, "5b".repeat(32)).expect("own folder");
    let check = |key: Option<&Path>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chatgate"));
        command.args(["check", "--config"]).arg(project("deploy/systemd/chatgate.toml"));
        let output = command.envs(key.map(|key| (VARIABLE, key))).output().expect("the program starts");
        output.status.code()
    };
    assert_eq!((check(Some(&key)), check(None)), (Some(0), Some(78)));
}
