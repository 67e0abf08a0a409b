//! Signing: one signature serves many calls, is renewed ahead of time and checked at every use.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::uri::PathAndQuery;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::domain::chat::app::{Identifier, SdkAppId, SecretKey};
use crate::domain::chat::command::CommandName;
use crate::domain::chat::usersig;
use crate::domain::chat::usersig::UserSig;

/// A signature is renewed when one part in so many of its life is left.
const RENEWED_PART: u64 = 5;

/// Refused signatures are replaced no more often than this: if the fresh one is refused too, then time
/// is not what it lacks.
const REPLACED_EVERY_SECS: u64 = 5;
/// A clock that differs from Chat's by this much is worth a warning. `Date` counts whole seconds and is as
/// old as the answer took.
const SKEW_SECS_MIN: i64 = 3;
/// Chat's clock is followed no further than this.
const SKEW_SECS_MAX: i64 = 24 * 3600;

/// How many signatures were made.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// Everything but RFC 3986's unreserved characters is escaped in a query value.
const QUERY_VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Signs the calls of one app.
#[derive(Debug)]
pub struct Signer {
    app: SdkAppId,
    identifier: Identifier,
    key: SecretKey,
    lifetime_secs: u64,
    current: ArcSwap<Signature>,
    /// Held by the one that renews: when a refused signature was replaced, in seconds since 1970.
    renewing: Mutex<Option<u64>>,
    /// By how many seconds Chat's clock is ahead of ours, as far as it matters; else 0.
    skew: AtomicI64,
}

/// One signature and the query made of it. Neither can be printed.
pub struct Signature {
    usersig: UserSig,
    /// `sdkappid=..&identifier=..&usersig=..&contenttype=json&random=`, to be followed by a number.
    query: Zeroizing<String>,
    issued_at: u64,
    lifetime_secs: u64,
    /// No two of this process have one number, so that a refused one is known after a reload too.
    number: u64,
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signature(hidden, issued at {})", self.issued_at)
    }
}

impl Signer {
    /// Signs for the first time. `lifetime` counts in whole seconds, at least one.
    pub fn new(app: SdkAppId, identifier: Identifier, key: SecretKey, lifetime: Duration, unix_now: Duration) -> Self {
        let lifetime_secs = lifetime.as_secs().max(1);
        let first = Signature::new(&key, app, &identifier, unix_now.as_secs(), lifetime_secs);
        Self {
            app,
            identifier,
            key,
            lifetime_secs,
            current: ArcSwap::from_pointee(first),
            renewing: Mutex::default(),
            skew: AtomicI64::new(0),
        }
    }

    /// When the present signature was issued, in seconds since 1970, and how many seconds it is good.
    pub fn validity(&self) -> (u64, u64) {
        let signature = self.current.load();
        (signature.issued_at, signature.lifetime_secs)
    }

    /// The signer that takes this one's place at a reload; `None` if it would sign alike. It knows Chat's
    /// clock already.
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

