//! The webhooks: their names, bodies, and queries.
//!
//! There are events of follows (vendor pages 1047/70355 and 70356), friends (34359 and 34360), blocklists (34361 and
//! 34362), and profiles (48733), and alerts about the rate of a command (60256).

use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use super::sign;
use crate::domain::chat::app::{Identifier, SdkAppId, SecretKey};
use crate::domain::chat::command::CommandName;
use crate::sandbox::commands::{Event, EventPair};

/// A webhook before it is signed.
#[derive(Debug)]
pub(in crate::sandbox) struct Webhook {
    pub(super) command: &'static str,
    client_ip: Option<IpAddr>,
    pub(super) body: Vec<u8>,
}

/// The call that caused an event.
#[derive(Debug, Clone, Copy)]
pub(in crate::sandbox) struct EventSource<'a> {
    pub(in crate::sandbox) client_ip: IpAddr,
    /// Time since the Unix epoch.
    pub(in crate::sandbox) at: Duration,
    /// The administrator that signed the call.
    pub(in crate::sandbox) administrator: &'a Identifier,
}

impl Webhook {
    /// Reports a change.
    pub(in crate::sandbox) fn event(event: &Event, source: EventSource<'_>) -> Self {
        let command = match event {
            Event::Followed { .. } => "Follow.CallbackAfterFollowAdd",
            Event::Unfollowed { .. } => "Follow.CallbackAfterFollowDelete",
            Event::FriendsAdded { .. } => "Sns.CallbackFriendAdd",
            Event::FriendsDeleted { .. } => "Sns.CallbackFriendDelete",
            Event::Blocked { .. } => "Sns.CallbackBlackListAdd",
            Event::Unblocked { .. } => "Sns.CallbackBlackListDelete",
            Event::ProfileSet { .. } => "Profile.CallbackPortraitSet",
        };
        let empty = EventBody { callback_command: command, ..EventBody::default() };
        let event_time = Some(source.at.as_millis());
        let target = |to| FollowTarget { to_account: to };
        let body = match event {
            Event::Followed { from, to } => EventBody {
                from_account: Some(from),
                follow_list: Some(to.iter().map(|to| target(to)).collect()),
                event_time,
                ..empty
            },
            Event::Unfollowed { from, to } => {
                EventBody { from_account: Some(from), to_account: Some(to), event_time, ..empty }
            }
            Event::FriendsAdded { initiator, pairs, forced } => EventBody {
                pair_list: Some(pairs.iter().map(|pair| Pair::new(pair, Some(initiator))).collect()),
                client_cmd: Some("friend_add"),
                admin_account: Some(source.administrator.as_str()),
                force_flag: Some(u8::from(*forced)),
                ..empty
            },
            Event::FriendsDeleted { pairs } | Event::Blocked { pairs } | Event::Unblocked { pairs } => {
                EventBody { pair_list: Some(pairs.iter().map(|pair| Pair::new(pair, None)).collect()), ..empty }
            }
            Event::ProfileSet { from, fields } => EventBody {
                from_account: Some(from),
                profile_item: Some(fields.iter().map(|(tag, value)| json!({"Tag": tag, "Value": value})).collect()),
                event_time,
                ..empty
            },
        };
        Self { command, client_ip: Some(source.client_ip), body: to_json(&body) }
    }

    /// Reports a command whose rate `request` is close to its `limit`, both in calls per second.
    pub(in crate::sandbox) fn rate_alert(name: CommandName<'_>, request: usize, limit: usize) -> Self {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct RateAlertBody<'a> {
            callback_command: &'static str,
            service_name: &'a str,
            command: &'a str,
            request: usize,
            limit: usize,
        }
        let callback_command = "Alert.RequestOverLimit";
        let (service_name, command) = (name.service(), name.command());
        let body = RateAlertBody { callback_command, service_name, command, request, limit };
        Self { command: callback_command, client_ip: None, body: to_json(&body) }
    }

    /// Returns the query with app, event, and signature. It must not be logged, because it can be replayed until
    /// the receiver's time window ends.
    pub(super) fn query(&self, app: SdkAppId, token: &SecretKey, now_secs: u64) -> String {
        let client_ip = self.client_ip.map(|ip| format!("&ClientIP={ip}")).unwrap_or_default();
        format!(
            "SdkAppid={app}&CallbackCommand={}&contenttype=json{client_ip}&OptPlatform=RESTAPI&Sign={}&RequestTime={now_secs}",
            self.command,
            sign(token, &now_secs.to_string()),
        )
    }
}

/// The members of all events, in the order of the vendor's samples.
#[derive(Default, Serialize)]
struct EventBody<'a> {
    #[serde(rename = "CallbackCommand")]
    callback_command: &'static str,
    #[serde(rename = "From_Account", skip_serializing_if = "Option::is_none")]
    from_account: Option<&'a str>,
    #[serde(rename = "FollowList", skip_serializing_if = "Option::is_none")]
    follow_list: Option<Vec<FollowTarget<'a>>>,
    #[serde(rename = "To_Account", skip_serializing_if = "Option::is_none")]
    to_account: Option<&'a [String]>,
    #[serde(rename = "PairList", skip_serializing_if = "Option::is_none")]
    pair_list: Option<Vec<Pair<'a>>>,
    #[serde(rename = "ClientCmd", skip_serializing_if = "Option::is_none")]
    client_cmd: Option<&'static str>,
    #[serde(rename = "Admin_Account", skip_serializing_if = "Option::is_none")]
    admin_account: Option<&'a str>,
    #[serde(rename = "ForceFlag", skip_serializing_if = "Option::is_none")]
    force_flag: Option<u8>,
    #[serde(rename = "ProfileItem", skip_serializing_if = "Option::is_none")]
    profile_item: Option<Vec<Value>>,
    #[serde(rename = "EventTime", skip_serializing_if = "Option::is_none")]
    event_time: Option<u128>,
}

