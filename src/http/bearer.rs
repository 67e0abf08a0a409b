//! The token in `Authorization: Bearer TOKEN`.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::domain::caller::TOKEN_LEN_MAX;

/// `Authorization` is present, but not exactly one `Bearer TOKEN`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NoBearerToken;

/// Returns the token of a request; `None` without an `Authorization` header. The scheme `Bearer` may have any case
/// (RFC 6750 section 2.1, RFC 9110 section 11.1).
///
/// # Errors
/// If there are several `Authorization` headers, another scheme, or a token that is longer than any valid token.
pub(crate) fn bearer_token(headers: &HeaderMap) -> Result<Option<&[u8]>, NoBearerToken> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(NoBearerToken);
    }
    let (scheme, rest) = value.as_bytes().split_at_checked("Bearer ".len()).ok_or(NoBearerToken)?;
    let token = rest.trim_ascii_start();
    match scheme.eq_ignore_ascii_case(b"bearer ") && (1..=TOKEN_LEN_MAX).contains(&token.len()) {
        true => Ok(Some(token)),
        false => Err(NoBearerToken),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn token_of(values: &[&'static str]) -> Result<Option<String>, NoBearerToken> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_static(value));
        }
        let token = bearer_token(&headers)?;
        Ok(token.map(|token| String::from_utf8_lossy(token).into_owned()))
    }

    #[test]
    fn bearer_token_is_read_from_a_single_header() {
        for good in ["Bearer abc", "bearer abc", "BEARER abc", "Bearer   abc"] {
            assert_eq!(token_of(&[good]), Ok(Some("abc".to_owned())), "{good}");
        }
        for bad in ["", "Bearer", "Bearer ", "Bearer\tabc", "Basic abc", "abc", "Bearerabc", " Bearer abc"] {
            assert_eq!(token_of(&[bad]), Err(NoBearerToken), "{bad:?}");
        }
        assert_eq!(token_of(&[]), Ok(None));
        assert_eq!(token_of(&["Bearer abc", "Bearer abc"]), Err(NoBearerToken));
        // A comma does not separate tokens.
        assert_eq!(token_of(&["Bearer a, Bearer b"]), Ok(Some("a, Bearer b".to_owned())));
        let mut headers = HeaderMap::new();
        for (len, is_token) in [(TOKEN_LEN_MAX, true), (TOKEN_LEN_MAX + 1, false)] {
            let value = HeaderValue::try_from(format!("Bearer {}", "x".repeat(len))).expect("visible");
            headers.insert(AUTHORIZATION, value);
            assert_eq!(bearer_token(&headers).is_ok(), is_token, "{len}");
        }
    }
}
