//! Printable ASCII, looked at eight bytes at a time: nearly all that comes in is made of it.

/// How many bytes come before the first that is not printable ASCII from `least` on, or is one of `but`, which are
/// ASCII too.
#[inline]
pub fn len<const N: usize>(text: &[u8], least: u8, but: [u8; N]) -> usize {
    let mut rest = text;
    while let Some((eight, after)) = rest.split_first_chunk() {
        let odd = odd(u64::from_le_bytes(*eight), least, but);
        if odd != 0 {
            return text.len() - rest.len() + odd.trailing_zeros() as usize / 8;
        }
        rest = after;
    }
    text.len() - rest.len() + rest.iter().take_while(|byte| is(**byte, least, but)).count()
}

/// Whether all of them are printable ASCII from `least` on, and none is one of `but`.
#[inline]
pub fn is_all<const N: usize>(text: &[u8], least: u8, but: [u8; N]) -> bool {
    let Some(last) = text.last_chunk() else { return text.iter().all(|byte| is(*byte, least, but)) };
    // The last eight may have been looked at in part before.
    let (eights, _) = text.as_chunks();
    let odd = eights.iter().chain([last]).fold(0, |sum, eight| sum | odd(u64::from_le_bytes(*eight), least, but));
    odd == 0
}

fn is<const N: usize>(byte: u8, least: u8, but: [u8; N]) -> bool {
    (least..=b'~').contains(&byte) && !but.contains(&byte)
}

/// The same of eight bytes together: one that is not has its highest bit set in the result. Bytes above it may be
/// marked with it, since a carry goes up; bytes below are marked only if they are meant.
#[inline]
fn odd<const N: usize>(eight: u64, least: u8, but: [u8; N]) -> u64 {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    let below_least = eight.wrapping_sub(u64::from(least) * ONES);
    let above_tilde = eight | eight.wrapping_add(ONES);
    let is = |byte| (eight ^ (u64::from(byte) * ONES)).wrapping_sub(ONES);
    but.into_iter().fold(below_least | above_tilde, |marks, byte| marks | is(byte)) & (0x80 * ONES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_told_wherever_it_stands_and_whatever_stands_beside_it() {
        for (least, but) in [(b' ', [b'"', b'\\']), (b'!', [b'#', b'#'])] {
            for byte in 0..=u8::MAX {
                let good = byte >= least && byte <= b'~' && !but.contains(&byte);
                assert_eq!(is(byte, least, but), good);
                for (length, at) in (1..20).flat_map(|length| (0..length).map(move |at| (length, at))) {
                    for beside in [b'~', b'0', b'$'] {
                        let mut text = vec![beside; length];
                        text[at] = byte;
                        assert_eq!(len(&text, least, but), if good { length } else { at }, "{text:?}");
                        assert_eq!(is_all(&text, least, but), good, "{text:?}");
                    }
                }
            }
            assert_eq!((len(b"", least, but), is_all(b"", least, but)), (0, true));
        }
    }

    #[test]
    fn two_that_are_not_do_not_hide_each_other() {
        for (first, second) in (0..=u8::MAX).flat_map(|first| (0..=u8::MAX).map(move |second| (first, second))) {
            for (at, text) in [(2, [b'a', b'b', first, second, b'c', b'd', b'e', b'f']), (6, *b"abcdef\0\0")] {
                let mut text = text;
                text[at..at + 2].copy_from_slice(&[first, second]);
                let good = |byte| is(byte, b' ', [b'"', b'\\']);
                let expected = if !good(first) {
                    at
                } else if !good(second) {
                    at + 1
                } else {
                    8
                };
                assert_eq!(len(&text, b' ', [b'"', b'\\']), expected, "{text:?}");
                assert_eq!(is_all(&text, b' ', [b'"', b'\\']), expected == 8, "{text:?}");
            }
        }
    }
}
