//! Callers, and what each may call.
//!
//! Without a `[[caller]]` no request is authenticated, and `[access]` lists the allowed commands. With one, every data
//! request must show which caller it comes from, and the caller's entry lists the allowed commands.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;

use super::authentication::Authenticator;
use super::query::Query;
use crate::capacity::{Capacity, CapacityGuard};
use crate::clock;
use crate::config::{self, Config};
use crate::domain::caller::{CallerName, CallerQueue, Class, QueueKey};
use crate::domain::chat::app::AppName;
use crate::domain::chat::command::{CommandName, CommandPattern};
use crate::domain::identity::CallerIndex;
use crate::domain::tick::Tick;
use crate::error::GatewayError;
use crate::http::headers::RequestHeaders;
use crate::http::peer::{ConnectionInfo, Peer};
use crate::limits::{CallerQuota, Reservation};

/// The callers, and what each may call.
#[derive(Debug)]
pub(crate) struct Access {
    /// How each of `callers` is recognized.
    authenticator: Authenticator,
    callers: Vec<Caller>,
    /// Requests in flight of all callers of class `batch`.
    batch_requests: Arc<Capacity>,
    /// The limit of those requests, and of the requests of each caller.
    requests_max: usize,
    /// What requests may do if no callers are configured.
    anonymous: Permissions,
    reports: ReportOnlyLog,
    /// `upstream.timeout`: no request waits longer.
    timeout: Duration,
}

#[derive(Debug)]
struct Caller {
    name: CallerName,
    id: QueueKey,
    class: Class,
    /// Its apps; `None` means all.
    apps: Option<Vec<AppName>>,
    permissions: Permissions,
    /// The calls that it may cause; `None` means no quota of its own.
    quota: Option<Arc<CallerQuota>>,
    /// Its requests in flight.
    requests: Arc<Capacity>,
}

/// The slots of one request among those of its caller and class, released on drop.
#[derive(Debug)]
pub(super) struct CallerSlot {
    _of_caller: CapacityGuard,
    _of_class: Option<CapacityGuard>,
}

#[derive(Debug)]
struct Permissions {
    allow: Vec<CommandPattern>,
    /// Commands that are not allowed are forwarded and logged.
    report_only: bool,
}

impl Access {
    /// Builds it from the configuration. A caller that `before` has keeps its quota; if its rate has changed, the new
    /// quota starts exhausted.
    ///
    /// # Errors
    /// If the operating system returns no random numbers.
    pub(crate) fn new(config: &Config, before: Option<&Self>) -> Result<Self, getrandom::Error> {
        // With several callers, a flood of one leaves half of all slots to the others.
        let requests_max = match config.server.max_requests {
            max if config.callers.len() > 1 => max.div_ceil(2),
            max => max,
        };
        let quota = |caller: &config::Caller| {
            let rate = caller.quota?;
            let known = before.and_then(|before| before.callers.iter().find(|other| other.name == caller.name));
            Some(match known.map(|known| &known.quota) {
                Some(Some(quota)) if quota.per_second() == rate => Arc::clone(quota),
                Some(_) => Arc::new(CallerQuota::spent(rate, clock::tick())),
                None => Arc::new(CallerQuota::new(rate)),
            })
        };
        let caller = |caller: &config::Caller| Caller {
            name: caller.name.clone(),
            id: QueueKey::named(&caller.name),
            class: caller.class,
            apps: caller.apps.clone(),
            permissions: Permissions { allow: caller.allow.clone(), report_only: caller.report_only },
            quota: quota(caller),
            requests: before
                .and_then(|before| before.callers.iter().find(|other| other.name == caller.name))
                .map_or_else(|| Capacity::new(requests_max), |known| Arc::clone(&known.requests)),
        };
        let config::Access { allow, report_only, .. } = &config.access;
        Ok(Self {
            authenticator: Authenticator::new(&config.callers)?,
            callers: config.callers.iter().map(caller).collect(),
            batch_requests: before
                .map_or_else(|| Capacity::new(requests_max), |before| Arc::clone(&before.batch_requests)),
            requests_max,
            anonymous: Permissions { allow: allow.clone(), report_only: *report_only },
            reports: ReportOnlyLog::default(),
            timeout: config.upstream.timeout,
        })
    }

    /// Takes over from the one before, with which it shares the slots of requests in flight: their limit depends on the
    /// number of callers.
    pub(crate) fn activate(&self) {
        let of_callers = self.callers.iter().map(|caller| &caller.requests);
        of_callers.chain([&self.batch_requests]).for_each(|requests| requests.set_max(self.requests_max));
    }

