//! The fake Chat's relations of users, and the responses derived from them.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

/// The relations of each app's users. Clones share one graph.
#[derive(Debug, Clone, Default)]
pub(crate) struct Graph(Arc<Mutex<Edges>>);

/// Directed edges: SDKAppID, the user that has the relation, and the other user.
#[derive(Debug, Default)]
struct Edges {
    follows: HashSet<Edge>,
    friends: HashSet<Edge>,
    blocks: HashSet<Edge>,
}

type Edge = (u32, String, String);

/// A relation of two users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    Follows,
    /// `to` is in the friend list of `from`.
    Friends,
    /// `to` is in the blocklist of `from`.
    Blocks,
}

impl Edges {
    fn list(&mut self, list: List) -> &mut HashSet<Edge> {
        match list {
            List::Follows => &mut self.follows,
            List::Friends => &mut self.friends,
            List::Blocks => &mut self.blocks,
        }
    }
}

/// The envelope of a success without additional members.
pub(crate) const OK: &str = r#"{"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}"#;

impl Graph {
    pub(crate) fn follow(&self, app: u32, from: &str, to: &str) {
        self.add(List::Follows, app, from, to);
    }

    pub(crate) fn unfollow(&self, app: u32, from: &str, to: &str) {
        self.remove(List::Follows, app, from, to);
    }

    pub(crate) fn add(&self, list: List, app: u32, from: &str, to: &str) {
        self.0.lock().list(list).insert((app, from.to_owned(), to.to_owned()));
    }

    pub(crate) fn remove(&self, list: List, app: u32, from: &str, to: &str) {
        self.0.lock().list(list).remove(&(app, from.to_owned(), to.to_owned()));
    }

    /// Returns the FollowType of the ordered pair: 2 if `from` follows `to`, plus 1 if `to` follows `from` (vendor page
    /// 1047/70349).
    pub(crate) fn follow_type(&self, app: u32, from: &str, to: &str) -> u8 {
        self.number(List::Follows, app, from, to)
    }

    fn number(&self, list: List, app: u32, from: &str, to: &str) -> u8 {
        let mut edges = self.0.lock();
        let edges = edges.list(list);
        let has = |a: &str, b: &str| u8::from(edges.contains(&(app, a.to_owned(), b.to_owned())));
        2 * has(from, to) + has(to, from)
    }

    /// Returns Chat's response to a command, and applies writes to the graph.
    pub(crate) fn respond(&self, app: u32, command: &str, body: &[u8]) -> String {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let from = body["From_Account"].as_str().unwrap_or_default();
        let both = |member: &str| body[member].as_str().is_some_and(|value| value.ends_with("_Both"));
        match command {
            "follow/follow_check" => self.check(app, &body),
            "sns/friend_check" => self.check_list(List::Friends, app, &body),
            "sns/black_list_check" => self.check_list(List::Blocks, app, &body),
            "follow/follow_add" => self.write(&items_of(&body, "FollowItem"), |to| self.follow(app, from, to)),
            "follow/follow_delete" => self.write(&names_of(&body), |to| self.unfollow(app, from, to)),
            "sns/friend_add" | "sns/friend_import" => self.write(&items_of(&body, "AddFriendItem"), |to| {
                self.add(List::Friends, app, from, to);
                if command == "sns/friend_add" && (both("AddType") || body["AddType"].is_null()) {
                    self.add(List::Friends, app, to, from);
                }
            }),
            "sns/friend_delete" => self.write(&names_of(&body), |to| {
                self.remove(List::Friends, app, from, to);
                if both("DeleteType") {
                    self.remove(List::Friends, app, to, from);
                }
            }),
            "sns/friend_delete_all" => {
                let is_from = |user: &str| user == from;
                self.0
                    .lock()
                    .friends
                    .retain(|(number, a, b)| *number != app || !(is_from(a) || (both("DeleteType") && is_from(b))));
                OK.to_owned()
            }
            "sns/black_list_add" => self.write(&names_of(&body), |to| {
                self.add(List::Blocks, app, from, to);
                self.remove(List::Friends, app, from, to);
                self.remove(List::Friends, app, to, from);
            }),
            "sns/black_list_delete" => self.write(&names_of(&body), |to| self.remove(List::Blocks, app, from, to)),
            "im_open_login_svc/account_delete" => {
                for user in array(&body["DeleteItem"]).filter_map(|item| item["UserID"].as_str()) {
                    self.remove_user(app, user);
                }
                OK.to_owned()
            }
            "openim_robot_http_svc/delete_robot" => {
                self.remove_user(app, body["Robot_Account"].as_str().unwrap_or_default());
                OK.to_owned()
            }
            _ => OK.to_owned(),
        }
    }

