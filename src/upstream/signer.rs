//! Signing: one signature serves many calls. It is checked at every use and renewed before it expires.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::domain::chat::app::{Identifier, SdkAppId, SecretKey};
use crate::domain::chat::command::CommandName;
use crate::domain::chat::usersig::{self, UserSig};

/// A signature is renewed when this fraction of its lifetime is left: one fifth.
const RENEWAL_DIVISOR: u64 = 5;
/// The shortest time between two replacements of rejected signatures, in seconds. If the new signature is rejected too,
/// its age is not the reason.
const REPLACE_INTERVAL_SECS: u64 = 5;
/// The smallest clock difference that counts, in seconds. `Date` has whole seconds and is as old as its response.
const SKEW_SECS_MIN: i64 = 3;
/// The largest clock difference that is followed, in seconds.
const SKEW_SECS_MAX: i64 = 24 * 3600;

/// The number of the next signature.
static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);

/// The characters that are escaped in a query value: all but the unreserved ones of RFC 3986.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Signs the calls of one app.
#[derive(Debug)]
pub struct Signer {
    app: SdkAppId,
    identifier: Identifier,
    key: SecretKey,
    lifetime_secs: u64,
    current: ArcSwap<Signature>,
    /// Held while a signature is renewed.
    renewal: Mutex<Renewal>,
    /// By how many seconds Chat's clock is ahead of ours; 0 below [`SKEW_SECS_MIN`].
    skew: AtomicI64,
}

#[derive(Debug, Default)]
struct Renewal {
    /// When a rejected signature was last replaced, in seconds since 1970.
    replaced_at: Option<u64>,
}

/// One signature, and the query made of it. Neither is ever printed.
pub struct Signature {
    usersig: UserSig,
    /// `sdkappid=..&identifier=..&usersig=..&contenttype=json&random=`, to be followed by a number.
    query: Zeroizing<String>,
    issued_at: u64,
    lifetime_secs: u64,
    /// Unique in this process, so that a rejected signature is recognized after a reload, too.
    number: u64,
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signature(hidden, issued at {})", self.issued_at)
    }
}

impl Signer {
    /// Returns a signer with its first signature. `lifetime` is rounded down to seconds, and is at least one.
    pub fn new(app: SdkAppId, identifier: Identifier, key: SecretKey, lifetime: Duration, unix_now: Duration) -> Self {
        let lifetime_secs = lifetime.as_secs().max(1);
        let first = Signature::new(&key, app, &identifier, unix_now.as_secs(), lifetime_secs);
        Self {
            app,
            identifier,
            key,
            lifetime_secs,
            current: ArcSwap::from_pointee(first),
            renewal: Mutex::default(),
            skew: AtomicI64::new(0),
        }
    }

    /// Returns when the current signature was issued, in seconds since 1970, and its lifetime in seconds.
    pub fn validity(&self) -> (u64, u64) {
        let signature = self.current.load();
        (signature.issued_at, signature.lifetime_secs)
    }

    /// Returns the signer that replaces this one at a reload, with the same knowledge of Chat's clock. `None` if it
    /// would sign alike.
    pub fn renewed_for(
        &self,
        identifier: &Identifier,
        key: &SecretKey,
        lifetime: Duration,
        unix_now: Duration,
    ) -> Option<Self> {
        let same_key: bool = self.key.expose().ct_eq(key.expose()).into();
        if same_key && self.identifier == *identifier && self.lifetime_secs == lifetime.as_secs().max(1) {
            return None;
        }
        let signing_time = Duration::from_secs(self.signing_time(unix_now));
        let mut next = Self::new(self.app, identifier.clone(), key.clone(), lifetime, signing_time);
        *next.skew.get_mut() = self.skew();
        Some(next)
    }

    /// Returns a signature that is valid now.
    ///
    /// One thread renews a signature that is about to expire; the other threads use the old one meanwhile. If the old
    /// one has expired, or was issued in the future because the clock was set back, all threads wait for the new one,
    /// which takes some 20 µs.
    pub fn current(&self, unix_now: Duration) -> Arc<Signature> {
        let now = self.signing_time(unix_now);
        let signature = self.current.load();
        if !signature.is_due(now) {
            return Arc::clone(&signature);
        }
        let renewal = match self.renewal.try_lock() {
            Some(renewal) => renewal,
            None if signature.is_valid(now) => return Arc::clone(&signature),
            None => self.renewal.lock(),
        };
        // Another thread may have renewed it meanwhile.
        let signature = self.current.load_full();
        if signature.is_due(now) { self.renew(&renewal, now) } else { signature }
    }

    /// Returns a signature for one more attempt after Chat rejected one; `None` if no other signature may succeed. The
    /// first rejection replaces the signature for all callers.
    pub fn after_rejection(&self, rejected: &Signature, unix_now: Duration) -> Option<Arc<Signature>> {
        let now = self.signing_time(unix_now);
        let mut renewal = self.renewal.lock();
        let current = self.current.load_full();
        if current.number != rejected.number {
            return Some(current);
        }
        // A signature that has expired on Chat's clock was rejected for that reason, so a new one succeeds.
        let has_expired = !rejected.is_valid(now);
        if !has_expired && renewal.replaced_at.is_some_and(|at| now.abs_diff(at) < REPLACE_INTERVAL_SECS) {
            return None;
        }
        renewal.replaced_at = Some(now);
        // A signature of the same second would have the same text.
        let issued_at = if now == rejected.issued_at { now.saturating_sub(1) } else { now };
        Some(self.renew(&renewal, issued_at))
    }

