//! deploy/openapi: the documents are valid, and schemathesis generates valid and invalid requests, and compares the
//! responses with them. `/metrics`: the client library of Prometheus reads it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Program, Stream, shell};
use crate::{printed, python_tool, read, run_with, yaml};

/// Checks that do not apply to the data listener. Chat reports errors with HTTP 200 and an ErrorCode, so the status
/// does not depend on the request; and a healthy gateway may return 502 to 504.
const EXCLUDED_DATA_CHECKS: &str = "positive_data_acceptance,negative_data_rejection,not_a_server_error";

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

/// A gateway in front of a simulator.
struct Gateway {
    _sandbox: Program,
    _program: Program,
    data: String,
    admin: String,
    _folder: TempDir,
}

impl Gateway {
    fn start() -> Self {
        Self::start_with("")
    }

    /// Starts with further sections.
    fn start_with(sections: &str) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("key"), "key-of-the-sandbox\n").expect("own folder");
        let mut sandbox = Program::start(&["sandbox", "--listen", "127.0.0.1:0", "--secret-key", "key-of-the-sandbox"]);
        let endpoint = address(&mut sandbox, None);
        let file = folder.path().join("chatgate.toml");
        fs::write(&file, format!("{CONFIG}endpoint = \"http://{endpoint}\"\n{sections}")).expect("own folder");
        let mut program = Program::start(&["serve", "--config", file.to_str().expect("a plain path")]);
        let (data, admin) = (address(&mut program, Some("data")), address(&mut program, Some("admin")));
        shell(&format!(
            r#"curl -sf http://{endpoint}/__sandbox/graph -d '{{"users":["alice","bob","carol"],"edges":[["alice","bob"]]}}'"#
        ));
        Self { _sandbox: sandbox, _program: program, data, admin, _folder: folder }
    }
}

/// Returns the address that a program reports for a listener.
fn address(program: &mut Program, listener: Option<&str>) -> String {
    program.wait_until(|program| {
        let events = program.lines_on(Stream::Stderr).filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut found = events.filter(|event| listener.is_none_or(|listener| event["listener"] == listener));
        found.find_map(|event| event["address"].as_str().map(str::to_owned))
    })
}

/// Runs schemathesis with a document against an address.
fn explore(document: &Path, address: &str, more: &[&str]) -> Output {
    // schemathesis leaves a folder in its working directory.
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
        .expect("schemathesis starts")
}

#[test]
fn data_listener_conforms_to_its_document() {
    let gateway = Gateway::start();
    let document = crate::project("deploy/openapi/data.yaml");
    let output = explore(&document, &gateway.data, &["--exclude-checks", EXCLUDED_DATA_CHECKS]);
    assert!(output.status.success(), "{}", printed(&output));
}

