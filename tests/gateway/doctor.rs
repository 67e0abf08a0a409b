//! `chatgate doctor`: each cause is named, with its own exit code, and nothing secret is shown.

use serde_json::Value;

use crate::support::app::{MAIN, TestApp};
use crate::support::chat::FakeChat;
use crate::support::client::{Ask, Conn};
use crate::support::eventually;
use crate::support::gateway::listening;
use crate::support::process::{Finished, Process};
use crate::support::reply::Reply;
use crate::support::secrets;
use crate::support::setup::Setup;
use crate::support::tls::Ca;
use crate::support::wire::free_address;

/// A key as the console shows them.
pub(crate) const HEX_KEY: &str = "5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de5ec2e701";

/// A stand-in for Chat in a process of its own, which knows [`HEX_KEY`].
pub(crate) struct Sandbox {
    _process: Process,
    address: String,
}

impl Sandbox {
    pub(crate) async fn start(setup: &Setup, more: &[&str]) -> Sandbox {
        secrets::remember(HEX_KEY);
        let args = [&["sandbox", "--listen", "127.0.0.1:0"][..], more].concat();
        let process = Process::start(&args, setup.dir(), &[("CHATGATE_SANDBOX_KEY", HEX_KEY)]);
        let address = eventually("the sandbox listens", async || listening(&process.stderr(), "sandbox").pop()).await;
        Sandbox { _process: process, address }
    }

    /// Gives an order, after it has forgotten the last one.
    async fn order(&self, name: &str, body: &str) {
        self.tell("reset", "{}").await;
        self.tell(name, body).await;
    }

    /// Gives a further order.
    pub(crate) async fn tell(&self, name: &str, body: &str) {
        let mut conn = Conn::open(&self.address).await.expect("it listens");
        let answer = conn.ask(&Ask::post(&format!("/__sandbox/{name}")).body(body)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// What it has seen.
    pub(crate) async fn journal(&self) -> Value {
        let mut conn = Conn::open(&self.address).await.expect("it listens");
        conn.ask(&Ask::new("GET", "/__sandbox/journal")).await.json()
    }

    pub(crate) fn app_lines(&self) -> String {
        format!("endpoint = \"http://{}\"", self.address)
    }
}

/// The main app with a key that looks as it should.
pub(crate) const HEX: TestApp = TestApp { key: HEX_KEY, ..MAIN };

/// Asks the doctor, for people and for machines, which agree; the second is returned.
async fn doctor(setup: &Setup) -> (i32, Value) {
    let (code, json) = machines(setup).await;
    let told = run(setup, &[]).await;
    assert_eq!(told.code, code, "{told:?}");
    for cause in json["apps"][0]["causes"].as_array().into_iter().flatten() {
        for text in [&cause["what"], &cause["advice"]] {
            assert!(told.stdout.contains(text.as_str().expect("text")), "{text} is not in\n{}", told.stdout);
        }
    }
    (code, json)
}

async fn machines(setup: &Setup) -> (i32, Value) {
    let outcome = run(setup, &["--json"]).await;
    let json: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"));
    assert_eq!(json["exit_code"], outcome.code, "{outcome:?}");
    (outcome.code, json)
}

async fn run(setup: &Setup, more: &[&str]) -> Finished {
    let file = setup.write();
    let outcome =
        Process::run(&[&["doctor", "--config", &*file.to_string_lossy()], more].concat(), setup.dir(), &[]).await;
    for (name, text) in [("stdout", &outcome.stdout), ("stderr", &outcome.stderr)] {
        assert!(!text.contains(HEX_KEY), "{name} has the key");
    }
    outcome
}

/// The words of all causes of the first app.
fn causes(json: &Value) -> Vec<&str> {
    json["apps"][0]["causes"].as_array().expect("a list").iter().filter_map(|cause| cause["cause"].as_str()).collect()
}

async fn assert_cause(setup: &Setup, code: i32, words: &[&str]) {
    let (seen, json) = doctor(setup).await;
    assert_eq!((seen, causes(&json)), (code, words.to_vec()), "{json:#}");
}

/// How a step went: the word of its status.
fn status<'a>(json: &'a Value, check: &str) -> Vec<&'a str> {
    let checks = json["apps"][0]["checks"].as_array().expect("a list").iter();
    checks.filter(|row| row["check"] == check).filter_map(|row| row["status"].as_str()).collect()
}

