//! Nothing of ours comes back: a usersig that Chat echoes is masked in the answer.

use bytes::Bytes;
use http::HeaderValue;
use memchr::memmem;

/// The body, with `usersig` covered by asterisks wherever it stands, however its characters are
/// escaped: as they are, percent-encoded, or as JSON escapes. Length and everything else stay.
pub(super) fn mask(body: Bytes, usersig: &str) -> Bytes {
    // No encoding touches letters and digits, so every spelling begins the same, and one search
    // tells of nearly every answer that it is clean.
    let plain = usersig.bytes().take_while(u8::is_ascii_alphanumeric).count();
    let (beginning, rest) = usersig.as_bytes().split_at(plain);
    let finder = memmem::Finder::new(beginning);
    let Some(mut at) = finder.find(&body).filter(|_| !beginning.is_empty()) else { return body };
    let mut masked = body.to_vec();
    loop {
        if let Some(len) = spelled(&masked[at + plain..], rest) {
            masked[at..at + plain + len].fill(b'*');
        }
        match finder.find(&masked[at + 1..]) {
            Some(next) => at += 1 + next,
            None => return Bytes::from(masked),
        }
    }
}

/// The same for a header's value.
pub(super) fn mask_header(value: &HeaderValue, usersig: &str) -> HeaderValue {
    let masked = mask(Bytes::copy_from_slice(value.as_bytes()), usersig);
    HeaderValue::from_maybe_shared(masked).unwrap_or_else(|_| HeaderValue::from_static("application/json"))
}

/// How many bytes at the start of `text` spell `wanted`, if they do.
fn spelled(text: &[u8], wanted: &[u8]) -> Option<usize> {
    let mut at = 0;
    for character in wanted {
        let rest = text.get(at..)?;
        let hex = format!("{character:02x}");
        let is_hex = |escape: Option<&[u8]>| escape.is_some_and(|digits| digits.eq_ignore_ascii_case(hex.as_bytes()));
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
        let body = mask(Bytes::from_static(text.as_bytes()), "eJw*a-b_");
        String::from_utf8(body.to_vec()).expect("UTF-8")
    }

    #[test]
    fn every_spelling_of_it_is_covered_and_the_rest_stays() {
        assert_eq!(masked("x eJw*a-b_ y eJw*a-b_"), "x ******** y ********");
        assert_eq!(masked("x eJw%2Aa%2db%5F y"), "x ************** y");
        assert_eq!(masked(r"x eJw\u002aa-b_ y"), "x ************* y");
        for clean in ["", "nothing here", "eJw", "eJw*a-b", "eJw*a-bx", "eJw%2"] {
            assert_eq!(masked(clean), clean);
        }
    }

    #[test]
    fn one_right_behind_the_beginning_of_another_is_found() {
        assert_eq!(masked("eJw*eJw*a-b_"), "eJw*********");
    }
}
