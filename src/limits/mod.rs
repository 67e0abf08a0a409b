//! Calls per second, as Chat counts them: for each command of an app, and for an app in total.
//!
//! Chat does not document where its windows begin, so chatgate keeps the strictest promise: *no* window of one second
//! has more than N calls. GCRA lets a burst of b calls pass at once, and then one call per interval. A window of length
//! W thus has at most b + W / interval calls. With `interval = W / (N - b + 1)`, rounded up, that is at most N. W is one
//! second plus 50 ms, because the time between permit and socket varies.
//!
//! Calls wait in a fair queue, and only if their turn comes before the deadline. A call takes its permit last, when it
//! already has a connection, so that calls reach the wire at the pace of their permits. Calls of class `batch` get the
//! permits that no interactive call wants, without the reserve.
//!
//! In a [fleet](crate::fleet) Redis leases the permits, at the pace of all replicas together. A disconnected replica
//! uses its own limiter with a share of the limit.
//!
//! In reading order: `AppQuotas` finds the quota of a command, `admission` is the path of one call, `lane` orders the
//! classes, `command_quota` grants permits, `reserve` paces batch calls, and `adaptive` lowers the limit if Chat accepts
//! less.

mod adaptive;
mod admission;
mod app_quota;
mod caller_quota;
mod command_quota;
mod fair_queue;
mod lane;
mod rate_limiter;
mod reserve;
mod shared_quota;
mod unlisted;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use governor::clock::MonotonicClock;

use self::app_quota::AppQuota;
use self::reserve::CommandRate;
use self::shared_quota::SharedQuota;
use self::unlisted::{QuotaOf, UnlistedQuotas};
use crate::clock;
use crate::config;
use crate::domain::chat::app::SdkAppId;
use crate::domain::chat::command::{CommandName, KNOWN_COMMANDS, row_number};
use crate::domain::tick::Tick;
use crate::fleet::Fleet;

pub(crate) use self::admission::{Admission, AdmitError, AdmitRequest, Permit};
pub(crate) use self::caller_quota::{CallerQuota, Reservation};
pub(crate) use self::command_quota::{CommandQuota, LimitChange, QuotaStats};
pub(crate) use self::fair_queue::FairQueue;

#[cfg(test)]
pub(crate) use self::adaptive::AdaptiveLimit;
#[cfg(test)]
pub(crate) use self::rate_limiter::pace;

/// Maximum number of commands outside the built-in table that have a quota of their own at the same time. Further commands share
/// one. A quota takes some 500 bytes.
const UNLISTED_MAX: usize = 1024;
/// The name in Redis of the quota that further commands share.
const REST: &str = "rest";
/// How long a rate-limit alert of Chat caps a command.
pub(crate) const ALERT_HOLDS: Duration = Duration::from_secs(600);

/// All quotas of one app.
#[derive(Debug)]
pub(crate) struct AppQuotas {
    config: ArcSwap<config::Quota>,
    total: Arc<AppQuota<MonotonicClock>>,
    /// The fleet that shares the quotas, and the app as which it does.
    fleet: Option<(Arc<Fleet>, SdkAppId)>,
    /// The commands of the built-in table, in its order.
    known: Vec<Arc<CommandQuota>>,
    /// All other commands.
    unlisted: UnlistedQuotas,
}

impl AppQuotas {
    /// Creates the quotas from the configured limits and the lower ones of Chat.
    pub(crate) fn new(config: config::Quota, fleet: Option<(Arc<Fleet>, SdkAppId)>) -> Self {
        let shared = fleet.as_ref().map(|(fleet, _)| Arc::clone(fleet));
        let mut quotas = Self {
            total: Arc::new(AppQuota::new(config.total, shared, MonotonicClock)),
            known: Vec::with_capacity(KNOWN_COMMANDS.len()),
            unlisted: UnlistedQuotas::new(UNLISTED_MAX),
            config: ArcSwap::from_pointee(config),
            fleet,
        };
        for row in KNOWN_COMMANDS.iter() {
            let rate = rate_of(&quotas.config.load(), Some(row.name));
            quotas.known.push(Arc::new(quotas.create(&row.name.to_string(), rate)));
        }
        quotas
    }

    /// Caps a command at the limit that Chat reported, for [`ALERT_HOLDS`] (webhook `Alert.RequestOverLimit`, vendor
    /// page 1047/60256). A cap above the configured limit has no effect. Returns `false` if the command is outside the
    /// built-in table and too many such commands are capped or in use.
    pub(crate) fn alert(&self, name: CommandName<'_>, limit: NonZeroU32) -> bool {
        self.alert_at(name, limit, clock::tick())
    }

    fn alert_at(&self, name: CommandName<'_>, limit: NonZeroU32, now: Tick) -> bool {
        let until = now.after(ALERT_HOLDS);
        match row_number(name) {
            Some(row) => {
                self.known[row].cap_until(limit, until);
                true
            }
            None => self.unlisted.cap(&name.to_string(), (limit, until), now, |of| self.create_unlisted(of)),
        }
    }

