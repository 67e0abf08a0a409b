//! Services keep their SDK: signatures of Tencent's package, and public SDKs from PyPI, against a gateway that verifies
//! them as a caller's and signs again.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Program, Stream, shell};
use crate::{APP, HEX_KEY, python, vendor};

/// The key with which the caller's SDK signs; Chat does not know it.
const SDK_KEY: &str = "key of the caller's own SDK: \"&<>'\\ ключ";
const CHAT_KEY: &str = "key-of-the-sandbox";
/// The domain that SDKs without a base URL call.
const DOMAIN: &str = "console.tim.qq.com";

/// A gateway with one caller, `sdk`, in front of a simulator.
struct Gateway {
    program: Program,
    simulator: Program,
    address: String,
    sandbox: String,
    folder: TempDir,
}

impl Gateway {
    /// Starts it with these lines in `[server]`.
    fn start(folder: TempDir, server: &str) -> Self {
        let mut sandbox = Program::start(&["sandbox", "--listen=127.0.0.1:0", &format!("--secret-key={CHAT_KEY}")]);
        let chat = sandbox.address("sandbox");
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).expect("own folder");
        write("chat-key", CHAT_KEY);
        write("sdk-key", SDK_KEY);
        let config = format!(
            "[server]\nlisten = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n{server}\n\
             [[app]]\nname = 'main'\nsdkappid = {APP}\nendpoint = 'http://{chat}'\nsecret_key_file = 'chat-key'\n\
             [[caller]]\nname = 'sdk'\nusersig_key_file = 'sdk-key'\nallow = ['*']\n\
             [log]\nlevel = 'trace'\nrequests = 'all'\n"
        );
        write("chatgate.toml", &config);
        let file = folder.path().join("chatgate.toml");
        let mut program = Program::start(&["serve", "--config", file.to_str().expect("a plain path")]);
        let address = program.address("data");
        Self { program, simulator: sandbox, address, sandbox: chat, folder }
    }

    fn port(&self) -> u16 {
        self.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("ip:port")
    }

    /// Ends the simulator: from then on, chatgate answers calls with status 502.
    fn stop_simulator(&mut self) {
        assert!(self.simulator.stop().success());
    }

    /// Ends chatgate, and asserts that its output has neither a key nor a UserSig.
    fn stop(mut self) {
        assert!(self.program.stop().success());
        let streams = [Stream::Stdout, Stream::Stderr];
        let lines: Vec<&str> = streams.into_iter().flat_map(|stream| self.program.lines_on(stream)).collect();
        assert!(lines.iter().any(|line| line.contains("\"outcome\"")), "the log has no request");
        for line in lines {
            assert!(!line.contains(&SDK_KEY[..27]) && !line.contains(CHAT_KEY), "{line}");
            assert!(!has_usersig(line), "{line}");
        }
    }

    /// Returns the calls that reached the simulator, as path, identifier, and error code.
    fn journal(&self) -> Vec<(String, String, i64)> {
        let text = shell(&format!("curl -sSf http://{}/__sandbox/journal", self.sandbox));
        let journal: Value = serde_json::from_str(&text).expect("JSON");
        let calls = journal["calls"].as_array().expect("a list").iter();
        let text = |call: &Value, name: &str| call[name].as_str().unwrap_or_default().to_owned();
        calls
            .map(|call| (text(call, "path"), text(call, "identifier"), call["error_code"].as_i64().unwrap_or(-1)))
            .collect()
    }
}

/// Returns whether a text has a UserSig, which is zlib in base64: a piece of its alphabet that begins with `eJ`.
fn has_usersig(text: &str) -> bool {
    let is_of_alphabet = |character: char| character.is_ascii_alphanumeric() || "*-_".contains(character);
    text.split(|character| !is_of_alphabet(character)).any(|piece| piece.starts_with("eJ") && piece.len() > 40)
}

/// Runs SDKs; tests/vendor/sdks.py describes jobs and results.
fn run(jobs: &[Value], ca: Option<&Path>) -> Vec<Vec<Value>> {
    let results = python("vendor/sdks.py", jobs, ca.map(|ca| ("REQUESTS_CA_BUNDLE", ca)));
    results.into_iter().map(|result| result.as_array().expect("one for each call").clone()).collect()
}

#[test]
fn signatures_of_the_vendor_package_identify_a_caller() {
    let gateway = Gateway::start(tempfile::tempdir().expect("a folder"), "");
    let job = |app: u32, key: &str, identifier: &str, age: u32, userbuf: Option<&str>| json!({"sdkappid": app, "key": key, "identifier": identifier, "expire": 60, "age": age, "userbuf": userbuf});
    let cases = [
        (0, "valid", job(APP, SDK_KEY, "sdk", 0, None)),
        (70001, "expired", job(APP, SDK_KEY, "sdk", 120, None)),
        (70009, "another key", job(APP, HEX_KEY, "sdk", 0, None)),
        (70009, "the app's key", job(APP, CHAT_KEY, "sdk", 0, None)),
        (70009, "a userbuf", job(APP, SDK_KEY, "sdk", 0, Some("abc"))),
        (70013, "another identifier", job(APP, SDK_KEY, "administrator", 0, None)),
        (70014, "another app", job(APP + 1, SDK_KEY, "sdk", 0, None)),
        (0, "valid again", job(APP, SDK_KEY, "sdk", 1, None)),
    ];
    let jobs: Vec<Value> = cases.iter().map(|(_, _, job)| job.clone()).collect();
    for ((code, what, _), usersig) in cases.iter().zip(vendor(&jobs)) {
        let usersig = usersig.as_str().expect("a usersig");
        assert!(has_usersig(&format!("usersig={usersig}&x")), "{usersig}");
        let target = format!(
            "v4/im_open_login_svc/account_check?sdkappid={APP}&identifier=sdk&usersig={usersig}&random=7&contenttype=json"
        );
        let body = shell(&format!(
            "curl -sS -d '{{\"CheckItem\":[{{\"UserID\":\"ann\"}}]}}' 'http://{}/{target}'",
            gateway.address
        ));
        let response: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(response["ErrorCode"], *code, "{what}: {response}");
    }
    let journal = gateway.journal();
    assert_eq!(journal.len(), 2, "{journal:?}");
    assert!(journal.iter().all(|(_, identifier, code)| identifier == "administrator" && *code == 0), "{journal:?}");
    gateway.stop();
}

