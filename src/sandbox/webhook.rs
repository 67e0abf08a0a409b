//! Webhooks, posted to a URL and signed as Chat signs them.
//!
//! There are follow events (vendor pages 1047/70355 and 70356) and alerts about the rate of a command
//! (1047/60256). Page 1047/34354 describes signature and delivery. A webhook is sent once. It is dropped if its
//! delivery fails or the queue is full.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use zeroize::Zeroizing;

use super::commands::FollowEvent;
use super::journal::sha256;
use super::skew::SkewedClock;
use crate::domain::chat::app::{SdkAppId, SecretKey};
use crate::domain::chat::command::CommandName;

/// Maximum number of queued webhooks.
const QUEUE_LEN_MAX: usize = 1000;
/// Chat's timeout for a response (1047/34354).
const TIMEOUT: Duration = Duration::from_secs(2);
/// Largest response, in bytes.
const RESPONSE_LEN_MAX: usize = 64 * 1024;

/// The target of webhooks.
#[derive(Debug, Clone)]
pub struct WebhookTarget {
    /// `http://host:port/path`, without a query.
    pub url: Uri,
    /// Token that signs the webhooks.
    pub token: SecretKey,
}

impl WebhookTarget {
    /// Parses a URL with the scheme http, with a host, and without a query.
    pub fn parse_url(text: &str) -> Result<Uri, WebhookUrlError> {
        let url: Uri = text.parse().map_err(|_| WebhookUrlError)?;
        let is_valid = url.scheme_str() == Some("http") && url.authority().is_some() && url.query().is_none();
        if is_valid { Ok(url) } else { Err(WebhookUrlError) }
    }
}

/// The text is not a URL for webhooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a URL like http://127.0.0.1:8702/ (http only, without '?')")]
pub struct WebhookUrlError;

/// A webhook before it is signed.
#[derive(Debug)]
pub(super) struct Webhook {
    command: &'static str,
    client_ip: Option<IpAddr>,
    body: Vec<u8>,
}

impl Webhook {
    /// Reports a change by a call from `client_ip`. `at` is the time since the Unix epoch.
    pub(super) fn follow_event(event: &FollowEvent, client_ip: IpAddr, at: Duration) -> Self {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct FollowTarget<'a> {
            #[serde(rename = "To_Account")]
            to_account: &'a str,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct FollowEventBody<'a> {
            callback_command: &'static str,
            #[serde(rename = "From_Account")]
            from: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            follow_list: Option<Vec<FollowTarget<'a>>>,
            #[serde(rename = "To_Account", skip_serializing_if = "Option::is_none")]
            to: Option<&'a [String]>,
            event_time: u128,
        }
        let event_time = at.as_millis();
        let body = match event {
            FollowEvent::Followed { from, to } => FollowEventBody {
                callback_command: "Follow.CallbackAfterFollowAdd",
                from,
                follow_list: Some(to.iter().map(|to| FollowTarget { to_account: to }).collect()),
                to: None,
                event_time,
            },
            FollowEvent::Unfollowed { from, to } => FollowEventBody {
                callback_command: "Follow.CallbackAfterFollowDelete",
                from,
                follow_list: None,
                to: Some(to),
                event_time,
            },
        };
        Self { command: body.callback_command, client_ip: Some(client_ip), body: json(&body) }
    }

    /// Reports a command whose rate `request` is close to its `limit`, both in calls per second.
    pub(super) fn rate_alert(name: CommandName<'_>, request: usize, limit: usize) -> Self {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct RateAlertBody<'a> {
            callback_command: &'static str,
            service_name: &'a str,
            command: &'a str,
            request: usize,
            limit: usize,
        }
        let callback_command = "Alert.RequestOverLimit";
        let (service_name, command) = (name.service(), name.command());
        let body = RateAlertBody { callback_command, service_name, command, request, limit };
        Self { command: callback_command, client_ip: None, body: json(&body) }
    }

    /// Returns the query with app, event, and signature. It must not be logged, because it can be replayed until
    /// the receiver's time window ends.
    fn query(&self, app: SdkAppId, token: &SecretKey, now_secs: u64) -> String {
        let client_ip = self.client_ip.map(|ip| format!("&ClientIP={ip}")).unwrap_or_default();
        format!(
            "SdkAppid={app}&CallbackCommand={}&contenttype=json{client_ip}&OptPlatform=RESTAPI&Sign={}&RequestTime={now_secs}",
            self.command,
            sign(token, &now_secs.to_string()),
        )
    }
}

/// The queue of webhooks.
pub(super) struct WebhookQueue {
    queue: mpsc::Sender<Webhook>,
    dropped: AtomicU64,
}

impl WebhookQueue {
    pub(super) fn new(target: WebhookTarget, app: SdkAppId, clock: SkewedClock) -> (Self, WebhookSender) {
        let (queue, receiver) = mpsc::channel(QUEUE_LEN_MAX);
        (Self { queue, dropped: AtomicU64::new(0) }, WebhookSender { target, app, clock, queue: receiver })
    }

    pub(super) fn post(&self, webhook: Webhook) {
        if let Err(error) = self.queue.try_send(webhook) {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            warn!(command = error.into_inner().command, dropped, "webhook dropped because the queue is full");
        }
    }
}

/// Sends the queued webhooks one at a time.
pub(super) struct WebhookSender {
    target: WebhookTarget,
    app: SdkAppId,
    clock: SkewedClock,
    queue: mpsc::Receiver<Webhook>,
}

