//! `POST /cache/evict`: an operator knows of a change that did not come through here.

use serde::Deserialize;

use crate::domain::chat::app::check_user_id;
use crate::domain::json::object::{Object, given};
use crate::domain::pairs::scope::Scope;
use crate::error::GatewayError;
use crate::gateway::Gateway;

/// Largest body, in bytes: some 25,000 of the longest names.
pub(super) const BODY_LEN_MAX: usize = 1024 * 1024;

/// What to forget. Every member may be left out, none may be `null`, and there are no others.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Order {
    /// The app's name; without it the app of calls that name none.
    #[serde(default, deserialize_with = "given")]
    app: Option<String>,
    /// Without it, all of the app.
    #[serde(default, rename = "From_Account", deserialize_with = "given")]
    from: Option<String>,
    /// Without it, all of that user's.
    #[serde(default, rename = "To_Account", deserialize_with = "given")]
    to: Option<Vec<String>>,
}

/// Reads the order and carries it out: `pairs`, `user` or `all` were forgotten.
///
/// # Errors
/// What is wrong with the order, of which then nothing was carried out.
pub(super) async fn evict(gateway: &Gateway, body: &[u8]) -> Result<&'static str, GatewayError> {
    let (app, scope) = read_order(body)?;
    let app = gateway.apps.named(app.as_deref()).ok_or_else(|| {
        GatewayError::UnknownApp(match &app {
            Some(_) => "no app of that name is configured".to_owned(),
            None => "several apps are configured and none is the default; name one with App".to_owned(),
        })
    })?;
    app.invalidate_everywhere(&scope).await;
    let evicted = scope.name();
    tracing::info!(app = %app.name, evicted, "evicted by an operator's order");
    Ok(evicted)
}

/// The app's name, if one is there, and what to forget of it.
fn read_order(body: &[u8]) -> Result<(Option<String>, Scope), GatewayError> {
    let bad = |what: String| GatewayError::BadParameter(what);
    let read: Result<Object<Order>, _> = serde_json::from_slice(body);
    let Object(Order { app, from, to }) = read.map_err(|error| {
        let what = "the body is not an object of App, From_Account (strings) and To_Account (an array of strings)";
        GatewayError::BadJson(format!("{what}: {error}"))
    })?;
    for name in from.iter().chain(to.iter().flatten()) {
        check_user_id(name).map_err(|error| bad(format!("a user name {error}")))?;
    }
    let scope = match (from, to) {
        (None, None) => Scope::All,
        (Some(from), None) => Scope::Users(vec![from]),
        (Some(_), Some(to)) if to.is_empty() => {
            return Err(bad("To_Account is empty; leave it out for all".to_owned()));
        }
        (Some(from), Some(to)) => Scope::Pairs { from, to },
        (None, Some(_)) => return Err(bad("To_Account needs a From_Account".to_owned())),
    };
    Ok((app, scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_names_pairs_a_user_or_all_of_an_app() {
        let read = |text: &str| read_order(text.as_bytes()).expect(text);
        let pairs = Scope::Pairs { from: "ann".into(), to: vec!["bob".into()] };
        let text = r#"{"To_Account":["bob"],"App":"main","From_Account":"ann"}"#;
        assert_eq!(read(text), (Some("main".into()), pairs));
        assert_eq!(read(r#"{"From_Account":"ann"}"#), (None, Scope::Users(vec!["ann".into()])));
        assert_eq!(read(" {} "), (None, Scope::All));
    }

    #[test]
    fn what_is_no_order_is_refused() {
        let slug = |text: &str| read_order(text.as_bytes()).expect_err(text).wire().slug.text();
        for text in [
            "",
            "[]",
            "null",
            r#"["main"]"#,
            "{",
            "{}{}",
            r#"{"app":"main"}"#,
            r#"{"App":null}"#,
            r#"{"App":1}"#,
            r#"{"App":"main","App":"main"}"#,
            r#"{"From_Account":"ann","To_Account":"bob"}"#,
            r#"{"From_Account":"ann","To_Account":null}"#,
            r#"{"From_Account":"ann","To_Account":["bob",1]}"#,
            r#"{"From_Account":"ann","More":1}"#,
        ] {
            assert_eq!(slug(text), "bad_json", "{text}");
        }
        for text in [
            r#"{"To_Account":["bob"]}"#,
            r#"{"From_Account":"ann","To_Account":[]}"#,
            r#"{"From_Account":""}"#,
            r#"{"From_Account":"ann","To_Account":["012345678901234567890123456789012"]}"#,
            r#"{"From_Account":"a\nb"}"#,
        ] {
            assert_eq!(slug(text), "bad_parameter", "{text}");
        }
    }
}
