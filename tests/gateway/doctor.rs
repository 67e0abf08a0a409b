//! `chatgate doctor`: it names each cause, exits with the code of that cause, and prints no secret.

use serde_json::Value;

use crate::support::app::{MAIN, TestApp};
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::eventually;
use crate::support::gateway::listener_addresses;
use crate::support::process::{Process, ProcessOutput};
use crate::support::reply::Reply;
use crate::support::secrets;
use crate::support::setup::Setup;
use crate::support::tls::Ca;
use crate::support::wire::free_address;

/// A secret key in the format of the Tencent Cloud console.
pub(crate) const HEX_KEY: &str = "5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de5ec2e701";

/// The Chat simulator in its own process, with [`HEX_KEY`] as its key.
pub(crate) struct Simulator {
    _process: Process,
    address: String,
}

impl Simulator {
    pub(crate) async fn start(setup: &Setup, more: &[&str]) -> Simulator {
        secrets::add(HEX_KEY);
        let args = [&["sandbox", "--listen", "127.0.0.1:0"][..], more].concat();
        let process = Process::start(&args, setup.dir(), &[("CHATGATE_SANDBOX_KEY", HEX_KEY)]);
        let address =
            eventually("the simulator listens", async || listener_addresses(&process.stderr(), "sandbox").pop()).await;
        Simulator { _process: process, address }
    }

    /// Resets the simulator, then calls its control API.
    async fn reset_and_control(&self, name: &str, body: &str) {
        self.control("reset", "{}").await;
        self.control(name, body).await;
    }

    /// Calls the control API without a reset.
    pub(crate) async fn control(&self, name: &str, body: &str) {
        let mut conn = Conn::open(&self.address).await.expect("a listening simulator");
        let response = conn.request(&TestRequest::post(&format!("/__sandbox/{name}")).body(body)).await;
        assert_eq!(response.status, 200, "{}", response.text());
    }

    /// Returns the calls that the simulator has received.
    pub(crate) async fn journal(&self) -> Value {
        let mut conn = Conn::open(&self.address).await.expect("a listening simulator");
        conn.request(&TestRequest::new("GET", "/__sandbox/journal")).await.json()
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn app_lines(&self) -> String {
        format!("endpoint = \"http://{}\"", self.address)
    }
}

/// The main app with a key in the usual format.
pub(crate) const HEX: TestApp = TestApp { key: HEX_KEY, ..MAIN };

/// Runs the doctor with text and JSON output, asserts that both agree, and returns the exit code and the JSON.
async fn doctor(setup: &Setup) -> (i32, Value) {
    let (code, json) = doctor_json(setup).await;
    let text_outcome = run(setup, &[]).await;
    assert_eq!(text_outcome.code, code, "{text_outcome:?}");
    for cause in json["apps"][0]["causes"].as_array().into_iter().flatten() {
        for text in [&cause["what"], &cause["advice"]] {
            assert!(
                text_outcome.stdout.contains(text.as_str().expect("text")),
                "{text} is not in\n{}",
                text_outcome.stdout
            );
        }
    }
    (code, json)
}

async fn doctor_json(setup: &Setup) -> (i32, Value) {
    let outcome = run(setup, &["--json"]).await;
    let json: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"));
    assert_eq!(json["exit_code"], outcome.code, "{outcome:?}");
    (outcome.code, json)
}

async fn run(setup: &Setup, more: &[&str]) -> ProcessOutput {
    let file = setup.write();
    let outcome =
        Process::run(&[&["doctor", "--config", &*file.to_string_lossy()], more].concat(), setup.dir(), &[]).await;
    for (name, text) in [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)] {
        assert!(!text.contains(HEX_KEY), "{name} has the key");
    }
    outcome
}

/// Returns the identifiers of all causes of the first app.
fn causes(json: &Value) -> Vec<&str> {
    json["apps"][0]["causes"].as_array().expect("a list").iter().filter_map(|cause| cause["cause"].as_str()).collect()
}

async fn assert_cause(setup: &Setup, code: i32, expected: &[&str]) {
    let (seen, json) = doctor(setup).await;
    assert_eq!((seen, causes(&json)), (code, expected.to_vec()), "{json:#}");
}

/// Returns the statuses of a check of the first app.
fn status<'a>(json: &'a Value, check: &str) -> Vec<&'a str> {
    let checks = json["apps"][0]["checks"].as_array().expect("a list").iter();
    checks.filter(|row| row["check"] == check).filter_map(|row| row["status"].as_str()).collect()
}

