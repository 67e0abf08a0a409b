//! Webhooks: what happened, posted to a URL and signed as Chat signs.
//!
//! Follow events (vendor pages 1047/70355 and 70356) and the alarm about a command's rate
//! (1047/60256). Signature and delivery: 1047/34354. None is sent twice; one that does not fit into
//! the queue is dropped, as one is that fails.

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

use super::commands::Event;
use super::journal::sha256;
use super::skew::SkewedClock;
use crate::domain::chat::app::{SdkAppId, SecretKey};
use crate::domain::chat::command::CommandName;

/// Most webhooks that wait to be sent.
const QUEUE_LEN_MAX: usize = 1000;
/// How long Chat waits for an answer (1047/34354).
const TIMEOUT: Duration = Duration::from_secs(2);
/// Most of an answer that is read, in bytes.
const ANSWER_LEN_MAX: usize = 64 * 1024;

/// Where webhooks go.
#[derive(Debug, Clone)]
pub struct WebhookTarget {
    /// `http://host:port/path`, without a query.
    pub url: Uri,
    /// The text that signs them.
    pub token: SecretKey,
}

impl WebhookTarget {
    /// Reads a URL: plain http, with a host, without a query.
    pub fn parse_url(text: &str) -> Result<Uri, WebhookUrlError> {
        let url: Uri = text.parse().map_err(|_| WebhookUrlError)?;
        let fits = url.scheme_str() == Some("http") && url.authority().is_some() && url.query().is_none();
        if fits { Ok(url) } else { Err(WebhookUrlError) }
    }
}

/// The text is no URL that webhooks can be posted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a URL like http://127.0.0.1:8702/ (http only, without '?')")]
pub struct WebhookUrlError;

/// One webhook, not yet signed.
#[derive(Debug)]
pub(super) struct Notice {
    command: &'static str,
    client_ip: Option<IpAddr>,
    body: Vec<u8>,
}

impl Notice {
    /// About a change that a call from `client_ip` made at a moment since the epoch.
    pub(super) fn of_event(event: &Event, client_ip: IpAddr, at: Duration) -> Self {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Target<'a> {
            #[serde(rename = "To_Account")]
            to_account: &'a str,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body<'a> {
            callback_command: &'static str,
            #[serde(rename = "From_Account")]
            from: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            follow_list: Option<Vec<Target<'a>>>,
            #[serde(rename = "To_Account", skip_serializing_if = "Option::is_none")]
            to: Option<&'a [String]>,
            event_time: u128,
        }
        let event_time = at.as_millis();
        let body = match event {
            Event::Followed { from, to } => Body {
                callback_command: "Follow.CallbackAfterFollowAdd",
                from,
                follow_list: Some(to.iter().map(|to| Target { to_account: to }).collect()),
                to: None,
                event_time,
            },
            Event::Unfollowed { from, to } => Body {
                callback_command: "Follow.CallbackAfterFollowDelete",
                from,
                follow_list: None,
                to: Some(to),
                event_time,
            },
        };
        Self { command: body.callback_command, client_ip: Some(client_ip), body: json(&body) }
    }

    /// About a command that comes close to its limit, both in calls a second.
    pub(super) fn of_rate(name: CommandName<'_>, request: usize, limit: usize) -> Self {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Body<'a> {
            callback_command: &'static str,
            service_name: &'a str,
            command: &'a str,
            request: usize,
            limit: usize,
        }
        let callback_command = "Alert.RequestOverLimit";
        let body = Body { callback_command, service_name: name.service(), command: name.command(), request, limit };
        Self { command: callback_command, client_ip: None, body: json(&body) }
    }

    /// The query: which app, which event, and the signature. Whoever has it can repeat it for a
    /// while, so it is not for logs.
    fn query(&self, app: SdkAppId, token: &SecretKey, now_secs: u64) -> String {
        let client_ip = self.client_ip.map(|ip| format!("&ClientIP={ip}")).unwrap_or_default();
        format!(
            "SdkAppid={app}&CallbackCommand={}&contenttype=json{client_ip}&OptPlatform=RESTAPI&Sign={}&RequestTime={now_secs}",
            self.command,
            sign(token, &now_secs.to_string()),
        )
    }
}

/// Where calls leave their webhooks.
pub(super) struct Webhooks {
    queue: mpsc::Sender<Notice>,
    dropped: AtomicU64,
}

impl Webhooks {
    pub(super) fn new(target: WebhookTarget, app: SdkAppId, clock: SkewedClock) -> (Self, Worker) {
        let (queue, notices) = mpsc::channel(QUEUE_LEN_MAX);
        (Self { queue, dropped: AtomicU64::new(0) }, Worker { target, app, clock, notices })
    }

    pub(super) fn post(&self, notice: Notice) {
        if let Err(error) = self.queue.try_send(notice) {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            warn!(command = error.into_inner().command, dropped, "webhook dropped: the queue is full");
        }
    }
}

/// Sends webhooks, one after another.
pub(super) struct Worker {
    target: WebhookTarget,
    app: SdkAppId,
    clock: SkewedClock,
    notices: mpsc::Receiver<Notice>,
}

