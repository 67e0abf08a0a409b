//! Compatibility with the vendor's package and public SDKs: each accepts the signatures of the other.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "vendor/sdks.rs"]
mod sdks;
mod support;

use support::{Program, Stream, shell};

const APP: u32 = 1_400_000_001;
const HEX_KEY: &str = "5bd2850fff3ecb11d7c805251c51ee463a25727bddc2385f3fa8bfee1bb93b5e";

/// Keys are text: one looks like hex, one does not, one is not ASCII, and one is short.
const KEYS: &[&str] = &[HEX_KEY, "not hex: \"&<>'\\ *-_=+/", "ключ-鍵", "k"];

/// Identifiers with characters that are special in JSON, HTML, shells or URLs.
const IDENTIFIERS: &[&str] =
    &["administrator", "&<>\"'", "管理员", "é😀", "back\\slash/slash", "a b+c%41=d", "-dash", "@TOA#_x", "x"];

#[test]
fn vendor_package_accepts_our_signatures() {
    let signers = all_signers();
    let requests: Vec<Value> = signers
        .iter()
        .map(|(app, key, identifier)| {
            let usersig = mint(*app, key, identifier);
            json!({"sdkappid": app, "key": key, "identifier": identifier, "usersig": usersig})
        })
        .collect();
    for ((app, key, identifier), error) in signers.iter().zip(vendor(&requests)) {
        assert_eq!(error, Value::Null, "{app} {identifier:?} {key:?}");
    }
}

/// Shows that the verifier of the test above does not accept everything.
#[test]
fn vendor_package_rejects_signatures_for_another_signer() {
    let usersig = mint(APP, HEX_KEY, "administrator");
    let request = |app: u32, key: &str, identifier: &str| json!({"sdkappid": app, "key": key, "identifier": identifier, "usersig": usersig});
    let errors = vendor(&[
        request(APP, "k", "administrator"),
        request(APP + 1, HEX_KEY, "administrator"),
        request(APP, HEX_KEY, "x"),
    ]);
    assert_eq!(errors[0], json!("HMAC differs"));
    let is_for_another = |error: &Value| error.as_str().is_some_and(|text| text.starts_with("wrong app or identifier"));
    assert!(errors[1..].iter().all(is_for_another), "{errors:?}");
}

#[test]
fn inspect_accepts_signatures_of_the_vendor_package() {
    let signers = all_signers();
    let requests: Vec<Value> = signers.iter().map(|(app, key, identifier)| fresh(*app, key, identifier)).collect();
    for ((app, key, identifier), signed) in signers.iter().zip(vendor(&requests)) {
        let output = usersig(&["inspect", signed.as_str().expect("a usersig")], *app, key, identifier);
        assert!(output.status.success(), "{app} {identifier:?} {key:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(&app.to_string()), "{app}: {output:?}");
    }
}

#[test]
fn inspect_rejects_expired_or_foreign_signatures_of_the_vendor_package() {
    let expired = json!({"sdkappid": APP, "key": HEX_KEY, "identifier": "administrator", "expire": 60, "age": 120, "userbuf": null});
    let signed = vendor(&[fresh(APP, HEX_KEY, "administrator"), expired]);
    let (good, old) = (signed[0].as_str().expect("a usersig"), signed[1].as_str().expect("a usersig"));
    assert_eq!(inspect(good, APP, HEX_KEY, "administrator"), Some(0));
    assert_eq!(inspect(old, APP, HEX_KEY, "administrator"), Some(1), "expired");
    assert_eq!(inspect(good, APP, "k", "administrator"), Some(1), "another key");
    assert_eq!(inspect(good, APP, HEX_KEY, "administrator2"), Some(1), "another identifier");
    assert_eq!(inspect(good, APP + 1, HEX_KEY, "administrator"), Some(1), "another app");
    assert_eq!(inspect(&good[..good.len() - 8], APP, HEX_KEY, "administrator"), Some(1), "truncated");
}

#[test]
fn simulator_accepts_calls_signed_by_the_vendor_package() {
    for (key, identifier) in [(HEX_KEY, "administrator"), ("not hex: \"&<>'\\", "管理员 &<>"), ("ключ", "a b+c%41=d")]
    {
        let sandbox = Sandbox::start(key, identifier);
        let usersig = vendor(&[fresh(APP, key, identifier)]).remove(0);
        let response = sandbox.follow_check(APP, identifier, usersig.as_str().expect("a usersig"));
        assert_eq!(response["ErrorCode"], 0, "{identifier:?}: {response}");
        assert_eq!(response["ResultItem"][0]["FollowType"], 2, "{identifier:?}: {response}");
        sandbox.stop();
    }
}

/// Codes: vendor page "Error Codes", 1047/34348.
#[test]
fn simulator_rejects_invalid_signatures_of_the_vendor_package() {
    let sandbox = Sandbox::start(HEX_KEY, "administrator");
    let request = |app: u32, key: &str, identifier: &str, age: u32, userbuf: Option<&str>| json!({"sdkappid": app, "key": key, "identifier": identifier, "expire": 60, "age": age, "userbuf": userbuf});
    let cases = [
        (70009, "another key", request(APP, "k", "administrator", 0, None)),
        (70009, "a userbuf", request(APP, HEX_KEY, "administrator", 0, Some("abc"))),
        (70001, "expired", request(APP, HEX_KEY, "administrator", 120, None)),
        (70013, "another identifier", request(APP, HEX_KEY, "another", 0, None)),
        (70014, "another app", request(APP + 1, HEX_KEY, "administrator", 0, None)),
    ];
    let requests: Vec<Value> = cases.iter().map(|(_, _, request)| request.clone()).collect();
    for ((code, what, _), usersig) in cases.iter().zip(vendor(&requests)) {
        let response = sandbox.follow_check(APP, "administrator", usersig.as_str().expect("a usersig"));
        assert_eq!(response["ErrorCode"], *code, "{what}: {response}");
    }
}

// --- Both sides ---------------------------------------------------------------------------------

/// Returns signers as app, key and identifier: every identifier with one key, every key with one identifier, and the
/// smallest and largest SDKAppID.
fn all_signers() -> Vec<(u32, &'static str, &'static str)> {
    let identifiers = IDENTIFIERS.iter().map(|identifier| (APP, HEX_KEY, *identifier));
    let keys = KEYS.iter().map(|key| (APP, *key, "管理员 &<>"));
    let apps = [1, u32::MAX].map(|app| (app, HEX_KEY, "administrator"));
    identifiers.chain(keys).chain(apps).collect()
}

fn fresh(app: u32, key: &str, identifier: &str) -> Value {
    json!({"sdkappid": app, "key": key, "identifier": identifier, "expire": 3600, "age": 0, "userbuf": null})
}

/// Passes requests to the vendor's package and returns the results. tests/vendor.py describes both.
fn vendor(requests: &[Value]) -> Vec<Value> {
    python("vendor.py", requests, None)
}

/// Passes JSON to a script of `tests/`, with this environment variable, and returns the JSON that it prints.
fn python(script: &str, requests: &[Value], env: Option<(&str, &Path)>) -> Vec<Value> {
    let python = std::env::var_os("CHATGATE_TEST_PYTHON")
        .expect("CHATGATE_TEST_PYTHON must name a Python with the vendor's package; run tests/run, which installs one");
    let mut child = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(script))
        .envs(env)
        .env("NO_PROXY", "*")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("CHATGATE_TEST_PYTHON must name a program; run tests/run, which installs one");
    let input = child.stdin.take().expect("it was piped");
    serde_json::to_writer(input, requests).expect("Python reads the requests");
    let output = child.wait_with_output().expect("Python exits");
    assert!(output.status.success(), "tests/{script}: {}", output.status);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("tests/{script}: {error}"))
}