    fn remove_user(&self, app: u32, user: &str) {
        let mut edges = self.0.lock();
        for list in [List::Follows, List::Friends, List::Blocks] {
            edges.list(list).retain(|(number, from, to)| *number != app || (from != user && to != user));
        }
    }

    fn write(&self, to: &[&str], apply: impl Fn(&str)) -> String {
        to.iter().for_each(|to| apply(to));
        written(to)
    }

    /// Answers a check of friends or blocklists (vendor pages 1047/34907 and 1047/34913).
    fn check_list(&self, list: List, app: u32, body: &Value) -> String {
        let (begin, items, none) = match list {
            List::Blocks => ("BlackCheckResult_Type_", "BlackListCheckItem", "NO"),
            _ => ("CheckResult_Type_", "InfoItem", "NoRelation"),
        };
        let Some(from) = body["From_Account"].as_str() else { return error_response(30001, "From_Account") };
        let to: Vec<&str> = names_of(body);
        if to.is_empty() || to.len() > 1000 || to.len() != array(&body["To_Account"]).count() {
            return error_response(30001, "To_Account: 1 to 1000 strings");
        }
        let mask = match body["CheckType"].as_str().and_then(|value| value.strip_prefix(begin)) {
            Some("Both") => 3,
            Some("Single") => 2,
            _ => return error_response(30001, "CheckType"),
        };
        let item = |to: &&str| {
            let number = self.number(list, app, from, to) & mask;
            let relation = [none, "BWithA", "AWithB", "BothWay"][usize::from(number)];
            list_item(to, &format!("{begin}{relation}"), 0)
        };
        let list: Vec<String> = to.iter().map(item).collect();
        format!(r#"{{"{items}":[{}],{}"#, list.join(","), &OK[1..])
    }

    fn check(&self, app: u32, body: &Value) -> String {
        let Some(from) = body["From_Account"].as_str() else { return error_response(30001, "From_Account") };
        let to: Vec<&str> = array(&body["To_Account"]).filter_map(Value::as_str).collect();
        if to.is_empty() || to.len() > 100 || to.len() != array(&body["To_Account"]).count() {
            return error_response(30001, "To_Account: 1 to 100 strings");
        }
        let items = to.iter().map(|to| item(to, self.follow_type(app, from, to))).collect::<Vec<_>>();
        check_response(&items)
    }
}

/// Returns one successful item of a `follow_check` response.
pub(crate) fn item(to: &str, follow_type: u8) -> String {
    format!(r#"{{"To_Account":{},"ResultCode":0,"ResultInfo":"","FollowType":{follow_type}}}"#, json!(to))
}

/// Returns one failed item.
pub(crate) fn failed_item(to: &str, code: i64) -> String {
    format!(r#"{{"To_Account":{},"ResultCode":{code},"ResultInfo":"Err_Item_{code}"}}"#, json!(to))
}

/// Returns a `follow_check` response with these items, each already JSON.
pub(crate) fn check_response(items: &[String]) -> String {
    format!(
        r#"{{"ResultItem":[{}],"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}}"#,
        items.join(",")
    )
}

/// Returns an error response in the vendor's format.
pub(crate) fn error_response(code: i64, info: &str) -> String {
    format!(r#"{{"ActionStatus":"FAIL","ErrorCode":{code},"ErrorInfo":{},"ErrorDisplay":""}}"#, json!(info))
}

/// Returns one item of a `friend_check` or `black_list_check` response.
pub(crate) fn list_item(to: &str, relation: &str, code: i64) -> String {
    let info = if code == 0 { String::new() } else { format!("Err_Item_{code}") };
    format!(r#"{{"To_Account":{},"Relation":"{relation}","ResultCode":{code},"ResultInfo":"{info}"}}"#, json!(to))
}

fn names_of(body: &Value) -> Vec<&str> {
    array(&body["To_Account"]).filter_map(Value::as_str).collect()
}

fn items_of<'a>(body: &'a Value, list: &str) -> Vec<&'a str> {
    array(&body[list]).filter_map(|item| item["To_Account"].as_str()).collect()
}

fn written(to: &[&str]) -> String {
    let items: Vec<Value> = to.iter().map(|to| json!({"To_Account": to, "ResultCode": 0, "ResultInfo": ""})).collect();
    json!({"ResultItem": items, "ActionStatus": "OK", "ErrorCode": 0, "ErrorInfo": "", "ErrorDisplay": ""}).to_string()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}