impl Worker {
    pub(super) async fn run(mut self, shutdown: CancellationToken) {
        let client: Client<HttpConnector, Full<Bytes>> = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(1)
            .pool_idle_timeout(Duration::from_secs(30))
            .build(HttpConnector::new());
        while let Some(Some(notice)) = shutdown.run_until_cancelled(self.notices.recv()).await {
            let command = notice.command;
            match tokio::time::timeout(TIMEOUT, self.send(&client, notice)).await {
                Ok(Ok(StatusCode::OK)) => debug!(command, "webhook delivered"),
                Ok(Ok(status)) => warn!(command, status = status.as_u16(), "webhook refused"),
                Ok(Err(error)) => warn!(command, %error, "webhook failed"),
                Err(_) => warn!(command, "webhook timed out"),
            }
        }
    }

    async fn send(
        &self,
        client: &Client<HttpConnector, Full<Bytes>>,
        notice: Notice,
    ) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
        let query = notice.query(self.app, &self.target.token, self.clock.unix_now().as_secs());
        let mut parts = self.target.url.clone().into_parts();
        parts.path_and_query = Some(format!("{}?{query}", self.target.url.path()).parse()?);
        let request = Request::builder()
            .method(Method::POST)
            .uri(Uri::from_parts(parts)?)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(notice.body))?;
        let answer = client.request(request).await?;
        let status = answer.status();
        Limited::new(answer.into_body(), ANSWER_LEN_MAX).collect().await?;
        Ok(status)
    }
}

/// Lower-case hex SHA-256 over the token's text and the time's text (1047/34354).
fn sign(token: &SecretKey, request_time: &str) -> String {
    let mut text = Zeroizing::new(Vec::with_capacity(token.expose().len() + request_time.len()));
    text.extend_from_slice(token.expose());
    text.extend_from_slice(request_time.as_bytes());
    sha256(&text)
}

fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("texts and numbers always become JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chat::command::FOLLOW_CHECK;

    #[test]
    fn the_vendors_example_of_a_signature() {
        let token = SecretKey::new("xxxxyyyy").unwrap();
        let expected = "17773bc39a671d7b9aa835458704d2a6db81360a5940292b587d6d760d484061";
        assert_eq!(sign(&token, "1669872112"), expected);
    }

    #[test]
    fn shapes_are_the_vendors() {
        let at = Duration::from_millis(1_702_018_343_678);
        let ip = "127.0.0.1".parse().unwrap();
        let (from, to) = ("ann".to_owned(), vec!["bob".to_owned()]);
        let text = |notice: &Notice| String::from_utf8(notice.body.clone()).unwrap();
        let added = Notice::of_event(&Event::Followed { from: from.clone(), to: to.clone() }, ip, at);
        assert_eq!(
            text(&added),
            r#"{"CallbackCommand":"Follow.CallbackAfterFollowAdd","From_Account":"ann","FollowList":[{"To_Account":"bob"}],"EventTime":1702018343678}"#
        );
        let deleted = Notice::of_event(&Event::Unfollowed { from, to }, ip, at);
        assert_eq!(
            text(&deleted),
            r#"{"CallbackCommand":"Follow.CallbackAfterFollowDelete","From_Account":"ann","To_Account":["bob"],"EventTime":1702018343678}"#
        );
        let alarm = Notice::of_rate(FOLLOW_CHECK, 170, 200);
        assert_eq!(
            text(&alarm),
            r#"{"CallbackCommand":"Alert.RequestOverLimit","ServiceName":"follow","Command":"follow_check","Request":170,"Limit":200}"#
        );
        let (app, token) = (SdkAppId::new(1400000001).unwrap(), SecretKey::new("xxxxyyyy").unwrap());
        let query = added.query(app, &token, 1669872112);
        let start = "SdkAppid=1400000001&CallbackCommand=Follow.CallbackAfterFollowAdd&contenttype=json&ClientIP=127.0.0.1&OptPlatform=RESTAPI&Sign=17773bc3";
        assert!(query.starts_with(start) && query.ends_with("&RequestTime=1669872112"), "{query}");
        assert!(!alarm.query(app, &token, 0).contains("ClientIP"));
    }

    #[test]
    fn urls_are_plain_http_without_a_query() {
        assert!(WebhookTarget::parse_url("http://127.0.0.1:8702").is_ok());
        assert!(WebhookTarget::parse_url("http://[::1]:8702/hook").is_ok());
        for bad in ["", "127.0.0.1:8702", "/hook", "https://host/", "http://host/?a=b", "http://host/ x"] {
            assert_eq!(WebhookTarget::parse_url(bad), Err(WebhookUrlError), "{bad}");
        }
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let target =
            WebhookTarget { url: Uri::from_static("http://127.0.0.1:1/"), token: SecretKey::new("t").unwrap() };
        let (webhooks, worker) = Webhooks::new(target, SdkAppId::new(1).unwrap(), SkewedClock::default());
        for _ in 0..QUEUE_LEN_MAX + 3 {
            webhooks.post(Notice::of_rate(FOLLOW_CHECK, 1, 1));
        }
        assert_eq!(webhooks.dropped.load(Ordering::Relaxed), 3);
        assert_eq!(worker.notices.len(), QUEUE_LEN_MAX);
    }
}
