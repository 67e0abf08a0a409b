//! Authentication of a call: the five parameters in its URL.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::chat_error::ChatError;
use crate::domain::chat::app::{Identifier, SdkAppId, SecretKey};
use crate::domain::chat::usersig;
use crate::domain::quote::plain_name;

/// A wrong sdkappid, identifier, usersig, or contenttype (vendor page "Error Codes", 1047/34348). The
/// vendor names no code for an invalid `random` or for a repeated or unknown parameter; they get this one too.
const BAD_PARAMETER: i64 = 60025;
/// The sdkappid is missing.
const NO_SDKAPPID: i64 = 60012;
/// The identifier is a user of the app but not its administrator.
const NOT_ADMINISTRATOR: i64 = 60010;
/// The app does not exist.
const NO_SUCH_APP: i64 = 70020;

/// The simulated app.
pub(super) struct AppAccount {
    pub(super) app: SdkAppId,
    pub(super) identifier: Identifier,
    pub(super) key: SecretKey,
}

/// The query of a call, with values percent-decoded. Names are not decoded: the vendor's names are
/// case-sensitive, and its documentation does not mention encoded names.
#[derive(Default)]
pub(super) struct CallQuery {
    pub(super) sdkappid: QueryValue,
    pub(super) identifier: QueryValue,
    pub(super) random: QueryValue,
    contenttype: QueryValue,
    usersig: QueryValue,
    /// The first parameter that the vendor does not define.
    unknown: Option<String>,
    undecodable: bool,
}

/// The value of a parameter, and its repetition if the query has one.
#[derive(Default)]
pub(super) struct QueryValue {
    /// The first value. Wiped on drop, because one of the five parameters is a signature.
    pub(super) value: Option<Zeroizing<String>>,
    repetition: Option<Zeroizing<String>>,
}

impl CallQuery {
    pub(super) fn read(query: &str) -> Self {
        let mut parsed = CallQuery::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let Ok(value) = percent_decode_str(value).decode_utf8().map(Cow::into_owned) else {
                parsed.undecodable = true;
                continue;
            };
            let value = Zeroizing::new(value);
            let slot = match name {
                "sdkappid" => &mut parsed.sdkappid,
                "identifier" => &mut parsed.identifier,
                "random" => &mut parsed.random,
                "contenttype" => &mut parsed.contenttype,
                "usersig" => &mut parsed.usersig,
                _ => {
                    parsed.unknown.get_or_insert_with(|| name.chars().take(40).collect());
                    continue;
                }
            };
            if slot.value.is_none() {
                slot.value = Some(value);
            } else {
                slot.repetition = Some(value);
            }
        }
        parsed
    }

    /// Replaces every signature of this query in a text that the journal shows.
    pub(super) fn redact(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for sig in [&self.usersig.value, &self.usersig.repetition].into_iter().flatten() {
            // A shorter text is no signature, and "" would match everywhere.
            if sig.len() >= 8 && text.contains(sig.as_str()) {
                text = text.replace(sig.as_str(), "(usersig)");
            }
        }
        text
    }

    /// Checks the parameters at the time `now`, in Unix seconds.
    ///
    /// The vendor does not document an order. Here the shape comes first, then the signature:
    /// empty, malformed, app, identifier, expiry, key.
    pub(super) fn check(&self, account: &AppAccount, now: u64) -> Result<(), ChatError> {
        if self.undecodable {
            return Err(ChatError::new(BAD_PARAMETER, "a parameter is not percent-encoded UTF-8"));
        }
        let sdkappid = match self.sdkappid.once("sdkappid")? {
            Some(text) => number(text).ok_or(ChatError::new(BAD_PARAMETER, "sdkappid is not a number"))?,
            None => return Err(ChatError::new(NO_SDKAPPID, "sdkappid is missing")),
        };
        if self.contenttype.once("contenttype")? != Some("json") {
            return Err(ChatError::new(BAD_PARAMETER, "contenttype is not json"));
        }
        let identifier = self.identifier.once("identifier")?.unwrap_or_default();
        if identifier.is_empty() {
            return Err(ChatError::new(BAD_PARAMETER, "identifier is missing"));
        }
        if self.random.once("random")?.and_then(number).is_none() {
            return Err(ChatError::new(BAD_PARAMETER, "random is not an unsigned integer of 32 bits"));
        }
        let Some(sig) = self.usersig.once("usersig")? else {
            return Err(ChatError::new(BAD_PARAMETER, "usersig is missing"));
        };
        if let Some(name) = &self.unknown {
            let text =
                plain_name(name).map_or("unknown parameter".to_owned(), |name| format!("unknown parameter {name}"));
            return Err(ChatError::new(BAD_PARAMETER, text));
        }
        let document = usersig::parse(sig).map_err(signature)?;
        if sdkappid != account.app.get() {
            return Err(ChatError::new(NO_SUCH_APP, "unknown sdkappid"));
        }
        document.verify(&account.key, account.app, identifier, now).map_err(signature)?;
        if identifier != account.identifier.as_str() {
            return Err(ChatError::new(NOT_ADMINISTRATOR, "identifier is not an administrator of the app"));
        }
        Ok(())
    }
}