#[tokio::test]
async fn all_is_well_and_what_is_only_odd_is_remarked() {
    let setup = Setup::without_apps();
    let sandbox = Sandbox::start(&setup, &[]).await;
    let setup = setup.app(HEX, &sandbox.app_lines());
    let (code, json) = doctor(&setup).await;
    assert_eq!((code, causes(&json).len()), (0, 0), "{json:#}");
    for check in ["key", "name", "connection", "call", "clock"] {
        assert_eq!(status(&json, check), ["ok"], "{check}: {json:#}");
    }
    // A key of another shape that Chat takes is no fault.
    let chat = FakeChat::start().await;
    chat.always(Reply::json(r#"{"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":""}"#));
    let odd = Setup::new(&chat);
    let (code, json) = doctor(&odd).await;
    assert_eq!((code, status(&json, "key")), (0, vec!["remark"]), "{json:#}");
    assert_eq!(chat.count(), 2, "one call for each time it was asked");
}

#[tokio::test]
async fn what_chat_refuses_is_named() {
    let setup = Setup::without_apps();
    let sandbox = Sandbox::start(&setup, &[]).await;
    let setup = setup.app(HEX, &sandbox.app_lines());
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
        sandbox.order("faults", &format!("{{\"error_code\":{error_code},\"share\":1}}")).await;
        let (code, json) = machines(&setup).await;
        assert_eq!((code, causes(&json)), (exit_code, vec![word]), "{error_code}: {json:#}");
        let detail = json["apps"][0]["causes"][0]["detail"].as_str().unwrap_or_default();
        assert!(detail.contains(&error_code.to_string()) && detail.contains("a fault on order"), "{json:#}");
    }
}

#[tokio::test]
async fn a_key_that_is_none_is_told_from_that_of_another_app() {
    let setup = Setup::without_apps();
    let sandbox = Sandbox::start(&setup, &[]).await;
    let setup = setup.app(HEX, &sandbox.app_lines());
    let other = HEX_KEY.replace("701", "702");
    for (key, code, word) in [
        (other.clone(), 13, "wrong_key"),
        (format!("{HEX_KEY} "), 11, "key_has_blanks"),
        (format!("\u{feff}{HEX_KEY}"), 11, "key_has_blanks"),
        (HEX_KEY[1..].to_owned(), 12, "key_is_unusual"),
    ] {
        secrets::remember(&key);
        setup.file("main.key", &key);
        assert_cause(&setup, code, &[word]).await;
    }
    let pem = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----\n";
    setup.file("main.key", pem);
    let (code, json) = machines(&setup).await;
    assert_eq!((code, &json["cause"]), (10, &Value::from("key_is_pem")), "{json:#}");
    setup.file("main.key", &pem.replace('\n', "\\n"));
    let (code, json) = doctor(&setup).await;
    assert_eq!((code, causes(&json), status(&json, "call")), (10, vec!["key_is_pem"], vec!["skipped"]), "{json:#}");
}

#[tokio::test]
async fn who_signs_is_told_from_what_for() {
    let setup = Setup::without_apps();
    let sandbox = Sandbox::start(&setup, &[]).await;
    let bob = Setup::without_apps().app(TestApp { identifier: "bob", ..HEX }, &sandbox.app_lines());
    assert_cause(&bob, 32, &["not_administrator"]).await;
    let number = Setup::without_apps().app(TestApp { sdkappid: 7, ..HEX }, &sandbox.app_lines());
    assert_cause(&number, 30, &["wrong_region"]).await;
}

#[tokio::test]
async fn a_clock_that_is_off_is_named_also_where_the_gateway_makes_up_for_it() {
    let setup = Setup::without_apps();
    let sandbox = Sandbox::start(&setup, &[]).await;
    let setup = setup.app(HEX, &sandbox.app_lines());
    for skew in [-7200, 7200, 3 * 86_400] {
        sandbox.order("clock", &format!("{{\"skew\":{skew}}}")).await;
        let (code, json) = machines(&setup).await;
        assert_eq!((code, causes(&json)), (15, vec!["clock"]), "{skew}: {json:#}");
    }
    sandbox.order("clock", r#"{"skew":20}"#).await;
    let (code, json) = machines(&setup).await;
    assert_eq!((code, status(&json, "clock")), (0, vec!["remark"]), "{json:#}");
}

#[tokio::test]
async fn what_answers_and_is_not_chat_or_never_answers_is_named() {
    let setup = Setup::without_apps();
    let sandbox = Sandbox::start(&setup, &[]).await;
    let setup = setup.app(HEX, &sandbox.app_lines()).deadline("500ms");
    for (order, code, word) in [
        (r#"{"status":407,"share":1}"#, 26, "not_chat"),
        (r#"{"status":200,"share":1}"#, 26, "not_chat"),
        (r#"{"reset":true,"share":1}"#, 27, "no_answer"),
        (r#"{"truncate":true,"share":1}"#, 27, "no_answer"),
        (r#"{"latency_ms":30000,"share":1}"#, 27, "no_answer"),
    ] {
        sandbox.order("faults", order).await;
        let (seen, json) = machines(&setup).await;
        assert_eq!((seen, causes(&json)), (code, vec![word]), "{order}: {json:#}");
    }
}

#[tokio::test]
async fn one_dead_domain_is_told_from_the_other_and_from_both() {
    let setup = Setup::without_apps();
    let sandbox = Sandbox::start(&setup, &[]).await;
    let (live, dead) = (format!("http://{}", sandbox.address), format!("http://{}", free_address()));
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
    sandbox.order("faults", r#"{"error_code":60021,"share":1}"#).await;
    let setup = Setup::without_apps().app(HEX, &format!("endpoint = \"{dead}\"\nstandby = \"{live}\""));
    assert_cause(&setup, 34, &["ip_refused", "primary_down"]).await;
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_named() {
    let setup = Setup::without_apps().app(HEX, r#"endpoint = "https://no-such-host.invalid""#);
    assert_cause(&setup, 20, &["dns"]).await;
}

#[tokio::test]
async fn tls_that_is_good_bad_or_none_is_told_apart() {
    let setup = Setup::without_apps();
    let tls_dir = setup.dir().join("tls");
    let sandbox = Sandbox::start(&setup, &["--tls-dir", &tls_dir.to_string_lossy()]).await;
    let port = sandbox.address.rsplit(':').next().expect("a port");
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
        assert_eq!(chat.count(), 0, "not a byte of a call left");
    }
    let plain = Sandbox::start(&setup, &[]).await;
    assert_cause(&Setup::without_apps().app(HEX, &format!("endpoint = \"https://{}\"", plain.address)), 25, &["tls"])
        .await;
}

#[tokio::test]
async fn one_app_may_be_named_and_usage_and_configuration_keep_their_codes() {
    let setup = Setup::without_apps();
    let sandbox = Sandbox::start(&setup, &[]).await;
    let second = TestApp { name: "second", sdkappid: 5, ..HEX };
    let setup = setup.app(HEX, &sandbox.app_lines()).app(second, &sandbox.app_lines());
    assert_eq!(run(&setup, &["--app", "main"]).await.code, 0);
    assert_eq!(run(&setup, &["--app", "second"]).await.code, 30);
    assert_eq!(run(&setup, &[]).await.code, 30, "the first that has something wrong");
    assert_eq!(run(&setup, &["--app", "third"]).await.code, 2);
    let bad = setup.set("server", "nonsense = 1");
    let (code, json) = machines(&bad).await;
    assert_eq!((code, &json["cause"]), (78, &Value::from("bad_config")), "{json:#}");
    let help = Process::run(&["doctor", "--help"], bad.dir(), &[]).await;
    for code in (10..=15).chain(20..=39) {
        assert!(help.stdout.lines().any(|line| line.trim_start().starts_with(&format!("{code}  "))), "{}", help.stdout);
    }
}
