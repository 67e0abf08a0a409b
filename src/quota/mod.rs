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

mod command;
mod learned;
mod pacer;
mod share;

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::MonotonicClock;

use self::command::Total;
use self::pacer::Pacer;
use crate::clock;
use crate::config;
use crate::domain::command::{CommandName, KNOWN_COMMANDS};

pub use self::command::{CommandQuota, NoPermit, Permit, QuotaFigures, Turn, Wait};
pub use self::share::{Reserved, Share};

#[cfg(test)]
pub(crate) use self::{learned::Learned, pacer::pace};

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
    total: Arc<Total<MonotonicClock>>,
    known: HashMap<CommandName<'static>, Arc<CommandQuota>>,
    /// Commands nobody listed, by name. Those not called for a while leave by themselves.
    others: moka::sync::Cache<String, Arc<CommandQuota>>,
    /// Shared by commands that find no place among `others`.
    rest: Arc<CommandQuota>,
}

impl AppQuotas {
    /// From the configured numbers and the vendor's own lower ones.
    pub fn new(config: config::Quota) -> Self {
        let total = config.total.map(|total| Arc::new(Pacer::new(total, MonotonicClock)));
        let total = Arc::new(Total::new(total));
        let quota = |limit| Arc::new(CommandQuota::new(limit, Arc::clone(&total), MonotonicClock));
        Self {
            known: KNOWN_COMMANDS.iter().map(|known| (known.name, quota(config.limit(known.name)))).collect(),
            others: moka::sync::Cache::builder().max_capacity(OTHERS_MAX).time_to_idle(OTHERS_IDLE).build(),
            rest: quota(config.per_command),
            config: ArcSwap::from_pointee(config),
            total,
        }
    }

    /// Chat says what it holds a command to (webhook `Alert.RequestOverLimit`, vendor page 1047/60256):
    /// for [`ALERT_HOLDS`] no more than that is sent, and never more than is configured.
    pub fn alert(&self, name: CommandName<'_>, limit: NonZeroU32) {
        self.of(name).lower(limit, clock::tick().after(ALERT_HOLDS));
    }

    /// Other numbers, as after a reload. What has gone out keeps its weight: a rate that stays goes on
    /// where it is, one that changes begins with nothing to spend.
    pub fn configure(&self, config: config::Quota) {
        let before = self.config.load_full();
        if *before == config {
            return;
        }
        if before.total != config.total {
            self.total.store(config.total.map(|total| Arc::new(Pacer::spent(total, MonotonicClock))));
        }
        for (name, quota) in &self.known {
            quota.configure(config.limit(*name));
        }
        self.rest.configure(config.per_command);
        self.config.store(Arc::new(config));
    }

    /// The quota of a command.
    pub fn of(&self, name: CommandName<'_>) -> Arc<CommandQuota> {
        if let Some(known) = self.known.get(&name) {
            return Arc::clone(known);
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
        self.others.get_with(key, || Arc::new(CommandQuota::new(limit, total, MonotonicClock)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).expect("not 0")
    }

    #[tokio::test]
    async fn commands_outside_the_table_have_quotas_of_their_own_up_to_a_bound() {
        let config = config::Quota { per_command: number(5), total: None, commands: HashMap::new() };
        let quotas = AppQuotas::new(config);
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
