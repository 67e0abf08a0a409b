//! What is kept of a pair in Redis: a fact, or the mark of an eviction.
//!
//! A fact has 16 bytes: the moment before its lookup was sent, in microseconds of Redis' clock (62 bits),
//! the relation (2 bits), and 64 bits by which a replica knows that another one wrote it. A mark is `!` and
//! its moment in digits, for a script of Redis writes it.

use super::keys::FleetKeys;
use crate::domain::pairs::pair::{PairKey, Relation};

/// An entry that can be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// What a replica learned.
    Fact {
        /// As the user with the smaller key among the fleet's sees it.
        stored: Relation,
        /// Its lookup was sent at this moment of Redis' clock or after it.
        sent: u64,
    },
    /// The pair was evicted; what was sent at this moment or before is void.
    Mark(u64),
}

/// A fact as it is kept.
pub fn write(keys: &FleetKeys, pair: PairKey, stored: Relation, sent: u64) -> [u8; 16] {
    let word = (sent << 2) | u64::from(stored.number());
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&word.to_be_bytes());
    bytes[8..].copy_from_slice(&keys.tag(pair, word).to_be_bytes());
    bytes
}

/// What is kept; `None` for what no replica wrote for this pair.
pub fn read(keys: &FleetKeys, pair: PairKey, bytes: &[u8]) -> Option<Entry> {
    if bytes.first() == Some(&b'!') && bytes.len() != 16 {
        return mark(&bytes[1..]).map(Entry::Mark);
    }
    let (word, tag) = bytes.split_first_chunk::<8>()?;
    let word = u64::from_be_bytes(*word);
    if keys.tag(pair, word).to_be_bytes() != tag {
        // A mark of 15 digits would be from 2001; such a clock is not to be helped, but told apart.
        return bytes.strip_prefix(b"!").and_then(mark).map(Entry::Mark);
    }
    Some(Entry::Fact { stored: Relation::new((word & 3) as i64)?, sent: word >> 2 })
}

/// A moment as scripts write it.
pub fn mark(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::keys::for_test;
    use super::*;

    #[test]
    fn a_fact_is_read_as_it_was_written_and_only_for_its_pair_and_app() {
        let keys = for_test("secret", 1);
        let (pair, other) = (keys.pair("ann", "bob").key(), keys.pair("ann", "cyd").key());
        for number in 0..4 {
            let stored = Relation::new(number).expect("0 to 3");
            let bytes = write(&keys, pair, stored, 1_790_000_000_123_456);
            assert_eq!(read(&keys, pair, &bytes), Some(Entry::Fact { stored, sent: 1_790_000_000_123_456 }));
            assert_eq!(read(&keys, other, &bytes), None);
            assert_eq!(read(&for_test("secret", 2), pair, &bytes), None);
            for at in 0..16 {
                let mut forged = bytes;
                forged[at] ^= 1;
                assert_eq!(read(&keys, pair, &forged), None, "byte {at}");
            }
        }
    }

    #[test]
    fn a_mark_is_a_moment_and_anything_else_is_nothing() {
        let keys = for_test("secret", 1);
        let pair = keys.pair("ann", "bob").key();
        assert_eq!(read(&keys, pair, b"!1790000000123456"), Some(Entry::Mark(1_790_000_000_123_456)));
        assert_eq!(read(&keys, pair, b"!999999999999999"), Some(Entry::Mark(999_999_999_999_999)));
        for bad in [&b""[..], b"!", b"!x", b"1790000000123456", b"short", &[b'7'; 17], &[0; 16]] {
            assert_eq!(read(&keys, pair, bad), None, "{bad:?}");
        }
    }
}
