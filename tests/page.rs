//! The operators' page in a real browser: headless Chromium, driven by chromedriver over WebDriver (W3C).
//!
//! With `CHATGATE_PAGE_SHOTS` naming a folder, pictures of the page are left there to be looked at.

mod support;

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use support::{Program, shell};

/// How often a condition is looked at before the test gives up.
const LOOKS_MAX: usize = 150;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

#[test]
fn the_page_shows_what_status_says_live_and_without_errors() {
    let (mut demo, data, admin) = Program::demo();
    let ask = |to: &str| {
        let body = format!(r#"{{"From_Account":"alice","To_Account":["{to}"]}}"#);
        shell(&format!("curl -s http://{data}/v4/follow/follow_check -d '{body}'"));
    };
    ["bob", "bob", "carol", "nobody"].iter().for_each(|to| ask(to));

    let browser = Browser::start();
    browser.open(&format!("http://{admin}/"));
    browser.until("the first figures", "return document.querySelector('#state').textContent === 'Ready'");
    let status = || -> Value { serde_json::from_str(&shell(&format!("curl -s http://{admin}/status"))).expect("JSON") };
    // Values on the page equal those of /status, which stand still now.
    let cell = |table: &str, column: usize| {
        browser.run(&format!("return document.querySelector('#{table} tbody tr').children[{column}].textContent"))
    };
    let app = &status()["apps"][0];
    assert_eq!(cell("apps", 0), app["name"]);
    assert_eq!(cell("apps", 1), "on its own domain");
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
    // It goes on by itself.
    let calls = cell("codes", 1);
    ask("dave");
    browser.until("one more call", &format!("return document.querySelector('#codes td').textContent !== {calls}"));
    assert_eq!(cell("codes", 1), status()["apps"][0]["since_start"]["calls"][0]["count"].to_string());
    browser.until(
        "the curves are drawn",
        "return document.querySelector('#plot-requests .c0').getAttribute('d').includes('L')",
    );
    // Each plot has a name and says its values in words; every control can be reached by keyboard.
    let untold = "return [...document.querySelectorAll('figure > svg')].filter(svg => svg.getAttribute('role') !== 'img' \
                  || !document.getElementById(svg.getAttribute('aria-labelledby'))?.textContent \
                  || !document.getElementById(svg.getAttribute('aria-describedby'))?.textContent.startsWith('Now: ')).length";
    assert_eq!(browser.run(untold), 0);
    assert_eq!(browser.run("return document.querySelectorAll('figure').length"), 6);

    let wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth";
    for (name, width, scheme) in [("light", 1200, "light"), ("dark", 1200, "dark"), ("phone", 390, "light")] {
        browser.look(width, scheme);
        assert_eq!(browser.run(wide), false, "{name}: the page is wider than its window");
        browser.shoot(name);
    }
    assert_eq!(browser.complaints(), Vec::<String>::new(), "the console is not empty");
    // When chatgate has gone, the page says so.
    assert!(demo.stop().success());
    browser.until("it says that there is no answer", "return document.querySelector('#state').className === 'bad'");
}

/// A sandbox for each app, of which one is reached at its standby only and one refuses for good.
#[test]
fn each_app_s_trouble_is_told_in_plain_words() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    let apps = ["feed", "live-streams", "shop", "archive-of-the-old-games"];
    let (mut sandboxes, mut config) = (Vec::new(), String::new());
    config += "[server]\nlisten = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n[access]\nallow = ['*']\n";
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
        let way = match *name {
            "live-streams" => format!("endpoint = 'http://{nobody}'\nstandby = 'http://{address}'"),
            _ => format!("endpoint = 'http://{address}'"),
        };
        let users = r#"{"users":["ann","bob"],"edges":[["ann","bob"]]}"#;
        shell(&format!("curl -sf http://{address}/__sandbox/graph -d '{users}'"));
        config += &format!("[[app]]\nname = '{name}'\nsdkappid = {sdkappid}\nsecret_key_file = 'key'\n{way}\n");
        sandboxes.push((sandbox, address));
    }
    let fault = |app: usize, fault: &str| {
        shell(&format!("curl -sf http://{}/__sandbox/faults -d '{fault}'", sandboxes[app].1));
    };
    fault(2, r#"{"error_code":60020,"next":1000}"#);
    fault(3, r#"{"error_code":60010,"next":1000,"command":"openim/sendmsg"}"#);
    let file = folder.path().join("chatgate.toml");
    std::fs::write(&file, config).expect("own folder");
    let mut gateway = Program::start(&["serve", "--config", &file.to_string_lossy()]);
    let (data, admin) = (gateway.address("data"), gateway.address("admin"));
    let body = r#"{"From_Account":"ann","To_Account":["bob"]}"#;
    let status = || -> Value { serde_json::from_str(&shell(&format!("curl -s http://{admin}/status"))).expect("JSON") };
    let told = |app: usize| {
        let status = status();
        let state = &status["apps"][app]["state"];
        (state["is"].as_str().expect("a word").to_owned(), state["cause"].as_str().unwrap_or_default().to_owned())
    };
    let is_as_meant = || {
        for app in apps {
            for command in ["follow/follow_check", "openim/sendmsg"] {
                shell(&format!("curl -s http://{data}/apps/{app}/v4/{command} -d '{body}'"));
            }
        }
        let states: Vec<String> = (0..apps.len()).map(|app| told(app).0).collect();
        states == ["primary", "standby", "parked", "primary"] && !told(3).1.is_empty()
    };
    assert!((0..LOOKS_MAX).any(|_| is_as_meant()), "{}", status()["apps"]);

    let browser = Browser::start();
    browser.open(&format!("http://{admin}/"));
    let says = "return document.querySelector('#state').textContent.startsWith('Ready; not as usual')";
    browser.until("trouble is told", says);
    let text = |selector: &str| {
        browser.run(&format!("return document.querySelector('{selector}').textContent")).as_str().map(str::to_owned)
    };
    let row = |app: usize, column: usize| text(&format!("#apps tbody tr:nth-child({}) :nth-child({column})", app + 1));
    assert_eq!(text("#state").as_deref(), Some("Ready; not as usual: live-streams, shop, archive-of-the-old-games"));
    for (app, name) in apps.iter().enumerate() {
        assert_eq!(row(app, 1).as_deref(), Some(*name));
    }
    let state = |app: usize| row(app, 2).expect("a state");
    assert_eq!(state(0), "on its own domain");
    assert_eq!(state(1), "on the standby domain: the primary domain cannot be reached");
    let (_, parked) = told(2);
    assert!(parked.starts_with("Chat answers 60020: ") && parked.contains("plan"), "{parked}");
    assert_eq!(state(2), format!("parked: {parked}"));
    let (_, one_command) = told(3);
    assert!(one_command.starts_with("openim/sendmsg: Chat answers 60010"), "{one_command}");
    assert_eq!(state(3), format!("on its own domain, but some commands are parked: {one_command}"));
    // Colour is not all that tells them apart, and they have different ones.
    let colour = |app: usize| {
        browser.run(&format!(
            "return getComputedStyle(document.querySelector('#apps tbody tr:nth-child({}) td')).color",
            app + 1
        ))
    };
    assert!(colour(0) != colour(1) && colour(1) != colour(2) && colour(0) != colour(2) && colour(3) == colour(1));
    // The plots are of the app that is chosen.
    let choose = "const choice = document.querySelector('#app'); choice.value = 'shop'; \
                  choice.dispatchEvent(new Event('change')); return true";
    browser.run(choose);
    browser.until("the other app's codes", "return document.querySelector('#codes tbody th').textContent === '60020'");

    let wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth";
    for (name, width, scheme) in [("apps", 1200, "light"), ("apps-dark", 1200, "dark"), ("apps-phone", 390, "light")] {
        browser.look(width, scheme);
        assert_eq!(browser.run(wide), false, "{name}: the page is wider than its window");
        // Nothing of the apps is beside the window, but on a phone; the cause can be read there too.
        let whole = "const frame = document.querySelector('#apps').parentElement; \
                     return frame.scrollWidth <= frame.clientWidth";
        assert!(width < 600 || browser.run(whole) == true, "{name}: the table of apps is cut off");
        let right = "return document.querySelector('#apps tbody tr:nth-child(3) td').getBoundingClientRect().right \
                     <= document.documentElement.clientWidth";
        assert_eq!(browser.run(right), true, "{name}: the cause is cut off");
        browser.shoot(name);
    }
    assert_eq!(browser.complaints(), Vec::<String>::new(), "the console is not empty");
    assert!(gateway.stop().success());
}

/// A browser of its own, which ends with the test.
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
            .expect("chromedriver is there (tests/run installs it)");
        let mut browser = Self { driver, session: format!("http://127.0.0.1:{port}"), _profile: profile };
        let up = |url: &str| shell(&format!("curl -s {url}/status || true")).contains("\"ready\":true");
        assert!(
            (0..LOOKS_MAX).any(|_| up(&browser.session) || {
                sleep(BETWEEN_LOOKS);
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

    /// A WebDriver command.
    fn post(&self, path: &str, body: &Value) -> Value {
        let file = self._profile.path().join("command.json");
        std::fs::write(&file, body.to_string()).expect("own folder");
        let line = format!(
            "curl -s {}{path} -H 'Content-Type: application/json' --data-binary @{}",
            self.session,
            file.display()
        );
        let answer: Value = serde_json::from_str(&shell(&line)).expect("JSON");
        assert!(answer["value"]["error"].is_null(), "{path}: {answer}");
        answer["value"].clone()
    }

    fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    fn until(&self, what: &str, script: &str) {
        let told = (0..LOOKS_MAX).any(|_| {
            self.run(script) == true || {
                sleep(BETWEEN_LOOKS);
                false
            }
        });
        assert!(told, "waited in vain for: {what}; state {}", self.run("return document.body.innerText"));
    }

    fn look(&self, width: u32, scheme: &str) {
        let devtools = |command: &str, parameters: Value| {
            self.post("/goog/cdp/execute", &json!({ "cmd": command, "params": parameters }));
        };
        let size = json!({ "width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": width < 600 });
        devtools("Emulation.setDeviceMetricsOverride", size);
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        devtools("Emulation.setEmulatedMedia", features);
    }

    fn shoot(&self, name: &str) {
        let Some(folder) = std::env::var_os("CHATGATE_PAGE_SHOTS") else { return };
        let answer = shell(&format!("curl -s {}/screenshot", self.session));
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        let text = answer["value"].as_str().expect("a picture");
        let picture = base64::engine::general_purpose::STANDARD.decode(text).expect("base64");
        std::fs::write(Path::new(&folder).join(format!("{name}.png")), picture).expect("the folder is there");
    }

    /// What the browser's console has to complain about.
    fn complaints(&self) -> Vec<String> {
        let all = self.post("/se/log", &json!({ "type": "browser" }));
        all.as_array().expect("a list").iter().map(Value::to_string).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Closes the browser, which is the driver's child and not ours.
        let _ = std::process::Command::new("curl").args(["-s", "-m", "5", "-X", "DELETE", &self.session]).output();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