#[tokio::test]
async fn healthy_app_passes_and_unusual_key_gets_a_remark() {
    let setup = Setup::without_apps();
    let simulator = Simulator::start(&setup, &[]).await;
    let setup = setup.app(HEX, &simulator.app_lines());
    let (code, json) = doctor(&setup).await;
    assert_eq!((code, causes(&json).len()), (0, 0), "{json:#}");
    for check in ["key", "name", "connection", "call", "clock"] {
        assert_eq!(status(&json, check), ["ok"], "{check}: {json:#}");
    }
    // A key in another format is not an error if Chat accepts it.
    let chat = FakeChat::start().await;
    chat.reply_always(Reply::json(r#"{"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":""}"#));
    let unusual = Setup::new(&chat);
    let (code, json) = doctor(&unusual).await;
    assert_eq!((code, status(&json, "key")), (0, vec!["remark"]), "{json:#}");
    assert_eq!(chat.call_count(), 2, "one call per run");
}

#[tokio::test]
async fn errors_of_chat_map_to_causes_and_exit_codes() {
    let setup = Setup::without_apps();
    let simulator = Simulator::start(&setup, &[]).await;
    let setup = setup.app(HEX, &simulator.app_lines());
    for (error_code, exit_code, word) in [
        (70009, 13, "wrong_key"),
        (70003, 13, "wrong_key"),
        (70001, 14, "signature_refused"),
        (60026, 30, "wrong_region"),
        (70016, 30, "wrong_region"),
        (70020, 30, "wrong_region"),
        (70107, 31, "unknown_identifier"),
        (60010, 32, "not_administrator"),
        (60025, 33, "altered"),
        (60021, 34, "ip_refused"),
        (60020, 35, "plan"),
        (60016, 36, "disabled"),
        (60007, 37, "throttled"),
        (70050, 38, "locked_out"),
        (60008, 39, "chat_fault"),
        (123_456, 1, "refused"),
    ] {
        simulator.reset_and_control("faults", &format!("{{\"error_code\":{error_code},\"share\":1}}")).await;
        let (code, json) = doctor_json(&setup).await;
        assert_eq!((code, causes(&json)), (exit_code, vec![word]), "{error_code}: {json:#}");
        let detail = json["apps"][0]["causes"][0]["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(&error_code.to_string()) && detail.contains("injected fault"), "{json:#}");
    }
}

#[tokio::test]
async fn malformed_key_is_distinguished_from_key_of_another_app() {
    let setup = Setup::without_apps();
    let simulator = Simulator::start(&setup, &[]).await;
    let setup = setup.app(HEX, &simulator.app_lines());
    let other = HEX_KEY.replace("701", "702");
    for (key, code, word) in [
        (other.clone(), 13, "wrong_key"),
        (format!("{HEX_KEY} "), 11, "key_has_blanks"),
        (format!("\u{feff}{HEX_KEY}"), 11, "key_has_blanks"),
        (HEX_KEY[1..].to_owned(), 12, "key_is_unusual"),
    ] {
        secrets::add(&key);
        setup.file("main.key", &key);
        assert_cause(&setup, code, &[word]).await;
    }
    let pem = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----\n";
    setup.file("main.key", pem);
    let (code, json) = doctor_json(&setup).await;
    assert_eq!((code, &json["cause"]), (10, &Value::from("key_is_pem")), "{json:#}");
    setup.file("main.key", &pem.replace('\n', "\\n"));
    let (code, json) = doctor(&setup).await;
    assert_eq!((code, causes(&json), status(&json, "call")), (10, vec!["key_is_pem"], vec!["skipped"]), "{json:#}");
}

#[tokio::test]
async fn wrong_identifier_is_distinguished_from_wrong_sdkappid() {
    let setup = Setup::without_apps();
    let simulator = Simulator::start(&setup, &[]).await;
    let bob = Setup::without_apps().app(TestApp { identifier: "bob", ..HEX }, &simulator.app_lines());
    assert_cause(&bob, 32, &["not_administrator"]).await;
    let number = Setup::without_apps().app(TestApp { sdkappid: 7, ..HEX }, &simulator.app_lines());
    assert_cause(&number, 30, &["wrong_region"]).await;
}

#[tokio::test]
async fn clock_skew_is_reported_even_if_the_gateway_compensates() {
    let setup = Setup::without_apps();
    let simulator = Simulator::start(&setup, &[]).await;
    let setup = setup.app(HEX, &simulator.app_lines());
    for skew in [-7200, 7200, 3 * 86_400] {
        simulator.reset_and_control("clock", &format!("{{\"skew\":{skew}}}")).await;
        let (code, json) = doctor_json(&setup).await;
        assert_eq!((code, causes(&json)), (15, vec!["clock"]), "{skew}: {json:#}");
    }
    simulator.reset_and_control("clock", r#"{"skew":20}"#).await;
    let (code, json) = doctor_json(&setup).await;
    assert_eq!((code, status(&json, "clock")), (0, vec!["remark"]), "{json:#}");
}

#[tokio::test]
async fn non_chat_server_is_distinguished_from_missing_response() {
    let setup = Setup::without_apps();
    let simulator = Simulator::start(&setup, &[]).await;
    let setup = setup.app(HEX, &simulator.app_lines()).timeout("500ms");
    for (fault, code, word) in [
        (r#"{"status":407,"share":1}"#, 26, "not_chat"),
        (r#"{"status":200,"share":1}"#, 26, "not_chat"),
        (r#"{"reset":true,"share":1}"#, 27, "no_answer"),
        (r#"{"truncate":true,"share":1}"#, 27, "no_answer"),
        (r#"{"latency_ms":30000,"share":1}"#, 27, "no_answer"),
    ] {
        simulator.reset_and_control("faults", fault).await;
        let (seen, json) = doctor_json(&setup).await;
        assert_eq!((seen, causes(&json)), (code, vec![word]), "{fault}: {json:#}");
    }
}

#[tokio::test]
async fn doctor_reports_which_of_the_two_domains_is_down() {
    let setup = Setup::without_apps();
    let simulator = Simulator::start(&setup, &[]).await;
    let (live, dead) = (format!("http://{}", simulator.address), format!("http://{}", free_address()));
    for (endpoint, standby, code, word) in [
        (&live, &live, 0, None),
        (&dead, &live, 28, Some("primary_down")),
        (&live, &dead, 29, Some("standby_down")),
        (&dead, &dead, 21, Some("connect")),
    ] {
        let setup = Setup::without_apps().app(HEX, &format!("endpoint = \"{endpoint}\"\nstandby = \"{standby}\""));
        let (seen, json) = doctor(&setup).await;
        assert_eq!((seen, causes(&json)), (code, word.into_iter().collect()), "{json:#}");
    }
    simulator.reset_and_control("faults", r#"{"error_code":60021,"share":1}"#).await;
    let setup = Setup::without_apps().app(HEX, &format!("endpoint = \"{dead}\"\nstandby = \"{live}\""));
    assert_cause(&setup, 34, &["ip_refused", "primary_down"]).await;
}

#[tokio::test]
async fn unresolvable_name_is_reported_as_dns_error() {
    let setup = Setup::without_apps().app(HEX, r#"endpoint = "https://no-such-host.invalid""#);
    assert_cause(&setup, 20, &["dns"]).await;
}

#[tokio::test]
async fn tls_errors_map_to_causes_and_exit_codes() {
    let setup = Setup::without_apps();
    let tls_dir = setup.dir().join("tls");
    let simulator = Simulator::start(&setup, &["--tls-dir", &tls_dir.to_string_lossy()]).await;
    let port = simulator.address.rsplit(':').next().expect("a port");
    let endpoint = format!("endpoint = \"https://localhost:{port}\"");
    let trusting = format!("{endpoint}\nca_file = '{}'", tls_dir.join("ca.pem").display());
    let (code, json) = doctor(&Setup::without_apps().app(HEX, &trusting)).await;
    assert_eq!((code, status(&json, "tls")), (0, vec!["ok"]), "{json:#}");
    assert_cause(&Setup::without_apps().app(HEX, &endpoint), 22, &["certificate"]).await;

    let ca = Ca::new();
    for (acceptor, code, word) in [
        (ca.acceptor("console.tim.qq.com"), 23, "certificate_name"),
        (ca.expired_acceptor("localhost"), 24, "certificate_time"),
    ] {
        let chat = FakeChat::start_tls(acceptor).await;
        let setup = Setup::without_apps();
        let file = setup.file("ca.pem", &ca.pem());
        let setup = setup.app(HEX, &format!("{}\nca_file = '{}'", chat.app_lines(), file.display()));
        assert_cause(&setup, code, &[word]).await;
        assert_eq!(chat.call_count(), 0, "no call was sent");
    }
    let plain = Simulator::start(&setup, &[]).await;
    assert_cause(&Setup::without_apps().app(HEX, &format!("endpoint = \"https://{}\"", plain.address)), 25, &["tls"])
        .await;
}

#[tokio::test]
async fn app_flag_selects_one_app_and_errors_keep_codes() {
    let setup = Setup::without_apps();
    let simulator = Simulator::start(&setup, &[]).await;
    let second = TestApp { name: "second", sdkappid: 5, ..HEX };
    let setup = setup.app(HEX, &simulator.app_lines()).app(second, &simulator.app_lines());
    assert_eq!(run(&setup, &["--app", "main"]).await.code, 0);
    assert_eq!(run(&setup, &["--app", "second"]).await.code, 30);
    assert_eq!(run(&setup, &[]).await.code, 30, "the code of the first app with a problem");
    assert_eq!(run(&setup, &["--app", "third"]).await.code, 2);
    let bad = setup.set("server", "nonsense = 1");
    let (code, json) = doctor_json(&bad).await;
    assert_eq!((code, &json["cause"]), (78, &Value::from("bad_config")), "{json:#}");
    let help = Process::run(&["doctor", "--help"], bad.dir(), &[]).await;
    for code in (10..=15).chain(20..=39) {
        assert!(help.stdout.lines().any(|line| line.trim_start().starts_with(&format!("{code}  "))), "{}", help.stdout);
    }
}
