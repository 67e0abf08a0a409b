//! The keys that all replicas of an app share: derived from the app's secret key, one per purpose.
//!
//! Replicas derive them independently, so no key is ever stored in Redis. An attacker with access to Redis cannot
//! compute them, and cannot find the secret key from the data there.

use std::hash::Hasher as _;

use aws_lc_rs::{aead, hmac};
use siphasher::sip::SipHasher13;
use zeroize::Zeroizing;

use crate::domain::chat::app::{SdkAppId, SecretKey};
use crate::domain::pairs::pair::{Pair, PairKey, UserHasher};
use crate::domain::relation::RelationKind;

/// The keys of one app.
pub struct FleetKeys {
    /// Hashes users, with the same result in all replicas.
    users: UserHasher,
    /// Authenticates entries.
    entries: SipHasher13,
    /// Encrypts and authenticates messages between replicas.
    pub(super) events: aead::LessSafeKey,
}

impl FleetKeys {
    /// Derives the keys from the app's secret key and the address of its Chat. Replicas that differ in either share
    /// nothing: pairs of another Chat are of no use.
    pub fn new(secret: &SecretKey, app: SdkAppId, chat: &str) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
        // The signed text of a UserSig begins differently, so no derived key is ever a signature.
        let derive = |purpose: &str| {
            let tag = hmac::sign(&secret, format!("chatgate fleet 1\n{purpose}\n{}\n{chat}", app.get()).as_bytes());
            let mut key = Zeroizing::new([0; 32]);
            key.copy_from_slice(tag.as_ref());
            key
        };
        let half = |key: &[u8; 32]| {
            let mut half = Zeroizing::new([0; 16]);
            half.copy_from_slice(&key[..16]);
            half
        };
        let events = aead::UnboundKey::new(&aead::AES_256_GCM, &derive("events")[..]);
        Self {
            users: UserHasher::new(&half(&derive("users"))),
            entries: SipHasher13::new_with_key(&half(&derive("entries"))),
            events: aead::LessSafeKey::new(events.expect("an AES-256 key has 32 bytes")),
        }
    }

    /// Returns a pair with the fleet's hashes, which differ from those of each process's own cache.
    pub fn pair(&self, from: &str, to: &str) -> Pair {
        Pair { from: self.users.user(from), to: self.users.user(to) }
    }

    /// Returns the name of a pair in Redis.
    pub fn pair_name(&self, pair: PairKey) -> [u8; 16] {
        pair.bytes()
    }

    /// Returns the name of a user in Redis.
    pub fn user_name(&self, user: &str) -> [u8; 16] {
        self.users.user(user).bytes()
    }

    /// Returns the tag that shows that a replica wrote an entry for this pair and relation.
    pub(super) fn tag(&self, kind: &RelationKind, pair: PairKey, word: u64) -> u64 {
        let mut hasher = self.entries;
        hasher.write(&[kind.fleet_letter]);
        hasher.write(&pair.bytes());
        hasher.write(&word.to_be_bytes());
        hasher.finish()
    }
}

impl std::fmt::Debug for FleetKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FleetKeys(hidden)")
    }
}

#[cfg(test)]
pub(super) fn for_test(secret: &str, app: u32) -> FleetKeys {
    FleetKeys::new(&SecretKey::new(secret).expect("not empty"), SdkAppId::new(app).expect("not 0"), "chat")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_depend_only_on_secret_and_app() {
        let name = |secret, app| for_test(secret, app).user_name("ann");
        assert_eq!(name("one", 1), name("one", 1));
        assert_ne!(name("one", 1), name("one", 2));
        assert_ne!(name("one", 1), name("two", 1));
        assert!(!format!("{:?}", for_test("one", 1)).contains("one"));
    }
}
