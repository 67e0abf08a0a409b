//! Who may call, and what.
//!
//! Without a `[[caller]]` nobody is asked, and `[access]` says what may be called. With one, every data
//! request shows a token, and what it may call is said with its caller.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::route::Peer;
use crate::capacity::{Capacity, CapacityGuard};
use crate::clock;
use crate::config::{self, Config};
use crate::domain::caller::{CallerName, QueueKey, TOKEN_LEN_MAX, TokenDigest};
use crate::domain::chat::app::AppName;
use crate::domain::chat::command::{CommandName, CommandPattern};
use crate::domain::tick::Tick;
use crate::error::GatewayError;
use crate::limits::{CallerQuota, Reservation};

/// Who may call, and what.
#[derive(Debug)]
pub struct Access {
    /// The tokens of `callers`, in their order.
    tokens: Vec<TokenDigest>,
    callers: Vec<Caller>,
    /// What those without a token may, if there are no callers.
    anonymous: Permissions,
    reports: ReportOnlyLog,
}

/// One of the configured callers, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallerIndex(usize);

#[derive(Debug)]
struct Caller {
    name: CallerName,
    id: QueueKey,
    /// The numbers of its apps; `None`: all.
    apps: Option<Vec<usize>>,
    rights: Permissions,
    /// Calls that it may cause; `None`: no bound of its own.
    share: Option<Arc<CallerQuota>>,
    /// Its requests being worked on.
    requests: Arc<Capacity>,
}

#[derive(Debug)]
struct Permissions {
    allow: Vec<CommandPattern>,
    /// What is not allowed is let through, and said.
    report_only: bool,
}

impl Access {
    /// As configured. A caller that `before` knows keeps its share as it stands; if its rate has changed
    /// it begins with nothing to spend.
    pub fn new(config: &Config, before: Option<&Self>) -> Self {
        let number = |name: &AppName| {
            config.apps.iter().position(|app| app.name == *name).expect("callers name configured apps")
        };
        // Where there are others, one who floods leaves half of all places to them.
        let requests_max = match config.server.max_requests {
            max if config.callers.len() > 1 => max.div_ceil(2),
            max => max,
        };
        let share = |caller: &config::Caller| {
            let rate = caller.quota?;
            let known = before.and_then(|before| before.callers.iter().find(|other| other.name == caller.name));
            Some(match known.map(|known| &known.share) {
                Some(Some(share)) if share.per_second() == rate => Arc::clone(share),
                Some(_) => Arc::new(CallerQuota::spent(rate, clock::tick())),
                None => Arc::new(CallerQuota::new(rate)),
            })
        };
        let caller = |caller: &config::Caller| Caller {
            name: caller.name.clone(),
            id: QueueKey::named(&caller.name),
            apps: caller.apps.as_ref().map(|apps| apps.iter().map(number).collect()),
            rights: Permissions { allow: caller.allow.clone(), report_only: caller.report_only },
            share: share(caller),
            requests: before
                .and_then(|before| before.callers.iter().find(|other| other.name == caller.name))
                .map_or_else(|| Capacity::new(requests_max), |known| Arc::clone(&known.requests)),
        };
        let config::Access { allow, report_only, .. } = &config.access;
        Self {
            tokens: config.callers.iter().map(|caller| caller.token).collect(),
            callers: config.callers.iter().map(caller).collect(),
            anonymous: Permissions { allow: allow.clone(), report_only: *report_only },
            reports: ReportOnlyLog::default(),
        }
    }

    /// Who sent this; `None` if there are no callers.
    ///
    /// # Errors
    /// `unauthenticated` if there are callers, and this shows the token of none of them.
    pub fn identify(&self, headers: &HeaderMap) -> Result<Option<CallerIndex>, GatewayError> {
        if self.tokens.is_empty() {
            return Ok(None);
        }
        let token = bearer_token(headers).ok_or(GatewayError::Unauthenticated(
            "the request needs one header \"Authorization: Bearer TOKEN\", with the token of a [[caller]]",
        ))?;
        let found = TokenDigest::of(token).find_in(&self.tokens);
        let found = found.ok_or(GatewayError::Unauthenticated(
            "the token is that of no [[caller]]; compare it with the file that token_file names",
        ))?;
        Ok(Some(CallerIndex(found)))
    }

