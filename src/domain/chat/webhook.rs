//! What Chat posts when something has happened: who may say so, and what it says.
//!
//! The signature is a plain hash of token and time (vendor page "Webhook Authentication", 1047/34354). It covers
//! neither command nor body, so whoever sees one request can repeat its signature with any body for as long
//! as the window is open. That is why an event may only make chatgate forget, or slow down: nothing that it
//! says is ever taken for true.

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
use crate::domain::follow::writes::event_scope;
use crate::domain::json::object;
use crate::domain::pairs::scope::Scope;

/// Most digits of a `RequestTime`. Seconds since 1970 have ten.
const TIME_LEN_MAX: usize = 20;

/// The text that an app's webhooks are signed with, as the console shows it. Whoever has it can make
/// chatgate forget.
///
/// No `Display`, `Debug` shows nothing of it, and its memory is wiped when it goes.
#[derive(Clone)]
pub struct Token(Zeroizing<Box<[u8]>>);

impl Token {
    /// `None` if the text is empty: a signature with it could be made by anybody.
    pub fn new(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self(Zeroizing::new(text.as_bytes().into())))
    }

    /// Whether `sign` is the lower-case hex SHA-256 of the token followed by `request_time`. How long
    /// it takes says nothing of how much of it is right.
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

/// The parameters of a webhook that count: `SdkAppid`, `CallbackCommand`, `Sign`, `RequestTime`.
///
/// `Debug` shows no signature: it could be repeated for a while.
pub struct Claims {
    /// The app that it says it is about.
    pub sdkappid: SdkAppId,
    /// What has happened.
    pub command: String,
    sign: String,
    request_time: String,
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Claims").field("sdkappid", &self.sdkappid).finish_non_exhaustive()
    }
}

