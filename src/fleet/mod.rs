//! What replicas of chatgate share through Redis or Valkey: quota, facts and evictions.
//!
//! A replica is *together* with the others while Redis answers, and *alone* otherwise; it changes from one to
//! the other by itself and never waits for Redis longer than [`PATIENCE`]. Any failure of one command, or none
//! but slow answers for a while, end the connection: a Redis that is half there is worse than none.
//!
//! * **One connection** for all, in RESP3: answers and evictions come over it in the order in which Redis made
//!   them. So where there is a connection there is a subscription, and a replica that loses one loses both and
//!   forgets what it had. It lives on the main thread; workers hand it commands through a bounded queue.
//! * **Quota**: [`lease`](Fleet::lease) gets moments at which calls may go; see [`crate::domain::fleet::lease`]
//!   for why their sum over all replicas keeps the limit in every second.
//! * **Facts**: [`read`](Fleet::read) what others have learned and [`store`](Fleet::store) what we have. A fact
//!   carries a moment of Redis' clock before its lookup was sent, and an eviction leaves a mark with its own
//!   moment, so that a store which is late is refused by the script and an old fact by its reader.
//! * **Evictions**: [`evict`](Fleet::evict) marks and publishes in one step. The marks protect what is in Redis,
//!   the message what the other replicas have. One that could not be told is owed: when Redis is back, all of
//!   the app is evicted.
//!
//! A replica alone uses `fleet.share` of each quota, from nothing at first, so that what it had leased and
//! what it now allows itself do not add up.

mod commands;
mod link;
mod reach;
mod scripts;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::ClientConfig;
use tokio::sync::Notify;

use self::link::Link;
use self::reach::Address;
use crate::capacity::Capacity;
use crate::clock;
use crate::config;
use crate::domain::chat::app::SdkAppId;
use crate::domain::fleet::keys::FleetKeys;

pub use self::commands::{FleetApp, Granted, LeaseRequest, Pace};
pub use self::link::OnInvalidation;

/// How long an answer of Redis is waited for. The one that asked then goes on without it, and so does all of
/// the replica.
pub const PATIENCE: Duration = Duration::from_millis(70);
/// Stores at one time; further ones are left out.
const STORES_MAX: usize = 64;

/// The fleet as one replica sees it.
pub struct Fleet {
    address: Address,
    /// How the next connection is made; none: in the clear.
    tls: ArcSwapOption<ClientConfig>,
    /// What every name begins with.
    prefix: String,
    /// The part of a quota that is used alone.
    share: f64,
    /// Counts how often it has changed: odd is together.
    epoch: AtomicU64,
    /// There while together.
    link: ArcSwapOption<Link>,
    /// Tells our own messages from those of others.
    me: [u8; 8],
    /// Apps some eviction of which was not told.
    owed: Mutex<BTreeMap<SdkAppId, Arc<FleetKeys>>>,
    /// The connection was lost.
    trouble: Notify,
    /// Why it is alone; none: it is not, or does not know yet.
    cause: ArcSwapOption<String>,
    stores: Arc<Capacity>,
    figures: Counts,
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The address knows a password.
        f.debug_struct("Fleet").field("prefix", &self.prefix).field("mode", &self.mode()).finish_non_exhaustive()
    }
}

/// Whether a replica shares with others at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Redis is away: it has its share of each quota.
    Disconnected,
    /// Redis grants permits.
    Connected,
}

impl Mode {
    /// Its word in the status.
    pub const fn word(self) -> &'static str {
        match self {
            Mode::Disconnected => "alone",
            Mode::Connected => "together",
        }
    }
}

/// What is counted, since the start.
#[derive(Debug, Default)]
struct Counts {
    losses: AtomicU64,
    permits: AtomicU64,
    pairs_read: AtomicU64,
    pairs_found: AtomicU64,
    told: AtomicU64,
    heard: AtomicU64,
}

/// How it stands, and what was done since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FleetStats {
    /// Now.
    pub mode: Mode,
    /// How often Redis was lost.
    pub losses: u64,
    /// Permits that Redis has granted.
    pub permits: u64,
    /// Pairs that were looked for in Redis.
    pub pairs_read: u64,
    /// Those that were there.
    pub pairs_found: u64,
    /// Evictions told to others.
    pub evictions_told: u64,
    /// Evictions that others told.
    pub evictions_heard: u64,
}

impl Fleet {
    /// Connects to nothing yet: it is alone until [`Fleet::run`] has found Redis.
    ///
    /// # Errors
    /// If the operating system has no random numbers, or the address cannot be understood.
    pub fn new(config: &config::Fleet) -> Result<Arc<Self>, FleetError> {
        let random = clock::os_random().map_err(FleetError::Random)?;
        let mut me = [0; 8];
        me.copy_from_slice(&random[..8]);
        Ok(Arc::new(Self {
            address: Address::new(&config.redis)?,
            tls: ArcSwapOption::new(config.tls.as_ref().map(|tls| Arc::clone(&tls.0))),
            prefix: config.prefix.clone(),
            share: config.share,
            epoch: AtomicU64::new(0),
            link: ArcSwapOption::empty(),
            me,
            owed: Mutex::default(),
            trouble: Notify::new(),
            cause: ArcSwapOption::empty(),
            stores: Capacity::new(STORES_MAX),
            figures: Counts::default(),
        }))
    }

    /// The part of a quota that is used alone, up to 1.
    pub fn share(&self) -> f64 {
        self.share
    }

    /// How often it has changed between alone and together; odd is together.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Alone or together.
    pub fn mode(&self) -> Mode {
        mode_of(self.epoch())
    }

    /// Why it is alone, in words without secrets. `None` while together.
    pub fn cause(&self) -> Option<Arc<String>> {
        self.cause.load_full()
    }

    /// From now on connections are made with these certificates. The one that is there goes on.
    pub fn reconfigure(&self, config: &config::Fleet) {
        self.tls.store(config.tls.as_ref().map(|tls| Arc::clone(&tls.0)));
    }

    /// How it stands.
    pub fn stats(&self) -> FleetStats {
        let Counts { losses, permits, pairs_read, pairs_found, told, heard } = &self.figures;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        FleetStats {
            mode: self.mode(),
            losses: read(losses),
            permits: read(permits),
            pairs_read: read(pairs_read),
            pairs_found: read(pairs_found),
            evictions_told: read(told),
            evictions_heard: read(heard),
        }
    }

    fn owed(&self) -> MutexGuard<'_, BTreeMap<SdkAppId, Arc<FleetKeys>>> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an epoch stands for.
pub fn mode_of(epoch: u64) -> Mode {
    if epoch % 2 == 1 { Mode::Connected } else { Mode::Disconnected }
}

/// Why there is no fleet. The messages hold no password.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// No random numbers.
    #[error("the operating system gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// The address.
    #[error("the address of Redis cannot be used")]
    Address,
}
