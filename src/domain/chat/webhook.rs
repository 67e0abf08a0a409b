//! Webhooks of Chat: authentication and content.
//!
//! The signature is a plain hash of token and time (vendor page "Webhook Authentication", 1047/34354). It covers neither
//! command nor body. An attacker that sees one request can therefore send its signature with any body while the window
//! lasts. For this reason an event can only invalidate pairs or lower a rate limit; chatgate never caches its content.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::app::SdkAppId;
use super::command::CommandName;
use crate::domain::json::object;
use crate::domain::pairs::scope::Scope;
use crate::domain::relation::{RelationKind, changes};

/// Maximum number of digits of a `RequestTime`. Seconds since 1970 have ten.
const TIME_LEN_MAX: usize = 20;

/// The token that signs an app's webhooks, as shown in the console. It allows its holder to invalidate pairs.
///
/// It has no `Display`, `Debug` hides it, and its memory is wiped on drop.
#[derive(Clone)]
pub struct Token(Zeroizing<Box<[u8]>>);

impl Token {
    /// Returns `None` if the text is empty: anyone could sign with an empty token.
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(Zeroizing::new(text.as_bytes().into())))
    }

    /// Returns whether `sign` is the lower-case hex SHA-256 of the token followed by `request_time`. Compares in
    /// constant time.
    fn signed(&self, request_time: &str, sign: &str) -> bool {
        let mut hash = Context::new(&SHA256);
        hash.update(&self.0);
        hash.update(request_time.as_bytes());
        let expected: String = hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        expected.as_bytes().ct_eq(sign.as_bytes()).into()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// The query parameters that chatgate reads: `SdkAppid`, `CallbackCommand`, `Sign`, `RequestTime`.
///
/// `Debug` hides the signature, because it could be replayed within the window.
pub struct Claims {
    /// The app that the webhook names.
    pub sdkappid: SdkAppId,
    /// The kind of event.
    pub command: String,
    sign: String,
    request_time: String,
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").field("sdkappid", &self.sdkappid).finish_non_exhaustive()
    }
}

