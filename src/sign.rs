//! Signing: one signature serves many calls, is renewed ahead of time and checked at every use.

use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::uri::PathAndQuery;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::Zeroizing;

use crate::domain::app::{Identifier, SdkAppId, SecretKey};
use crate::domain::command::CommandName;
use crate::domain::usersig::{self, UserSig};

/// A signature is renewed when one part in so many of its life is left.
const RENEWED_PART: u64 = 5;

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
    /// Held by the one that renews.
    renewing: Mutex<()>,
}

/// One signature and the query made of it. Neither can be printed.
pub struct Signature {
    usersig: UserSig,
    /// `sdkappid=..&identifier=..&usersig=..&contenttype=json&random=`, to be followed by a number.
    query: Zeroizing<String>,
    issued_at: u64,
    lifetime_secs: u64,
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
        Self { app, identifier, key, lifetime_secs, current: ArcSwap::from_pointee(first), renewing: Mutex::new(()) }
    }

    /// When the present signature was issued, in seconds since 1970, and how many seconds it is good.
    pub fn validity(&self) -> (u64, u64) {
        let signature = self.current.load();
        (signature.issued_at, signature.lifetime_secs)
    }

    /// A signature that is good at this moment.
    ///
    /// One that is near its end is renewed by the first who sees it; the others go on with the old
    /// one meanwhile. One that has ended, or is from a future that the clock has taken back, serves
    /// nobody: then all wait for the new one (some 20 µs).
    pub fn current(&self, unix_now: Duration) -> Arc<Signature> {
        let now = unix_now.as_secs();
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
        let fresh = Arc::new(Signature::new(&self.key, self.app, &self.identifier, now, self.lifetime_secs));
        self.current.store(Arc::clone(&fresh));
        drop(turn);
        tracing::debug!(sdkappid = self.app.get(), "usersig renewed");
        fresh
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
        Self { usersig, query, issued_at, lifetime_secs }
    }

    /// The target of a call, signed: the one place where a signature becomes part of a URI. It goes
    /// to the socket and nowhere else.
    pub fn target(&self, name: CommandName<'_>, random: u32) -> PathAndQuery {
        let mut target = String::with_capacity(self.query.len() + 160);
        write!(target, "/v4/{name}?{}{random}", &*self.query).expect("text into memory");
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
    use crate::domain::command::FOLLOW_CHECK;

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