    /// Whether this caller may use this command of this app.
    ///
    /// # Errors
    /// `forbidden`.
    pub(super) fn authorize(
        &self,
        listed: Option<CallerIndex>,
        app: usize,
        name: CommandName<'_>,
    ) -> Result<(), GatewayError> {
        let caller = listed.map(|listed| self.caller(listed));
        if let Some(Caller { name, apps: Some(apps), .. }) = caller
            && !apps.contains(&app)
        {
            let what = format!("caller {name} may not use this app; add it to the caller's apps if it should");
            return Err(GatewayError::Forbidden(what));
        }
        let rights = caller.map_or(&self.anonymous, |caller| &caller.rights);
        if rights.allow.iter().any(|pattern| pattern.matches(name)) {
            return Ok(());
        }
        if rights.report_only {
            self.reports.note(caller.map_or("", |caller| caller.name.as_str()), name);
            return Ok(());
        }
        Err(GatewayError::Forbidden(match caller {
            Some(caller) => {
                format!("{name} is not allowed to {}; add it to the caller's allow if it should be", caller.name)
            }
            None => format!("{name} is not allowed; add it to access.allow if it should be"),
        }))
    }

    /// A place for one more request of this caller; `None` if it needs none, as there are no callers.
    ///
    /// # Errors
    /// `overloaded` if the caller has as many as one may have.
    pub(super) fn acquire_slot(&self, listed: Option<CallerIndex>) -> Result<Option<CapacityGuard>, GatewayError> {
        let Some(listed) = listed else { return Ok(None) };
        let place = self.caller(listed).requests.try_acquire(1);
        place.map(Some).ok_or(GatewayError::Overloaded("requests of one caller (half of server.max_requests)"))
    }

    /// Reserves calls of a caller's share, if it has one, and says how long it has to wait before it causes them.
    ///
    /// # Errors
    /// `rate_limited` if that is longer than its `patience`. Then nothing is reserved.
    pub(super) fn reserve(
        &self,
        listed: Option<CallerIndex>,
        calls: impl FnOnce() -> usize,
        patience: impl FnOnce() -> Duration,
    ) -> Result<Reservation, GatewayError> {
        let Some(Caller { name, share: Some(share), .. }) = listed.map(|listed| self.caller(listed)) else {
            return Ok(Reservation::default());
        };
        let (calls, patience) = (u32::try_from(calls()).unwrap_or(u32::MAX), patience());
        share.reserve(calls, clock::tick(), patience).map_err(|retry_after| {
            let caller = name.to_string();
            match share.can_ever(calls, patience) {
                true => GatewayError::ShareUsedUp { caller, retry_after },
                false => GatewayError::ShareTooSmall { caller, calls, retry_after },
            }
        })
    }

    /// Gives back what was reserved for calls that were not made after all.
    pub(super) fn cancel(&self, listed: Option<CallerIndex>, reserved: Reservation) {
        if let Some(share) = listed.and_then(|listed| self.caller(listed).share.as_ref()) {
            share.cancel(reserved);
        }
    }

    /// Whose turn a caller's requests take.
    pub(super) fn queue_key(&self, listed: Option<CallerIndex>) -> Option<QueueKey> {
        listed.map(|listed| self.caller(listed).id)
    }

    /// A caller's name, for logs and metrics.
    pub fn name_of(&self, listed: CallerIndex) -> &CallerName {
        &self.caller(listed).name
    }

    fn caller(&self, CallerIndex(number): CallerIndex) -> &Caller {
        &self.callers[number]
    }
}

/// The token of a request that has exactly one `Authorization`, with the scheme `Bearer` in any case
/// (RFC 6750 section 2.1, RFC 9110 section 11.1). `None` if it is longer than any token.
pub fn bearer_token(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, rest) = value.as_bytes().split_at_checked("Bearer ".len())?;
    let token = rest.trim_ascii_start();
    (scheme.eq_ignore_ascii_case(b"bearer ") && (1..=TOKEN_LEN_MAX).contains(&token.len())).then_some(token)
}

/// Refuses the processes of users that may not use a Unix socket (`server.unix_uids`).
///
/// # Errors
/// `forbidden`.
pub fn check_uid(uids: &[u32], peer: Peer) -> Result<(), GatewayError> {
    match peer {
        Peer::Unix { uid } if !uids.is_empty() && !uid.is_some_and(|uid| uids.contains(&uid)) => {
            let what = "processes of this user may not use the Unix socket; add the user to server.unix_uids";
            Err(GatewayError::Forbidden(what.to_owned()))
        }
        Peer::Unix { .. } | Peer::Tcp { .. } => Ok(()),
    }
}

/// A line of the log for each caller and command that was let through though not allowed, once in so long.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);
/// So many pairs of caller and command are told apart; what comes on top is let through unsaid until
/// the interval of others is over.
const REPORTS_MAX: usize = 1000;

