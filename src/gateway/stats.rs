//! The state of an app, for operators.

use rustc_hash::FxHashMap;

use super::app::App;
use super::state::Gateway;
use crate::clock;
use crate::config::Caller;
use crate::domain::caller::{CallerName, Class, QueueKey};
use crate::domain::chat::command::CommandName;
use crate::domain::policy::failover::Side;
use crate::domain::policy::parking::ParkReason;
use crate::domain::policy::proxy::ProxyFailure;
use crate::domain::quote::shorten;
use crate::domain::relation::RelationKind;
use crate::limits::QuotaStats;
use crate::telemetry::metrics::UpstreamState;
use crate::telemetry::metrics::callers::CallerTotals;

impl Gateway {
    /// Returns what each configured caller has done with each app, in the order of the configuration, and with a last
    /// entry for requests without an app. Callers without requests are left out.
    pub(crate) fn caller_stats<'a>(&'a self) -> Vec<Vec<CallerStats<'a>>> {
        let keys: Vec<_> = self.config.callers.iter().map(|caller| (QueueKey::named(&caller.name), caller)).collect();
        let of_app = |totals: &FxHashMap<QueueKey, CallerTotals>| {
            let of_caller = |(key, caller): &(QueueKey, &'a Caller)| {
                let totals = *totals.get(key)?;
                Some(CallerStats { name: &caller.name, class: caller.class, totals })
            };
            keys.iter().filter_map(of_caller).collect()
        };
        self.metrics.caller_totals().iter().map(of_app).collect()
    }
}

/// What one configured caller has done with one app.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallerStats<'a> {
    pub(crate) name: &'a CallerName,
    pub(crate) class: Class,
    pub(crate) totals: CallerTotals,
}

/// The state of an app at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AppStats {
    /// Pairs in the cache, expired ones included.
    pub cache_pairs: usize,
    /// Pairs that requests wait for, counted once for each waiting request.
    pub pairs_waiting: usize,
    /// Distinct pairs that are queued, and that requests wait for.
    pub pairs_queued: usize,
    /// Distinct pairs that are queued to be refreshed.
    pub refreshes_queued: usize,
    /// Calls in flight.
    pub calls_in_flight: usize,
    /// When the current signature was issued, in seconds since 1970.
    pub signature_issued_at: u64,
    /// How long a signature is valid, in seconds.
    pub signature_lifetime: u64,
}

impl App {
    /// Returns its state.
    pub(crate) fn stats(&self) -> AppStats {
        let (mut pairs_waiting, mut pairs_queued, mut refreshes_queued) = (0, 0, 0);
        for service in self.relations.iter() {
            let lookups = service.lookups();
            pairs_waiting += lookups.scheduler.waiting();
            pairs_queued += lookups.scheduler.queued();
            refreshes_queued += lookups.scheduler.queued_in(Class::Refresh);
        }
        let (signature_issued_at, signature_lifetime) = self.chat.signer.load().validity();
        AppStats {
            cache_pairs: self.relations.iter().map(|service| service.cache.len()).sum(),
            pairs_waiting,
            pairs_queued,
            refreshes_queued,
            calls_in_flight: self.chat.in_flight.in_use(),
            signature_issued_at,
            signature_lifetime,
        }
    }

    /// Iterates over the relations that are enabled, each with its number of cached pairs, expired ones included.
    pub(crate) fn cached_by_relation(&self) -> impl Iterator<Item = (&'static RelationKind, usize)> {
        self.relations.iter().map(|service| (service.kind, service.cache.len()))
    }

    /// Returns where its calls go, and if not to the primary domain, why.
    pub(crate) fn upstream_state(&self) -> (UpstreamState, Option<String>) {
        let parking = self.chat.parking();
        if let Some(reason) = parking.app(clock::tick()) {
            return (UpstreamState::Parked, Some(describe(reason)));
        }
        let shown = |name| CommandName::parse(name).map_or_else(|_| String::new(), |name| name.shown());
        let commands: Vec<String> =
            parking.commands().map(|(name, reason)| format!("{}: {}", shown(name), describe(reason))).collect();
        match self.chat.failover.side() {
            Side::Standby => (UpstreamState::Standby, Some("the primary domain cannot be reached".to_owned())),
            Side::Primary => {
                (UpstreamState::Primary, (!commands.is_empty()).then(|| shorten(&commands.join("; ")).into_owned()))
            }
        }
    }

    /// Returns why the proxy opens no connections to its domains; `None` if it does, or without a proxy.
    pub(crate) fn proxy_failure(&self) -> Option<&'static str> {
        self.chat.failover.proxy_failure().map(ProxyFailure::text)
    }

    /// Returns by how many seconds Chat's clock is ahead of this machine's.
    pub(crate) fn clock_skew(&self) -> i64 {
        self.chat.signer.load().skew()
    }

    /// Returns the state of a command's quota.
    pub(crate) fn quota_stats(&self, name: CommandName<'_>) -> QuotaStats {
        self.chat.quotas.of(name).stats()
    }
}

fn describe(reason: &ParkReason) -> String {
    format!("Chat answers {}: {}", reason.code, reason.hint)
}
