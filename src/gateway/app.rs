//! What all worker threads share, and what each has of its own.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use super::CallFailure;
use super::access::Access;
use super::observe::access_log::LogSampler;
use super::replication::FleetHandle;
use super::route::Hosts;
use crate::capacity::Capacity;
use crate::clock;
use crate::config::{self, Config};
use crate::domain::chat::app::{AppName, SdkAppId};
use crate::domain::chat::command::FOLLOW_CHECK;
use crate::domain::follow::writes::Scope;
use crate::domain::pairs::cache::PairCache;
use crate::domain::pairs::fence::Fence;
use crate::domain::pairs::lookups::{LookupScheduler, PairResult, Ticket};
use crate::domain::pairs::pair::UserHasher;
use crate::domain::policy::parking::Parking;
use crate::domain::policy::retry_budget::RetryBudget;
use crate::domain::policy::stale_gate::StaleGate;
use crate::error::GatewayError;
use crate::fleet::{Fleet, FleetError};
use crate::limits::{AppQuotas, CommandQuota};
use crate::telemetry::metrics::{Metrics, Recorder};
use crate::telemetry::trace::{Context, TraceError, Tracing};
use crate::upstream::signer::Signer;
use crate::upstream::{SharedFailover, Upstream, UpstreamError};

/// The gateway: one for all threads.
pub struct Gateway {
    /// As it was read.
    pub config: Config,
    /// Names under which chatgate may be called.
    pub hosts: Hosts,
    /// Who may call, and what.
    pub access: Access,
    pub(super) apps: Vec<App>,
    by_name: HashMap<AppName, usize>,
    by_sdkappid: HashMap<SdkAppId, usize>,
    default: Option<usize>,
    /// Requests being worked on.
    pub requests: Arc<Capacity>,
    /// Bytes of bodies and answers.
    pub buffered: Arc<Capacity>,
    /// The end: nothing may be begun any more.
    pub stopped: Arc<AtomicBool>,
    /// What is shared with other replicas.
    pub fleet: Option<Arc<Fleet>>,
    /// Where traces go.
    pub tracing: Option<Arc<Tracing>>,
    /// What is counted.
    pub metrics: Metrics,
    /// Which requests are logged.
    pub(super) samples: LogSampler,
    /// Tasks that a stop waits for: connections, writes, lookups.
    pub tasks: TaskTracker,
}

/// One app. Apps share nothing of this. What stands behind an `Arc` outlives a reload: calls under way
/// on the old configuration and new ones keep one quota, one fence and one desk.
pub(super) struct App {
    /// Replaced in place, so that what goes out after a reload is signed anew whoever sends it.
    pub signer: Arc<ArcSwap<Signer>>,
    pub quotas: Arc<AppQuotas>,
    /// Room for calls in flight.
    pub room: Arc<Semaphore>,
    /// What Chat refuses for good.
    pub parking: Arc<Mutex<Parking>>,
    /// Which domain is called.
    pub failover: Arc<SharedFailover>,
    /// What further attempts may cost.
    pub retries: RetryBudget,
    /// How long after a write answers about its pairs are not kept.
    pub write_settle: Duration,
    pub follow: Arc<Follow>,
    /// Its part in the fleet.
    pub member: Option<FleetHandle>,
}

/// What is known and what is being asked of an app's pairs.
pub(super) struct Follow {
    pub hasher: UserHasher,
    pub cache: PairCache,
    pub fence: Fence,
    /// Whether lookups have failed lately.
    pub stale_gate: StaleGate,
    pub quota: Arc<CommandQuota>,
    pub lookups: Mutex<LookupState>,
}

/// Lookups that wait or are under way, and who is to be told.
pub(super) struct LookupState {
    pub pending: LookupScheduler,
    pub waiters: HashMap<Ticket, Waiter>,
    /// Calls that are on their way to fetch what is queued.
    pub dispatchers: usize,
}

/// A request that waits for some pairs.
pub(super) struct Waiter {
    pub left: usize,
    pub results: PairResults,
    pub tx: oneshot::Sender<Result<PairResults, Arc<CallFailure>>>,
    /// Where it stands in a trace, if traces are taken.
    pub trace: Option<Context>,
}

/// Settled pairs, by the request's own numbers.
pub(super) type PairResults = Vec<(usize, PairResult)>;