fn mint(app: u32, key: &str, identifier: &str) -> String {
    let output = usersig(&["mint"], app, key, identifier);
    assert!(output.status.success(), "mint: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("a usersig is ASCII");
    text.strip_suffix('\n').unwrap_or(&text).to_owned()
}

/// Returns the exit code of `usersig inspect`.
fn inspect(text: &str, app: u32, key: &str, identifier: &str) -> Option<i32> {
    usersig(&["inspect", text], app, key, identifier).status.code()
}

fn usersig(command: &[&str], app: u32, key: &str, identifier: &str) -> Output {
    let (_folder, key_file) = key_file(key);
    Command::new(env!("CARGO_BIN_EXE_chatgate"))
        .arg("usersig")
        .args(command)
        .arg(format!("--sdkappid={app}"))
        .arg(format!("--identifier={identifier}"))
        .arg(format!("--key-file={}", key_file.display()))
        .stdin(Stdio::null())
        .output()
        .expect("the program starts")
}

/// Writes the key as the only line of a file. Dropping the folder, which only its owner can read, removes both.
fn key_file(key: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("key");
    let mut file = std::fs::File::create(&path).expect("a new file");
    writeln!(file, "{key}").expect("a line in it");
    (folder, path)
}

// --- The sandbox --------------------------------------------------------------------------------

struct Sandbox {
    program: Program,
    address: String,
}

impl Sandbox {
    /// Starts a simulator of one app in which alice follows bob.
    fn start(key: &str, identifier: &str) -> Self {
        let mut program = Program::start(&[
            "sandbox",
            "--listen=127.0.0.1:0",
            &format!("--sdkappid={APP}"),
            &format!("--identifier={identifier}"),
            &format!("--secret-key={key}"),
        ]);
        let address = program.wait_until(|program| program.lines_on(Stream::Stderr).find_map(sandbox_address));
        let sandbox = Self { program, address };
        sandbox.post("/__sandbox/graph", &json!({"users": ["alice", "bob"], "edges": [["alice", "bob"]]}));
        sandbox
    }

    /// Calls `follow_check` from alice to bob in the vendor's documented format, and returns the response.
    fn follow_check(&self, app: u32, identifier: &str, usersig: &str) -> Value {
        let identifier = utf8_percent_encode(identifier, NON_ALPHANUMERIC);
        let target = format!(
            "/v4/follow/follow_check?sdkappid={app}&identifier={identifier}&usersig={usersig}&random=7&contenttype=json"
        );
        let body = self.post(&target, &json!({"From_Account": "alice", "To_Account": ["bob"]}));
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"))
    }

    /// Posts a body and returns the response's body. Chat always answers with status 200; curl and the test fail for
    /// any other status.
    fn post(&self, target: &str, body: &Value) -> String {
        shell(&format!("curl -sS --fail --max-time 20 -d '{body}' 'http://{}{target}'", self.address))
    }

    fn stop(mut self) {
        let status = self.program.stop();
        assert!(status.success(), "{status}");
    }
}

/// Returns the address in the log line of the simulator's listener.
fn sandbox_address(line: &str) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    (event["listener"] == "sandbox").then(|| event["address"].as_str().map(str::to_owned))?
}
