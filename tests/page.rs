//! The admin page in a real browser: headless Chromium, driven by chromedriver over WebDriver (W3C).
//!
//! If `CHATGATE_PAGE_SHOTS` names a folder, the tests save screenshots of the page there. The picture in the documents is
//! made by `cargo test --test page -- --ignored`.

mod support;

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use support::{Program, shell};

/// Maximum number of polls of a condition before the test fails.
const POLLS_MAX: usize = 150;
const POLL_INTERVAL: Duration = Duration::from_millis(100);

#[test]
fn admin_page_shows_live_status_without_console_errors() {
    let (mut demo, data, admin) = Program::demo();
    let check = |to: &str| {
        let body = format!(r#"{{"From_Account":"alice","To_Account":["{to}"]}}"#);
        shell(&format!("curl -s http://{data}/v4/follow/follow_check -d '{body}'"));
    };
    ["bob", "bob", "carol", "unknown"].iter().for_each(|to| check(to));

    let browser = Browser::start();
    browser.open(&format!("http://{admin}/"));
    // A command has a row from the second after its first call.
    let says = "return ['apps', 'quota', 'codes'].every(id => document.querySelector(`#${id} tbody tr`)) \
                && document.querySelector('#state').textContent === 'Ready'";
    browser.until("the first figures", says);
    let status = || -> Value { serde_json::from_str(&shell(&format!("curl -s http://{admin}/status"))).expect("JSON") };
    // Without traffic the values of /status are constant, and the page must show the same values.
    let cell = |table: &str, column: usize| {
        browser.run(&format!("return document.querySelector('#{table} tbody tr').children[{column}].textContent"))
    };
    let app = &status()["apps"][0];
    assert_eq!(cell("apps", 0), app["name"]);
    assert_eq!(cell("apps", 1), "primary domain");
    assert_eq!(cell("apps", 6), app["cache"]["pairs"].to_string());
    let hits = app["cache"]["hit_ratio"].as_f64().expect("some pairs") * 100.0;
    assert!(
        cell("apps", 5).as_str().is_some_and(|text| text.trim_end_matches(" %").parse() == Ok(hits.round())),
        "{hits}"
    );
    assert_eq!(cell("quota", 0), "follow/follow_check");
    assert_eq!(cell("quota", 2), app["quota"][0]["limit"].to_string());
    assert_eq!(cell("codes", 0), "0");
    assert_eq!(cell("codes", 1), app["since_start"]["calls"][0]["count"].to_string());
    // The page updates automatically.
    let calls = cell("codes", 1);
    check("dave");
    browser.until("one more call", &format!("return document.querySelector('#codes td').textContent !== {calls}"));
    assert_eq!(cell("codes", 1), status()["apps"][0]["since_start"]["calls"][0]["count"].to_string());
    browser.until(
        "the curves are drawn",
        "return document.querySelector('#plot-requests .c0').getAttribute('d').includes('L')",
    );
    // Each plot has a name and a text description of its values.
    let unlabeled = "return [...document.querySelectorAll('figure > svg')].filter(svg => svg.getAttribute('role') !== 'img' \
                  || !document.getElementById(svg.getAttribute('aria-labelledby'))?.textContent \
                  || !document.getElementById(svg.getAttribute('aria-describedby'))?.textContent.startsWith('Now: ')).length";
    assert_eq!(browser.run(unlabeled), 0);
    assert_eq!(browser.run("return document.querySelectorAll('figure').length"), 6);

    let wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth";
    for (name, width, scheme) in [("light", 1200, "light"), ("dark", 1200, "dark"), ("phone", 390, "light")] {
        browser.resize(width, scheme);
        assert_eq!(browser.run(wide), false, "{name}: the page is wider than its window");
        browser.save_screenshot(name);
    }
    assert_eq!(browser.console_messages(), Vec::<String>::new(), "the console is not empty");
    // The page reports that chatgate has stopped.
    assert!(demo.stop().success());
    browser.until(
        "the page reports that chatgate does not answer",
        "return document.querySelector('#state').className === 'bad'",
    );
}

/// Starts a gateway with two callers, whose webhooks go to an app that is down.
#[test]
fn admin_page_lists_callers_and_webhooks() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["key", "token-of-the-feed", "token-of-the-shop"] {
        std::fs::write(folder.path().join(name), format!("{name}-{}", "5b".repeat(20))).expect("own folder");
    }
    let key = format!("key-{}", "5b".repeat(20));
    let mut sandbox = Program::start(&["sandbox", "--listen", "127.0.0.1:0", "--secret-key", &key]);
    let chat = sandbox.address("sandbox");
    let users = r#"{"users":["ann","bob","cyd"],"edges":[["ann","bob"]]}"#;
    shell(&format!("curl -sf http://{chat}/__sandbox/graph -d '{users}'"));
    let callers = ["feed", "shop"].map(|name| {
        format!("[[caller]]\nname = '{name}'\ntoken_file = 'token-of-the-{name}'\nallow = ['follow/follow_check']\n")
    });
    let config = format!(
        "[server]\nlisten = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n[[app]]\nname = 'main'\nsdkappid = 1400000001\n\
         secret_key_file = 'key'\nendpoint = 'http://{chat}'\n[relation]\nkinds = ['follow', 'blacklist']\n[webhook]\nlisten = '127.0.0.1:0'\n\
         app_tokens = {{ main = {{ file = 'key' }} }}\nforward = {{ main = 'http://127.0.0.1:9/' }}\n{}",
        callers.concat()
    );
    let file = folder.path().join("chatgate.toml");
    std::fs::write(&file, config).expect("own folder");
    let mut gateway = Program::start(&["serve", "--config", &file.to_string_lossy()]);
    let (data, admin) = (gateway.address("data"), gateway.address("admin"));
    let send = |caller: &str, command: &str, to: &str| {
        let token = format!("token-of-the-{caller}-{}", "5b".repeat(20));
        let body = format!(r#"{{"From_Account":"ann","To_Account":["{to}"]}}"#);
        shell(&format!("curl -s http://{data}/v4/{command} -H 'Authorization: Bearer {token}' -d '{body}'"));
    };
    for (caller, command, to) in [
        ("feed", "follow/follow_check", "bob"),
        ("feed", "follow/follow_check", "bob"),
        ("feed", "follow/follow_check", "cyd"),
        ("shop", "follow/follow_check", "bob"),
        ("shop", "openim/sendmsg", "bob"),
    ] {
        send(caller, command, to);
    }
    let browser = Browser::start();
    browser.open(&format!("http://{admin}/"));
    browser.until("both callers", "return document.querySelectorAll('#callers tbody tr').length === 2");
    let row = |table: &str, number: usize| {
        let cells = format!("[...document.querySelector('#{table} tbody tr:nth-child({number})').children]");
        browser.run(&format!("return {cells}.map(cell => cell.textContent).join('|')"))
    };
    assert_eq!(row("callers", 1), "feed|interactive|2||3|33.3 %|0 s|");
    assert_eq!(row("callers", 2), "shop|interactive|0||1|100 %|0 s|1 forbidden");
    assert_eq!(row("relations", 1), "blacklist|0|–|0");
    assert_eq!(row("relations", 2), "follow|4|50 %|2");
    let values = browser.run("return document.querySelector('#program').textContent");
    assert!(values.as_str().is_some_and(|text| text.contains("webhooks not answered0")), "{values}");
    let wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth";
    for (name, width, scheme) in [("callers", 1200, "light"), ("callers-phone", 390, "dark")] {
        browser.resize(width, scheme);
        assert_eq!(browser.run(wide), false, "{name}: the page is wider than its window");
        browser.save_screenshot(name);
    }
    assert_eq!(browser.console_messages(), Vec::<String>::new(), "the console is not empty");
    assert!(gateway.stop().success() && sandbox.stop().success());
}

/// Uses a simulator for each app. One app is reachable only at its standby domain, two get permanent errors, and one is
/// behind a proxy that is unreachable.
#[test]
fn admin_page_explains_the_state_of_each_app() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let unused_address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    let apps = ["feed", "live-streams", "shop", "archive-of-the-old-games", "abroad"];
    let (mut sandboxes, mut config) = (Vec::new(), String::new());
    config += "[server]\nlisten = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n[access]\nallow = ['*']\n";
    config += &format!("[upstream]\nproxy = 'http://{unused_address}'\n");
    let key = folder.path().join("key");
    std::fs::write(&key, "5b".repeat(32)).expect("own folder");
    for (name, sdkappid) in apps.iter().zip(1_400_000_001..) {
        let mut sandbox = Program::start(&[
            "sandbox",
            "--listen",
            "127.0.0.1:0",
            "--sdkappid",
            &sdkappid.to_string(),
            "--secret-key",
            &"5b".repeat(32),
        ]);
        let address = sandbox.address("sandbox");
        let endpoints = match *name {
            "live-streams" => format!("endpoint = 'http://{unused_address}'\nstandby = 'http://{address}'"),
            "abroad" => "endpoint = 'https://chat.test'".to_owned(),
            _ => format!("endpoint = 'http://{address}'"),
        };
        let users = r#"{"users":["ann","bob"],"edges":[["ann","bob"]]}"#;
        shell(&format!("curl -sf http://{address}/__sandbox/graph -d '{users}'"));
        config += &format!("[[app]]\nname = '{name}'\nsdkappid = {sdkappid}\nsecret_key_file = 'key'\n{endpoints}\n");
        sandboxes.push((sandbox, address));
    }
    let inject = |app: usize, fault: &str| {
        shell(&format!("curl -sf http://{}/__sandbox/faults -d '{fault}'", sandboxes[app].1));
    };
    inject(2, r#"{"error_code":60020,"next":1000}"#);
    inject(3, r#"{"error_code":60010,"next":1000,"command":"openim/sendmsg"}"#);
    let file = folder.path().join("chatgate.toml");
    std::fs::write(&file, config).expect("own folder");
    let mut gateway = Program::start(&["serve", "--config", &file.to_string_lossy()]);
    let (data, admin) = (gateway.address("data"), gateway.address("admin"));
    let body = r#"{"From_Account":"ann","To_Account":["bob"]}"#;
    let status = || -> Value { serde_json::from_str(&shell(&format!("curl -s http://{admin}/status"))).expect("JSON") };
    let state_of = |app: usize| {
        let status = status();
        let state = &status["apps"][app]["state"];
        (state["is"].as_str().expect("a word").to_owned(), state["cause"].as_str().unwrap_or_default().to_owned())
    };
    let has_expected_states = || {
        for app in apps {
            for command in ["follow/follow_check", "openim/sendmsg"] {
                shell(&format!("curl -s http://{data}/apps/{app}/v4/{command} -d '{body}'"));
            }
        }
        let states: Vec<String> = (0..apps.len()).map(|app| state_of(app).0).collect();
        states == ["primary", "standby", "parked", "primary", "primary"] && !state_of(3).1.is_empty()
    };
    assert!((0..POLLS_MAX).any(|_| has_expected_states()), "{}", status()["apps"]);

    let browser = Browser::start();
    browser.open(&format!("http://{admin}/"));
    let says = "return document.querySelector('#state').textContent.startsWith('Ready, with problems')";
    browser.until("the page shows the degraded apps", says);
    let text = |selector: &str| {
        browser.run(&format!("return document.querySelector('{selector}').textContent")).as_str().map(str::to_owned)
    };
    let row = |app: usize, column: usize| text(&format!("#apps tbody tr:nth-child({}) :nth-child({column})", app + 1));
    assert_eq!(
        text("#state").as_deref(),
        Some("Ready, with problems: live-streams, shop, archive-of-the-old-games, abroad")
    );
    for (app, name) in apps.iter().enumerate() {
        assert_eq!(row(app, 1).as_deref(), Some(*name));
    }
    let state = |app: usize| row(app, 2).expect("a state");
    assert_eq!(state(0), "primary domain");
    assert_eq!(state(1), "standby domain: the primary domain cannot be reached");
    let (_, parked) = state_of(2);
    assert!(parked.starts_with("Chat answers 60020: ") && parked.contains("plan"), "{parked}");
    assert_eq!(state(2), format!("parked: {parked}"));
    let (_, one_command) = state_of(3);
    assert!(one_command.starts_with("openim/sendmsg: Chat answers 60010"), "{one_command}");
    assert_eq!(state(3), format!("primary domain, but some commands are parked: {one_command}"));
    assert_eq!(state(4), "primary domain: the proxy is unreachable (upstream.proxy)");
    // The texts above already distinguish the states; their colors differ too.
    let color = |app: usize| {
        browser.run(&format!(
            "return getComputedStyle(document.querySelector('#apps tbody tr:nth-child({}) td')).color",
            app + 1
        ))
    };
    assert!(color(0) != color(1) && color(1) != color(2) && color(0) != color(2) && color(3) == color(1));
    assert_eq!(color(4), color(2));
    // The plots show the selected app.
    let choose = "const choice = document.querySelector('#app'); choice.value = 'shop'; \
                  choice.dispatchEvent(new Event('change')); return true";
    browser.run(choose);
    let says = "return document.querySelector('#codes tbody th')?.textContent === '60020'";
    browser.until("the selected app's codes", says);

    let wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth";
    for (name, width, scheme) in [("apps", 1200, "light"), ("apps-dark", 1200, "dark"), ("apps-phone", 390, "light")] {
        browser.resize(width, scheme);
        assert_eq!(browser.run(wide), false, "{name}: the page is wider than its window");
        // The table of apps fits into the window, except on a phone; the cause must be readable there too.
        let whole = "const frame = document.querySelector('#apps').parentElement; \
                     return frame.scrollWidth <= frame.clientWidth";
        assert!(width < 600 || browser.run(whole) == true, "{name}: the table of apps is cut off");
        let right = "return document.querySelector('#apps tbody tr:nth-child(3) td').getBoundingClientRect().right \
                     <= document.documentElement.clientWidth";
        assert_eq!(browser.run(right), true, "{name}: the cause is cut off");
        browser.save_screenshot(name);
    }
    assert_eq!(browser.console_messages(), Vec::<String>::new(), "the console is not empty");
    assert!(gateway.stop().success());
}

/// Takes the picture for the README: two minutes of changing load on a demo. To take it again:
/// `cargo test --test page -- --ignored picture`
#[test]
#[ignore = "takes two minutes; writes docs/status-page.png"]
fn picture_of_the_admin_page_is_taken() {
    const SECONDS: usize = 118;
    let (mut demo, data, admin) = Program::demo();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let requests = folder.path().join("requests");
    let browser = Browser::start();
    browser.open(&format!("http://{admin}/"));
    let points = || -> usize {
        let history = shell(&format!("curl -s http://{admin}/status/history/demo"));
        let history: Value = serde_json::from_str(&history).expect("JSON");
        history["points"].as_array().expect("points").len()
    };
    let users = ["alice", "bob", "carol", "dave"];
    let (mut second, mut recorded) = (0, points());
    while recorded < SECONDS {
        second += 1;
        // A wave of requests. Every fifth one fetches from Chat, and one in nine seconds names an unknown user.
        let count = 6 + [0, 2, 5, 9, 12, 14, 12, 9, 5, 2][second / 4 % 10];
        let entries = (0..count).map(|at| {
            let (from, to) = (users[(second + at) % 4], users[(second + 2 * at + 1) % 4]);
            let to = if at == 3 && second % 9 == 0 { "erin" } else { to };
            let freshness = if at % 5 == 0 { "no-cache" } else { "max-stale=0" };
            let body = format!(r#"{{\"From_Account\":\"{from}\",\"To_Account\":[\"{to}\"]}}"#);
            format!("url = http://{data}/v4/follow/follow_check\nheader = \"Cache-Control: {freshness}\"\ndata = \"{body}\"\n")
        });
        std::fs::write(&requests, entries.collect::<Vec<_>>().join("next\n")).expect("own folder");
        shell(&format!("curl -s --config {} > {}", requests.display(), folder.path().join("responses").display()));
        // One wave for each second that the gateway records.
        let next = (0..POLLS_MAX).find_map(|_| {
            sleep(POLL_INTERVAL);
            Some(points()).filter(|now| *now > recorded)
        });
        recorded = next.expect("the history grows");
    }
    browser.resize(1200, "light");
    let bottom =
        "return Math.ceil([...document.querySelectorAll('figure')].at(-1).getBoundingClientRect().bottom) + 12";
    // A smaller scale keeps the file small.
    browser.resize_to(1200, browser.run(bottom).as_u64().expect("a height"), "light", 0.85);
    let picture = browser.screenshot();
    assert!(picture.len() < 120 * 1024, "{} bytes", picture.len());
    std::fs::write(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/status-page.png"), picture).expect("docs/");
    assert!(demo.stop().success());
}

/// A browser. Dropping it ends the process.
struct Browser {
    driver: std::process::Child,
    session: String,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn start() -> Self {
        let profile = tempfile::tempdir().expect("a temporary folder");
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        let driver = std::process::Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("chromedriver is installed (see tests/run)");
        let mut browser = Self { driver, session: format!("http://127.0.0.1:{port}"), _profile: profile };
        let up = |url: &str| shell(&format!("curl -s {url}/status || true")).contains("\"ready\":true");
        assert!(
            (0..POLLS_MAX).any(|_| up(&browser.session) || {
                sleep(POLL_INTERVAL);
                false
            }),
            "chromedriver"
        );
        let mut arguments: Vec<String> = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
        ]
        .map(str::to_owned)
        .into();
        arguments.push(format!("--user-data-dir={}", browser._profile.path().display()));
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let session = browser.post("/session", &wanted);
        browser.session += &format!("/session/{}", session["sessionId"].as_str().expect("a session"));
        browser
    }

    /// Sends a WebDriver command.
    fn post(&self, path: &str, body: &Value) -> Value {
        let file = self._profile.path().join("command.json");
        std::fs::write(&file, body.to_string()).expect("own folder");
        let line = format!(
            "curl -s {}{path} -H 'Content-Type: application/json' --data-binary @{}",
            self.session,
            file.display()
        );
        let response: Value = serde_json::from_str(&shell(&line)).expect("JSON");
        assert!(response["value"]["error"].is_null(), "{path}: {response}");
        response["value"].clone()
    }

    fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    fn until(&self, what: &str, script: &str) {
        let is_reached = (0..POLLS_MAX).any(|_| {
            self.run(script) == true || {
                sleep(POLL_INTERVAL);
                false
            }
        });
        assert!(is_reached, "waited without success for: {what}; page {}", self.run("return document.body.innerText"));
    }

    fn resize(&self, width: u32, scheme: &str) {
        self.resize_to(width, 1400, scheme, 1.0);
    }

    fn resize_to(&self, width: u32, height: u64, scheme: &str, scale: f64) {
        let devtools = |command: &str, parameters: Value| {
            self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }));
        };
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600 });
        devtools("Emulation.setDeviceMetricsOverride", size);
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        devtools("Emulation.setEmulatedMedia", features);
    }

    fn save_screenshot(&self, name: &str) {
        let Some(folder) = std::env::var_os("CHATGATE_PAGE_SHOTS") else { return };
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), self.screenshot()).expect("the folder exists");
    }

    /// Returns the visible part of the page as PNG.
    fn screenshot(&self) -> Vec<u8> {
        let response = shell(&format!("curl -s {}/screenshot", self.session));
        let response: Value = serde_json::from_str(&response).expect("JSON");
        let text = response["value"].as_str().expect("a picture");
        base64::engine::general_purpose::STANDARD.decode(text).expect("base64")
    }

    /// Returns the messages in the browser's console.
    fn console_messages(&self) -> Vec<String> {
        let all = self.post("/se/log", &json!({ "type": "browser" }));
        all.as_array().expect("a list").iter().map(Value::to_string).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Closes the browser, which is a child of the driver.
        let _ = std::process::Command::new("curl").args(["-s", "-m", "5", "-X", "DELETE", &self.session]).output();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
