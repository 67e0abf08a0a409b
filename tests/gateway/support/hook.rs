//! Chat as the sender of webhooks: queries, signatures and bodies in the vendor's documented format.

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::json;

use super::app::TestApp;
use super::client::{Conn, TestRequest};
use super::gateway::{Gateway, listener_addresses};
use super::response::Response;
use super::setup::Setup;
use super::{PATIENCE, eventually, secrets, unix_now, within};

pub(crate) const ADDED: &str = "Follow.CallbackAfterFollowAdd";
pub(crate) const DELETED: &str = "Follow.CallbackAfterFollowDelete";
pub(crate) const RATE_ALERT: &str = "Alert.RequestOverLimit";

/// The response body that Chat expects.
pub(crate) const ACCEPTED: &str = r#"{"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":""}"#;

/// Configures a webhook listener for these apps, each with its own token.
pub(crate) fn listen(setup: Setup, apps: &[TestApp]) -> Setup {
    let tokens = apps.iter().map(|app| {
        let file = setup.file(&format!("{}.webhook", app.name), app.webhook_token);
        format!("{} = {{ file = '{}' }}", app.name, file.display())
    });
    let tokens = tokens.collect::<Vec<_>>().join(", ");
    setup
        .set("webhook", r#"listen = "127.0.0.1:0""#)
        .set("webhook", &format!("app_tokens = {{ {tokens} }}"))
        .set("cache", r#"ttl = "1h""#)
        .set("cache", r#"write_settle = "0s""#)
}

/// Returns the address of the webhook listener.
pub(crate) async fn address(gateway: &Gateway) -> String {
    eventually("the webhook listener is up", async || listener_addresses(&gateway.log(), "webhook").pop()).await
}

/// Returns a webhook signed now with the app's token.
pub(crate) fn signed(app: TestApp, command: &str, body: &str) -> TestRequest {
    signed_at(app, unix_now(), command, body)
}

/// Returns a webhook signed at `at`, in seconds since 1970.
pub(crate) fn signed_at(app: TestApp, at: u64, command: &str, body: &str) -> TestRequest {
    TestRequest::post(&format!("/hook?{}", query(app, at, command))).host("hooks.example.com").body(body)
}

/// Returns the query of a webhook.
pub(crate) fn query(app: TestApp, at: u64, command: &str) -> String {
    format!("{}&Sign={}&RequestTime={at}", unsigned_query(app, command), sign(app.webhook_token, at))
}

/// Returns the query without its signature.
pub(crate) fn unsigned_query(app: TestApp, command: &str) -> String {
    format!("SdkAppid={}&CallbackCommand={command}&contenttype=json&ClientIP=192.0.2.7&OptPlatform=iOS", app.sdkappid)
}

/// Returns the lower-case hex SHA-256 of token and time. From then on the output of every test is searched for it.
pub(crate) fn sign(token: &str, at: u64) -> String {
    let hash = digest(&SHA256, format!("{token}{at}").as_bytes());
    let sign: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    secrets::add(&sign);
    sign
}

/// Returns the body of an event about these pairs, in the format of its command.
pub(crate) fn event(command: &str, from: &str, to: &[&str]) -> String {
    let time = unix_now() * 1000;
    let body = if command == ADDED {
        let list: Vec<_> = to.iter().map(|to| json!({"To_Account": to})).collect();
        json!({"CallbackCommand": command, "From_Account": from, "FollowList": list, "EventTime": time})
    } else {
        json!({"CallbackCommand": command, "From_Account": from, "To_Account": to, "EventTime": time})
    };
    body.to_string()
}

/// Posts a webhook on a new connection.
pub(crate) async fn post(address: &str, request: &TestRequest) -> Response {
    let mut conn = Conn::open(address).await.expect("the webhook listener accepts");
    within(PATIENCE, "a response", conn.request(request)).await
}

/// Posts a webhook and asserts that it is accepted.
#[track_caller]
pub(crate) fn post_accepted<'a>(address: &'a str, request: &'a TestRequest) -> impl Future<Output = ()> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let response = post(address, request).await;
        assert_eq!((response.status, response.text().as_str()), (200, ACCEPTED), "{caller}: {response:?}");
        assert_eq!(response.header("content-type"), Some("application/json"), "{caller}");
    }
}
