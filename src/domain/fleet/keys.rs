//! Keys that all replicas of an app share without telling each other: derived from the app's secret, one
//! for each purpose. Who can read or write Redis has none of them, and the secret cannot be found from
//! what is kept there.

use std::hash::Hasher as _;

use aws_lc_rs::{aead, hmac};
use siphasher::sip::SipHasher13;
use zeroize::Zeroizing;

use crate::domain::chat::app::{SdkAppId, SecretKey};
use crate::domain::pairs::pair::{Pair, PairKey, UserHasher};

/// The keys of one app.
pub struct FleetKeys {
    /// Users as hashes that are the same in all replicas.
    users: UserHasher,
    /// Marks what a replica wrote as such.
    entries: SipHasher13,
    /// Hides and marks what replicas tell each other.
    pub(super) events: aead::LessSafeKey,
}

impl FleetKeys {
    /// From the app's secret and the address of its Chat. Another one of them gives other keys, which have
    /// nothing in common: what another Chat holds is of no use.
    pub fn new(secret: &SecretKey, app: SdkAppId, chat: &str) -> Self {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret.expose());
        // A signature's text begins otherwise, so no key is ever a signature.
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
            events: aead::LessSafeKey::new(events.expect("its keys have 32 bytes")),
        }
    }

    /// A pair by the fleet's hashes. It has nothing in common with the same pair by a process's own.
    pub fn pair(&self, from: &str, to: &str) -> Pair {
        Pair { from: self.users.user(from), to: self.users.user(to) }
    }

    /// The name of a pair in Redis.
    pub fn pair_name(&self, pair: PairKey) -> [u8; 16] {
        pair.bytes()
    }

    /// The name of a user in Redis.
    pub fn user_name(&self, user: &str) -> [u8; 16] {
        self.users.user(user).bytes()
    }

    /// What shows that an entry was written by a replica, for this pair.
    pub(super) fn tag(&self, pair: PairKey, word: u64) -> u64 {
        let mut hasher = self.entries;
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
    fn replicas_agree_and_apps_and_secrets_do_not() {
        let name = |secret, app| for_test(secret, app).user_name("ann");
        assert_eq!(name("one", 1), name("one", 1));
        assert_ne!(name("one", 1), name("one", 2));
        assert_ne!(name("one", 1), name("two", 1));
        assert!(!format!("{:?}", for_test("one", 1)).contains("one"));
    }
}
