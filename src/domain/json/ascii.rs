//! Checks for printable ASCII, eight bytes at a time. Nearly all input is printable ASCII.

/// Returns the length of the longest prefix of printable ASCII bytes from `least` on, except those in `except`, which
/// must be ASCII too.
#[inline]
pub(super) fn prefix_len<const N: usize>(text: &[u8], least: u8, except: [u8; N]) -> usize {
    let mut rest = text;
    while let Some((eight, after)) = rest.split_first_chunk() {
        let mask = mismatch_mask(u64::from_le_bytes(*eight), least, except);
        if mask != 0 {
            return text.len() - rest.len() + mask.trailing_zeros() as usize / 8;
        }
        rest = after;
    }
    text.len() - rest.len() + rest.iter().take_while(|byte| is_match(**byte, least, except)).count()
}

/// Returns whether all bytes are printable ASCII from `least` on, except those in `except`.
#[inline]
pub(crate) fn is_all<const N: usize>(text: &[u8], least: u8, except: [u8; N]) -> bool {
    let Some(last) = text.last_chunk() else { return text.iter().all(|byte| is_match(*byte, least, except)) };
    // The last eight bytes may overlap those before.
    let (eights, _) = text.as_chunks();
    let mask = eights
        .iter()
        .chain([last])
        .fold(0, |sum, eight| sum | mismatch_mask(u64::from_le_bytes(*eight), least, except));
    mask == 0
}

fn is_match<const N: usize>(byte: u8, least: u8, except: [u8; N]) -> bool {
    (least..=b'~').contains(&byte) && !except.contains(&byte)
}

/// Checks eight bytes at once: sets the highest bit of each byte that does not match. A carry may also mark bytes above
/// such a byte, but never bytes below it.
#[inline]
fn mismatch_mask<const N: usize>(eight: u64, least: u8, except: [u8; N]) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let below_least = eight.wrapping_sub(u64::from(least) * ONES);
    let above_tilde = eight | eight.wrapping_add(ONES);
    let equals = |byte| (eight ^ (u64::from(byte) * ONES)).wrapping_sub(ONES);
    except.into_iter().fold(below_least | above_tilde, |marks, byte| marks | equals(byte)) & (0x80 * ONES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_recognized_at_every_position() {
        for (least, except) in [(b' ', [b'"', b'\\']), (b'!', [b'#', b'#'])] {
            for byte in 0..=u8::MAX {
                let good = byte >= least && byte <= b'~' && !except.contains(&byte);
                assert_eq!(is_match(byte, least, except), good);
                for (length, at) in (1..20).flat_map(|length| (0..length).map(move |at| (length, at))) {
                    for filler in [b'~', b'0', b'$'] {
                        let mut text = vec![filler; length];
                        text[at] = byte;
                        assert_eq!(prefix_len(&text, least, except), if good { length } else { at }, "{text:?}");
                        assert_eq!(is_all(&text, least, except), good, "{text:?}");
                    }
                }
            }
            assert_eq!((prefix_len(b"", least, except), is_all(b"", least, except)), (0, true));
        }
    }

    #[test]
    fn adjacent_mismatches_do_not_hide_each_other() {
        for (first, second) in (0..=u8::MAX).flat_map(|first| (0..=u8::MAX).map(move |second| (first, second))) {
            for (at, text) in [(2, [b'a', b'b', first, second, b'c', b'd', b'e', b'f']), (6, *b"abcdef\0\0")] {
                let mut text = text;
                text[at..at + 2].copy_from_slice(&[first, second]);
                let good = |byte| is_match(byte, b' ', [b'"', b'\\']);
                let expected = if !good(first) {
                    at
                } else if !good(second) {
                    at + 1
                } else {
                    8
                };
                assert_eq!(prefix_len(&text, b' ', [b'"', b'\\']), expected, "{text:?}");
                assert_eq!(is_all(&text, b' ', [b'"', b'\\']), expected == 8, "{text:?}");
            }
        }
    }
}
