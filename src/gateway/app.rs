//! One app: its pairs, its calls to Chat, and its part in the fleet.
//!
//! Apps share nothing. What is behind an `Arc` here outlives a reload: calls in progress on the old
//! configuration and new calls use one quota, one fence, and one scheduler.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use tokio_util::task::TaskTracker;

use super::pairs::Relations;
use super::reads::ReadService;
use super::relay::CHAT_DONE_AFTER;
use super::state::GatewayBuildError;
use super::webhooks::AppWebhooks;
use crate::clock;
use crate::config::{self, Config};
use crate::domain::chat::app::{AppName, Identifier};
use crate::domain::chat::command::{CommandName, DeclaredReads};
use crate::domain::fleet::keys::FleetKeys;
use crate::domain::pairs::scope::Scope;
use crate::domain::policy::parking::Parking;
use crate::domain::policy::retry_budget::RetryBudget;
use crate::domain::reads::cache::{AppNumber, ReadCache};
use crate::domain::reads::rules::CachedReads;
use crate::domain::reads::scope::ReadScope;
use crate::fleet::{Connections, Fleet, FleetApp};
use crate::limits::{AppQuotas, FairQueue};
use crate::upstream::SharedFailover;
use crate::upstream::signer::Signer;

/// One app, shared by all threads.
pub(crate) struct App {
    /// Its name in the configuration.
    pub name: AppName,
    /// The primary domain.
    pub(super) endpoint: config::Endpoint,
    /// The account that signs.
    identifier: Identifier,
    /// The standby domain.
    pub(super) standby: Option<config::Endpoint>,
    /// `app.reads`
    pub(super) declared_reads: DeclaredReads,
    /// `cache.commands`
    pub(super) cached_reads: Arc<CachedReads>,
    /// `cache.write_settle`
    pub(super) write_settle: Duration,
    /// What is cached and looked up.
    pub(super) relations: Arc<Relations>,
    /// Responses of other reads.
    pub(super) reads: Arc<ReadService>,
    /// The app in the cache of reads: another number after a change of the endpoint or the identifier, since another Chat
    /// may have other responses.
    pub(super) number: AppNumber,
    /// What all calls of the app share.
    pub(super) chat: ChatClient,
    /// Its part in the fleet.
    pub(super) fleet: Option<FleetHandle>,
    /// Its webhooks.
    pub webhooks: Arc<AppWebhooks>,
    /// Tasks that a stop waits for.
    pub(super) tasks: TaskTracker,
}

/// What all calls of one app to Chat share.
pub(super) struct ChatClient {
    /// Replaced in place, so that every call after a reload has a new signature.
    pub(super) signer: Arc<ArcSwap<Signer>>,
    pub(super) quotas: Arc<AppQuotas>,
    /// The slots of the calls in flight.
    pub(super) in_flight: Arc<FairQueue>,
    pub(super) failover: Arc<SharedFailover>,
    pub(super) retries: RetryBudget,
    parking: Arc<Mutex<Parking>>,
}

impl ChatClient {
    /// Locks what is parked.
    pub(super) fn parking(&self) -> MutexGuard<'_, Parking> {
        self.parking.lock()
    }
}

/// What apps of all generations share.
pub(super) struct Shared<'a> {
    pub(super) fleet: Option<&'a Arc<Connections>>,
    pub(super) reads: &'a Arc<ReadCache>,
    pub(super) tasks: &'a TaskTracker,
}

impl App {
    pub(super) fn new(app: &config::App, config: &Config, shared: &Shared<'_>) -> Result<Self, GatewayBuildError> {
        let hash_key = clock::os_random()?;
        let fleet = shared.fleet.map(|fleet| fleet.of(app.sdkappid)).transpose()?;
        let quotas = AppQuotas::new(app.quota.clone(), fleet.clone().map(|fleet| (fleet, app.sdkappid)));
        let (lifetime, now) = (app.usersig_lifetime, clock::unix_now());
        let signer = Signer::new(app.sdkappid, app.identifier.clone(), app.secret_key.clone(), lifetime, now);
        Ok(Self {
            name: app.name.clone(),
            endpoint: app.endpoint.clone(),
            identifier: app.identifier.clone(),
            standby: app.standby.clone(),
            declared_reads: app.reads.clone(),
            cached_reads: Arc::clone(&config.cache.commands),
            write_settle: config.cache.write_settle,
            relations: Arc::new(Relations::new(&hash_key, config, &quotas)),
            reads: Arc::new(ReadService::new(shared.reads)),
            number: shared.reads.add_app(),
            chat: ChatClient {
                signer: Arc::new(ArcSwap::from_pointee(signer)),
                quotas: Arc::new(quotas),
                in_flight: FairQueue::new(config.upstream.max_in_flight),
                failover: SharedFailover::new(app.standby.is_some()),
                retries: RetryBudget::new(config.upstream.retry_budget),
                parking: Arc::default(),
            },
            fleet: fleet.map(|fleet| FleetHandle::new(&fleet, app, config)),
            webhooks: Arc::default(),
            tasks: shared.tasks.clone(),
        })
    }

