//! Two users and the two bits between them.

use siphasher::sip128::SipHasher13;

/// The relation of two users, seen from the first: one bit for each direction.
///
/// Bit 1 is set if the first user has the relation to the second, bit 0 if the second has it to the first. For
/// `follow_check` it is the vendor's `FollowType` (vendor page "Verifying Follow Relationships", 1047/70349): bit 1 is
/// "I follow the other user", bit 0 is "the other user follows me".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Relation(u8);

impl Relation {
    /// `None` for a number that the vendor gives no meaning.
    pub const fn new(number: i64) -> Option<Self> {
        if 0 <= number && number <= 3 { Some(Self(number as u8)) } else { None }
    }

    /// The vendor's number, 0 to 3.
    pub const fn number(self) -> u8 {
        self.0
    }

    /// The same relation seen from the other user: 0↔0, 1↔2, 3↔3.
    pub const fn flipped(self) -> Self {
        Self((self.0 >> 1) | ((self.0 & 1) << 1))
    }
}

/// A user of one app, as a keyed hash of 128 bits.
///
/// The key is secret and new in each process, so nobody outside can choose names that collide, and
/// by accident two of 10^9 users do so with a probability of 10^-21.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserKey(u128);

impl UserKey {
    /// 64 evenly spread bits, for choosing a place in a table.
    pub const fn index_bits(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// All of it.
    pub const fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

/// Makes [`UserKey`]s; each app has its own, so that no key of one means anything in another.
#[derive(Clone)]
pub struct UserHasher(SipHasher13);

impl UserHasher {
    /// From 16 bytes that nobody can guess.
    pub fn new(key: &[u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(key))
    }

    /// The key of a user's name. Names are compared as bytes.
    pub fn user(&self, id: &str) -> UserKey {
        UserKey(self.0.hash(id.as_bytes()).into())
    }
}

impl std::fmt::Debug for UserHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UserHasher(hidden)")
    }
}

/// Two users regardless of order: one fact answers both directions.
///
/// It is the sum of the two keys: as good a hash as either, the same for both orders, and one
/// addition a pair when a request names one user and a hundred others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PairKey(u128);

impl PairKey {
    /// 64 bits that tell pairs apart which share a place in a table.
    pub const fn tag(self) -> u64 {
        self.0 as u64
    }

    /// 64 further bits, evenly spread, for choosing that place.
    pub const fn spread(self) -> u64 {
        (self.0 >> 64) as u64
    }

    /// All of it.
    pub const fn bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    #[cfg(test)]
    pub(crate) const fn for_test(tag: u64, spread: u64) -> Self {
        Self(((spread as u128) << 64) | tag as u128)
    }
}

/// A pair as somebody asks about it: `from` first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pair {
    /// The user from whose side the relation is seen.
    pub from: UserKey,
    /// The other one.
    pub to: UserKey,
}

impl Pair {
    /// The same two users regardless of order.
    pub const fn key(self) -> PairKey {
        PairKey(self.from.0.wrapping_add(self.to.0))
    }

    /// The pair seen from the other side.
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
    fn a_relation_reversed_swaps_its_bits() {
        let reversed = [0, 2, 1, 3];
        for number in 0..4 {
            let seen = Relation::new(number).expect("0 to 3");
            assert_eq!(i64::from(seen.flipped().number()), reversed[number as usize]);
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
        fn both_directions_share_a_key_and_see_each_other_s_relation(a in ".{1,8}", b in ".{1,8}", number in 0..4i64) {
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
