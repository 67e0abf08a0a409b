//! The five parameters in the URL, and whether they entitle the caller.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::refusal::Refusal;
use crate::domain::chat::app::{Identifier, SdkAppId, SecretKey};
use crate::domain::chat::usersig;

/// sdkappid, identifier, usersig or contenttype is wrong (vendor page "Error Codes", 1047/34348). The
/// vendor names no code for a bad `random`, a repeated or a further parameter: they get this one too.
const BAD_PARAMETER: i64 = 60025;
/// No sdkappid at all.
const NO_SDKAPPID: i64 = 60012;
/// The identifier is a user of the app but not its administrator.
const NOT_ADMINISTRATOR: i64 = 60010;
/// No such app here.
const NO_SUCH_APP: i64 = 70020;

/// The app that the sandbox plays.
pub(super) struct Account {
    pub(super) app: SdkAppId,
    pub(super) identifier: Identifier,
    pub(super) key: SecretKey,
}

/// The query of a call, values percent-decoded. Names are taken as they stand: the vendor's are
/// case-sensitive, and nothing says that they may be encoded.
#[derive(Default)]
pub(super) struct Query {
    pub(super) sdkappid: Given,
    pub(super) identifier: Given,
    pub(super) random: Given,
    contenttype: Given,
    usersig: Given,
    /// A parameter that the vendor does not name.
    further: Option<String>,
    undecodable: bool,
}

/// A parameter's value, and whether it came more than once.
#[derive(Default)]
pub(super) struct Given {
    /// The first one. Wiped on drop, since one of the five is a signature.
    pub(super) value: Option<Zeroizing<String>>,
    repeated: Option<Zeroizing<String>>,
}

impl Query {
    pub(super) fn read(query: &str) -> Self {
        let mut read = Query::default();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let Ok(value) = percent_decode_str(value).decode_utf8().map(Cow::into_owned) else {
                read.undecodable = true;
                continue;
            };
            let value = Zeroizing::new(value);
            let given = match name {
                "sdkappid" => &mut read.sdkappid,
                "identifier" => &mut read.identifier,
                "random" => &mut read.random,
                "contenttype" => &mut read.contenttype,
                "usersig" => &mut read.usersig,
                _ => {
                    read.further.get_or_insert_with(|| name.chars().take(40).collect());
                    continue;
                }
            };
            if given.value.is_none() {
                given.value = Some(value);
            } else {
                given.repeated = Some(value);
            }
        }
        read
    }

    /// Replaces every signature of this query in a text that is going to be shown.
    pub(super) fn mask(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for sig in [&self.usersig.value, &self.usersig.repeated].into_iter().flatten() {
            // Nothing that short is a signature, and "" would match everywhere.
            if sig.len() >= 8 && text.contains(sig.as_str()) {
                text = text.replace(sig.as_str(), "(usersig)");
            }
        }
        text
    }

    /// Judges the parameters at a moment in Unix seconds.
    ///
    /// The vendor does not document an order. Shape comes first, then what the signature says:
    /// empty, malformed, app, identifier, expiry, key.
    pub(super) fn check(&self, account: &Account, now: u64) -> Result<(), Refusal> {
        if self.undecodable {
            return Err(Refusal::new(BAD_PARAMETER, "a parameter is not percent-encoded UTF-8"));
        }
        let sdkappid = match self.sdkappid.once("sdkappid")? {
            Some(text) => number(text).ok_or(Refusal::new(BAD_PARAMETER, "sdkappid is not a number"))?,
            None => return Err(Refusal::new(NO_SDKAPPID, "sdkappid is missing")),
        };
        if self.contenttype.once("contenttype")? != Some("json") {
            return Err(Refusal::new(BAD_PARAMETER, "contenttype is not json"));
        }
        let identifier = self.identifier.once("identifier")?.unwrap_or_default();
        if identifier.is_empty() {
            return Err(Refusal::new(BAD_PARAMETER, "identifier is missing"));
        }
        if self.random.once("random")?.and_then(number).is_none() {
            return Err(Refusal::new(BAD_PARAMETER, "random is not an unsigned integer of 32 bits"));
        }
        let Some(sig) = self.usersig.once("usersig")? else {
            return Err(Refusal::new(BAD_PARAMETER, "usersig is missing"));
        };
        if let Some(name) = &self.further {
            return Err(Refusal::new(BAD_PARAMETER, format!("there is no parameter {name:?}")));
        }
        let document = usersig::parse(sig).map_err(signature)?;
        if sdkappid != account.app.get() {
            return Err(Refusal::new(NO_SUCH_APP, "no such sdkappid here"));
        }
        document.verify(&account.key, account.app, identifier, now).map_err(signature)?;
        if identifier != account.identifier.as_str() {
            return Err(Refusal::new(NOT_ADMINISTRATOR, "identifier is not an administrator of the app"));
        }
        Ok(())
    }
}