    /// A signature that is good at this moment.
    ///
    /// One that is near its end is renewed by the first who sees it; the others go on with the old
    /// one meanwhile. One that has ended, or is from a future that the clock has taken back, serves
    /// nobody: then all wait for the new one (some 20 µs).
    pub fn current(&self, unix_now: Duration) -> Arc<Signature> {
        let now = self.signing_time(unix_now);
        let signature = self.current.load();
        if !signature.is_due(now) {
            return Arc::clone(&signature);
        }
        let turn = match self.renewing.try_lock() {
            Ok(turn) => turn,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) if signature.is_good(now) => return Arc::clone(&signature),
            Err(std::sync::TryLockError::WouldBlock) => self.renewing.lock().unwrap_or_else(PoisonError::into_inner),
        };
        // Somebody may have renewed it in the meantime.
        let signature = self.current.load_full();
        if !signature.is_due(now) {
            return signature;
        }
        let fresh = self.renew(now);
        drop(turn);
        fresh
    }

    /// Chat refused a signature. Gives another one for one more attempt, if there is one that may fare
    /// better: the first who comes with a refused signature retires it for all.
    pub fn after_rejection(&self, refused: &Signature, unix_now: Duration) -> Option<Arc<Signature>> {
        let now = self.signing_time(unix_now);
        let mut replaced_at = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.current.load_full();
        if current.number != refused.number {
            return Some(current);
        }
        // One that has ended by what is known of Chat's clock by now was refused for that, as its successor is not.
        let has_ended = !refused.is_good(now);
        if !has_ended && replaced_at.is_some_and(|at| now.abs_diff(at) < REPLACED_EVERY_SECS) {
            return None;
        }
        *replaced_at = Some(now);
        // One of the same second would be the same text.
        let issued_at = if now == refused.issued_at { now.saturating_sub(1) } else { now };
        Some(self.renew(issued_at))
    }

    /// Only for the one who has `renewing`.
    fn renew(&self, issued_at: u64) -> Arc<Signature> {
        let fresh = Arc::new(Signature::new(&self.key, self.app, &self.identifier, issued_at, self.lifetime_secs));
        self.current.store(Arc::clone(&fresh));
        tracing::debug!(sdkappid = self.app.get(), "usersig renewed");
        fresh
    }

    /// Takes in Chat's clock, as an answer's `Date` shows it, in seconds since 1970.
    ///
    /// If it is ahead of ours, signatures end sooner than we think, so time is taken from it. If it is
    /// behind, nothing is lost: they only end later.
    pub fn observe(&self, chat_now: u64, unix_now: Duration) {
        let ahead = i64::try_from(i128::from(chat_now) - i128::from(unix_now.as_secs())).unwrap_or(i64::MAX);
        let skew = if ahead.abs() < SKEW_SECS_MIN { 0 } else { ahead.clamp(-SKEW_SECS_MAX, SKEW_SECS_MAX) };
        let before = self.skew.load(Ordering::Relaxed);
        if (skew - before).abs() >= SKEW_SECS_MIN || (skew == 0 && before != 0) {
            self.skew.store(skew, Ordering::Relaxed);
            let (sdkappid, seconds) = (self.app.get(), skew);
            if skew == 0 {
                tracing::info!(sdkappid, "this machine's clock and Chat's agree again");
            } else {
                tracing::warn!(
                    sdkappid,
                    seconds,
                    "Chat's clock differs from this machine's; check time synchronisation"
                );
            }
        }
    }

    /// By how many seconds Chat's clock is ahead of ours, if it is at least three either way; else 0.
    pub fn skew(&self) -> i64 {
        self.skew.load(Ordering::Relaxed)
    }

    fn signing_time(&self, unix_now: Duration) -> u64 {
        unix_now.as_secs().saturating_add(u64::try_from(self.skew()).unwrap_or(0))
    }

    /// Seconds until the present signature ends; negative if it has.
    pub fn expires_in(&self, unix_now: Duration) -> i64 {
        let end = self.current.load().issued_at.saturating_add(self.lifetime_secs);
        i64::try_from(i128::from(end) - i128::from(self.signing_time(unix_now))).unwrap_or(i64::MAX)
    }
}

impl Signature {
    fn new(key: &SecretKey, app: SdkAppId, identifier: &Identifier, issued_at: u64, lifetime_secs: u64) -> Self {
        let usersig = usersig::mint(key, app, identifier, issued_at, lifetime_secs);
        let identifier = utf8_percent_encode(identifier.as_str(), QUERY_VALUE);
        // Made in one piece: a string that grows would leave unwiped copies behind.
        let mut query = Zeroizing::new(String::with_capacity(256 + usersig.expose().len()));
        let usersig_text = usersig.expose();
        write!(query, "sdkappid={app}&identifier={identifier}&usersig={usersig_text}&contenttype=json&random=")
            .expect("text into memory");
        Self { usersig, query, issued_at, lifetime_secs, number: NUMBERS.fetch_add(1, Ordering::Relaxed) }
    }

    /// The target of a call, signed: the one place where a signature becomes part of a URI. It goes
    /// to the socket and nowhere else.
    pub fn target(&self, name: CommandName<'_>, random: u32) -> PathAndQuery {
        let mut target = String::with_capacity(self.query.len() + 160);
        for part in ["/v4/", name.service(), "/", name.command(), "?", &self.query] {
            target.push_str(part);
        }
        write!(target, "{random}").expect("text into memory");
        PathAndQuery::from_maybe_shared(Bytes::from(target)).expect("made of characters that a target may have")
    }

    /// The signature's text, to be found and masked in what comes back.
    pub fn usersig(&self) -> &str {
        self.usersig.expose()
    }

    fn age(&self, now: u64) -> Option<u64> {
        now.checked_sub(self.issued_at)
    }

    fn is_good(&self, now: u64) -> bool {
        self.age(now).is_some_and(|age| age < self.lifetime_secs)
    }

