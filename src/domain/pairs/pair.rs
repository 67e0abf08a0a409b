//! Pairs of users, their relation, and their keys.

use siphasher::sip128::SipHasher13;

/// The relation of two users, seen from the first: one bit for each direction.
///
/// Bit 1 is set if the first user has the relation to the second, bit 0 if the second has it to the first. The number is
/// the vendor's `FollowType` (vendor page "Verifying Follow Relationships", 1047/70349). Chat's texts for friends and
/// blocklists say the same of A and B: `AWithB` is bit 1, `BWithA` is bit 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Relation(u8);

impl Relation {
    /// Neither user has it to the other.
    pub const NONE: Self = Self(0);

    /// Returns `None` for a number outside 0 to 3, to which the vendor gives no meaning.
    pub const fn new(number: i64) -> Option<Self> {
        if 0 <= number && number <= 3 { Some(Self(number as u8)) } else { None }
    }

    /// Returns the vendor's number, 0 to 3.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// Returns the same relation seen from the other user: 0↔0, 1↔2, 3↔3.
    pub const fn flipped(self) -> Self {
        Self((self.0 >> 1) | ((self.0 & 1) << 1))
    }

    /// Returns it with only the bits that were asked for; the other one is 0.
    pub const fn restricted_to(self, sides: Sides) -> Self {
        match sides {
            Sides::Both => self,
            Sides::First => Self(self.0 & 2),
        }
    }
}

/// Which bits of a relation a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Sides {
    /// Both bits.
    #[default]
    Both,
    /// Only whether the first user has the relation to the second.
    First,
}

/// A user of one app, as a keyed hash of 128 bits.
///
/// The key is secret and random per process, so a caller cannot choose UserIDs that collide. Among 10^9 users, two
/// collide by chance with a probability of 10^-21.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserKey(u128);

impl UserKey {
    /// Returns 64 evenly distributed bits, for the index in a table.
    pub const fn index_bits(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// Returns all 128 bits.
    pub const fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

/// Computes [`UserKey`]s. Each app has its own hasher, so keys of different apps are unrelated.
#[derive(Clone)]
pub struct UserHasher(SipHasher13);

impl UserHasher {
    /// Creates a hasher from 16 secret random bytes.
    pub fn new(key: &[u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(key))
    }

    /// Returns the key of a UserID. UserIDs are compared as bytes.
    pub fn user(&self, id: &str) -> UserKey {
        UserKey(self.0.hash(id.as_bytes()).into())
    }
}

impl std::fmt::Debug for UserHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UserHasher(hidden)")
    }
}

/// Two users regardless of order: one cached pair answers both directions.
///
/// It is the sum of the two keys. It is as evenly distributed as either key, equal for both orders, and takes one
/// addition per pair for a request with one user and a hundred others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PairKey(u128);

impl PairKey {
    /// Returns 64 bits that distinguish pairs in the same bucket of a table.
    pub const fn tag(self) -> u64 {
        self.0 as u64
    }

    /// Returns the other 64 bits, evenly distributed, for the index of the bucket.
    pub const fn index_bits(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// Returns all 128 bits.
    pub const fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    #[cfg(test)]
    pub(crate) const fn for_test(tag: u64, index_bits: u64) -> Self {
        Self(((index_bits as u128) << 64) | tag as u128)
    }
}

/// A pair in the direction of a request: `from` first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pair {
    /// The user from whose side the relation is seen.
    pub from: UserKey,
    /// The other user.
    pub to: UserKey,
}

impl Pair {
    /// Returns the key, which is the same for both directions.
    pub const fn key(self) -> PairKey {
        PairKey(self.from.0.wrapping_add(self.to.0))
    }

    /// Returns the pair in the other direction.
    pub const fn flipped(self) -> Self {
        Self { from: self.to, to: self.from }
    }

    /// Returns what the cache stores for `seen`, the relation as seen from `from`.
    ///
    /// The cache stores the relation as the user with the smaller key sees it.
    pub fn stored_as(self, seen: Relation) -> Relation {
        if self.from.0 > self.to.0 { seen.flipped() } else { seen }
    }

    /// Returns the relation as seen from `from`, given what the cache stores: the inverse of [`Pair::stored_as`].
    pub fn seen_from(self, stored: Relation) -> Relation {
        // The rule is its own inverse.
        self.stored_as(stored)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hasher() -> UserHasher {
        UserHasher::new(&[7; 16])
    }

    #[test]
    fn flipped_relation_swaps_its_bits() {
        let flipped = [0, 2, 1, 3];
        for number in 0..4 {
            let seen = Relation::new(number).expect("0 to 3");
            assert_eq!(i64::from(seen.flipped().number()), flipped[number as usize]);
            assert_eq!(seen.flipped().flipped(), seen);
        }
        for number in [-1, 4, 258, i64::MAX] {
            assert_eq!(Relation::new(number), None);
        }
    }

    #[test]
    fn keys_of_two_apps_differ() {
        assert_ne!(hasher().user("ann"), UserHasher::new(&[8; 16]).user("ann"));
    }

    proptest! {
        #[test]
        fn both_directions_share_a_key_and_flip_the_relation(a in ".{1,8}", b in ".{1,8}", number in 0..4i64) {
            let pair = Pair { from: hasher().user(&a), to: hasher().user(&b) };
            let back = pair.flipped();
            prop_assert_eq!(pair.key(), back.key());
            let seen = Relation::new(number).expect("0 to 3");
            let stored = pair.stored_as(seen);
            prop_assert_eq!(pair.seen_from(stored), seen);
            if a != b {
                prop_assert_eq!(back.seen_from(stored), seen.flipped());
            }
        }

        #[test]
        fn different_pairs_have_different_keys(a in "[a-c]{1,3}", b in "[a-c]{1,3}", c in "[a-c]{1,3}", d in "[a-c]{1,3}") {
            let key = |x: &str, y: &str| Pair { from: hasher().user(x), to: hasher().user(y) }.key();
            let same = (a == c && b == d) || (a == d && b == c);
            prop_assert_eq!(key(&a, &b) == key(&c, &d), same);
        }
    }
}
