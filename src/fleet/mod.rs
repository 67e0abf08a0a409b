//! State that replicas of chatgate share through Redis or Valkey: quota, cached pairs, and invalidations.
//!
//! A replica is *connected* while Redis responds, and *disconnected* otherwise. It reconnects automatically and never
//! waits for Redis longer than 80 ms. One failed command, or a run of slow responses, ends the connection, because a
//! half-working Redis is worse than none.
//!
//! * **One connection** for all apps, or one for each app in a Redis Cluster ([`Connections`]), in RESP3. Responses and
//!   invalidations arrive on it in the order in which Redis made them, so a replica with a connection has a
//!   subscription. A replica that loses the connection clears its cache, or that of the connection's app. The connection
//!   lives on the main thread; worker threads send commands through a bounded queue.
//! * **Quota**: [`lease`](Fleet::lease) returns moments at which calls may go. See [`crate::domain::fleet::lease`] for
//!   why all replicas together keep the limit in every second.
//! * **Cached pairs**: [`read`](Fleet::read) returns pairs of other replicas, [`store`](Fleet::store) shares ours. An
//!   entry carries a time of Redis' clock before its lookup was sent. An invalidation leaves a mark with its own time.
//!   The script rejects a late store, and the reader ignores an entry older than a mark.
//! * **Invalidations**: [`invalidate`](Fleet::invalidate) writes the marks and a message in one step. The marks protect
//!   the pairs in Redis, the message the caches of the other replicas. Redis publishes messages in batches, at most one
//!   in 50 ms, so that the traffic does not grow with replicas times invalidations. If that fails, the whole app is
//!   invalidated when the replica is connected again. The same happens after a failover, because other replicas may have
//!   been connected to the new primary while the old one accepted the invalidation.
//!
//! A disconnected replica uses `fleet.share` of each quota. It starts without a burst, because it may just have used
//! leased permits.

mod connections;
mod invalidation;
mod lease;
mod link;
mod locate;
mod pairs;
mod reach;
mod scripts;
mod sentinel;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::sync::Notify;

use self::link::Link;
use self::locate::Locator;
use crate::capacity::Capacity;
use crate::clock;
use crate::config;
use crate::domain::chat::app::SdkAppId;
use crate::domain::fleet::keys::FleetKeys;
use crate::domain::fleet::undelivered::Undelivered;

pub use self::connections::Connections;
pub use self::lease::{Granted, LeaseRequest};
pub use self::link::OnInvalidation;
pub use self::pairs::FetchedPairs;
pub use crate::domain::fleet::lease::Pace;

/// How long a command waits for Redis. Then the replica is disconnected.
const RESPONSE_TIMEOUT: Duration = Duration::from_millis(70);
/// The timeout for a connection with its subscription, scripts, and probes.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1000);
/// Maximum number of stores in flight; further ones are dropped.
const STORES_MAX: usize = 64;

/// One connection of this replica to the fleet: that of all apps, or of one app in a Redis Cluster.
pub struct Fleet {
    locator: Locator,
    /// The app of this connection; `None` if all apps have one connection.
    app: Option<SdkAppId>,
    /// The TLS configuration of the next connection; `None` means plain TCP.
    tls: Arc<ArcSwapOption<ClientConfig>>,
    /// The prefix of every key. In a Redis Cluster it ends with the hash tag of the app.
    prefix: String,
    /// The fraction of each quota that a disconnected replica uses.
    share: f64,
    /// How often the mode has changed: odd means connected.
    epoch: AtomicU64,
    /// The connection, while connected.
    link: ArcSwapOption<Link>,
    /// Distinguishes our own invalidations from those of other replicas.
    sender_id: [u8; 8],
    /// Apps whose invalidations have to be sent, or sent again.
    undelivered: Mutex<Undelivered>,
    /// Whether a task waits to have Redis publish the waiting invalidations.
    flush_planned: AtomicBool,
    /// Notified when the connection is lost.
    disconnected: Notify,
    /// Why the replica is disconnected, if it is and the reason is known.
    cause: ArcSwapOption<String>,
    stores: Arc<Capacity>,
    counters: Counters,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The address contains a password.
        f.debug_struct("Fleet").field("prefix", &self.prefix).field("mode", &self.mode()).finish_non_exhaustive()
    }
}

/// Whether a replica is connected to Redis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mode {
    /// The replica uses its local cache and its share of each quota.
    #[default]
    Disconnected,
    /// Redis grants the permits.
    Connected,
}

impl Mode {
    /// Returns the value of `fleet.mode` in `/status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Mode::Disconnected => "disconnected",
            Mode::Connected => "connected",
        }
    }
}

/// One app of the fleet.
#[derive(Debug)]
pub struct FleetApp {
    /// Its SDKAppID.
    pub app: SdkAppId,
    /// The keys that hide and authenticate its data in Redis.
    pub keys: Arc<FleetKeys>,
    /// How long pairs are cached.
    pub ttl: Duration,
}

