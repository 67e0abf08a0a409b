//! The files in deploy/ are valid and match the program: each format's own tools accept them, and their statements
//! about the program are correct. tests/run installs the tools.

mod alerts;
mod compose;
mod image;
mod kubernetes;
mod openapi;
mod queries;
mod release;
#[path = "../support/mod.rs"]
mod support;
mod systemd;

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// Returns the path of a file or folder of the project.
fn project(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(project(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Returns a command for a required tool. `package` is the name of the package that tests/run installs.
fn tool(name: &str, package: &str) -> Command {
    let found = Command::new("sh").args(["-c", "command -v \"$0\"", name]).stdout(Stdio::null()).status();
    assert!(found.expect("sh runs").success(), "{name} is missing; run tests/run, which installs {package}");
    let mut command = Command::new(name);
    command.stdin(Stdio::null()).current_dir(project("."));
    command
}

/// Returns a command for a program of the tests' Python environment.
fn python_tool(name: &str) -> Command {
    let python = std::env::var("CHATGATE_TEST_PYTHON")
        .map_or_else(|_| project("target/test-tools/python/bin/python"), PathBuf::from);
    let program = python.with_file_name(name);
    assert!(program.exists(), "{} is missing; run tests/run, which installs it", program.display());
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).current_dir(project("."));
    command
}

/// Runs a command with `text` as its stdin, and returns the output.
fn run_with(command: &mut Command, text: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // A tool that exits before it has read everything reports the reason in its output.
    let _ = child.stdin.take().expect("it was piped").write_all(text.as_bytes());
    child.wait_with_output().expect("own child")
}

/// Returns stdout and stderr, for failure messages.
fn printed(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns a section of docs/deployment.md, up to the next heading of its level.
fn guide(heading: &str) -> String {
    let page = read("docs/deployment.md");
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    section.split("\n## ").next().unwrap_or_default().to_owned()
}

#[test]
fn every_guide_ends_in_a_command_that_proves_it_works() {
    for heading in ["systemd", "Kubernetes", "Docker", "Demo environment"] {
        let guide = guide(heading);
        let last = guide.rsplit("```sh\n").next().and_then(|rest| rest.split_once("\n```"));
        let (commands, remedy) = last.unwrap_or_else(|| panic!("{heading}: no commands"));
        assert!(commands.contains("/v4/follow/follow_check"), "{heading} ends in: {commands}");
        assert!(remedy.contains("ErrorCode\":0"), "{heading} does not say what the last command prints");
    }
    assert!(guide("Debian package").contains("last step tests the service"));
}

/// Asserts that the arguments of a Redis server forbid evictions, as docs/fleet.md demands.
fn assert_redis_evicts_nothing(arguments: &Value) {
    let arguments: Vec<&str> = arguments.as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(arguments.windows(2).any(|pair| pair == ["--maxmemory-policy", "noeviction"]), "{arguments:?}");
    assert!(read("docs/fleet.md").contains("`maxmemory-policy noeviction`"), "docs/fleet.md no longer demands it");
}

/// Parses the documents of a YAML text.
fn yaml(text: &str) -> Vec<Value> {
    let script = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))";
    let output = run_with(python_tool("python").args(["-c", script]), text);
    assert!(output.status.success(), "{}\n{text}", printed(&output));
    serde_json::from_slice(&output.stdout).expect("JSON was printed")
}

/// Asserts that `chatgate check` accepts a configuration. `paths` are the secrets' paths, which are replaced by
/// temporary files.
fn check_configuration(name: &str, paths: &[&str]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut config = read(name);
    for (path, number) in paths.iter().zip(1..) {
        let file = folder.path().join(format!("secret-{number}"));
        let secret = if path.ends_with("redis-url") {
            "redis://:secret@127.0.0.1:6379\n".to_owned()
        } else {
            format!("{}{number}\n", "5b".repeat(32))
        };
        fs::write(&file, secret).expect("a secret's file");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("own file");
        assert!(config.contains(path), "{name} does not name {path}");
        config = config.replace(path, file.to_str().expect("a plain path"));
    }
    let file = folder.path().join("chatgate.toml");
    fs::write(&file, config).expect("a configuration");
    let output = Command::new(env!("CARGO_BIN_EXE_chatgate"))
        .args(["check", "--config"])
        .arg(&file)
        .env("CHAT_KEY", "5b".repeat(32))
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    let problems: Vec<&str> = stderr.lines().filter(|line| !line.starts_with("warning:")).collect();
    assert!(problems.is_empty() && output.status.success(), "{name}: {}\n{stderr}", output.status);
}