impl QueryValue {
    fn once(&self, name: &str) -> Result<Option<&str>, ChatError> {
        if self.repetition.is_some() {
            return Err(ChatError::new(BAD_PARAMETER, format!("{name} is given more than once")));
        }
        Ok(self.value.as_ref().map(|value| value.as_str()))
    }
}

/// Parses digits only: Rust's parser would accept a sign too.
fn number(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn signature(error: usersig::UserSigError) -> ChatError {
    ChatError::new(error.code(), error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn account() -> AppAccount {
        AppAccount {
            app: SdkAppId::new(1400000001).unwrap(),
            identifier: "administrator".parse().unwrap(),
            key: SecretKey::new("sandbox-key").unwrap(),
        }
    }

    fn sig(key: &str, app: u32, identifier: &str) -> String {
        let (key, app) = (SecretKey::new(key).unwrap(), SdkAppId::new(app).unwrap());
        usersig::mint(&key, app, &identifier.parse().unwrap(), NOW, 100).expose().to_owned()
    }

    fn valid() -> Vec<(&'static str, String)> {
        vec![
            ("sdkappid", "1400000001".into()),
            ("identifier", "administrator".into()),
            ("usersig", sig("sandbox-key", 1400000001, "administrator")),
            ("random", "4294967295".into()),
            ("contenttype", "json".into()),
        ]
    }

    /// Returns the error code of the check, 0 for a success.
    fn check(parameters: &[(&str, String)], now: u64) -> i64 {
        let query: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        CallQuery::read(&query.join("&")).check(&account(), now).map_or_else(|error| error.code, |()| 0)
    }

    /// Checks the valid call with one value replaced.
    fn with(name: &str, value: &str) -> i64 {
        let mut parameters = valid();
        parameters.iter_mut().find(|parameter| parameter.0 == name).unwrap().1 = value.into();
        check(&parameters, NOW)
    }

    fn without(name: &str) -> i64 {
        let mut parameters = valid();
        parameters.retain(|parameter| parameter.0 != name);
        check(&parameters, NOW)
    }

    #[test]
    fn valid_call_passes_in_any_order_and_encoding() {
        assert_eq!(check(&valid(), NOW), 0);
        let mut reversed = valid();
        reversed.reverse();
        assert_eq!(check(&reversed, NOW), 0);
        assert_eq!(with("identifier", "%61dministrator"), 0);
        assert_eq!(with("random", "0"), 0);
    }

    #[test]
    fn each_parameter_is_required_exactly_once() {
        assert_eq!(without("sdkappid"), 60012);
        for name in ["identifier", "usersig", "random", "contenttype"] {
            assert_eq!(without(name), 60025, "{name}");
        }
        for (name, value) in valid() {
            let mut parameters = valid();
            parameters.push((name, value));
            assert_eq!(check(&parameters, NOW), 60025, "{name} twice");
        }
        for (name, value) in [
            ("sdkappid", "x"),
            ("sdkappid", ""),
            ("sdkappid", "+1400000001"),
            ("sdkappid", "5694967297"),
            ("identifier", ""),
            ("identifier", "%ff"),
            ("random", "-1"),
            ("random", "4294967296"),
            ("random", "1.5"),
            ("random", ""),
            ("contenttype", "JSON"),
            ("contenttype", ""),
        ] {
            assert_eq!(with(name, value), 60025, "{name}={value}");
        }
        let mut parameters = valid();
        parameters.push(("servicename", "x".into()));
        assert_eq!(check(&parameters, NOW), 60025);
        parameters.last_mut().unwrap().0 = "Sdkappid";
        assert_eq!(check(&parameters, NOW), 60025);
    }

    #[test]
    fn each_signature_error_has_its_code() {
        assert_eq!(with("usersig", ""), 70002);
        assert_eq!(with("usersig", "eJxx"), 70003);
        assert_eq!(with("sdkappid", "1400000002"), 70020);
        assert_eq!(with("usersig", &sig("sandbox-key", 1400000002, "administrator")), 70014);
        assert_eq!(with("usersig", &sig("sandbox-key", 1400000001, "bob")), 70013);
        assert_eq!(with("identifier", "bob"), 70013);
        assert_eq!(check(&valid(), NOW + 100), 0);
        assert_eq!(check(&valid(), NOW + 101), 70001);
        assert_eq!(with("usersig", &sig("another-key", 1400000001, "administrator")), 70009);
        let mut parameters = valid();
        parameters[1].1 = "bob".into();
        parameters[2].1 = sig("sandbox-key", 1400000001, "bob");
        assert_eq!(check(&parameters, NOW), 60010);
    }

    #[test]
    fn redact_replaces_every_signature() {
        let query = CallQuery::read("usersig=secret-one&usersig=secret-two");
        assert_eq!(query.redact("a secret-one b secret-two"), "a (usersig) b (usersig)");
        assert_eq!(CallQuery::read("usersig=").redact("abc"), "abc");
    }
}