/// Counters since the start.
#[derive(Debug, Default)]
struct Counters {
    disconnects: AtomicU64,
    permits: AtomicU64,
    cache_lookups: AtomicU64,
    cache_hits: AtomicU64,
    invalidations_sent: AtomicU64,
    invalidations_received: AtomicU64,
}

/// A snapshot of the fleet. Counters count since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FleetStats {
    /// The current mode.
    pub mode: Mode,
    /// How often the connection was lost.
    pub disconnects: u64,
    /// Permits that Redis has granted.
    pub permits: u64,
    /// Pairs looked up in Redis.
    pub cache_lookups: u64,
    /// Pairs found in Redis.
    pub cache_hits: u64,
    /// Invalidations sent to other replicas.
    pub invalidations_sent: u64,
    /// Invalidations received from other replicas.
    pub invalidations_received: u64,
}

impl FleetStats {
    /// Returns the sum of two connections, which is connected if both are.
    fn plus(&self, other: &Self) -> Self {
        Self {
            mode: if self.mode == Mode::Connected { other.mode } else { Mode::Disconnected },
            disconnects: self.disconnects + other.disconnects,
            permits: self.permits + other.permits,
            cache_lookups: self.cache_lookups + other.cache_lookups,
            cache_hits: self.cache_hits + other.cache_hits,
            invalidations_sent: self.invalidations_sent + other.invalidations_sent,
            invalidations_received: self.invalidations_received + other.invalidations_received,
        }
    }
}

impl Fleet {
    /// Returns a disconnected replica. [`Fleet::run`] connects it. [`Connections::of`] chooses the prefix.
    ///
    /// # Errors
    /// [`FleetError`].
    fn new(config: &config::Fleet, app: Option<SdkAppId>, prefix: String) -> Result<Arc<Self>, FleetError> {
        let random = clock::os_random().map_err(FleetError::Random)?;
        let mut sender_id = [0; 8];
        sender_id.copy_from_slice(&random[..8]);
        Ok(Arc::new(Self {
            locator: Locator::new(config)?,
            app,
            tls: Arc::new(ArcSwapOption::new(config.tls.as_ref().map(|tls| Arc::clone(&tls.0)))),
            prefix,
            share: config.share,
            epoch: AtomicU64::new(0),
            link: ArcSwapOption::empty(),
            sender_id,
            undelivered: Mutex::default(),
            flush_planned: AtomicBool::new(false),
            disconnected: Notify::new(),
            cause: ArcSwapOption::empty(),
            stores: Capacity::new(STORES_MAX),
            counters: Counters::default(),
        }))
    }

    /// Returns the fraction of each quota that a disconnected replica uses, above 0 and up to 1.
    pub fn share(&self) -> f64 {
        self.share
    }

    /// Returns how often the mode has changed: odd means connected.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Returns the current mode.
    pub fn mode(&self) -> Mode {
        mode_of(self.epoch())
    }

    /// Returns why the replica is disconnected, without secrets. `None` if it is connected or has not tried yet.
    pub fn cause(&self) -> Option<Arc<String>> {
        self.cause.load_full()
    }

    /// Applies the certificates of a new configuration to later connections. The current connection stays.
    fn reconfigure(&self, config: &config::Fleet) {
        self.tls.store(config.tls.as_ref().map(|tls| Arc::clone(&tls.0)));
    }

    /// Returns a snapshot.
    pub fn stats(&self) -> FleetStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        FleetStats {
            mode: self.mode(),
            disconnects: read(&counters.disconnects),
            permits: read(&counters.permits),
            cache_lookups: read(&counters.cache_lookups),
            cache_hits: read(&counters.cache_hits),
            invalidations_sent: read(&counters.invalidations_sent),
            invalidations_received: read(&counters.invalidations_received),
        }
    }

    /// Returns the channel of invalidations.
    fn channel(&self) -> String {
        format!("{}:evictions", self.prefix)
    }

    /// Returns the command that publishes to [`Fleet::channel`].
    fn publish_command(&self) -> &'static str {
        if self.locator.is_cluster() { "SPUBLISH" } else { "PUBLISH" }
    }

    /// Returns the keys of the invalidations that wait in Redis, and of the time of the last publication.
    fn batch_keys(&self) -> [String; 2] {
        ["pending", "published"].map(|name| format!("{}:{name}", self.prefix))
    }

    /// Returns the key of the time before which everything in Redis is void.
    fn since_key(&self) -> String {
        format!("{}:since", self.prefix)
    }
}

/// Returns the mode of an epoch: odd epochs are connected.
pub(crate) fn mode_of(epoch: u64) -> Mode {
    if epoch % 2 == 1 { Mode::Connected } else { Mode::Disconnected }
}

/// Why a fleet cannot be created. The messages contain no password.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The operating system has no random numbers.
    #[error("cannot read random numbers from the operating system: {0}")]
    Random(getrandom::Error),
    /// The address of Redis is not usable.
    #[error("fleet.redis or fleet.sentinels has an unusable address")]
    Address,
}