/// Why a webhook is not believed. The words are for the operator's log and hold nothing of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum VerifyError {
    #[error("it has no {0}; is authentication switched on in the console?")]
    Missing(&'static str),
    #[error("it has {0} more than once")]
    Repeated(&'static str),
    #[error("its {0} is not well-formed")]
    Malformed(&'static str),
    #[error("its app is not configured or has no token in webhook.app_tokens")]
    NoToken,
    #[error("its signature is wrong; is the token the one in the console?")]
    WrongSign,
    #[error("its RequestTime is outside webhook.window; are the clocks right?")]
    NotNow,
}

impl Claims {
    /// Reads a query. Further parameters are ignored; each of these must be there once, whatever its case.
    ///
    /// # Errors
    /// What is missing, repeated or not well-formed.
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

    /// The time that is signed, in seconds since 1970, if it is one.
    pub fn signed_at(&self) -> Option<u64> {
        digits(&self.request_time)
    }

    /// Whether whoever wrote it knows the token and wrote it at most `window` before or after `now`,
    /// the time since 1970.
    ///
    /// # Errors
    /// A signature that is wrong, or a time that is none or too far away.
    pub fn verify(&self, token: &Token, now: Duration, window: Duration) -> Result<(), VerifyError> {
        // The signature first: who has no token learns nothing of the window.
        if !token.signed(&self.request_time, &self.sign) {
            return Err(VerifyError::WrongSign);
        }
        let at = digits(&self.request_time).ok_or(VerifyError::Malformed("RequestTime"))?;
        // Chat counts whole seconds, so both sides do.
        if Duration::from_secs(now.as_secs().abs_diff(at)) > window { Err(VerifyError::NotNow) } else { Ok(()) }
    }
}

/// A whole number written in digits and nothing else.
fn digits(text: &str) -> Option<u64> {
    let plain = text.len() <= TIME_LEN_MAX && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// What chatgate does about a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Somebody followed or unfollowed: forget what this names.
    Follow(Scope),
    /// A command comes close to its limit ("Alarm webhook", 1047/60256), in calls a second.
    OverLimit {
        /// `service/command`, one that the built-in table knows.
        command: String,
        /// What Chat allows it.
        limit: NonZeroU32,
    },
    /// Nothing: another event, or an alarm that cannot be read.
    Other,
}

impl Event {
    /// Reads the event that the query names. A follow event whose pairs cannot be read with certainty
    /// names more than it may have meant, never less.
    pub fn read(command: &str, body: &[u8]) -> Self {
        match command {
            "Follow.CallbackAfterFollowAdd" => Event::Follow(event_scope(true, body)),
            "Follow.CallbackAfterFollowDelete" => Event::Follow(event_scope(false, body)),
            "Alert.RequestOverLimit" => over_limit(body).unwrap_or(Event::Other),
            _ => Event::Other,
        }
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
    let alarm: RateAlert = object::read(body)?;
    let command = format!("{}/{}", alarm.service_name, alarm.command);
    // Only the table's: quotas of other commands are made as they are called, and made-up names
    // must not use up their places.
    CommandName::parse(&command).ok()?.known()?;
    Some(Event::OverLimit { command, limit: alarm.limit })
}

#[cfg(test)]
mod tests {
    use super::*;

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

    fn judged(query: &str, now: Duration) -> Result<(), VerifyError> {
        Claims::read(query)?.verify(&token(), now, WINDOW)
    }

    #[test]
    fn the_vendor_s_example_of_a_signature_is_verified() {
        let claims = Claims::read(&query(SIGN, "1669872112")).expect("all there");
        assert_eq!((claims.sdkappid.get(), claims.command.as_str()), (1_400_000_001, "Follow.CallbackAfterFollowAdd"));
        assert_eq!(claims.verify(&token(), NOW, WINDOW), Ok(()));
        let other = Token::new("xxxxyyyz").expect("not empty");
        assert_eq!(claims.verify(&other, NOW, WINDOW), Err(VerifyError::WrongSign));
    }

    #[test]
    fn only_the_whole_signature_of_that_time_is_taken() {
        for sign in ["", &SIGN[..63], &format!("{SIGN}0"), &SIGN.to_uppercase(), &SIGN.replacen('1', "2", 1)] {
            assert_eq!(judged(&query(sign, "1669872112"), NOW), Err(VerifyError::WrongSign), "{sign}");
        }
        for time in ["", "1669872113", "01669872112", " 1669872112", "+1669872112"] {
            assert_eq!(judged(&query(SIGN, time), NOW), Err(VerifyError::WrongSign), "{time}");
        }
        // The boundary between token and time is not signed.
        let shifted = Token::new("xxxxyyyy1").expect("not empty");
        let claims = Claims::read(&query(SIGN, "669872112")).expect("all there");
        assert_eq!(claims.verify(&shifted, NOW, WINDOW), Err(VerifyError::NotNow));
    }

    #[test]
    fn a_time_is_good_as_far_as_the_window_reaches_on_both_sides() {
        let at = |offset: i64| Duration::from_secs(NOW.as_secs().saturating_add_signed(offset));
        for (offset, expected) in
            [(-60, Ok(())), (60, Ok(())), (-61, Err(VerifyError::NotNow)), (61, Err(VerifyError::NotNow))]
        {
            assert_eq!(judged(&query(SIGN, "1669872112"), at(offset)), expected, "{offset}");
        }
        assert_eq!(judged(&query(SIGN, "1669872112"), Duration::ZERO), Err(VerifyError::NotNow));
    }

    #[test]
    fn a_signed_time_that_is_no_number_is_refused() {
        let hash = |time: &str| {
            let mut hash = Context::new(&SHA256);
            hash.update(b"xxxxyyyy");
            hash.update(time.as_bytes());
            hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
        };
        for time in ["", "now", "-1", "1669872112.0", "99999999999999999999", "000000000001669872112"] {
            assert_eq!(judged(&query(&hash(time), time), NOW), Err(VerifyError::Malformed("RequestTime")), "{time}");
        }
    }

    #[test]
    fn each_parameter_stands_once() {
        let good = query(SIGN, "1669872112");
        for name in ["SdkAppid", "CallbackCommand", "Sign", "RequestTime"] {
            let without = good.replace(&format!("{name}="), "x=");
            assert_eq!(judged(&without, NOW), Err(VerifyError::Missing(name)));
            for twice in [name.to_owned(), name.to_lowercase(), name.replacen('a', "%61", 1)] {
                assert_eq!(judged(&format!("{good}&{twice}=1"), NOW), Err(VerifyError::Repeated(name)), "{twice}");
            }
        }
        for bad in ["", "0", "4294967296", "-1", "a", "1e9"] {
            let query = good.replace("1400000001", bad);
            assert_eq!(judged(&query, NOW), Err(VerifyError::Malformed("SdkAppid")), "{bad}");
        }
        assert_eq!(judged(&good.replace("RESTAPI", "%ff&&=&x"), NOW), Ok(()), "others are ignored");
        assert_eq!(judged(&good.replace("Follow.", "%ff"), NOW), Err(VerifyError::Malformed("CallbackCommand")));
    }

    #[test]
    fn an_event_makes_forget_or_slow_down_and_nothing_else() {
        let added = br#"{"From_Account":"ann","FollowList":[{"To_Account":"bob"}]}"#;
        let pairs = Scope::Pairs { from: "ann".into(), to: vec!["bob".into()] };
        assert_eq!(Event::read("Follow.CallbackAfterFollowAdd", added), Event::Follow(pairs.clone()));
        let deleted = br#"{"From_Account":"ann","To_Account":["bob"]}"#;
        assert_eq!(Event::read("Follow.CallbackAfterFollowDelete", deleted), Event::Follow(pairs));
        assert_eq!(Event::read("Follow.CallbackAfterFollowDelete", b"\xff"), Event::Follow(Scope::All));
        for other in ["", "follow.callbackafterfollowadd", "State.StateChange", "Follow.CallbackAfterFollowAdd "] {
            assert_eq!(Event::read(other, added), Event::Other, "{other}");
        }
    }

    #[test]
    fn an_alarm_names_a_known_command_and_a_limit() {
        let read = |body: &str| Event::read("Alert.RequestOverLimit", body.as_bytes());
        let alarm =
            r#"{"CallbackCommand":"x","ServiceName":"follow","Command":"follow_check","Request":170,"Limit":200}"#;
        let limit = NonZeroU32::new(200).expect("not 0");
        assert_eq!(read(alarm), Event::OverLimit { command: "follow/follow_check".into(), limit });
        for bad in [
            alarm.replace("200", "0"),
            alarm.replace("200", "-1"),
            alarm.replace("200", "\"200\""),
            alarm.replace("200", "1e3"),
            alarm.replace("follow_check", "made_up"),
            alarm.replace("follow_check", "follow_check/x"),
            alarm.replace("\"Request\":170", "\"Limit\":1"),
            r#"["follow","follow_check",200]"#.to_owned(),
            String::new(),
        ] {
            assert_eq!(read(&bad), Event::Other, "{bad}");
        }
    }

    #[test]
    fn neither_token_nor_signature_prints_itself() {
        assert_eq!(format!("{:?}", token()), "Token(hidden)");
        let claims = Claims::read(&query(SIGN, "1669872112")).expect("all there");
        assert!(!format!("{claims:?}").contains(&SIGN[..8]));
        assert!(Token::new("").is_none());
    }
}