    /// Identifies the caller of a request; `None` if no callers are configured.
    ///
    /// # Errors
    /// `unauthenticated` if callers are configured and the request shows none of them.
    pub(crate) fn identify(
        &self,
        headers: &HeaderMap,
        query: &Query<'_>,
        connection: &ConnectionInfo,
    ) -> Result<Option<CallerIndex>, GatewayError> {
        if self.callers.is_empty() {
            return Ok(None);
        }
        self.authenticator.identify(headers, query, connection).map(Some)
    }

    /// Checks that a caller may use a command of an app.
    ///
    /// # Errors
    /// `forbidden`.
    pub(super) fn authorize(
        &self,
        caller: Option<CallerIndex>,
        app: &AppName,
        name: CommandName<'_>,
    ) -> Result<(), GatewayError> {
        let caller = caller.map(|caller| self.caller(caller));
        if let Some(Caller { name, apps: Some(apps), .. }) = caller
            && !apps.contains(app)
        {
            let what = format!("caller {name} may not use this app; to allow it, add the app to the caller's apps");
            return Err(GatewayError::Forbidden(what));
        }
        let permissions = caller.map_or(&self.anonymous, |caller| &caller.permissions);
        if permissions.allow.iter().any(|pattern| pattern.matches(name)) {
            return Ok(());
        }
        if permissions.report_only {
            self.reports.note(caller.map(|caller| &caller.name), name);
            return Ok(());
        }
        Err(GatewayError::Forbidden(match caller {
            Some(caller) => {
                let (caller, name) = (&caller.name, name.shown());
                format!("caller {caller} may not use {name}; to allow it, add it to the caller's allow")
            }
            None => format!("{} is not allowed; to allow it, add it to access.allow", name.shown()),
        }))
    }

    /// Takes a slot for a request of a caller; `None` if no callers are configured.
    ///
    /// # Errors
    /// `overloaded` if the caller, or its class, has no slot left.
    pub(super) fn acquire_slot(&self, caller: Option<CallerIndex>) -> Result<Option<CallerSlot>, GatewayError> {
        let Some(caller) = caller.map(|caller| self.caller(caller)) else { return Ok(None) };
        let acquire = |capacity: &Arc<Capacity>, limit| capacity.try_acquire(1).ok_or(GatewayError::Overloaded(limit));
        Ok(Some(CallerSlot {
            _of_caller: acquire(&caller.requests, "requests of one caller (half of server.max_requests)")?,
            _of_class: if caller.class == Class::Batch {
                Some(acquire(&self.batch_requests, "requests of batch callers (half of server.max_requests)")?)
            } else {
                None
            },
        }))
    }

    /// Reserves calls of a caller's quota, if it has one. The reservation says how long to wait before making them.
    ///
    /// # Errors
    /// `rate_limited` if the wait would exceed `patience`. Then nothing is reserved.
    pub(super) fn reserve(
        &self,
        caller: Option<CallerIndex>,
        calls: impl FnOnce() -> usize,
        patience: impl FnOnce() -> Duration,
    ) -> Result<Reservation, GatewayError> {
        let Some(Caller { name, quota: Some(quota), .. }) = caller.map(|caller| self.caller(caller)) else {
            return Ok(Reservation::default());
        };
        let (calls, patience) = (u32::try_from(calls()).unwrap_or(u32::MAX), patience());
        quota.reserve(calls, clock::tick(), patience).map_err(|retry_after| {
            let caller = name.to_string();
            match quota.can_ever(calls, self.timeout) {
                true => GatewayError::CallerQuotaExhausted { caller, retry_after },
                false => GatewayError::CallerQuotaTooSmall { caller, calls, retry_after },
            }
        })
    }

    /// Cancels a reservation for calls that were not made.
    pub(super) fn cancel(&self, caller: Option<CallerIndex>, reserved: Reservation) {
        if let Some(quota) = self.quota(caller) {
            quota.cancel(reserved);
        }
    }

    /// Returns the quota of a caller, if it has one.
    pub(super) fn quota(&self, caller: Option<CallerIndex>) -> Option<&Arc<CallerQuota>> {
        self.caller(caller?).quota.as_ref()
    }

    /// Returns the queue of a request in fair queues.
    pub(super) fn queue(&self, caller: Option<CallerIndex>, connection: &ConnectionInfo) -> CallerQueue {
        match caller.map(|caller| self.caller(caller)) {
            Some(caller) => CallerQueue { class: caller.class, caller: caller.id },
            None => CallerQueue::interactive(connection.caller),
        }
    }

    /// Returns the caller's key in fair queues.
    pub(super) fn queue_key(&self, caller: Option<CallerIndex>) -> Option<QueueKey> {
        caller.map(|caller| self.caller(caller).id)
    }

    /// Returns the caller's name, for logs and metrics.
    pub(crate) fn name_of(&self, caller: CallerIndex) -> &CallerName {
        &self.caller(caller).name
    }