#[derive(Serialize)]
struct FollowTarget<'a> {
    #[serde(rename = "To_Account")]
    to_account: &'a str,
}

#[derive(Serialize)]
struct Pair<'a> {
    #[serde(rename = "From_Account")]
    from_account: &'a str,
    #[serde(rename = "To_Account")]
    to_account: &'a str,
    #[serde(rename = "Initiator_Account", skip_serializing_if = "Option::is_none")]
    initiator_account: Option<&'a str>,
}

impl<'a> Pair<'a> {
    fn new(pair: &'a EventPair, initiator_account: Option<&'a String>) -> Self {
        Self {
            from_account: &pair.from,
            to_account: &pair.to,
            initiator_account: initiator_account.map(String::as_str),
        }
    }
}

fn to_json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("strings and numbers serialize to JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::chat::command::FOLLOW_CHECK;

    fn webhook(event: &Event) -> Webhook {
        let administrator: Identifier = "administrator".parse().unwrap();
        let at = Duration::from_millis(1_702_018_343_678);
        let client_ip = "127.0.0.1".parse().unwrap();
        Webhook::event(event, EventSource { client_ip, at, administrator: &administrator })
    }

    fn text(webhook: &Webhook) -> &str {
        std::str::from_utf8(&webhook.body).unwrap()
    }

    #[test]
    fn body_and_query_match_the_vendors_shapes() {
        let (from, to) = ("ann".to_owned(), vec!["bob".to_owned()]);
        let added = webhook(&Event::Followed { from: from.clone(), to: to.clone() });
        assert_eq!(
            text(&added),
            r#"{"CallbackCommand":"Follow.CallbackAfterFollowAdd","From_Account":"ann","FollowList":[{"To_Account":"bob"}],"EventTime":1702018343678}"#
        );
        let deleted = webhook(&Event::Unfollowed { from, to });
        assert_eq!(
            text(&deleted),
            r#"{"CallbackCommand":"Follow.CallbackAfterFollowDelete","From_Account":"ann","To_Account":["bob"],"EventTime":1702018343678}"#
        );
        let alert = Webhook::rate_alert(FOLLOW_CHECK, 170, 200);
        assert_eq!(
            text(&alert),
            r#"{"CallbackCommand":"Alert.RequestOverLimit","ServiceName":"follow","Command":"follow_check","Request":170,"Limit":200}"#
        );
        let (app, token) = (SdkAppId::new(1400000001).unwrap(), SecretKey::new("xxxxyyyy").unwrap());
        let query = added.query(app, &token, 1669872112);
        let start = "SdkAppid=1400000001&CallbackCommand=Follow.CallbackAfterFollowAdd&contenttype=json&ClientIP=127.0.0.1&OptPlatform=RESTAPI&Sign=17773bc3";
        assert!(query.starts_with(start) && query.ends_with("&RequestTime=1669872112"), "{query}");
        assert!(!alert.query(app, &token, 0).contains("ClientIP"));
    }

    #[test]
    fn bodies_of_friends_blocklists_and_profiles_match_the_vendors_shapes() {
        let pair = |from: &str, to: &str| EventPair { from: from.to_owned(), to: to.to_owned() };
        let pairs = vec![pair("ann", "bob")];
        let added = Event::FriendsAdded { initiator: "ann".to_owned(), pairs: pairs.clone(), forced: true };
        assert_eq!(
            text(&webhook(&added)),
            r#"{"CallbackCommand":"Sns.CallbackFriendAdd","PairList":[{"From_Account":"ann","To_Account":"bob","Initiator_Account":"ann"}],"ClientCmd":"friend_add","Admin_Account":"administrator","ForceFlag":1}"#
        );
        let deleted = Event::FriendsDeleted { pairs: vec![pair("ann", "bob"), pair("bob", "ann")] };
        assert_eq!(
            text(&webhook(&deleted)),
            r#"{"CallbackCommand":"Sns.CallbackFriendDelete","PairList":[{"From_Account":"ann","To_Account":"bob"},{"From_Account":"bob","To_Account":"ann"}]}"#
        );
        assert_eq!(
            text(&webhook(&Event::Blocked { pairs: pairs.clone() })),
            r#"{"CallbackCommand":"Sns.CallbackBlackListAdd","PairList":[{"From_Account":"ann","To_Account":"bob"}]}"#
        );
        assert_eq!(
            text(&webhook(&Event::Unblocked { pairs })),
            r#"{"CallbackCommand":"Sns.CallbackBlackListDelete","PairList":[{"From_Account":"ann","To_Account":"bob"}]}"#
        );
        let set = Event::ProfileSet { from: "ann".to_owned(), fields: vec![("Tag_Profile_IM_Nick", json!("Ann"))] };
        assert_eq!(
            text(&webhook(&set)),
            r#"{"CallbackCommand":"Profile.CallbackPortraitSet","From_Account":"ann","ProfileItem":[{"Tag":"Tag_Profile_IM_Nick","Value":"Ann"}],"EventTime":1702018343678}"#
        );
    }
}