#[test]
fn rejected_callers_conform_to_the_document() {
    let gateway = Gateway::start_with("[[caller]]\nname = 'sdk'\nusersig_key_file = 'key'\n");
    let document = crate::project("deploy/openapi/data.yaml");
    let output = explore(&document, &gateway.data, &["--exclude-checks", EXCLUDED_DATA_CHECKS]);
    assert!(output.status.success(), "{}", printed(&output));
    // The code of Chat is one of those in the document.
    let target = "/v4/follow/follow_check?sdkappid=1400000001&identifier=sdk&usersig=eJx";
    let body = shell(&format!("curl -s -d '{{}}' 'http://{}{target}'", gateway.data));
    assert!(body.contains("\"ErrorCode\":70003"), "{body}");
    let text = read("deploy/openapi/data.yaml");
    let (from, to) = ("enum: [129401, 70001", "enum: [70001");
    assert!(text.contains(from), "{from}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let other = folder.path().join("data.yaml");
    fs::write(&other, text.replace(from, to)).expect("own folder");
    let output = explore(&other, &gateway.data, &["--exclude-checks", EXCLUDED_DATA_CHECKS]);
    assert!(!output.status.success(), "a wrong document passed");
}

#[test]
fn admin_listener_conforms_to_its_document() {
    let gateway = Gateway::start();
    let document = crate::project("deploy/openapi/admin.yaml");
    // tests/gateway covers /quit.
    let output = explore(&document, &gateway.admin, &["--exclude-path", "/quit"]);
    assert!(output.status.success(), "{}", printed(&output));

    // A wrong document must fail.
    let text = read("deploy/openapi/admin.yaml");
    let (from, to) = ("required: [evicted]", "required: [evicted, when]");
    assert!(text.contains(from), "{from}");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let other = folder.path().join("admin.yaml");
    fs::write(&other, text.replace(from, to)).expect("own folder");
    let output = explore(&other, &gateway.admin, &["--include-path", "/cache/evict"]);
    assert!(printed(&output).contains("when"), "{}", printed(&output));
    assert!(!output.status.success(), "a wrong document passed");
}

#[test]
fn openapi_documents_list_every_slug_and_admin_path() {
    let data = yaml(&read("deploy/openapi/data.yaml")).remove(0);
    let listed = data["components"]["headers"]["ChatgateError"]["schema"]["enum"].as_array().expect("slugs");
    let listed: BTreeSet<&str> = listed.iter().filter_map(Value::as_str).collect();
    let code = read("src/error.rs");
    let slugs = code.split_once("\nslugs! {").and_then(|(_, rest)| rest.split_once("\n}")).expect("the slugs").0;
    let slugs = slugs.lines().filter_map(|line| line.split('"').nth(1));
    assert_eq!(listed, slugs.collect(), "the slugs of src/error.rs");

    let admin = yaml(&read("deploy/openapi/admin.yaml")).remove(0);
    let gateway = Gateway::start();
    let not_found = shell(&format!("curl -s http://{}/what", gateway.admin));
    let listed: BTreeSet<&str> = not_found.split([' ', ',', '\n']).filter(|word| word.starts_with('/')).collect();
    assert!(listed.len() > 5, "the 404 response lists no paths: {not_found}");
    let paths = admin["paths"].as_object().expect("paths");
    let missing: Vec<&&str> = listed.iter().filter(|path| !paths.contains_key(**path)).collect();
    assert!(missing.is_empty(), "admin.yaml does not describe {missing:?}");
}

#[test]
fn openapi_documents_follow_the_specification() {
    let validate = |document: &Path| python_tool("openapi-spec-validator").arg(document).output().expect("it starts");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let other = folder.path().join("other.yaml");
    for name in ["deploy/openapi/data.yaml", "deploy/openapi/admin.yaml"] {
        let output = validate(&crate::project(name));
        assert!(output.status.success(), "{}", printed(&output));
        // A wrong document must fail.
        let text = read(name);
        assert!(text.contains("\n  version: "), "{name}");
        fs::write(&other, text.replace("\n  version: ", "\n  versions: ")).expect("own folder");
        assert!(!validate(&other).status.success(), "a wrong document passed");
    }
}

#[test]
fn metrics_are_read_by_the_client_library_of_prometheus() {
    const SCRIPT: &str = "import json, sys\n\
        from prometheus_client.parser import text_string_to_metric_families as read\n\
        print(json.dumps([[one.name, one.type, one.documentation, len(one.samples)] for one in read(sys.stdin.read())]))";
    let read_all = |text: &str| run_with(python_tool("python").args(["-c", SCRIPT]), text);
    let gateway = Gateway::start();
    let body = r#"{"From_Account":"alice","To_Account":["bob"]}"#;
    shell(&format!("curl -sf http://{}/v4/follow/follow_check -d '{body}'", gateway.data));
    let text = shell(&format!("curl -sf http://{}/metrics", gateway.admin));
    let output = read_all(&text);
    assert!(output.status.success(), "{}", printed(&output));
    let families: Vec<(String, String, String, usize)> = serde_json::from_slice(&output.stdout).expect("JSON");
    for (name, kind, help, _) in &families {
        assert!(["counter", "gauge", "histogram"].contains(&&**kind) && !help.is_empty(), "{name}: {kind} {help:?}");
    }
    let names: BTreeSet<&str> = families.iter().map(|(name, ..)| &**name).collect();
    assert_eq!(names.len(), families.len(), "a metric is in two pieces");
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(families.iter().map(|(.., samples)| samples).sum::<usize>(), samples);
    assert!(samples > 50, "{text}");
    assert!(!read_all(&text.replace("_total{", "_total{=")).status.success(), "wrong labels passed");
}
