//! Nothing of ours comes back: a usersig that Chat echoes is masked in the answer.

use bytes::Bytes;
use http::HeaderValue;
use memchr::{memchr, memchr3, memmem};

/// Bytes of a usersig's beginning that are searched for first.
const BEGINNING_MAX: usize = 16;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// The body, with `usersig` covered by asterisks wherever it stands, however its characters are
/// escaped: as they are, percent-encoded, or as JSON escapes. Length and everything else stay.
pub(super) fn redact(body: Bytes, usersig: &str) -> Bytes {
    let wanted = usersig.as_bytes();
    let Some(&first) = wanted.first().filter(|_| !is_clean(&body, wanted)) else { return body };
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(next) = memchr3(first, b'%', b'\\', &body[at..]) {
        at += next;
        match spelled(&body[at..], wanted) {
            Some(len) => {
                found.push(at..at + len);
                at += len;
            }
            None => at += 1,
        }
    }
    if found.is_empty() {
        return body;
    }
    let mut masked = body.to_vec();
    found.into_iter().for_each(|place| masked[place].fill(b'*'));
    Bytes::from(masked)
}

/// Whether nothing in it can be a spelling of `wanted`: true of nearly every answer.
///
/// No encoding need touch letters and digits, so every spelling begins the same, unless somebody escapes what
/// needs no escape. A short beginning is enough, and to prepare the search for a long one would take longer than
/// the search.
fn is_clean(text: &[u8], wanted: &[u8]) -> bool {
    // No spelling is shorter than what it spells.
    if text.len() < wanted.len() {
        return true;
    }
    let plain = wanted.iter().take(BEGINNING_MAX).take_while(|byte| byte.is_ascii_alphanumeric()).count();
    let has = |needle: &[u8]| memmem::find(text, needle).is_some();
    !has(&wanted[..plain.max(1).min(wanted.len())]) && memchr(b'%', text).is_none() && !has(b"\\u00")
}

/// The same for a header's value.
pub(super) fn redact_header(value: &HeaderValue, usersig: &str) -> HeaderValue {
    if is_clean(value.as_bytes(), usersig.as_bytes()) {
        return value.clone();
    }
    let masked = redact(Bytes::copy_from_slice(value.as_bytes()), usersig);
    HeaderValue::from_maybe_shared(masked).unwrap_or_else(|_| HeaderValue::from_static("application/json"))
}

/// How many bytes at the start of `text` spell `wanted`, if they do.
fn spelled(text: &[u8], wanted: &[u8]) -> Option<usize> {
    let mut at = 0;
    for character in wanted {
        let rest = text.get(at..)?;
        let hex = [character >> 4, character & 15].map(|digit| HEX[usize::from(digit)]);
        let is_hex = |escape: Option<&[u8]>| escape.is_some_and(|digits| digits.eq_ignore_ascii_case(&hex));
        at += match rest {
            [plain, ..] if plain == character => 1,
            [b'%', ..] if is_hex(rest.get(1..3)) => 3,
            [b'\\', b'u', b'0', b'0', ..] if is_hex(rest.get(4..6)) => 6,
            _ => return None,
        };
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &'static str) -> String {
        let body = redact(Bytes::from_static(text.as_bytes()), "eJw*a-b_");
        String::from_utf8(body.to_vec()).expect("UTF-8")
    }

    #[test]
    fn every_spelling_of_it_is_covered_and_the_rest_stays() {
        assert_eq!(masked("x eJw*a-b_ y eJw*a-b_"), "x ******** y ********");
        assert_eq!(masked("x eJw%2Aa%2db%5F y"), "x ************** y");
        assert_eq!(masked(r"x eJw\u002aa-b_ y"), "x ************* y");
        assert_eq!(masked(r"x \u0065Jw*a-\u0062_ y"), "x ****************** y", "letters, without need");
        assert_eq!(masked("x %65%4a%77%2a%61%2d%62%5f y"), "x ************************ y");
        assert_eq!(masked(r"100 % \u00e4 eJw*a-b_"), r"100 % \u00e4 ********");
        for clean in ["", "nothing here", "eJw", "eJw*a-b", "eJw*a-bx", "eJw%2", r"\u0065Jw", "%65%4", "\\"] {
            assert_eq!(masked(clean), clean);
        }
    }

    #[test]
    fn one_right_behind_the_beginning_of_another_is_found() {
        assert_eq!(masked("eJw*eJw*a-b_"), "eJw*********");
    }
}