    /// Applies other limits after a reload. A quota with an unchanged limit keeps its state; one with another limit
    /// starts without a burst, because earlier calls still count.
    pub(crate) fn configure(&self, config: config::Quota) {
        let before = self.config.load_full();
        if *before == config {
            return;
        }
        if before.total != config.total {
            self.total.configure(config.total);
        }
        let config = Arc::new(config);
        // Before the quotas change: a quota that is created meanwhile has the new limit or is visited below.
        self.config.store(Arc::clone(&config));
        for (row, quota) in KNOWN_COMMANDS.iter().zip(&self.known) {
            quota.configure(rate_of(&config, Some(row.name)));
        }
        self.unlisted.for_each(|of, quota| quota.configure(rate_of(&config, name_of(of))));
    }

    /// Returns the quota of a command.
    pub(crate) fn of(&self, name: CommandName<'_>) -> Arc<CommandQuota> {
        match row_number(name) {
            Some(row) => Arc::clone(&self.known[row]),
            None => self.of_at(name, clock::tick()),
        }
    }

    fn of_at(&self, name: CommandName<'_>, now: Tick) -> Arc<CommandQuota> {
        if let Some(row) = row_number(name) {
            return Arc::clone(&self.known[row]);
        }
        self.unlisted.get(&name.to_string(), now, |of| self.create_unlisted(of))
    }

    fn create_unlisted(&self, of: QuotaOf<'_>) -> CommandQuota {
        let rate = rate_of(&self.config.load(), name_of(of));
        match of {
            QuotaOf::Command(name) => self.create(name, rate),
            QuotaOf::Rest => self.create(REST, rate),
        }
    }

    fn create(&self, name: &str, rate: CommandRate) -> CommandQuota {
        let shared = self.fleet.as_ref().map(|(fleet, app)| SharedQuota::new(Arc::clone(fleet), *app, name));
        CommandQuota::new(rate, Arc::clone(&self.total), shared, MonotonicClock)
    }
}

/// Returns the name of an unlisted command; `None` for all those without a quota of their own.
fn name_of(of: QuotaOf<'_>) -> Option<CommandName<'_>> {
    match of {
        QuotaOf::Command(name) => CommandName::parse(name).ok(),
        QuotaOf::Rest => None,
    }
}

/// Returns the configured rates of a command, or of all those without a quota of their own.
fn rate_of(config: &config::Quota, name: Option<CommandName<'_>>) -> CommandRate {
    let per_second = name.map_or(config.per_command, |name| config.limit(name));
    CommandRate { per_second, reserve: config.reserve_of(per_second) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).expect("not 0")
    }

    fn config(per_command: u32) -> config::Quota {
        config::Quota { per_command: number(per_command), ..config::Quota::default() }
    }

    fn name(text: &str) -> CommandName<'_> {
        CommandName::parse(text).expect("a name")
    }

    #[test]
    fn unlisted_commands_have_separate_quotas_up_to_a_bound() {
        let quotas = AppQuotas::new(config(5), None);
        let names: Vec<_> = (0..5000).map(|n| format!("future/command_{n}")).collect();
        let of = |n: usize| quotas.of(name(&names[n]));
        let all: Vec<_> = (0..names.len()).map(of).collect();
        let different: std::collections::HashSet<_> = all.iter().map(Arc::as_ptr).collect();
        assert_eq!(different.len(), UNLISTED_MAX + 1);
        assert!(Arc::ptr_eq(&of(1), &of(1)));
        assert!(!Arc::ptr_eq(&of(1), &of(2)));
        assert!(Arc::ptr_eq(&of(4000), &of(4999)), "both share the rest");
    }

    #[test]
    fn alert_for_an_unlisted_command_outlives_idle_time() {
        let quotas = AppQuotas::new(config(5), None);
        let now = clock::tick();
        let others: Vec<_> = (0..UNLISTED_MAX).map(|n| format!("future/other_{n}")).collect();
        assert!(quotas.alert_at(name("future/command"), number(2), now));
        for secs in [1, 11, 300, 599] {
            let later = now.after(Duration::from_secs(secs));
            others.iter().for_each(|other| drop(quotas.of_at(name(other), later)));
            assert_eq!(quotas.of_at(name("future/command"), later).limit(), 2, "{secs} s later");
        }
    }

    #[test]
    fn reload_changes_known_and_unlisted_quotas() {
        let quotas = AppQuotas::new(config(5), None);
        let names = ["follow/follow_check", "future/command"];
        let before = names.map(|text| quotas.of(name(text)));
        quotas.configure(config(7));
        for (text, before) in names.iter().zip(before) {
            let after = quotas.of(name(text));
            assert!(Arc::ptr_eq(&before, &after) && after.limit() == 7, "{text}");
        }
        assert_eq!(quotas.of(name("future/another")).limit(), 7);
    }
}
