//! What was pasted in place of a UserSig: a URL that contains it, or the signature in quotes or percent-encoded.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// A form in which a signature was pasted. As text it says what to paste instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Blanks,
    Quoted,
    Url,
    Encoded,
}

impl Form {
    /// Returns the description.
    pub(super) const fn text(self) -> &'static str {
        match self {
            Form::Blanks => "has whitespace around it; paste only the signature",
            Form::Quoted => "in quotes; paste the signature without them",
            Form::Url => "a URL or a part of one; paste only the value of its parameter usersig",
            Form::Encoded => "percent-encoded; paste the signature with %2A as *, %2D as -, and %5F as _",
        }
    }
}

/// The signature in a pasted text, and the forms that were removed, outermost first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pasted<'a> {
    pub(super) signature: Cow<'a, str>,
    pub(super) forms: Vec<Form>,
}

/// Why a pasted text has no signature that is certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum PastedError {
    #[error("a URL without a parameter usersig; paste the signature itself")]
    NoParameter,
    #[error("a URL with several parameters usersig; paste the value of one of them")]
    SeveralParameters,
}

/// Finds the signature in a pasted text. A form inside another one is removed too, up to [`DEPTH_MAX`] forms.
///
/// # Errors
/// A URL that does not have exactly one signature.
pub(super) fn read(text: &str) -> Result<Pasted<'_>, PastedError> {
    let mut pasted = Pasted { signature: Cow::Borrowed(text), forms: Vec::new() };
    while pasted.forms.len() < DEPTH_MAX {
        let Some((form, inner)) = remove_form(&pasted.signature)? else { break };
        pasted.forms.push(form);
        pasted.signature = Cow::Owned(inner);
    }
    Ok(pasted)
}

/// Maximum number of forms around a signature.
const DEPTH_MAX: usize = 6;

/// Removes the outermost form; `None` if there is none.
fn remove_form(text: &str) -> Result<Option<(Form, String)>, PastedError> {
    let trimmed = text.trim();
    if trimmed.len() < text.len() {
        return Ok(Some((Form::Blanks, trimmed.to_owned())));
    }
    let unquoted = ['"', '\'', '`'].into_iter().find_map(|quote| text.strip_prefix(quote)?.strip_suffix(quote));
    if let Some(inner) = unquoted {
        return Ok(Some((Form::Quoted, inner.to_owned())));
    }
    if let Some(inner) = parameter(text)? {
        return Ok(Some((Form::Url, inner.to_owned())));
    }
    // A signature has no percent sign.
    let decoded = percent_decode_str(text).decode_utf8().ok().filter(|decoded| *decoded != text);
    Ok(decoded.map(|decoded| (Form::Encoded, decoded.into_owned())))
}

/// Returns the value of the parameter `usersig` of a URL, a query, or a part of a query; `None` for any other text.
fn parameter(text: &str) -> Result<Option<&str>, PastedError> {
    let is_url = text.contains("://");
    let query = text.split_once('?').map_or(text, |(_, query)| query);
    let query = query.split_once('#').map_or(query, |(query, _)| query);
    let values = query.split('&').filter_map(|parameter| parameter.split_once('='));
    let mut values = values.filter(|(name, _)| name.eq_ignore_ascii_case("usersig")).map(|(_, value)| value);
    match (values.next(), values.next()) {
        (Some(value), None) => Ok(Some(value)),
        (Some(_), Some(_)) => Err(PastedError::SeveralParameters),
        (None, _) if is_url => Err(PastedError::NoParameter),
        (None, _) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIG: &str = "eJwtzL*OgjAYQOF3-_";

    #[test]
    fn signature_is_found_in_every_form() {
        let url = format!("https://host/v4/a/b?sdkappid=1&usersig={SIG}&random=2#x");
        let encoded = "eJwtzL%2AOgjAYQOF3%2D%5f";
        for (text, forms) in [
            (SIG.to_owned(), &[][..]),
            (format!(" {SIG}\n"), &[Form::Blanks]),
            (format!("\"{SIG}\""), &[Form::Quoted]),
            (format!("'{SIG}'"), &[Form::Quoted]),
            (encoded.to_owned(), &[Form::Encoded]),
            (url.clone(), &[Form::Url]),
            (format!("usersig={SIG}"), &[Form::Url]),
            (format!("identifier=a&UserSig={SIG}"), &[Form::Url]),
            (format!("'{url}' "), &[Form::Blanks, Form::Quoted, Form::Url]),
            (format!("?usersig={encoded}"), &[Form::Url, Form::Encoded]),
            (encoded.replace('%', "%25"), &[Form::Encoded, Form::Encoded]),
        ] {
            let expected = Pasted { signature: SIG.into(), forms: forms.to_vec() };
            assert_eq!(read(&text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn url_needs_exactly_one_signature() {
        assert_eq!(read("https://host/v4/a/b?sdkappid=1"), Err(PastedError::NoParameter));
        assert_eq!(read(&format!("usersig={SIG}&usersig=eJ")), Err(PastedError::SeveralParameters));
    }

    #[test]
    fn other_texts_are_unchanged_and_forms_are_limited() {
        for text in ["", "x", "eJ%", "%ff", "a=b", "\"", "sig"] {
            assert_eq!(read(text), Ok(Pasted { signature: text.into(), forms: Vec::new() }), "{text:?}");
        }
        let nested = format!("{}{SIG}{}", "\"".repeat(50), "\"".repeat(50));
        assert_eq!(read(&nested).expect("no URL").forms.len(), DEPTH_MAX);
    }
}