/// What was let through though not allowed.
#[derive(Debug, Default)]
struct ReportOnlyLog(Mutex<HashMap<(String, String), ReportOnlyEntry>>);

#[derive(Debug)]
struct ReportOnlyEntry {
    said: Tick,
    /// How often since then.
    unsaid: u64,
}

impl ReportOnlyLog {
    fn note(&self, caller: &str, name: CommandName<'_>) {
        let command = name.to_string();
        if let Some(times) = self.due(caller, &command, clock::tick()) {
            tracing::warn!(caller, command, times, "not allowed, but let through (report_only)");
        }
    }

    /// How many times it has happened since it was last said, this time included, if it is to be said.
    fn due(&self, caller: &str, command: &str, now: Tick) -> Option<u64> {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = |report: &ReportOnlyEntry| now.since(report.said) >= REPORT_INTERVAL;
        let key = (caller.to_owned(), command.to_owned());
        if let Some(report) = reports.get_mut(&key) {
            report.unsaid += 1;
            if !is_old(report) {
                return None;
            }
            report.said = now;
            return Some(std::mem::take(&mut report.unsaid));
        }
        if reports.len() >= REPORTS_MAX {
            reports.retain(|_, report| !is_old(report));
        }
        if reports.len() >= REPORTS_MAX {
            return None;
        }
        reports.insert(key, ReportOnlyEntry { said: now, unsaid: 0 });
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn token_of(values: &[&'static str]) -> Option<String> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_static(value));
        }
        bearer_token(&headers).map(|token| String::from_utf8_lossy(token).into_owned())
    }

    #[test]
    fn a_token_stands_in_one_header_of_its_own_scheme() {
        for good in ["Bearer abc", "bearer abc", "BEARER abc", "Bearer   abc"] {
            assert_eq!(token_of(&[good]).as_deref(), Some("abc"), "{good}");
        }
        for bad in ["", "Bearer", "Bearer ", "Bearer\tabc", "Basic abc", "abc", "Bearerabc", " Bearer abc"] {
            assert_eq!(token_of(&[bad]), None, "{bad:?}");
        }
        assert_eq!(token_of(&[]), None);
        assert_eq!(token_of(&["Bearer abc", "Bearer abc"]), None);
        // It is one text, whatever is in it.
        assert_eq!(token_of(&["Bearer a, Bearer b"]).as_deref(), Some("a, Bearer b"));
        let mut headers = HeaderMap::new();
        for (len, is_token) in [(TOKEN_LEN_MAX, true), (TOKEN_LEN_MAX + 1, false)] {
            let value = HeaderValue::try_from(format!("Bearer {}", "x".repeat(len))).expect("visible");
            headers.insert(AUTHORIZATION, value);
            assert_eq!(bearer_token(&headers).is_some(), is_token, "{len}");
        }
    }

    #[test]
    fn a_list_of_users_is_for_unix_sockets_and_knows_nobody_else() {
        let unix = |uid| Peer::Unix { uid };
        assert!(check_uid(&[], unix(None)).is_ok() && check_uid(&[], unix(Some(7))).is_ok());
        assert!(check_uid(&[7, 8], unix(Some(8))).is_ok());
        assert!(check_uid(&[7, 8], unix(Some(0))).is_err());
        assert!(check_uid(&[7], unix(None)).is_err());
        assert!(check_uid(&[7], Peer::Tcp { local: std::net::Ipv4Addr::LOCALHOST.into() }).is_ok());
    }

    #[test]
    fn what_is_let_through_is_said_now_and_then_and_counted() {
        let reports = ReportOnlyLog::default();
        let at = |seconds: u64| Tick::from_micros(1 + seconds * 1_000_000);
        assert_eq!(reports.due("feed", "a/b", at(0)), Some(1));
        assert_eq!(reports.due("feed", "a/b", at(1)), None);
        assert_eq!(reports.due("feed", "a/c", at(1)), Some(1));
        assert_eq!(reports.due("", "a/b", at(1)), Some(1));
        assert_eq!(reports.due("feed", "a/b", at(59)), None);
        assert_eq!(reports.due("feed", "a/b", at(60)), Some(3));
        for number in 0..5000 {
            let said = reports.due("flood", &format!("x/{number}"), at(61));
            assert_eq!(said.is_some(), number < REPORTS_MAX - 1, "{number}");
        }
        assert_eq!(reports.due("feed", "d/e", at(62)), None);
        assert_eq!(reports.due("feed", "d/e", at(121)), Some(1), "the flood is over and forgotten");
    }
}
