//! Webhooks, posted to a URL and signed as Chat signs them.
//!
//! Vendor page 1047/34354 describes signature and delivery. A webhook is sent once. It is dropped if its delivery fails
//! or the queue is full.

mod body;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use zeroize::Zeroizing;

pub(super) use self::body::{EventSource, Webhook};
use super::journal::sha256;
use super::skew::SkewedClock;
use crate::domain::chat::app::{SdkAppId, SecretKey};

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