/// A gateway that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum GatewayBuildError {
    /// The operating system has no random numbers.
    #[error("the operating system gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// An app's way to Chat.
    #[error("app {0}")]
    Upstream(AppName, #[source] UpstreamError),
    /// What is shared.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The collector of traces.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// What all generations share, by the names that it has in [`Gateway`].
struct Common {
    requests: Arc<Capacity>,
    buffered: Arc<Capacity>,
    stopped: Arc<AtomicBool>,
    tasks: TaskTracker,
    fleet: Option<Arc<Fleet>>,
    tracing: Option<Arc<Tracing>>,
}

impl App {
    pub(super) fn parking(&self) -> MutexGuard<'_, Parking> {
        self.parking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new(app: &config::App, config: &Config, fleet: Option<&Arc<Fleet>>) -> Result<Self, GatewayBuildError> {
        let key = clock::os_random().map_err(GatewayBuildError::Random)?;
        let shared = fleet.map(|fleet| (Arc::clone(fleet), app.sdkappid));
        let quotas = Arc::new(AppQuotas::new(app.quota.clone(), shared));
        let (lifetime, now) = (app.usersig_lifetime, clock::unix_now());
        let signer = Signer::new(app.sdkappid, app.identifier.clone(), app.secret_key.clone(), lifetime, now);
        Ok(Self {
            signer: Arc::new(ArcSwap::from_pointee(signer)),
            room: Arc::new(Semaphore::new(config.upstream.max_in_flight)),
            parking: Arc::default(),
            failover: SharedFailover::new(app.standby.is_some()),
            retries: RetryBudget::new(config.upstream.retry_budget),
            write_settle: config.cache.write_settle,
            follow: Arc::new(Follow {
                hasher: UserHasher::new(&key),
                cache: PairCache::new(config.cache.max_pairs),
                fence: Fence::default(),
                stale_gate: StaleGate::default(),
                quota: quotas.of(FOLLOW_CHECK),
                lookups: Mutex::new(LookupState {
                    pending: LookupScheduler::new(config.follow_check.flip),
                    waiters: HashMap::new(),
                    dispatchers: 0,
                }),
            }),
            quotas,
            member: fleet.map(|fleet| FleetHandle::new(fleet, app, config)),
        })
    }

    /// The same app under another configuration. Nothing of it has changed yet; see [`Gateway::activate`].
    fn with_config(&self, before: &config::App, app: &config::App, config: &Config) -> Self {
        let same_way = before.endpoint == app.endpoint && before.standby == app.standby;
        Self {
            signer: Arc::clone(&self.signer),
            quotas: Arc::clone(&self.quotas),
            room: Arc::clone(&self.room),
            parking: Arc::clone(&self.parking),
            failover: if same_way { Arc::clone(&self.failover) } else { SharedFailover::new(app.standby.is_some()) },
            retries: RetryBudget::new(config.upstream.retry_budget),
            write_settle: config.cache.write_settle,
            follow: Arc::clone(&self.follow),
            // Its keys come from the app's, which may be another one.
            member: self.member.as_ref().map(|member| FleetHandle::new(&member.fleet, app, config)),
        }
    }
}

impl Gateway {
    /// Builds it and signs for the first time; nothing is sent.
    ///
    /// # Errors
    /// See [`GatewayBuildError`].
    pub fn new(config: Config) -> Result<Arc<Self>, GatewayBuildError> {
        let fleet = config.fleet.as_ref().map(Fleet::new).transpose()?;
        let apps = config.apps.iter().map(|app| App::new(app, &config, fleet.as_ref())).collect::<Result<_, _>>()?;
        let (access, server) = (Access::new(&config, None), &config.server);
        let (requests, buffered) = (Capacity::new(server.max_requests), Capacity::new(server.max_buffered));
        let metrics = Metrics::new(config.apps.len());
        let tracing = config.trace.as_ref().map(Tracing::new).transpose()?;
        let common = Common { requests, buffered, stopped: Arc::default(), tasks: TaskTracker::new(), fleet, tracing };
        Ok(Self::assemble(config, apps, access, metrics, common))
    }

    /// The gateway that takes this one's place. An app goes on if it has the same sdkappid, whatever its
    /// name: to Chat it is the same. Nothing has changed until [`Gateway::activate`].
    pub(super) fn reloaded(&self, config: Config) -> Result<Arc<Self>, GatewayBuildError> {
        let app = |app: &config::App| match self.by_sdkappid.get(&app.sdkappid) {
            Some(&index) => Ok(self.apps[index].with_config(&self.config.apps[index], app, &config)),
            None => App::new(app, &config, self.fleet.as_ref()),
        };
        let apps = config.apps.iter().map(app).collect::<Result<_, _>>()?;
        let access = Access::new(&config, Some(&self.access));
        let common = Common {
            requests: Arc::clone(&self.requests),
            buffered: Arc::clone(&self.buffered),
            stopped: Arc::clone(&self.stopped),
            tasks: self.tasks.clone(),
            fleet: self.fleet.clone(),
            tracing: self.tracing.clone(),
        };
        let before = |app: &config::App| self.by_sdkappid.get(&app.sdkappid).copied();
        let metrics = self.metrics.reloaded(&config.apps.iter().map(before).collect::<Vec<_>>());
        Ok(Self::assemble(config, apps, access, metrics, common))
    }

    /// From now on its apps, which go on from those of `before`, are as it is configured.
    pub(super) fn activate(&self, before: &Self) {
        if let (Some(fleet), Some(config)) = (&self.fleet, &self.config.fleet) {
            fleet.reconfigure(config);
        }
        for (app, state) in self.config.apps.iter().zip(&self.apps) {
            let Some(&index) = before.by_sdkappid.get(&app.sdkappid) else { continue };
            let (lifetime, now) = (app.usersig_lifetime, clock::unix_now());
            let next = state.signer.load().renewed_for(&app.identifier, &app.secret_key, lifetime, now);
            if let Some(next) = next {
                state.signer.store(Arc::new(next));
            }
            state.quotas.configure(app.quota.clone());
            let old = &before.config.apps[index];
            // Another Chat may hold other pairs.
            if old.endpoint != app.endpoint || old.identifier != app.identifier {
                state.follow.evict(&state.follow.keys(&Scope::All));
            }
            *state.parking() = Parking::default();
        }
    }

    fn assemble(
        config: Config,
        apps: Vec<App>,
        access: Access,
        metrics: Metrics,
        Common { requests, buffered, stopped, tasks, fleet, tracing }: Common,
    ) -> Arc<Self> {
        let index = |app: &config::App| config.apps.iter().position(|other| other.name == app.name).expect("itself");
        let default = match config.apps.as_slice() {
            [_] => Some(0),
            apps => apps.iter().position(|app| app.default),
        };
        Arc::new(Self {
            hosts: Hosts::new(&config.server.hosts),
            access,
            by_name: config.apps.iter().map(|app| (app.name.clone(), index(app))).collect(),
            by_sdkappid: config.apps.iter().map(|app| (app.sdkappid, index(app))).collect(),
            default,
            requests,
            buffered,
            stopped,
            metrics,
            samples: LogSampler::default(),
            fleet,
            tracing,
            tasks,
            apps,
            config,
        })
    }

    /// The app of that name; without a name the one of calls that name none.
    pub fn app_named(&self, name: Option<&str>) -> Option<usize> {
        let Some(name) = name else { return self.default };
        name.parse::<AppName>().ok().and_then(|name| self.by_name.get(&name).copied())
    }

    /// The app of that number.
    pub fn app_numbered(&self, number: SdkAppId) -> Option<usize> {
        self.by_sdkappid.get(&number).copied()
    }

    /// The app that a request names by path prefix, header and query; all that are there must agree.
    ///
    /// # Errors
    /// `unknown_app`.
    pub(super) fn choose(
        &self,
        prefix: Option<&str>,
        headers: &[&str],
        sdkappids: &[String],
    ) -> Result<usize, GatewayError> {
        let unknown = |what: &str| GatewayError::UnknownApp(what.to_owned());
        let named = prefix.iter().chain(headers).map(|name| {
            let name = name.parse::<AppName>().ok();
            name.and_then(|name| self.by_name.get(&name)).ok_or_else(|| unknown("no app of that name is configured"))
        });
        let numbered = sdkappids.iter().map(|number| {
            let number = number.parse::<NonZeroU32>().ok().and_then(|number| SdkAppId::new(number.get()));
            number
                .and_then(|number| self.by_sdkappid.get(&number))
                .ok_or_else(|| unknown("no app with that sdkappid is configured"))
        });
        let mut chosen = None;
        for index in named.chain(numbered) {
            let index = *index?;
            if *chosen.get_or_insert(index) != index {
                return Err(unknown("path, header and query name different apps"));
            }
        }
        chosen.or(self.default).ok_or_else(|| {
            unknown(
                "several apps are configured and none is the default; name one by /apps/NAME/v4/... or Chatgate-App",
            )
        })
    }
}

/// One thread's share: its own connections to Chat.
pub struct Worker {
    /// What all share.
    pub gateway: Arc<Gateway>,
    pub(super) upstreams: Vec<Upstream>,
    /// Its own counters.
    pub(super) recorder: Arc<Recorder>,
}

impl Worker {
    /// Opens no connection yet.
    ///
    /// # Errors
    /// If an app's way to Chat cannot be built.
    pub fn new(gateway: Arc<Gateway>) -> Result<Arc<Self>, GatewayBuildError> {
        let mut upstreams = Vec::new();
        for (app, state) in gateway.config.apps.iter().zip(&gateway.apps) {
            let (failover, buffered) = (Arc::clone(&state.failover), Arc::clone(&gateway.buffered));
            let upstream = Upstream::new(app, &gateway.config.upstream, failover, buffered);
            upstreams.push(upstream.map_err(|error| GatewayBuildError::Upstream(app.name.clone(), error))?);
        }
        let recorder = gateway.metrics.recorder();
        Ok(Arc::new(Self { gateway, upstreams, recorder }))
    }

    pub(super) fn app(&self, index: usize) -> &App {
        &self.gateway.apps[index]
    }
}