    /// Returns the same app under another configuration. Nothing of it has changed before [`App::activate`].
    pub(super) fn with_config(&self, app: &config::App, config: &Config, shared: &Shared<'_>) -> Self {
        let same_chat = self.endpoint == app.endpoint && self.identifier == app.identifier;
        let same_domains = self.endpoint == app.endpoint && self.standby == app.standby;
        let failover =
            if same_domains { Arc::clone(&self.chat.failover) } else { SharedFailover::new(app.standby.is_some()) };
        Self {
            name: app.name.clone(),
            endpoint: app.endpoint.clone(),
            identifier: app.identifier.clone(),
            standby: app.standby.clone(),
            declared_reads: app.reads.clone(),
            cached_reads: Arc::clone(&config.cache.commands),
            write_settle: config.cache.write_settle,
            relations: Arc::clone(&self.relations),
            reads: Arc::clone(&self.reads),
            number: if same_chat { self.number } else { shared.reads.add_app() },
            chat: ChatClient {
                signer: Arc::clone(&self.chat.signer),
                quotas: Arc::clone(&self.chat.quotas),
                in_flight: Arc::clone(&self.chat.in_flight),
                failover,
                retries: RetryBudget::new(config.upstream.retry_budget),
                parking: Arc::clone(&self.chat.parking),
            },
            // Its keys are derived from the app's key, which may have changed.
            fleet: self.fleet.as_ref().map(|handle| FleetHandle::new(&handle.fleet, app, config)),
            webhooks: Arc::clone(&self.webhooks),
            tasks: self.tasks.clone(),
        }
    }

    /// Takes over from `before`, the same app under the configuration so far.
    pub(super) fn activate(&self, before: &ReplacedApp<'_>, app: &config::App) {
        let (lifetime, now) = (app.usersig_lifetime, clock::unix_now());
        if let Some(next) = self.chat.signer.load().renewed_for(&app.identifier, &app.secret_key, lifetime, now) {
            self.chat.signer.store(Arc::new(next));
        }
        self.chat.quotas.configure(app.quota.clone());
        // Another Chat may have other pairs.
        if before.endpoint != &app.endpoint || before.identifier != &app.identifier {
            self.invalidate(&Scope::All.into());
        }
        if !self.cached_reads.depends_on_no_more_than(before.cached_reads) {
            // Writes and webhooks that have begun under the old configuration do not mark the fence. By then they have
            // ended: their bodies have arrived, and Chat has carried them out.
            let settled = clock::tick().after(before.body_timeout).after(before.timeout).after(CHAT_DONE_AFTER);
            self.reads.fence.mark(&ReadScope::All, settled);
        }
        *self.chat.parking() = Parking::default();
    }

    /// Caps the rate of a command at the limit that Chat announced, for a while. The cap never exceeds the configured
    /// rate. Returns whether the command has a quota of its own; otherwise there is no effect.
    pub(crate) fn apply_rate_alert(&self, name: CommandName<'_>, limit: NonZeroU32) -> bool {
        self.chat.quotas.alert(name, limit)
    }
}

/// What a reload compares of the configuration so far.
pub(super) struct ReplacedApp<'a> {
    pub(super) endpoint: &'a config::Endpoint,
    pub(super) identifier: &'a Identifier,
    pub(super) cached_reads: &'a CachedReads,
    /// `server.body_timeout`
    pub(super) body_timeout: Duration,
    /// `upstream.timeout`
    pub(super) timeout: Duration,
}

/// One app's access to the fleet.
#[derive(Clone)]
pub(super) struct FleetHandle {
    pub fleet: Arc<Fleet>,
    pub shared: Arc<FleetApp>,
}

impl FleetHandle {
    pub(super) fn new(fleet: &Arc<Fleet>, app: &config::App, config: &Config) -> Self {
        let keys = Arc::new(FleetKeys::new(&app.secret_key, app.sdkappid, &app.endpoint.to_string()));
        let shared = FleetApp { app: app.sdkappid, keys, ttl: config.cache.ttl };
        Self { fleet: Arc::clone(fleet), shared: Arc::new(shared) }
    }
}