    fn caller(&self, CallerIndex(number): CallerIndex) -> &Caller {
        &self.callers[number]
    }
}

/// Checks the header that a tricked URL fetcher cannot add (`access.require_header`).
///
/// # Errors
/// `forbidden`
pub(super) fn check_header(access: &config::Access, headers: &RequestHeaders<'_>) -> Result<(), GatewayError> {
    if access.require_header && headers.chatgate.single().is_none_or(|value| value != "1") {
        return Err(GatewayError::Forbidden(
            "the header \"Chatgate: 1\" is required (access.require_header)".to_owned(),
        ));
    }
    Ok(())
}

/// Rejects processes of users that may not use a Unix socket (`server.unix_uids`).
///
/// # Errors
/// `forbidden`.
pub(crate) fn check_uid(uids: &[u32], peer: Peer) -> Result<(), GatewayError> {
    match peer {
        Peer::Unix { uid } if !uids.is_empty() && !uid.is_some_and(|uid| uids.contains(&uid)) => {
            let what = "processes of this user may not use the Unix socket; add the user to server.unix_uids";
            Err(GatewayError::Forbidden(what.to_owned()))
        }
        Peer::Unix { .. } | Peer::Tcp { .. } => Ok(()),
    }
}

/// How often a caller's use of a command that is not in its allow list is logged.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of pairs of caller and command that are distinguished. Further ones are not logged until the interval
/// of others has passed.
const REPORTS_MAX: usize = 1000;

/// Commands that were forwarded although they are not in an allow list.
#[derive(Debug, Default)]
struct ReportOnlyLog(Mutex<HashMap<(String, String), ReportOnlyEntry>>);

#[derive(Debug)]
struct ReportOnlyEntry {
    logged: Tick,
    /// Requests since then.
    count: u64,
}

impl ReportOnlyLog {
    fn note(&self, caller: Option<&CallerName>, name: CommandName<'_>) {
        let (caller, command) = (caller.map_or("anonymous", CallerName::as_str), name.shown());
        if let Some(count) = self.due(caller, &command, clock::tick()) {
            let interval = "1m";
            tracing::warn!(
                caller,
                command,
                count,
                interval,
                "command is not in the allow list; forwarded because report_only is set"
            );
        }
    }

    /// Counts a request. Returns the number of requests since the last line, this one included, if a line is due.
    fn due(&self, caller: &str, command: &str, now: Tick) -> Option<u64> {
        let mut reports = self.0.lock();
        let is_old = |report: &ReportOnlyEntry| now.since(report.logged) >= REPORT_INTERVAL;
        let key = (caller.to_owned(), command.to_owned());
        if let Some(report) = reports.get_mut(&key) {
            report.count += 1;
            if !is_old(report) {
                return None;
            }
            report.logged = now;
            return Some(std::mem::take(&mut report.count));
        }
        if reports.len() >= REPORTS_MAX {
            reports.retain(|_, report| !is_old(report));
        }
        if reports.len() >= REPORTS_MAX {
            return None;
        }
        reports.insert(key, ReportOnlyEntry { logged: now, count: 0 });
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uid_list_limits_unix_sockets_only() {
        let unix = |uid| Peer::Unix { uid };
        assert!(check_uid(&[], unix(None)).is_ok() && check_uid(&[], unix(Some(7))).is_ok());
        assert!(check_uid(&[7, 8], unix(Some(8))).is_ok());
        assert!(check_uid(&[7, 8], unix(Some(0))).is_err());
        assert!(check_uid(&[7], unix(None)).is_err());
        assert!(check_uid(&[7], Peer::Tcp { local: std::net::Ipv4Addr::LOCALHOST.into() }).is_ok());
    }

    #[test]
    fn report_only_logs_each_command_once_a_minute_with_count() {
        let reports = ReportOnlyLog::default();
        let at = |seconds: u64| Tick::from_micros(1 + seconds * 1_000_000);
        assert_eq!(reports.due("feed", "a/b", at(0)), Some(1));
        assert_eq!(reports.due("feed", "a/b", at(1)), None);
        assert_eq!(reports.due("feed", "a/c", at(1)), Some(1));
        assert_eq!(reports.due("anonymous", "a/b", at(1)), Some(1));
        assert_eq!(reports.due("feed", "a/b", at(59)), None);
        assert_eq!(reports.due("feed", "a/b", at(60)), Some(3));
        for number in 0..5000 {
            let logged = reports.due("flood", &format!("x/{number}"), at(61));
            assert_eq!(logged.is_some(), number < REPORTS_MAX - 1, "{number}");
        }
        assert_eq!(reports.due("feed", "d/e", at(62)), None);
        assert_eq!(reports.due("feed", "d/e", at(121)), Some(1), "the flood has expired");
    }
}