impl WebhookSender {
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_secs(30))
            .build(HttpConnector::new());
        while let Some(Some(webhook)) = shutdown.run_until_cancelled(self.queue.recv()).await {
            let command = webhook.command;
            match tokio::time::timeout(TIMEOUT, self.send(&client, webhook)).await {
                Ok(Ok(StatusCode::OK)) => debug!(command, "webhook delivered"),
                Ok(Ok(status)) => warn!(command, status = status.as_u16(), "webhook rejected"),
                Ok(Err(error)) => warn!(command, %error, "webhook failed"),
                Err(_) => warn!(command, "webhook timed out"),
            }
        }
    }

    async fn send(
        &self,
        client: &Client<HttpConnector, Full<Bytes>>,
        webhook: Webhook,
    ) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
        let query = webhook.query(self.app, &self.target.token, self.clock.unix_now().as_secs());
        let mut parts = self.target.url.clone().into_parts();
        parts.path_and_query = Some(format!("{}?{query}", self.target.url.path()).parse()?);
        let request = Request::builder()
            .method(Method::POST)
            .uri(Uri::from_parts(parts)?)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(webhook.body))?;
        let response = client.request(request).await?;
        let status = response.status();
        Limited::new(response.into_body(), RESPONSE_LEN_MAX).collect().await?;
        Ok(status)
    }
}

/// Returns the lower-case hexadecimal SHA-256 of the token's text followed by the time's text (1047/34354).
fn sign(token: &SecretKey, request_time: &str) -> String {
    let mut text = Zeroizing::new(Vec::with_capacity(token.expose().len() + request_time.len()));
    text.extend_from_slice(token.expose());
    text.extend_from_slice(request_time.as_bytes());
    sha256(&text)
}

fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("strings and numbers serialize to JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chat::command::FOLLOW_CHECK;

    #[test]
    fn sign_matches_the_vendors_example() {
        let token = SecretKey::new("xxxxyyyy").unwrap();
        let expected = "17773bc39a671d7b9aa835458704d2a6db81360a5940292b587d6d760d484061";
        assert_eq!(sign(&token, "1669872112"), expected);
    }

    #[test]
    fn body_and_query_match_the_vendors_shapes() {
        let at = Duration::from_millis(1_702_018_343_678);
        let ip = "127.0.0.1".parse().unwrap();
        let (from, to) = ("ann".to_owned(), vec!["bob".to_owned()]);
        let text = |webhook: &Webhook| String::from_utf8(webhook.body.clone()).unwrap();
        let added = Webhook::follow_event(&FollowEvent::Followed { from: from.clone(), to: to.clone() }, ip, at);
        assert_eq!(
            text(&added),
            r#"{"CallbackCommand":"Follow.CallbackAfterFollowAdd","From_Account":"ann","FollowList":[{"To_Account":"bob"}],"EventTime":1702018343678}"#
        );
        let deleted = Webhook::follow_event(&FollowEvent::Unfollowed { from, to }, ip, at);
        assert_eq!(
            text(&deleted),
            r#"{"CallbackCommand":"Follow.CallbackAfterFollowDelete","From_Account":"ann","To_Account":["bob"],"EventTime":1702018343678}"#
        );
        let alert = Webhook::rate_alert(FOLLOW_CHECK, 170, 200);
        assert_eq!(
            text(&alert),
            r#"{"CallbackCommand":"Alert.RequestOverLimit","ServiceName":"follow","Command":"follow_check","Request":170,"Limit":200}"#
        );
        let (app, token) = (SdkAppId::new(1400000001).unwrap(), SecretKey::new("xxxxyyyy").unwrap());
        let query = added.query(app, &token, 1669872112);
        let start = "SdkAppid=1400000001&CallbackCommand=Follow.CallbackAfterFollowAdd&contenttype=json&ClientIP=127.0.0.1&OptPlatform=RESTAPI&Sign=17773bc3";
        assert!(query.starts_with(start) && query.ends_with("&RequestTime=1669872112"), "{query}");
        assert!(!alert.query(app, &token, 0).contains("ClientIP"));
    }

    #[test]
    fn target_url_must_be_http_without_a_query() {
        assert!(WebhookTarget::parse_url("http://127.0.0.1:8702").is_ok());
        assert!(WebhookTarget::parse_url("http://[::1]:8702/hook").is_ok());
        for bad in ["", "127.0.0.1:8702", "/hook", "https://host/", "http://host/?a=b", "http://host/ x"] {
            assert_eq!(WebhookTarget::parse_url(bad), Err(WebhookUrlError), "{bad}");
        }
    }

    #[test]
    fn full_queue_drops_and_counts_webhooks() {
        let target =
            WebhookTarget { url: Uri::from_static("http://127.0.0.1:1/"), token: SecretKey::new("t").unwrap() };
        let (webhooks, sender) = WebhookQueue::new(target, SdkAppId::new(1).unwrap(), SkewedClock::default());
        for _ in 0..QUEUE_LEN_MAX + 3 {
            webhooks.post(Webhook::rate_alert(FOLLOW_CHECK, 1, 1));
        }
        assert_eq!(webhooks.dropped.load(Ordering::Relaxed), 3);
        assert_eq!(sender.queue.len(), QUEUE_LEN_MAX);
    }
}
