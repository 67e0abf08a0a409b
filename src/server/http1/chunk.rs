//! The line before a chunk: its size, and extensions, which nothing uses. Pure.

use super::head::{HeadError, Malformed, token_len};

/// Maximum number of hexadecimal digits of a chunk size: up to 2^60.
const SIZE_DIGITS_MAX: usize = 15;

/// Reads the size of a chunk from its line, LF included: hexadecimal digits, and maybe extensions (RFC 9112 section
/// 7.1). Whitespace between their parts, which only a recipient's grammar allows, is rejected.
///
/// # Errors
/// [`HeadError::Malformed`] for any other line.
pub(super) fn size(line: &[u8]) -> Result<u64, HeadError> {
    let text = line.strip_suffix(b"\r\n").ok_or(Malformed::LineEnd)?;
    let digits = text.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (digits, extensions) = text.split_at(digits);
    if !(1..=SIZE_DIGITS_MAX).contains(&digits.len()) || !are_extensions(extensions) {
        return Err(Malformed::Chunk.into());
    }
    let digits = std::str::from_utf8(digits).map_err(|_| Malformed::Chunk)?;
    u64::from_str_radix(digits, 16).map_err(|_| Malformed::Chunk.into())
}

/// Whether the text is any number of `;NAME` and `;NAME=VALUE`. Readers that disagree about the end of an extension find
/// other chunks.
fn are_extensions(mut text: &[u8]) -> bool {
    while let Some(extension) = text.strip_prefix(b";") {
        let name = token_len(extension);
        if name == 0 {
            return false;
        }
        text = &extension[name..];
        if let Some(value) = text.strip_prefix(b"=") {
            match token_len(value).max(quoted_len(value)) {
                0 => return false,
                len => text = &value[len..],
            }
        }
    }
    text.is_empty()
}

/// Returns the length of the quoted string at the beginning (RFC 9110 section 5.6.4), quotes included; 0 if there is none.
fn quoted_len(text: &[u8]) -> usize {
    let mut at = 1;
    if text.first() != Some(&b'"') {
        return 0;
    }
    loop {
        match text.get(at..) {
            Some([b'"', ..]) => return at + 1,
            Some([b'\\', b'\t' | b' '..=b'~', ..]) => at += 2,
            Some([b'\t' | b' '..=b'[' | b']'..=b'~', ..]) => at += 1,
            _ => return 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_have_names_and_values() {
        for text in ["", ";a", ";a;b=c", ";a=b;c", ";a=\"\"", ";a=\"b;\\\"c\\\\\t d\";e", ";a-b=!#$%&'*+-.^_`|~"] {
            assert_eq!(size(format!("0a{text}\r\n").as_bytes()), Ok(10), "{text}");
        }
        for text in [
            " ",
            ";",
            ";a;",
            ";;a",
            "; a",
            ";a =b",
            ";a= b",
            ";a=",
            ";a=b c",
            ";a=b\"",
            ";=b",
            "a=g",
            "=b",
            ";a=\"",
            ";a=\"\\\"",
            ";a=\"b\"c",
            ";a=\"\u{e9}\"",
            ";a=\"\0\"",
            ";a=\"\\\0\"",
            ";\u{e9}",
            ";a,b",
        ] {
            assert_eq!(size(format!("1{text}\r\n").as_bytes()), Err(Malformed::Chunk.into()), "{text}");
        }
    }
}
