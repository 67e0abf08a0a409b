//! Calls a second, as Chat counts them: for each app and command, and for an app in all.
//!
//! Chat does not say how its window is cut, so the promise is the strictest one: in *no* window of
//! one second do more than N calls leave. GCRA lets a burst of b pass at once and then one call each
//! interval, so a window of length W sees at most b + W / interval calls. Choosing
//! `interval = W / (N - b + 1)`, a hair longer, keeps that at N. W is one second and
//! some milliseconds, because the time between permit and socket varies.
//!
//! Whoever waits does so in turn, caller by caller, and only if its turn comes before the deadline.
//! The permit is the last thing that a call takes: its connection is there already, so that calls reach
//! the wire as they were let go.
//!
//! With a [fleet](crate::fleet) the permits are leased from Redis, at the pace of all replicas together; while
//! Redis is away a pacer of our own gives a share of the limit.

mod adaptive;
mod app_quota;
mod caller_quota;
mod command;
pub mod fair_queue;
mod rate_limiter;
mod shared_quota;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::MonotonicClock;

use self::app_quota::AppQuota;
use self::shared_quota::SharedQuota;
use crate::clock;
use crate::config;
use crate::domain::chat::app::SdkAppId;
use crate::domain::chat::command::{CommandName, KNOWN_COMMANDS, row_number};
use crate::fleet::Fleet;

pub use self::caller_quota::{CallerQuota, Reservation};
pub use self::command::{Admission, AdmitError, AdmitRequest, CommandQuota, Permit, QuotaStats};

#[cfg(test)]
pub(crate) use self::adaptive::AdaptiveLimit;
#[cfg(test)]
pub(crate) use self::rate_limiter::pace;

/// Most commands outside the built-in table that have a quota of their own at one time; further
/// ones share one. Each takes some 500 bytes.
const OTHERS_MAX: u64 = 1024;
/// After so long without a call a quota is full again and may be forgotten.
const OTHERS_IDLE: Duration = Duration::from_secs(10);
/// How long an alarm of Chat's holds.
pub const ALERT_HOLDS: Duration = Duration::from_secs(600);

/// The quotas of one app.
#[derive(Debug)]
pub struct AppQuotas {
    config: ArcSwap<config::Quota>,
    total: Arc<AppQuota<MonotonicClock>>,
    /// Who shares them, as which app.
    fleet: Option<(Arc<Fleet>, SdkAppId)>,
    /// Those of the built-in table, in its order.
    known: Vec<Arc<CommandQuota>>,
    /// Commands nobody listed, by name. Those not called for a while leave by themselves.
    others: moka::sync::Cache<String, Arc<CommandQuota>>,
    /// Shared by commands that find no place among `others`.
    rest: Arc<CommandQuota>,
}

impl AppQuotas {
    /// From the configured numbers and the vendor's own lower ones.
    pub fn new(config: config::Quota, fleet: Option<(Arc<Fleet>, SdkAppId)>) -> Self {
        let shared = fleet.as_ref().map(|(fleet, _)| Arc::clone(fleet));
        let total = Arc::new(AppQuota::new(config.total, shared, MonotonicClock));
        let quota = |name: &str, limit| {
            let together = together(fleet.as_ref(), name);
            Arc::new(CommandQuota::new(limit, Arc::clone(&total), together, MonotonicClock))
        };
        let known = |name: CommandName<'_>| quota(&name.to_string(), config.limit(name));
        Self {
            known: KNOWN_COMMANDS.iter().map(|row| known(row.name)).collect(),
            others: moka::sync::Cache::builder().max_capacity(OTHERS_MAX).time_to_idle(OTHERS_IDLE).build(),
            rest: quota("rest", config.per_command),
            config: ArcSwap::from_pointee(config),
            total,
            fleet,
        }
    }

    /// Chat says what it holds a command to (webhook `Alert.RequestOverLimit`, vendor page 1047/60256):
    /// for [`ALERT_HOLDS`] no more than that is sent, and never more than is configured.
    pub fn alert(&self, name: CommandName<'_>, limit: NonZeroU32) {
        self.of(name).cap_until(limit, clock::tick().after(ALERT_HOLDS));
    }

    /// Other numbers, as after a reload. What has gone out keeps its weight: a rate that stays goes on
    /// where it is, one that changes begins with nothing to spend.
    pub fn configure(&self, config: config::Quota) {
        let before = self.config.load_full();
        if *before == config {
            return;
        }
        if before.total != config.total {
            self.total.configure(config.total);
        }
        for (row, quota) in KNOWN_COMMANDS.iter().zip(&self.known) {
            quota.configure(config.limit(row.name));
        }
        self.rest.configure(config.per_command);
        self.config.store(Arc::new(config));
    }

    /// The quota of a command.
    pub fn of(&self, name: CommandName<'_>) -> Arc<CommandQuota> {
        if let Some(row) = row_number(name) {
            return Arc::clone(&self.known[row]);
        }
        let (key, limit) = (name.to_string(), self.config.load().limit(name));
        if let Some(other) = self.others.get(&key) {
            // It may be from before a reload.
            other.configure(limit);
            return other;
        }
        // A place must never be given up while its quota counts, so a full house takes nobody in.
        if self.others.entry_count() >= OTHERS_MAX / 2 {
            return Arc::clone(&self.rest);
        }
        let total = Arc::clone(&self.total);
        let together = together(self.fleet.as_ref(), &key);
        self.others.get_with(key, || Arc::new(CommandQuota::new(limit, total, together, MonotonicClock)))
    }
}

/// A command's part in what is shared.
fn together(fleet: Option<&(Arc<Fleet>, SdkAppId)>, name: &str) -> Option<SharedQuota> {
    fleet.map(|(fleet, app)| SharedQuota::new(Arc::clone(fleet), *app, name))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn number(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).expect("not 0")
    }

    #[tokio::test]
    async fn commands_outside_the_table_have_quotas_of_their_own_up_to_a_bound() {
        let config = config::Quota { per_command: number(5), total: None, commands: HashMap::new() };
        let quotas = AppQuotas::new(config, None);
        let name = |n: usize| format!("future/command_{n}");
        for n in 0..5000 {
            let text = name(n);
            let _ = quotas.of(CommandName::parse(&text).expect("a name"));
            quotas.others.run_pending_tasks();
        }
        assert!(quotas.others.entry_count() <= OTHERS_MAX);
        let (a, b) = (name(1), name(2));
        let (a, b) = (CommandName::parse(&a).expect("a name"), CommandName::parse(&b).expect("a name"));
        assert!(Arc::ptr_eq(&quotas.of(a), &quotas.of(a)));
        assert!(!Arc::ptr_eq(&quotas.of(a), &quotas.of(b)));
    }
}