    fn is_due(&self, now: u64) -> bool {
        self.age(now).is_none_or(|age| age >= self.lifetime_secs - self.lifetime_secs / RENEWED_PART)
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
    fn one_signature_serves_until_a_fifth_of_its_life_is_left() {
        let signer = signer("administrator");
        let first = signer.current(at(1000));
        assert_eq!(signer.current(at(1079)).issued_at, first.issued_at);
        assert_eq!(signer.current(at(1080)).issued_at, 1080);
        assert_eq!(signer.current(at(5000)).issued_at, 5000);
    }

    #[test]
    fn another_key_means_another_signer_that_replaces_what_the_old_one_signed() {
        let (old, day) = (signer("administrator"), Duration::from_secs(100));
        let key = |text: &str| SecretKey::new(text).expect("not empty");
        let successor =
            |name: &str, text: &str, life| old.renewed_for(&name.parse().expect("a name"), &key(text), life, at(1001));
        assert!(successor("administrator", "a key", day).is_none());
        assert!(successor("another", "a key", day).is_some());
        assert!(successor("administrator", "a key", day * 2).is_some());
        old.observe(1501, at(1001));
        let new = successor("administrator", "b key", day).expect("another key");
        assert_eq!((new.skew(), new.current(at(1001)).issued_at), (500, 1501), "Chat's clock is known");
        let refused = old.current(at(1001));
        let fresh = new.after_rejection(&refused, at(1001)).expect("the new signer's");
        assert_eq!(fresh.number, new.current(at(1001)).number, "which was not refused and stays");
    }

    #[test]
    fn a_clock_that_was_set_back_means_a_new_signature() {
        let signer = signer("administrator");
        assert_eq!(signer.current(at(999)).issued_at, 999);
    }

    #[test]
    fn while_one_renews_others_use_the_old_signature_only_if_it_is_still_good() {
        let signer = signer("administrator");
        let turn = signer.renewing.lock().expect("free");
        assert_eq!(signer.current(at(1090)).issued_at, 1000);
        drop(turn);
        assert_eq!(signer.current(at(1100)).issued_at, 1100);
    }

    #[test]
    fn the_first_refusal_retires_a_signature_for_all_and_the_next_one_only_after_a_while() {
        let signer = signer("administrator");
        let first = signer.current(at(1000));
        let fresh: Vec<_> =
            (0..200).map(|_| signer.after_rejection(&first, at(1000)).expect("another one").number).collect();
        assert_eq!(fresh, [fresh[0]; 200], "one for all");
        assert_ne!(fresh[0], first.number);
        let second = signer.current(at(1001));
        assert_ne!(second.usersig(), first.usersig(), "though it is of the same second");
        assert!(signer.after_rejection(&second, at(1003)).is_none());
        let third = signer.after_rejection(&second, at(1006)).expect("a third");
        assert!(third.number != second.number && third.number != first.number);
    }

    #[test]
    fn a_signature_that_has_ended_for_chat_is_replaced_however_soon() {
        let signer = signer("administrator");
        signer.after_rejection(&signer.current(at(5000)), at(5000)).expect("the first");
        // The clock is set back, and the answer that refuses tells what time it is for Chat.
        let back = signer.current(at(1000));
        signer.observe(5001, at(1000));
        let fresh = signer.after_rejection(&back, at(1000)).expect("one of Chat's time");
        assert_eq!(fresh.issued_at, 5001);
        assert!(signer.after_rejection(&fresh, at(1000)).is_none(), "time is not what it lacks");
    }

    #[test]
    fn if_chat_s_clock_is_ahead_signatures_are_renewed_by_it() {
        let signer = signer("administrator");
        signer.observe(1002, at(1000));
        assert_eq!((signer.skew(), signer.current(at(1000)).issued_at), (0, 1000));
        signer.observe(1500, at(1000));
        assert_eq!((signer.skew(), signer.current(at(1001)).issued_at), (500, 1501));
        assert_eq!(signer.expires_in(at(1001)), 100);
        signer.observe(900, at(1100));
        assert_eq!((signer.skew(), signer.current(at(1200)).issued_at), (-200, 1200), "its own clock");
        signer.observe(u64::MAX, at(1200));
        assert_eq!(signer.skew(), SKEW_SECS_MAX);
        signer.observe(1200, at(1200));
        assert_eq!(signer.skew(), 0);
    }

    #[test]
    fn the_target_has_the_five_parameters_and_escapes_the_identifier() {
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
    fn what_is_printed_of_it_holds_no_signature() {
        let signer = signer("administrator");
        let printed = format!("{signer:?}");
        assert!(!printed.contains(signer.current(at(1000)).usersig()));
        assert!(!printed.contains("a key"));
    }
}
