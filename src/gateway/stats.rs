//! How an app stands, for operators.

use super::app::Gateway;
use crate::clock;
use crate::domain::chat::command::CommandName;
use crate::domain::policy::failover::Side;
use crate::domain::policy::parking::ParkReason;
use crate::limits::QuotaStats;
use crate::telemetry::metrics::UpstreamState;

/// How an app stands at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppStats {
    /// Pairs in the cache, old ones too.
    pub cache_pairs: usize,
    /// Pairs that are waited for, counted for each request that waits.
    pub pairs_waiting: usize,
    /// Distinct pairs that no call has taken yet.
    pub pairs_queued: usize,
    /// Calls on their way to Chat.
    pub calls_in_flight: usize,
    /// When its signature was issued, in seconds since 1970.
    pub signature_issued_at: u64,
    /// How many seconds a signature is good.
    pub signature_lifetime: u64,
}

impl Gateway {
    /// How an app stands now. `app` is its place in the configuration.
    pub fn stats(&self, app: usize) -> AppStats {
        let state = &self.apps[app];
        let (pairs_waiting, pairs_queued) = {
            let desk = state.follow.lookups();
            (desk.pending.waiting(), desk.pending.queued())
        };
        let (signature_issued_at, signature_lifetime) = state.signer.load().validity();
        AppStats {
            cache_pairs: state.follow.cache.len(),
            pairs_waiting,
            pairs_queued,
            calls_in_flight: self.config.upstream.max_in_flight.saturating_sub(state.room.available_permits()),
            signature_issued_at,
            signature_lifetime,
        }
    }

    /// Where the calls of an app go, and why if not to its own domain, in plain words.
    pub fn upstream_state(&self, app: usize) -> (UpstreamState, Option<String>) {
        let state = &self.apps[app];
        let parking = state.parking();
        if let Some(why) = parking.app(clock::tick()) {
            return (UpstreamState::Parked, Some(told(why)));
        }
        let commands: Vec<String> = parking.commands().map(|(name, why)| format!("{name}: {}", told(why))).collect();
        match state.failover.side() {
            Side::Standby => (UpstreamState::Standby, Some("the primary domain cannot be reached".to_owned())),
            Side::Primary => (UpstreamState::Primary, (!commands.is_empty()).then(|| commands.join("; "))),
        }
    }

    /// By how many seconds Chat's clock is ahead of this machine's.
    pub fn clock_skew(&self, app: usize) -> i64 {
        self.apps[app].signer.load().skew()
    }

    /// How the quota of a command of an app stands now.
    pub fn quota_stats(&self, app: usize, name: CommandName<'_>) -> QuotaStats {
        self.apps[app].quotas.of(name).stats()
    }
}

fn told(why: &ParkReason) -> String {
    format!("Chat answers {}: {}", why.code, why.hint)
}
