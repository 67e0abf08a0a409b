//! The UserSigs of one caller that were verified, so that each is verified once and not with every request.
//!
//! Only valid UserSigs are stored. A client without the caller's key can therefore neither fill this memory nor evict
//! anything from it; a caller can evict only its own.

use std::fmt;

use rustc_hash::FxHashMap;
use siphasher::sip128::SipHasher13;

use super::chat::app::SdkAppId;

/// Maximum number of UserSigs that are remembered for a caller: one for each app and replica of a service. Each takes
/// about 40 bytes.
pub const REMEMBERED_MAX: usize = 256;

/// The digest of a UserSig and the app that it was sent for.
///
/// The key of the hash is secret and random per process, so no client can find two texts with the same digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SignatureDigest(u128);

/// Computes [`SignatureDigest`]s.
///
/// The hash is [`SipHasher13`] and not SHA-256: the digest never leaves the process, and SHA-256 of 250 bytes would
/// cost several times more than all other checks of a caller.
#[derive(Clone)]
pub struct SignatureHasher(SipHasher13);

impl SignatureHasher {
    /// Creates a hasher from 16 secret random bytes.
    pub fn new(key: &[u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(key))
    }

    /// Returns the digest of a UserSig that was sent for `app`.
    pub fn digest(&self, app: SdkAppId, usersig: &str) -> SignatureDigest {
        // The app is not hashed: its 32 bits change as many bits of an otherwise unpredictable digest.
        SignatureDigest(u128::from(self.0.hash(usersig.as_bytes())) ^ u128::from(app.get()))
    }
}

impl fmt::Debug for SignatureHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SignatureHasher(hidden)")
    }
}

/// The verified UserSigs of one caller, with their expiry: up to [`REMEMBERED_MAX`].
#[derive(Debug, Default)]
pub struct VerifiedSignatures(FxHashMap<SignatureDigest, u64>);

impl VerifiedSignatures {
    /// Returns whether a UserSig was verified and is still valid at `now`, in Unix seconds.
    pub fn contains(&self, digest: SignatureDigest, now: u64) -> bool {
        self.0.get(&digest).is_some_and(|expires_at| now <= *expires_at)
    }

    /// Returns the number of UserSigs.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Remembers a UserSig that was verified at `now` and is valid up to `expires_at`, both in Unix seconds. If there is
    /// no room, expired ones are forgotten; if that is not enough, any other one.
    pub fn insert(&mut self, digest: SignatureDigest, expires_at: u64, now: u64) {
        if self.0.len() >= REMEMBERED_MAX {
            self.0.retain(|_, expires_at| now <= *expires_at);
        }
        if self.0.len() >= REMEMBERED_MAX
            && let Some(any) = self.0.keys().next().copied()
        {
            self.0.remove(&any);
        }
        self.0.insert(digest, expires_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn app(number: u32) -> SdkAppId {
        SdkAppId::new(number).expect("not 0")
    }

    #[test]
    fn digest_depends_on_usersig_app_and_key() {
        let hasher = SignatureHasher::new(&[7; 16]);
        let digest = hasher.digest(app(1), "eJxx");
        assert_eq!(digest, hasher.digest(app(1), "eJxx"));
        for other in [
            hasher.digest(app(2), "eJxx"),
            hasher.digest(app(1), "eJxy"),
            hasher.digest(app(1), ""),
            SignatureHasher::new(&[8; 16]).digest(app(1), "eJxx"),
        ] {
            assert_ne!(digest, other);
        }
        assert_eq!(format!("{hasher:?}"), "SignatureHasher(hidden)");
    }

    #[test]
    fn signature_is_known_up_to_its_last_second() {
        let mut known = VerifiedSignatures::default();
        let digest = SignatureDigest(1);
        assert!(!known.contains(digest, 100));
        known.insert(digest, 200, 100);
        assert!(known.contains(digest, 200) && !known.contains(digest, 201));
        assert!(!known.contains(SignatureDigest(2), 100));
    }

    #[test]
    fn memory_is_bounded_and_expired_signatures_go_first() {
        let mut known = VerifiedSignatures::default();
        let count = |known: &VerifiedSignatures, digests: std::ops::Range<u128>, now| {
            digests.filter(|number| known.contains(SignatureDigest(*number), now)).count()
        };
        let half = REMEMBERED_MAX as u128 / 2;
        for number in 0..2 * half {
            known.insert(SignatureDigest(number), if number < half { 100 } else { 1000 }, 50);
        }
        assert_eq!((known.0.len(), count(&known, 0..2 * half, 100)), (REMEMBERED_MAX, REMEMBERED_MAX));
        for number in 2 * half..3 * half {
            known.insert(SignatureDigest(number), 1000, 101);
        }
        assert_eq!(count(&known, half..3 * half, 101), REMEMBERED_MAX, "only expired ones were forgotten");
        for number in 3 * half..10 * half {
            known.insert(SignatureDigest(number), 1000, 101);
            assert!(known.contains(SignatureDigest(number), 101));
            assert_eq!(known.0.len(), REMEMBERED_MAX);
        }
    }
}
