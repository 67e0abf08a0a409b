//! The query of a request: the five parameters that Chat has, and that chatgate sets itself. A caller's values are never
//! forwarded. They choose the app, and a caller's own SDK shows its identity with them.

use std::borrow::Cow;

use memchr::memchr2;
use percent_encoding::percent_decode_str;

use crate::domain::quote::plain_name;
use crate::error::GatewayError;

/// The parameters of a query. Their names are recognized after decoding, in any case, and with spaces around them, so
/// that none slips through.
#[derive(Debug, Default)]
pub struct Query<'a> {
    /// `sdkappid`, which names an app.
    pub sdkappid: Values<'a>,
    /// `identifier`, the account that signed.
    pub identifier: Values<'a>,
    /// `usersig`, a credential.
    pub usersig: Values<'a>,
    /// The name, as written, of the first parameter that is none of the five.
    unknown: Option<&'a str>,
}

/// The decoded values of one parameter.
#[derive(Default)]
pub struct Values<'a> {
    first: Option<Cow<'a, str>>,
    /// Values of the same parameter, if it is repeated.
    others: Vec<Cow<'a, str>>,
}

impl<'a> Query<'a> {
    /// Reads a query.
    pub fn read(query: &'a str) -> Self {
        let mut found = Self::default();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            // Nearly every client writes the names as they are.
            if !found.add(name, value) && !found.add(decode(name).trim().to_lowercase().as_str(), value) {
                found.unknown.get_or_insert(name);
            }
        }
        found
    }

    /// Checks that there is no further parameter.
    ///
    /// # Errors
    /// `bad_parameter`.
    pub fn check(&self) -> Result<(), GatewayError> {
        const REMEDY: &str = "put arguments in the JSON body";
        let Some(unknown) = self.unknown else { return Ok(()) };
        // It is named only if its name can be neither a credential nor a text of another form: it is from outside.
        Err(GatewayError::BadParameter(match plain_name(unknown) {
            Some(name) => format!("unknown query parameter {name}; {REMEDY}"),
            None if unknown.starts_with("amp;") => {
                "the query contains \"&amp;\"; write \"&\" between parameters".to_owned()
            }
            None => format!("a query parameter is unknown; {REMEDY}"),
        }))
    }

    /// Adds a parameter. Returns false if Chat has no parameter of this name.
    fn add(&mut self, name: &str, value: &'a str) -> bool {
        match name {
            "sdkappid" => self.sdkappid.add(value),
            "identifier" => self.identifier.add(value),
            "usersig" => self.usersig.add(value),
            "random" | "contenttype" => {}
            _ => return false,
        }
        true
    }
}

impl Values<'_> {
    /// Returns the value if there is exactly one.
    pub fn single(&self) -> Option<&str> {
        self.first.as_deref().filter(|_| self.others.is_empty())
    }

    /// Returns whether there is a value.
    pub fn is_present(&self) -> bool {
        self.first.is_some()
    }

    /// Iterates over all values.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.first.iter().chain(&self.others).map(|value| &**value)
    }
}

impl<'a> Values<'a> {
    fn add(&mut self, value: &'a str) {
        let value = decode(value);
        match self.first {
            None => self.first = Some(value),
            Some(_) => self.others.push(value),
        }
    }
}

/// Hides the values: one may be a credential.
impl std::fmt::Debug for Values<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} values", self.iter().count())
    }
}

/// Decodes a name or a value as a form does.
fn decode(text: &str) -> Cow<'_, str> {
    if memchr2(b'%', b'+', text.as_bytes()).is_none() {
        return Cow::Borrowed(text);
    }
    Cow::Owned(percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values<'a>(values: &'a Values<'_>) -> Vec<&'a str> {
        values.iter().collect()
    }

    #[test]
    fn own_parameters_are_recognized_in_every_spelling() {
        assert!(Query::read("").check().is_ok());
        let query = Query::read("sdkappid=1&identifier=a&usersig=b&random=2&contenttype=json&&");
        assert!(query.check().is_ok());
        assert_eq!((query.sdkappid.single(), query.identifier.single()), (Some("1"), Some("a")));
        assert_eq!((query.usersig.single(), query.usersig.is_present()), (Some("b"), true));
        let query = Query::read("SdkAppId=1&%73dkappid=%31&+sdkappid+=+2&user%73ig");
        assert!(query.check().is_ok());
        assert_eq!((values(&query.sdkappid), query.sdkappid.single()), (vec!["1", "1", " 2"], None));
        assert_eq!((values(&query.usersig), query.usersig.single()), (vec![""], Some("")));
        assert!(!query.identifier.is_present() && query.identifier.single().is_none());
        assert_eq!(Query::read("usersig=eJx%2a-_&identifier=a+b").usersig.single(), Some("eJx*-_"));
        for bad in ["x=1", "usersig2=1", "user%00sig=1", "=1", "sdkappid[]=1", "usersig=1&callback=x"] {
            let error = Query::read(bad).check().expect_err(bad);
            assert_eq!(error.wire().slug.text(), "bad_parameter", "{bad}");
        }
    }

    #[test]
    fn unknown_parameter_is_named_only_if_its_name_is_plain() {
        let text = |text: &str| Query::read(text).check().expect_err("an unknown parameter").to_string();
        let named = "unknown query parameter call_back; put arguments in the JSON body";
        assert_eq!(text("random=1&call_back=x&another=y"), named);
        let key = "0badc0de5ec2e70badc0de5ec2e70bad";
        for name in ["a%20b", "a[]", "a.b", "", "eJwtzLsOgjAYQOF3", key, &"a-".repeat(40)] {
            let unnamed = "a query parameter is unknown; put arguments in the JSON body";
            assert_eq!(text(&format!("{name}=1")), unnamed, "{name}");
        }
        let escaped = "the query contains \"&amp;\"; write \"&\" between parameters";
        assert_eq!(text("random=1&amp;contenttype=json"), escaped);
    }

    #[test]
    fn debug_hides_the_values() {
        assert!(!format!("{:?}", Query::read("usersig=secret")).contains("secret"));
    }
}
