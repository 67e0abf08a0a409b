//! The entry of a pair in Redis: a cached pair, or the mark of an invalidation.
//!
//! A cached pair has 16 bytes: a time not later than the lookup was sent, in microseconds of Redis' clock (62 bits), the
//! relation (2 bits), and a tag (64 bits) that shows that a replica wrote it. A mark is `!` and its time in digits,
//! because a Redis script writes it.

use super::keys::FleetKeys;
use crate::domain::pairs::pair::{PairKey, Relation};
use crate::domain::relation::RelationKind;

/// A valid entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// A pair that a replica fetched.
    Cached {
        /// The relation as the user with the smaller fleet key sees it.
        stored: Relation,
        /// The lookup was sent at this time of Redis' clock or later.
        sent: u64,
    },
    /// The pair was invalidated: a result sent at this time or earlier is void.
    Mark(u64),
}

/// Encodes a cached pair.
pub(crate) fn write(keys: &FleetKeys, kind: &RelationKind, pair: PairKey, stored: Relation, sent: u64) -> [u8; 16] {
    let word = (sent << 2) | u64::from(stored.number());
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&word.to_be_bytes());
    bytes[8..].copy_from_slice(&keys.tag(kind, pair, word).to_be_bytes());
    bytes
}

/// Decodes an entry; `None` if no replica wrote it for this pair.
pub(crate) fn read(keys: &FleetKeys, kind: &RelationKind, pair: PairKey, bytes: &[u8]) -> Option<Entry> {
    if bytes.first() == Some(&b'!') && bytes.len() != 16 {
        return parse_digits(&bytes[1..]).map(Entry::Mark);
    }
    let (word, tag) = bytes.split_first_chunk::<8>()?;
    let word = u64::from_be_bytes(*word);
    if keys.tag(kind, pair, word).to_be_bytes() != tag {
        // A mark with 15 digits also has 16 bytes. Its time would be in 2001, but it is still a mark.
        return bytes.strip_prefix(b"!").and_then(parse_digits).map(Entry::Mark);
    }
    Some(Entry::Cached { stored: Relation::new((word & 3) as i64)?, sent: word >> 2 })
}

/// Parses a number as Redis scripts write it.
pub(crate) fn parse_digits(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::keys::for_test;
    use super::*;
    use crate::domain::relation::{FOLLOW, FRIEND};

    #[test]
    fn cached_pair_is_decoded_only_for_its_pair_and_app() {
        let keys = for_test("secret", 1);
        let (pair, other) = (keys.pair("ann", "bob").key(), keys.pair("ann", "cyd").key());
        for number in 0..4 {
            let stored = Relation::new(number).expect("0 to 3");
            let bytes = write(&keys, &FOLLOW, pair, stored, 1_790_000_000_123_456);
            assert_eq!(read(&keys, &FOLLOW, pair, &bytes), Some(Entry::Cached { stored, sent: 1_790_000_000_123_456 }));
            assert_eq!(read(&keys, &FOLLOW, other, &bytes), None);
            assert_eq!(read(&keys, &FRIEND, pair, &bytes), None, "another relation");
            assert_eq!(read(&for_test("secret", 2), &FOLLOW, pair, &bytes), None);
            for at in 0..16 {
                let mut forged = bytes;
                forged[at] ^= 1;
                assert_eq!(read(&keys, &FOLLOW, pair, &forged), None, "byte {at}");
            }
        }
    }

    #[test]
    fn mark_is_decoded_and_other_bytes_are_rejected() {
        let keys = for_test("secret", 1);
        let pair = keys.pair("ann", "bob").key();
        assert_eq!(read(&keys, &FOLLOW, pair, b"!1790000000123456"), Some(Entry::Mark(1_790_000_000_123_456)));
        assert_eq!(read(&keys, &FOLLOW, pair, b"!999999999999999"), Some(Entry::Mark(999_999_999_999_999)));
        for bad in [&b""[..], b"!", b"!x", b"1790000000123456", b"short", &[b'7'; 17], &[0; 16]] {
            assert_eq!(read(&keys, &FOLLOW, pair, bad), None, "{bad:?}");
        }
    }
}