impl Given {
    fn once(&self, name: &str) -> Result<Option<&str>, Refusal> {
        if self.repeated.is_some() {
            return Err(Refusal::new(BAD_PARAMETER, format!("{name} is given more than once")));
        }
        Ok(self.value.as_ref().map(|value| value.as_str()))
    }
}

/// Digits only: Rust's reader would also take a sign.
fn number(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn signature(error: usersig::UserSigError) -> Refusal {
    Refusal::new(error.code(), error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn account() -> Account {
        Account {
            app: SdkAppId::new(1400000001).unwrap(),
            identifier: "administrator".parse().unwrap(),
            key: SecretKey::new("sandbox-key").unwrap(),
        }
    }

    fn sig(key: &str, app: u32, who: &str) -> String {
        let (key, app) = (SecretKey::new(key).unwrap(), SdkAppId::new(app).unwrap());
        usersig::mint(&key, app, &who.parse().unwrap(), NOW, 100).expose().to_owned()
    }

    fn good() -> Vec<(&'static str, String)> {
        vec![
            ("sdkappid", "1400000001".into()),
            ("identifier", "administrator".into()),
            ("usersig", sig("sandbox-key", 1400000001, "administrator")),
            ("random", "4294967295".into()),
            ("contenttype", "json".into()),
        ]
    }

    fn judge(parameters: &[(&str, String)], now: u64) -> i64 {
        let query: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Query::read(&query.join("&")).check(&account(), now).map_or_else(|refusal| refusal.code, |()| 0)
    }

    /// The good call with one value replaced.
    fn with(name: &str, value: &str) -> i64 {
        let mut parameters = good();
        parameters.iter_mut().find(|parameter| parameter.0 == name).unwrap().1 = value.into();
        judge(&parameters, NOW)
    }

    fn without(name: &str) -> i64 {
        let mut parameters = good();
        parameters.retain(|parameter| parameter.0 != name);
        judge(&parameters, NOW)
    }

    #[test]
    fn a_good_call_passes_in_any_order_and_encoding() {
        assert_eq!(judge(&good(), NOW), 0);
        let mut turned = good();
        turned.reverse();
        assert_eq!(judge(&turned, NOW), 0);
        assert_eq!(with("identifier", "%61dministrator"), 0);
        assert_eq!(with("random", "0"), 0);
    }

    #[test]
    fn each_parameter_is_required_once_and_well_formed() {
        assert_eq!(without("sdkappid"), 60012);
        for name in ["identifier", "usersig", "random", "contenttype"] {
            assert_eq!(without(name), 60025, "{name}");
        }
        for (name, value) in good() {
            let mut parameters = good();
            parameters.push((name, value));
            assert_eq!(judge(&parameters, NOW), 60025, "{name} twice");
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
        let mut parameters = good();
        parameters.push(("servicename", "x".into()));
        assert_eq!(judge(&parameters, NOW), 60025);
        parameters.last_mut().unwrap().0 = "Sdkappid";
        assert_eq!(judge(&parameters, NOW), 60025);
    }

    #[test]
    fn each_signature_fault_has_its_code() {
        assert_eq!(with("usersig", ""), 70002);
        assert_eq!(with("usersig", "eJxx"), 70003);
        assert_eq!(with("sdkappid", "1400000002"), 70020);
        assert_eq!(with("usersig", &sig("sandbox-key", 1400000002, "administrator")), 70014);
        assert_eq!(with("usersig", &sig("sandbox-key", 1400000001, "bob")), 70013);
        assert_eq!(with("identifier", "bob"), 70013);
        assert_eq!(judge(&good(), NOW + 100), 0);
        assert_eq!(judge(&good(), NOW + 101), 70001);
        assert_eq!(with("usersig", &sig("another-key", 1400000001, "administrator")), 70009);
        let mut parameters = good();
        parameters[1].1 = "bob".into();
        parameters[2].1 = sig("sandbox-key", 1400000001, "bob");
        assert_eq!(judge(&parameters, NOW), 60010);
    }

    #[test]
    fn signatures_are_masked() {
        let query = Query::read("usersig=secret-one&usersig=secret-two");
        assert_eq!(query.mask("a secret-one b secret-two"), "a (usersig) b (usersig)");
        assert_eq!(Query::read("usersig=").mask("abc"), "abc");
    }
}