/// Why a webhook is rejected. The messages go to the log and contain nothing from the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum VerifyError {
    #[error("{0} is missing; enable webhook authentication in the console")]
    Missing(&'static str),
    #[error("{0} is repeated")]
    Repeated(&'static str),
    #[error("{0} is malformed")]
    Malformed(&'static str),
    #[error("its app has no token; add it to webhook.app_tokens")]
    NoToken,
    #[error("wrong signature; compare the token with the console")]
    WrongSign,
    #[error("RequestTime is outside webhook.window; check the clock")]
    NotNow,
}

impl Claims {
    /// Reads a query. Each parameter must occur exactly once, in any case; other parameters are ignored.
    ///
    /// # Errors
    /// A parameter that is missing, repeated, or malformed.
    pub fn read(query: &str) -> Result<Self, VerifyError> {
        const NAMES: [&str; 4] = ["SdkAppid", "CallbackCommand", "Sign", "RequestTime"];
        let mut values: [Option<String>; 4] = Default::default();
        for parameter in query.split('&') {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let name = percent_decode_str(name).decode_utf8_lossy();
            let Some(at) = NAMES.iter().position(|known| known.eq_ignore_ascii_case(&name)) else { continue };
            let value = percent_decode_str(value).decode_utf8().map_err(|_| VerifyError::Malformed(NAMES[at]))?;
            if values[at].replace(value.into_owned()).is_some() {
                return Err(VerifyError::Repeated(NAMES[at]));
            }
        }
        let [sdkappid, command, sign, request_time] = values;
        let sdkappid =
            digits(&sdkappid.ok_or(VerifyError::Missing(NAMES[0]))?).and_then(|number| u32::try_from(number).ok());
        Ok(Self {
            sdkappid: sdkappid.and_then(SdkAppId::new).ok_or(VerifyError::Malformed(NAMES[0]))?,
            command: command.ok_or(VerifyError::Missing(NAMES[1]))?,
            sign: sign.ok_or(VerifyError::Missing(NAMES[2]))?,
            request_time: request_time.ok_or(VerifyError::Missing(NAMES[3]))?,
        })
    }

    /// Returns the signed time in seconds since 1970; `None` if it is not a number.
    pub fn signed_at(&self) -> Option<u64> {
        digits(&self.request_time)
    }

    /// Checks that the sender knows the token and signed at most `window` before or after `now`, the time since 1970.
    ///
    /// # Errors
    /// A wrong signature, or a signed time that is malformed or outside the window.
    pub fn verify(&self, token: &Token, now: Duration, window: Duration) -> Result<(), VerifyError> {
        // The signature first: a sender without the token learns nothing about the window.
        if !token.signed(&self.request_time, &self.sign) {
            return Err(VerifyError::WrongSign);
        }
        let at = digits(&self.request_time).ok_or(VerifyError::Malformed("RequestTime"))?;
        // Chat signs whole seconds, so compare whole seconds.
        if Duration::from_secs(now.as_secs().abs_diff(at)) > window { Err(VerifyError::NotNow) } else { Ok(()) }
    }
}

/// Parses an integer that consists of digits only.
fn digits(text: &str) -> Option<u64> {
    let plain = text.len() <= TIME_LEN_MAX && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// The effect of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A relation of users has changed: invalidate these pairs.
    Relation(Scope),
    /// A rate-limit alert: a command is close to its limit ("Alarm webhook", 1047/60256).
    OverLimit {
        /// `service/command`, in or outside the built-in table.
        command: String,
        /// The limit that Chat enforces, in calls per second.
        limit: NonZeroU32,
    },
    /// No effect: another event, or an alert that cannot be read.
    Other,
}

impl Event {
    /// Reads the event that the query names, as far as it concerns these relations. If its pairs cannot be read with
    /// certainty, the scope widens.
    pub fn read(kinds: &[&RelationKind], command: &str, body: &[u8]) -> Self {
        if command == "Alert.RequestOverLimit" {
            return over_limit(body).unwrap_or(Event::Other);
        }
        changes::of_event(kinds, command, body).map_or(Event::Other, Event::Relation)
    }
}

fn over_limit(body: &[u8]) -> Option<Event> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct RateAlert {
        service_name: String,
        command: String,
        limit: NonZeroU32,
    }
    let alert: RateAlert = object::read(body)?;
    let command = format!("{}/{}", alert.service_name, alert.command);
    CommandName::parse(&command).ok()?;
    Some(Event::OverLimit { command, limit: alert.limit })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::relation::FOLLOW;

    const SIGN: &str = "17773bc39a671d7b9aa835458704d2a6db81360a5940292b587d6d760d484061";
    const NOW: Duration = Duration::from_secs(1_669_872_112);
    const WINDOW: Duration = Duration::from_secs(60);

    fn token() -> Token {
        Token::new("xxxxyyyy").expect("not empty")
    }

    fn query(sign: &str, time: &str) -> String {
        format!(
            "SdkAppid=1400000001&CallbackCommand=Follow.CallbackAfterFollowAdd&contenttype=json&ClientIP=1.2.3.4&OptPlatform=RESTAPI&Sign={sign}&RequestTime={time}"
        )
    }

    fn verify(query: &str, now: Duration) -> Result<(), VerifyError> {
        Claims::read(query)?.verify(&token(), now, WINDOW)
    }

    #[test]
    fn signature_of_the_vendors_example_verifies() {
        let claims = Claims::read(&query(SIGN, "1669872112")).expect("complete");
        assert_eq!((claims.sdkappid.get(), claims.command.as_str()), (1_400_000_001, "Follow.CallbackAfterFollowAdd"));
        assert_eq!(claims.verify(&token(), NOW, WINDOW), Ok(()));
        let other = Token::new("xxxxyyyz").expect("not empty");
        assert_eq!(claims.verify(&other, NOW, WINDOW), Err(VerifyError::WrongSign));
    }

    #[test]
    fn signature_must_match_token_and_time_exactly() {
        for sign in ["", &SIGN[..63], &format!("{SIGN}0"), &SIGN.to_uppercase(), &SIGN.replacen('1', "2", 1)] {
            assert_eq!(verify(&query(sign, "1669872112"), NOW), Err(VerifyError::WrongSign), "{sign}");
        }
        for time in ["", "1669872113", "01669872112", " 1669872112", "+1669872112"] {
            assert_eq!(verify(&query(SIGN, time), NOW), Err(VerifyError::WrongSign), "{time}");
        }
        // The boundary between token and time is not signed.
        let shifted = Token::new("xxxxyyyy1").expect("not empty");
        let claims = Claims::read(&query(SIGN, "669872112")).expect("complete");
        assert_eq!(claims.verify(&shifted, NOW, WINDOW), Err(VerifyError::NotNow));
    }

    #[test]
    fn signed_time_must_be_within_the_window() {
        let at = |offset: i64| Duration::from_secs(NOW.as_secs().saturating_add_signed(offset));
        for (offset, expected) in
            [(-60, Ok(())), (60, Ok(())), (-61, Err(VerifyError::NotNow)), (61, Err(VerifyError::NotNow))]
        {
            assert_eq!(verify(&query(SIGN, "1669872112"), at(offset)), expected, "{offset}");
        }
        assert_eq!(verify(&query(SIGN, "1669872112"), Duration::ZERO), Err(VerifyError::NotNow));
    }

    #[test]
    fn signed_time_must_be_a_number() {
        let hash = |time: &str| {
            let mut hash = Context::new(&SHA256);
            hash.update(b"xxxxyyyy");
            hash.update(time.as_bytes());
            hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        for time in ["", "now", "-1", "1669872112.0", "99999999999999999999", "000000000001669872112"] {
            assert_eq!(verify(&query(&hash(time), time), NOW), Err(VerifyError::Malformed("RequestTime")), "{time}");
        }
    }

    #[test]
    fn each_parameter_must_occur_exactly_once() {
        let good = query(SIGN, "1669872112");
        for name in ["SdkAppid", "CallbackCommand", "Sign", "RequestTime"] {
            let without = good.replace(&format!("{name}="), "x=");
            assert_eq!(verify(&without, NOW), Err(VerifyError::Missing(name)));
            for twice in [name.to_owned(), name.to_lowercase(), name.replacen('a', "%61", 1)] {
                assert_eq!(verify(&format!("{good}&{twice}=1"), NOW), Err(VerifyError::Repeated(name)), "{twice}");
            }
        }
        for bad in ["", "0", "4294967296", "-1", "a", "1e9"] {
            let query = good.replace("1400000001", bad);
            assert_eq!(verify(&query, NOW), Err(VerifyError::Malformed("SdkAppid")), "{bad}");
        }
        assert_eq!(verify(&good.replace("RESTAPI", "%ff&&=&x"), NOW), Ok(()), "others are ignored");
        assert_eq!(verify(&good.replace("Follow.", "%ff"), NOW), Err(VerifyError::Malformed("CallbackCommand")));
    }

    #[test]
    fn follow_events_name_pairs_and_others_have_no_effect() {
        let added = br#"{"From_Account":"ann","FollowList":[{"To_Account":"bob"}]}"#;
        let pairs = Scope::pairs_of("ann", &["bob"]);
        let read = |command: &str, body: &[u8]| Event::read(&[&FOLLOW], command, body);
        assert_eq!(read("Follow.CallbackAfterFollowAdd", added), Event::Relation(pairs.clone()));
        let deleted = br#"{"From_Account":"ann","To_Account":["bob"]}"#;
        assert_eq!(read("Follow.CallbackAfterFollowDelete", deleted), Event::Relation(pairs));
        assert_eq!(read("Follow.CallbackAfterFollowDelete", b"\xff"), Event::Relation(Scope::All));
        for other in ["", "follow.callbackafterfollowadd", "State.StateChange", "Follow.CallbackAfterFollowAdd "] {
            assert_eq!(read(other, added), Event::Other, "{other}");
        }
    }

    #[test]
    fn rate_alert_names_a_command_and_its_limit() {
        let read = |body: &str| Event::read(&[], "Alert.RequestOverLimit", body.as_bytes());
        let alert =
            r#"{"CallbackCommand":"x","ServiceName":"follow","Command":"follow_check","Request":170,"Limit":200}"#;
        let limit = NonZeroU32::new(200).expect("not 0");
        assert_eq!(read(alert), Event::OverLimit { command: "follow/follow_check".into(), limit });
        let unlisted = alert.replace("follow_check", "follow_more");
        assert_eq!(read(&unlisted), Event::OverLimit { command: "follow/follow_more".into(), limit });
        for bad in [
            alert.replace("200", "0"),
            alert.replace("200", "-1"),
            alert.replace("200", "\"200\""),
            alert.replace("200", "1e3"),
            alert.replace("follow_check", "made up"),
            alert.replace("follow_check", "follow_check/x"),
            alert.replace("\"Request\":170", "\"Limit\":1"),
            r#"["follow","follow_check",200]"#.to_owned(),
            String::new(),
        ] {
            assert_eq!(read(&bad), Event::Other, "{bad}");
        }
    }

    #[test]
    fn debug_hides_token_and_signature() {
        assert_eq!(format!("{:?}", token()), "Token(hidden)");
        let claims = Claims::read(&query(SIGN, "1669872112")).expect("complete");
        assert!(!format!("{claims:?}").contains(&SIGN[..8]));
        assert!(Token::new("").is_none());
    }
}
