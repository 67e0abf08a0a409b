//! The fake Chat's follow graph, and the responses derived from it.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};

/// The follow graph of each app. Clones share one graph.
#[derive(Debug, Clone, Default)]
pub(crate) struct Graph(Arc<Mutex<HashSet<(u32, String, String)>>>);

/// The envelope of a success without additional members.
pub(crate) const OK: &str = r#"{"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","ErrorDisplay":""}"#;

impl Graph {
    pub(crate) fn follow(&self, app: u32, from: &str, to: &str) {
        self.0.lock().insert((app, from.to_owned(), to.to_owned()));
    }

    pub(crate) fn unfollow(&self, app: u32, from: &str, to: &str) {
        self.0.lock().remove(&(app, from.to_owned(), to.to_owned()));
    }

    /// Returns the FollowType of the ordered pair: 2 if `from` follows `to`, plus 1 if `to` follows `from` (vendor page
    /// 1047/70349).
    pub(crate) fn follow_type(&self, app: u32, from: &str, to: &str) -> u8 {
        let edges = self.0.lock();
        let has = |a: &str, b: &str| u8::from(edges.contains(&(app, a.to_owned(), b.to_owned())));
        2 * has(from, to) + has(to, from)
    }

    /// Returns Chat's response to a command, and applies writes to the graph.
    pub(crate) fn respond(&self, app: u32, command: &str, body: &[u8]) -> String {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let from = body["From_Account"].as_str().unwrap_or_default();
        match command {
            "follow/follow_check" => self.check(app, &body),
            "follow/follow_add" => {
                let to: Vec<&str> = array(&body["FollowItem"]).filter_map(|item| item["To_Account"].as_str()).collect();
                to.iter().for_each(|to| self.follow(app, from, to));
                written(&to)
            }
            "follow/follow_delete" => {
                let to: Vec<&str> = array(&body["To_Account"]).filter_map(Value::as_str).collect();
                to.iter().for_each(|to| self.unfollow(app, from, to));
                written(&to)
            }
            "im_open_login_svc/account_delete" => {
                for user in array(&body["DeleteItem"]).filter_map(|item| item["UserID"].as_str()) {
                    let mut edges = self.0.lock();
                    edges.retain(|(number, from, to)| *number != app || (from != user && to != user));
                }
                OK.to_owned()
            }
            _ => OK.to_owned(),
        }
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

fn written(to: &[&str]) -> String {
    let items: Vec<Value> = to.iter().map(|to| json!({"To_Account": to, "ResultCode": 0, "ResultInfo": ""})).collect();
    json!({"ResultItem": items, "ActionStatus": "OK", "ErrorCode": 0, "ErrorInfo": "", "ErrorDisplay": ""}).to_string()
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter()
}