#[test]
fn sdk_with_a_base_url_needs_only_another_one() {
    let mut gateway = Gateway::start(tempfile::tempdir().expect("a folder"), "");
    let url = format!("http://{}/v4", gateway.address);
    let job = |key: &str| json!({"sdk": "tencentcloud", "sdkappid": APP, "key": key, "identifier": "sdk", "url": url});
    let results = run(&[job(SDK_KEY), job(HEX_KEY)], None);
    for result in &results[0] {
        assert_eq!((&result["status"], &result["ErrorCode"]), (&200.into(), &0.into()), "{result}");
    }
    for result in &results[1] {
        assert_eq!((&result["status"], &result["ErrorCode"]), (&401.into(), &70009.into()), "{result}");
    }
    let journal = gateway.journal();
    let paths: Vec<&str> = journal.iter().map(|(path, ..)| path.as_str()).collect();
    assert_eq!(paths, ["/v4/im_open_login_svc/account_import", "/v4/openim/query_online_status"], "{journal:?}");
    assert!(journal.iter().all(|(_, identifier, _)| identifier == "administrator"), "{journal:?}");
    // It returns an error of 500 and above too, and does not retry.
    gateway.stop_simulator();
    for result in run(&[job(SDK_KEY)], None).concat() {
        assert_eq!((&result["status"], &result["ErrorCode"]), (&502.into(), &129_502.into()), "{result}");
    }
    gateway.stop();
}

/// Writes a certificate for [`DOMAIN`], its key, and its private CA, with all that strict clients ask for.
fn write_certificate(folder: &Path) {
    let write = |name: &str, text: String| fs::write(folder.join(name), text).expect("own folder");
    let (ca_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
    let mut ca = CertificateParams::new(Vec::new()).expect("no names");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name.push(DnType::CommonName, "private CA");
    write("ca.pem", ca.self_signed(&ca_key).expect("signed").pem());
    let mut params = CertificateParams::new([DOMAIN.to_owned()]).expect("a name");
    params.distinguished_name.push(DnType::CommonName, "gateway");
    params.use_authority_key_identifier_extension = true;
    write("cert.pem", params.signed_by(&key, &Issuer::new(ca, ca_key)).expect("signed").pem());
    write("key.pem", key.serialize_pem());
}

#[test]
fn sdks_with_a_fixed_domain_need_a_hosts_entry_and_a_private_ca() {
    let folder = tempfile::tempdir().expect("a folder");
    write_certificate(folder.path());
    let server = format!("hosts = ['{DOMAIN}']\ntls = {{ cert_file = 'cert.pem', key_file = 'key.pem' }}");
    let mut gateway = Gateway::start(folder, &server);
    let port = gateway.port();
    let job =
        |sdk: &str, key: &str| json!({"sdk": sdk, "sdkappid": APP, "key": key, "identifier": "sdk", "port": port});
    let jobs = [job("tencentcloud", SDK_KEY), job("timsdk", SDK_KEY), job("timsdk", HEX_KEY)];
    let results = run(&jobs, Some(&gateway.folder.path().join("ca.pem")));
    for result in results[0].iter().chain(&results[1][..1]) {
        assert_eq!(result["ErrorCode"], 0, "{result}");
    }
    // timsdk checks accounts with GET, and raises an exception for each status other than 2xx.
    for result in results[1][1..].iter().chain(&results[2]) {
        assert!(result["raised"].is_string(), "{result}");
    }
    let journal = gateway.journal();
    assert_eq!(journal.len(), 3, "{journal:?}");
    assert!(journal.iter().all(|(_, identifier, code)| identifier == "administrator" && *code == 0), "{journal:?}");
    // Without the private CA, the SDK does not trust the gateway, and nothing arrives.
    for result in run(&[job("timsdk", SDK_KEY)], None).concat() {
        assert!(result["raised"].is_string(), "{result}");
    }
    assert_eq!(gateway.journal().len(), 3);
    // For 500 and above, it raises an exception without the ErrorCode, as for 401 above.
    gateway.stop_simulator();
    let job = job("timsdk", SDK_KEY);
    for result in run(&[job], Some(&gateway.folder.path().join("ca.pem"))).concat() {
        let raised = result["raised"].as_str().unwrap_or_default();
        assert!(!raised.is_empty() && !raised.contains("129502"), "{result}");
    }
    gateway.stop();
}
