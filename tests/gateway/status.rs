//! `GET /status` and `POST /log`: the gateway's state, and changes of the log level.

use serde_json::Value;

use crate::support::app::{MAIN, OTHER};
use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::eventually;
use crate::support::gateway::Gateway;
use crate::support::setup::{Setup, gateway};

async fn status(gateway: &Gateway) -> Value {
    let response = gateway.admin_get("/status").await;
    assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")), "{response:?}");
    response.json()
}

#[tokio::test]
async fn status_reports_each_app_and_the_gateway() {
    let chat = FakeChat::start().await;
    let lines = chat.app_lines();
    let setup = Setup::without_apps().app(MAIN, &format!("{lines}\ndefault = true")).app(OTHER, &lines);
    let gateway = setup.set("app.quota", r#"per_command = "150/s""#).start().await;
    gateway.check("ann", &["bob", "cyd"]).await.items();
    gateway.check("ann", &["bob", "cyd"]).await.items();
    let status = eventually("the second with the requests has passed", async || {
        let status = status(&gateway).await;
        (status["apps"][0]["last_second"]["ok"].as_f64()? > 0.0).then_some(status)
    })
    .await;
    assert_eq!((&status["version"], &status["ready"]), (&env!("CARGO_PKG_VERSION").into(), &true.into()));
    let [main, other] = status["apps"].as_array().expect("apps").as_slice() else { panic!("{status}") };
    assert_eq!(
        (&main["name"], &main["sdkappid"], &main["default"]),
        (&"main".into(), &MAIN.sdkappid.into(), &true.into())
    );
    assert_eq!((&main["region"], &main["state"]["is"]), (&Value::Null, &"primary".into()));
    let signature = &main["signature"];
    let seconds = |name: &str| signature[name].as_f64().unwrap_or_else(|| panic!("{name} in {signature}"));
    assert!((seconds("age_seconds") + seconds("expires_in_seconds") - 86_400.0).abs() < 0.01, "{signature}");
    assert_eq!((&main["cache"]["pairs"], &main["cache"]["hit_ratio"]), (&2.into(), &0.5.into()));
    let quota = &main["quota"][0];
    assert_eq!((&quota["command"], &quota["limit"]), (&"follow/follow_check".into(), &150.into()), "{quota}");
    assert_eq!((&quota["lowered"], &quota["calls_waiting"]), (&false.into(), &0.into()), "{quota}");
    assert_eq!(main["since_start"]["requests"]["ok"], 2);
    assert_eq!(main["since_start"]["pairs"]["hit"], 2);
    assert_eq!(main["since_start"]["calls"][0]["code"], "0");
    assert!(main["since_start"]["request_ms"]["p99"].as_f64().is_some_and(|millis| millis > 0.0), "{main}");
    assert!(main["last_second"]["p50_ms"].as_f64().is_some_and(|millis| millis > 0.0), "{main}");
    assert_eq!(other["since_start"]["requests"]["ok"], 0);
    let config = &status["config"];
    assert_eq!(config["server"]["admin"], "127.0.0.1:0");
    assert_eq!((&config["cache"]["ttl"], &config["upstream"]["timeout"]), (&"30s".into(), &"5s".into()));
    assert_eq!(config["app"][0]["quota"]["per_command"], "150/s");
    let history = gateway.admin_get("/status/history/main").await.json();
    assert!(!history["points"].as_array().expect("points").is_empty(), "{history}");
    for path in ["/status/history/none", "/status/history/", "/status/"] {
        assert_eq!(gateway.admin_get(path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn admin_pages_contain_no_secrets_and_reject_foreign_hosts() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    gateway.check("private-ann", &["private-bob"]).await.items();
    for path in ["/", "/page.js", "/page.css", "/status", "/status/history/main", "/metrics"] {
        let response = gateway.admin_get(path).await;
        assert_eq!(response.status, 200, "{path}");
        crate::support::secrets::assert_none_in(path, &response.body);
        assert!(!response.text().contains("private"), "{path}: {}", response.text());
        if path != "/metrics" {
            assert_eq!(
                gateway.send_to_admin(TestRequest::new("GET", path).host("evil.test")).await.status,
                403,
                "{path}"
            );
        }
    }
    let page = gateway.admin_get("/").await;
    let policy = page.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"), "{policy}");
}

#[tokio::test]
async fn log_level_changes_at_runtime() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("log", r#"level = "error""#).set("log", r#"requests = "all""#);
    let gateway = gateway.start_at_fixed_addresses().await;
    let set = async |level: &str| {
        let response = gateway.send_to_admin(TestRequest::post("/log").body(format!(r#"{{"level":"{level}"}}"#))).await;
        assert_eq!((response.status, response.json()["level"].as_str()), (200, Some(level)), "{response:?}");
        assert_eq!(status(&gateway).await["log"]["level"], level);
    };
    let logged = |id: &str| gateway.log().contains(&format!("\"request_id\":\"{id}\""));
    let request =
        async |id: &str| gateway.send(TestRequest::check("ann", &["bob"]).header("X-Request-Id", id)).await.items();
    request("unseen").await;
    set("info").await;
    request("seen").await;
    eventually("the request is logged at the new level", async || logged("seen").then_some(())).await;
    // Lines are written in order, so an earlier line would already be in the log.
    assert!(!logged("unseen"), "{}", gateway.log());
    set("warn").await;
    request("unseen-again").await;
    set("info").await;
    request("seen-again").await;
    eventually("the request is logged at the new level", async || logged("seen-again").then_some(())).await;
    assert!(!logged("unseen-again"), "{}", gateway.log());
    for (body, slug) in
        [("", "bad_json"), ("{}", "bad_json"), (r#"["info"]"#, "bad_json"), (r#"{"level":"loud"}"#, "bad_parameter")]
    {
        let response = gateway.send_to_admin(TestRequest::post("/log").body(body)).await;
        assert_eq!((response.status, response.slug()), (400, Some(slug)), "{body}");
    }
    let response = gateway.send_to_admin(TestRequest::post("/log").header("Origin", "http://evil.test")).await;
    assert_eq!(response.status, 403, "{response:?}");
    assert_eq!(gateway.send_to_admin(TestRequest::new("GET", "/log")).await.status, 405);
}