    /// Replaces the current signature. Access to `_renewal` proves that no other thread does so.
    fn renew(&self, _renewal: &Renewal, issued_at: u64) -> Arc<Signature> {
        let fresh = Arc::new(Signature::new(&self.key, self.app, &self.identifier, issued_at, self.lifetime_secs));
        self.current.store(Arc::clone(&fresh));
        tracing::debug!(sdkappid = self.app.get(), "UserSig renewed");
        fresh
    }

    /// Adopts Chat's clock, as the `Date` of a response shows it, in seconds since 1970.
    ///
    /// If it is ahead of ours, signatures expire earlier than we think, so signing follows it. If it is behind, they
    /// expire later, which does no harm.
    pub fn observe(&self, chat_now: u64, unix_now: Duration) {
        let ahead = i64::try_from(i128::from(chat_now) - i128::from(unix_now.as_secs())).unwrap_or(i64::MAX);
        let skew = if ahead.abs() < SKEW_SECS_MIN { 0 } else { ahead.clamp(-SKEW_SECS_MAX, SKEW_SECS_MAX) };
        let before = self.skew.load(Ordering::Relaxed);
        if (skew - before).abs() >= SKEW_SECS_MIN || (skew == 0 && before != 0) {
            self.skew.store(skew, Ordering::Relaxed);
            self.log_skew(skew);
        }
    }

    fn log_skew(&self, seconds: i64) {
        let sdkappid = self.app.get();
        match seconds {
            0 => tracing::info!(sdkappid, "this machine's clock and Chat's clock agree again"),
            _ => tracing::warn!(
                sdkappid,
                seconds,
                "this machine's clock and Chat's clock differ; check time synchronization"
            ),
        }
    }

    /// Returns by how many seconds Chat's clock is ahead of ours, negative if it is behind; 0 for less than three.
    pub fn skew(&self) -> i64 {
        self.skew.load(Ordering::Relaxed)
    }

    fn signing_time(&self, unix_now: Duration) -> u64 {
        unix_now.as_secs().saturating_add(u64::try_from(self.skew()).unwrap_or(0))
    }

    /// Returns the seconds until the current signature expires, negative if it has.
    pub fn expires_in(&self, unix_now: Duration) -> i64 {
        let end = self.current.load().issued_at.saturating_add(self.lifetime_secs);
        i64::try_from(i128::from(end) - i128::from(self.signing_time(unix_now))).unwrap_or(i64::MAX)
    }
}

impl Signature {
    fn new(key: &SecretKey, app: SdkAppId, identifier: &Identifier, issued_at: u64, lifetime_secs: u64) -> Self {
        let usersig = usersig::mint(key, app, identifier, issued_at, lifetime_secs);
        let identifier = utf8_percent_encode(identifier.as_str(), QUERY_VALUE);
        // Allocated once: a string that grows leaves copies behind, which are not wiped.
        let mut query = Zeroizing::new(String::with_capacity(256 + usersig.expose().len()));
        let usersig_text = usersig.expose();
        write!(query, "sdkappid={app}&identifier={identifier}&usersig={usersig_text}&contenttype=json&random=")
            .expect("writing to a string cannot fail");
        Self { usersig, query, issued_at, lifetime_secs, number: NEXT_NUMBER.fetch_add(1, Ordering::Relaxed) }
    }

    /// Returns the signed target of a call. Only here does a signature become part of a URI, which goes to the socket
    /// and nowhere else.
    pub fn target(&self, name: CommandName<'_>, random: u32) -> PathAndQuery {
        let mut target = String::with_capacity(self.query.len() + 160);
        for part in ["/v4/", name.service(), "/", name.command(), "?", &self.query] {
            target.push_str(part);
        }
        write!(target, "{random}").expect("writing to a string cannot fail");
        PathAndQuery::from_maybe_shared(Bytes::from(target)).expect("only characters that a target may have")
    }

    /// Returns the text of the signature, for redacting responses.
    pub fn usersig(&self) -> &str {
        self.usersig.expose()
    }

    fn age(&self, now: u64) -> Option<u64> {
        now.checked_sub(self.issued_at)
    }

    fn is_valid(&self, now: u64) -> bool {
        self.age(now).is_some_and(|age| age < self.lifetime_secs)
    }

