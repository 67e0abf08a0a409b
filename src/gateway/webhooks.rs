//! What the webhook listener keeps of an app across reloads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::capacity::Capacity;
use crate::domain::chat::before::BeforeWebhook;
use crate::telemetry::metrics::forwards::ForwardRecorder;

/// Maximum number of webhooks in flight to one app. At 20 ms each, these are 12,800 per second.
pub(crate) const FORWARDS_MAX: usize = 256;

/// The webhooks of one app.
#[derive(Debug)]
pub(crate) struct AppWebhooks {
    /// Webhooks in flight to the app.
    pub(crate) in_flight: Arc<Capacity>,
    /// Counters of forwarded webhooks.
    pub(crate) forwards: ForwardRecorder,
    /// One bit for each "before" webhook that has been answered without the app.
    let_through: AtomicU32,
}

impl Default for AppWebhooks {
    fn default() -> Self {
        let in_flight = Capacity::new(FORWARDS_MAX);
        Self { in_flight, forwards: ForwardRecorder::default(), let_through: AtomicU32::default() }
    }
}

impl AppWebhooks {
    /// Notes that a "before" webhook is answered without the app. Returns whether it is the first of its command.
    pub(crate) fn let_through(&self, webhook: BeforeWebhook) -> bool {
        self.let_through.fetch_or(webhook.bit(), Ordering::Relaxed) & webhook.bit() == 0
    }
}
