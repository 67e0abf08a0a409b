//! What all worker threads share, and what each has of its own.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use super::Refusal;
use super::access::Access;
use super::record::Samples;
use super::route::Hosts;
use crate::bounds::Budget;
use crate::clock;
use crate::config::{self, Config};
use crate::domain::app::{AppName, SdkAppId};
use crate::domain::command::FOLLOW_CHECK;
use crate::domain::follow::answer::CALL_ACCOUNTS_MAX;
use crate::domain::follow::facts::Facts;
use crate::domain::follow::fence::Fence;
use crate::domain::follow::pair::UserHasher;
use crate::domain::follow::pending::{Pending, Settled, Ticket};
use crate::domain::parking::Parking;
use crate::domain::sickness::Sickness;
use crate::error::GatewayError;
use crate::metrics::{Metrics, Recorder};
use crate::quota::{AppQuotas, CommandQuota};
use crate::retry::RetryBudget;
use crate::sign::Signer;
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
    pub requests: Arc<Budget>,
    /// Bytes of bodies and answers.
    pub buffered: Arc<Budget>,
    /// The end: nothing may be begun any more.
    pub stopped: AtomicBool,
    /// What is counted.
    pub metrics: Metrics,
    /// Which requests are logged.
    pub(super) samples: Samples,
    /// Tasks that a stop waits for: connections, writes, lookups.
    pub tasks: TaskTracker,
}

/// One app. Apps share nothing of this.
pub(super) struct App {
    pub signer: Signer,
    pub quotas: AppQuotas,
    /// Room for calls in flight.
    pub room: Arc<Semaphore>,
    /// What Chat refuses for good.
    pub parking: Mutex<Parking>,
    /// Which domain is called.
    pub failover: Arc<SharedFailover>,
    /// What further attempts may cost.
    pub retries: RetryBudget,
    pub follow: Follow,
}

/// What is known and what is being asked of an app's pairs.
pub(super) struct Follow {
    pub hasher: UserHasher,
    pub facts: Facts,
    pub fence: Fence,
    /// Whether lookups have failed lately.
    pub sickness: Sickness,
    /// How long after a write answers about its pairs are not kept.
    pub write_settle: Duration,
    pub quota: Arc<CommandQuota>,
    pub desk: Mutex<Desk>,
}

/// Lookups that wait or are under way, and who is to be told.
pub(super) struct Desk {
    pub pending: Pending,
    pub waiters: HashMap<Ticket, Waiter>,
    /// How many pairs a call has carried lately while others had to wait: what is queued will fill
    /// calls about as well.
    pub fill: f64,
    /// Calls that are on their way to fetch what is queued.
    pub carriers: usize,
}

/// A request that waits for some pairs.
pub(super) struct Waiter {
    pub left: usize,
    pub got: Got,
    pub tell: oneshot::Sender<Result<Got, Arc<Refusal>>>,
}

/// Settled pairs, by the request's own numbers.
pub(super) type Got = Vec<(usize, Settled)>;

/// A gateway that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum GatewayBuildError {
    /// The operating system has no random numbers.
    #[error("the operating system gives no random numbers: {0}")]
    Random(getrandom::Error),
    /// An app's way to Chat.
    #[error("app {0}")]
    Upstream(AppName, #[source] UpstreamError),
}

impl App {
    pub(super) fn parking(&self) -> MutexGuard<'_, Parking> {
        self.parking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gateway {
    /// Builds it and signs for the first time; nothing is sent.
    ///
    /// # Errors
    /// See [`GatewayBuildError`].
    pub fn new(config: Config) -> Result<Arc<Self>, GatewayBuildError> {
        let mut apps = Vec::new();
        for app in &config.apps {
            let key = clock::unguessable().map_err(GatewayBuildError::Random)?;
            let quotas = AppQuotas::new(app.quota.clone());
            let (lifetime, now) = (app.usersig_lifetime, clock::unix_now());
            apps.push(App {
                signer: Signer::new(app.sdkappid, app.identifier.clone(), app.secret_key.clone(), lifetime, now),
                room: Arc::new(Semaphore::new(config.upstream.max_in_flight)),
                parking: Mutex::default(),
                failover: SharedFailover::new(app.standby.is_some()),
                retries: RetryBudget::new(config.upstream.retry_budget),
                follow: Follow {
                    hasher: UserHasher::new(&key),
                    facts: Facts::new(config.cache.max_pairs),
                    fence: Fence::default(),
                    sickness: Sickness::default(),
                    write_settle: config.cache.write_settle,
                    quota: quotas.of(FOLLOW_CHECK),
                    desk: Mutex::new(Desk {
                        pending: Pending::new(config.follow_check.flip),
                        waiters: HashMap::new(),
                        fill: CALL_ACCOUNTS_MAX as f64,
                        carriers: 0,
                    }),
                },
                quotas,
            });
        }
        let index = |app: &config::App| config.apps.iter().position(|other| other.name == app.name).expect("itself");
        let default = match config.apps.as_slice() {
            [_] => Some(0),
            apps => apps.iter().position(|app| app.default),
        };
        Ok(Arc::new(Self {
            hosts: Hosts::new(&config.server.hosts),
            access: Access::new(&config),
            by_name: config.apps.iter().map(|app| (app.name.clone(), index(app))).collect(),
            by_sdkappid: config.apps.iter().map(|app| (app.sdkappid, index(app))).collect(),
            default,
            requests: Budget::new(config.server.max_requests),
            buffered: Budget::new(config.server.max_buffered),
            stopped: AtomicBool::new(false),
            metrics: Metrics::new(apps.len()),
            samples: Samples::default(),
            tasks: TaskTracker::new(),
            apps,
            config,
        }))
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