    fn is_due(&self, now: u64) -> bool {
        self.age(now).is_none_or(|age| age >= self.lifetime_secs - self.lifetime_secs / RENEWAL_DIVISOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chat::command::FOLLOW_CHECK;

    fn signer(identifier: &str) -> Signer {
        let app = SdkAppId::new(1_400_000_001).expect("not 0");
        let key = SecretKey::new("a key").expect("not empty");
        Signer::new(app, identifier.parse().expect("a name"), key, Duration::from_secs(100), at(1000))
    }

    fn at(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn signature_is_renewed_when_a_fifth_of_its_lifetime_is_left() {
        let signer = signer("administrator");
        let first = signer.current(at(1000));
        assert_eq!(signer.current(at(1079)).issued_at, first.issued_at);
        assert_eq!(signer.current(at(1080)).issued_at, 1080);
        assert_eq!(signer.current(at(5000)).issued_at, 5000);
    }

    #[test]
    fn changed_key_replaces_the_signer_and_old_signatures() {
        let (old, lifetime) = (signer("administrator"), Duration::from_secs(100));
        let key = |text: &str| SecretKey::new(text).expect("not empty");
        let successor =
            |name: &str, text: &str, life| old.renewed_for(&name.parse().expect("a name"), &key(text), life, at(1001));
        assert!(successor("administrator", "a key", lifetime).is_none());
        assert!(successor("another", "a key", lifetime).is_some());
        assert!(successor("administrator", "a key", lifetime * 2).is_some());
        old.observe(1501, at(1001));
        let new = successor("administrator", "b key", lifetime).expect("another key");
        assert_eq!((new.skew(), new.current(at(1001)).issued_at), (500, 1501), "Chat's clock is known");
        let rejected = old.current(at(1001));
        let fresh = new.after_rejection(&rejected, at(1001)).expect("the signature of the new signer");
        assert_eq!(fresh.number, new.current(at(1001)).number, "it was not rejected and stays");
    }

    #[test]
    fn clock_set_back_renews_the_signature() {
        let signer = signer("administrator");
        assert_eq!(signer.current(at(999)).issued_at, 999);
    }

    #[test]
    fn old_signature_serves_during_a_renewal_while_it_is_valid() {
        let signer = signer("administrator");
        let renewal = signer.renewal.lock();
        assert_eq!(signer.current(at(1090)).issued_at, 1000);
        drop(renewal);
        assert_eq!(signer.current(at(1100)).issued_at, 1100);
    }

    #[test]
    fn first_rejection_replaces_a_signature_once_per_interval() {
        let signer = signer("administrator");
        let first = signer.current(at(1000));
        let fresh: Vec<_> =
            (0..200).map(|_| signer.after_rejection(&first, at(1000)).expect("another signature").number).collect();
        assert_eq!(fresh, [fresh[0]; 200], "the same for all callers");
        assert_ne!(fresh[0], first.number);
        let second = signer.current(at(1001));
        assert_ne!(second.usersig(), first.usersig(), "within the same second");
        assert!(signer.after_rejection(&second, at(1003)).is_none());
        let third = signer.after_rejection(&second, at(1006)).expect("a third");
        assert!(third.number != second.number && third.number != first.number);
    }

    #[test]
    fn signature_expired_on_chats_clock_is_replaced_at_once() {
        let signer = signer("administrator");
        signer.after_rejection(&signer.current(at(5000)), at(5000)).expect("the first");
        // The clock is set back, and the rejecting response shows Chat's time.
        let back = signer.current(at(1000));
        signer.observe(5001, at(1000));
        let fresh = signer.after_rejection(&back, at(1000)).expect("a signature of Chat's time");
        assert_eq!(fresh.issued_at, 5001);
        assert!(signer.after_rejection(&fresh, at(1000)).is_none(), "its age is not the reason");
    }

    #[test]
    fn signing_follows_chats_clock_only_if_it_is_ahead() {
        let signer = signer("administrator");
        signer.observe(1002, at(1000));
        assert_eq!((signer.skew(), signer.current(at(1000)).issued_at), (0, 1000));
        signer.observe(1500, at(1000));
        assert_eq!((signer.skew(), signer.current(at(1001)).issued_at), (500, 1501));
        assert_eq!(signer.expires_in(at(1001)), 100);
        signer.observe(900, at(1100));
        assert_eq!((signer.skew(), signer.current(at(1200)).issued_at), (-200, 1200), "our own clock");
        signer.observe(u64::MAX, at(1200));
        assert_eq!(signer.skew(), SKEW_SECS_MAX);
        signer.observe(1200, at(1200));
        assert_eq!(signer.skew(), 0);
    }

    #[test]
    fn target_has_five_parameters_and_an_escaped_identifier() {
        let signer = signer("ad min&x=1#%ä");
        let signature = signer.current(at(1000));
        let target = signature.target(FOLLOW_CHECK, u32::MAX);
        assert_eq!(target.path(), "/v4/follow/follow_check");
        let expected = format!(
            "sdkappid=1400000001&identifier=ad%20min%26x%3D1%23%25%C3%A4&usersig={}&contenttype=json&random=4294967295",
            signature.usersig()
        );
        assert_eq!(target.query(), Some(expected.as_str()));
    }

    #[test]
    fn debug_output_contains_no_signature() {
        let signer = signer("administrator");
        let printed = format!("{signer:?}");
        assert!(!printed.contains(signer.current(at(1000)).usersig()));
        assert!(!printed.contains("a key"));
    }
}
