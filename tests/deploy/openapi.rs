//! deploy/openapi: schemathesis makes up requests, good and bad ones, and compares what the program answers.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Program, Stream, shell};
use crate::{python_tool, read, said, yaml};

/// Chat says no with HTTP 200 and an ErrorCode, so its status tells nothing of the question; and 502 to 504 are
/// answers of a gateway that is well.
const LEFT_OUT_OF_DATA: &str = "positive_data_acceptance,negative_data_rejection,not_a_server_error";

const CONFIG: &str = r#"
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
[access]
allow = ["*"]
[[app]]
name = "demo"
sdkappid = 1400000001
region = "tokyo"
secret_key_file = "key"
"#;

/// A gateway, and a sandbox behind it.
struct Gateway {
    _sandbox: Program,
    _program: Program,
    data: String,
    admin: String,
    _folder: TempDir,
}

impl Gateway {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("key"), "key-of-the-sandbox\n").expect("own folder");
        let mut sandbox = Program::start(&["sandbox", "--listen", "127.0.0.1:0", "--secret-key", "key-of-the-sandbox"]);
        let endpoint = address(&mut sandbox, None);
        let file = folder.path().join("chatgate.toml");
        fs::write(&file, format!("{CONFIG}endpoint = \"http://{endpoint}\"\n")).expect("own folder");
        let mut program = Program::start(&["serve", "--config", file.to_str().expect("a plain path")]);
        let (data, admin) = (address(&mut program, Some("data")), address(&mut program, Some("admin")));
        shell(&format!(
            r#"curl -sf http://{endpoint}/__sandbox/graph -d '{{"users":["alice","bob","carol"],"edges":[["alice","bob"]]}}'"#
        ));
        Self { _sandbox: sandbox, _program: program, data, admin, _folder: folder }
    }
}

/// Where a program says that it listens.
fn address(program: &mut Program, listener: Option<&str>) -> String {
    program.wait_until(|program| {
        let events = program.heard(Stream::Stderr).filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut found = events.filter(|event| listener.is_none_or(|listener| event["listener"] == listener));
        found.find_map(|event| event["address"].as_str().map(str::to_owned))
    })
}

/// Asks the program at an address for what the document at a path says.
fn explore(document: &Path, address: &str, more: &[&str]) -> Output {
    // Where it runs it leaves a folder behind.
    let folder = tempfile::tempdir().expect("a temporary folder");
    python_tool("schemathesis")
        .current_dir(folder.path())
        .arg("run")
        .arg(document)
        .args(["--url", &format!("http://{address}"), "--phases", "examples,coverage,fuzzing"])
        .args(["-n", "10", "--generation-deterministic", "--no-color"])
        .args(more)
        .env("NO_PROXY", "*")
        .output()
        .expect("it starts")
}

#[test]
fn callers_are_answered_as_the_document_says() {
    let gateway = Gateway::start();
    let document = crate::project("deploy/openapi/data.yaml");
    let output = explore(&document, &gateway.data, &["--exclude-checks", LEFT_OUT_OF_DATA]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn operators_are_answered_as_the_document_says() {
    let gateway = Gateway::start();
    let document = crate::project("deploy/openapi/admin.yaml");
    // What /quit does is the matter of tests/gateway.
    let output = explore(&document, &gateway.admin, &["--exclude-path", "/quit"]);
    assert!(output.status.success(), "{}", said(&output));

    // And a document that says something else would be found out.
    let text = read("deploy/openapi/admin.yaml");
    let (from, to) = ("required: [evicted]", "required: [evicted, when]");
    assert!(text.contains(from), "{from}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let other = folder.path().join("admin.yaml");
    fs::write(&other, text.replace(from, to)).expect("own folder");
    let output = explore(&other, &gateway.admin, &["--include-path", "/cache/evict"]);
    assert!(said(&output).contains("when"), "{}", said(&output));
    assert!(!output.status.success(), "another document passed");
}

#[test]
fn the_documents_leave_nothing_out() {
    let data = yaml(&read("deploy/openapi/data.yaml")).remove(0);
    let listed = data["components"]["headers"]["ChatgateError"]["schema"]["enum"].as_array().expect("slugs");
    let listed: BTreeSet<&str> = listed.iter().filter_map(Value::as_str).collect();
    let code = read("src/error.rs");
    let table: Vec<&str> = code.split('"').collect();
    let slugs = table.windows(2).filter(|pair| pair[1].starts_with(", StatusCode::")).map(|pair| pair[0]);
    assert_eq!(listed, slugs.collect(), "the slugs of src/error.rs");

    let admin = yaml(&read("deploy/openapi/admin.yaml")).remove(0);
    let gateway = Gateway::start();
    let there = shell(&format!("curl -s http://{}/what", gateway.admin));
    let words: BTreeSet<&str> = there.split([' ', ',', '\n']).filter(|word| word.starts_with('/')).collect();
    assert!(words.len() > 5, "it no longer says what there is: {there}");
    let paths = admin["paths"].as_object().expect("paths");
    let left: Vec<&&str> = words.iter().filter(|word| !paths.contains_key(**word)).collect();
    assert!(left.is_empty(), "admin.yaml says nothing of {left:?}");
}
