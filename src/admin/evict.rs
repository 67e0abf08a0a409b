//! `POST /cache/evict`: evicts (invalidates) cached pairs after a change that bypassed chatgate.

use serde::Deserialize;

use crate::domain::chat::app::check_user_id;
use crate::domain::json::object::{Object, describe, given};
use crate::domain::pairs::scope::{Scope, UserPairs};
use crate::domain::quote::plain_name;
use crate::error::GatewayError;
use crate::gateway::{App, Gateway};

/// Largest body, in bytes: room for about 25,000 of the longest user names.
pub(super) const BODY_LEN_MAX: usize = 1024 * 1024;

/// The body. Every member is optional and may not be `null`; other members are rejected.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct EvictRequest {
    /// Name of the app; the default is the app of requests that name none.
    #[serde(default, deserialize_with = "given")]
    app: Option<String>,
    /// The user; the default is all pairs of the app.
    #[serde(default, rename = "From_Account", deserialize_with = "given")]
    from: Option<String>,
    /// The other users; the default is all pairs of the user.
    #[serde(default, rename = "To_Account", deserialize_with = "given")]
    to: Option<Vec<String>>,
}

/// The pairs that a body names.
pub(super) struct Eviction<'a> {
    pub(super) app: &'a App,
    pub(super) scope: Scope,
}

/// Reads the app and the pairs that the body names.
///
/// # Errors
/// The problem of the body.
pub(super) fn read<'a>(gateway: &'a Gateway, body: &[u8]) -> Result<Eviction<'a>, GatewayError> {
    let (app, scope) = parse(body)?;
    let app = gateway.apps.named(app.as_deref()).ok_or_else(|| {
        GatewayError::UnknownApp(match &app {
            Some(name) => {
                let name = plain_name(name).map(|name| format!(" {name}")).unwrap_or_default();
                format!("unknown app{name}; App must be the name of an [[app]]")
            }
            None => "several apps are configured and none is the default; set App".to_owned(),
        })
    })?;
    Ok(Eviction { app, scope })
}

/// Evicts pairs of an app from this replica and the other ones. Returns `pairs`, `user`, or `all`.
pub(super) async fn evict(app: &App, scope: Scope) -> &'static str {
    let evicted = scope.name();
    app.invalidate_everywhere(&scope.into()).await;
    tracing::info!(app = %app.name, evicted, "cached pairs evicted by an admin action");
    evicted
}

/// Returns the name of the app, if the body has one, and the scope.
fn parse(body: &[u8]) -> Result<(Option<String>, Scope), GatewayError> {
    let bad = |problem: String| GatewayError::BadParameter(problem);
    let request: Result<Object<EvictRequest>, _> = serde_json::from_slice(body);
    let Object(EvictRequest { app, from, to }) = request.map_err(|error| {
        let shape = "the body must be an object of App, From_Account (strings), and To_Account (an array of strings)";
        GatewayError::BadJson(format!("{shape}: {}", describe(&error)))
    })?;
    if let Some(from) = &from {
        check_user_id(from).map_err(|error| bad(format!("From_Account {error}")))?;
    }
    for (index, name) in to.iter().flatten().enumerate() {
        check_user_id(name).map_err(|error| bad(format!("To_Account[{index}] {error}")))?;
    }
    let scope = match (from, to) {
        (None, None) => Scope::All,
        (Some(from), None) => Scope::Users(vec![from]),
        (Some(_), Some(to)) if to.is_empty() => {
            return Err(bad("To_Account is empty; omit it to evict all pairs of From_Account".to_owned()));
        }
        (Some(from), Some(to)) => Scope::Pairs(vec![UserPairs { from, to }]),
        (None, Some(_)) => return Err(bad("To_Account without From_Account; add From_Account".to_owned())),
    };
    Ok((app, scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_returns_pairs_a_user_or_a_whole_app() {
        let parse = |text: &str| parse(text.as_bytes()).expect(text);
        let pairs = Scope::pairs_of("ann", &["bob"]);
        let text = r#"{"To_Account":["bob"],"App":"main","From_Account":"ann"}"#;
        assert_eq!(parse(text), (Some("main".into()), pairs));
        assert_eq!(parse(r#"{"From_Account":"ann"}"#), (None, Scope::Users(vec!["ann".into()])));
        assert_eq!(parse(" {} "), (None, Scope::All));
    }

    #[test]
    fn parse_rejects_malformed_bodies_and_scopes() {
        let slug = |text: &str| parse(text.as_bytes()).expect_err(text).wire().slug.text();
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
        let error = parse(br#"{"From_Account":"ann","To_Account":["bob",""]}"#).expect_err("an empty name");
        assert_eq!(error.to_string(), "To_Account[1] is empty");
    }

    #[test]
    fn parse_rejects_every_text_that_is_not_json() {
        for case in crate::domain::json::json_suite::suites::json_texts() {
            let wrapped = [b"{\"App\":", &*case.bytes, b"}"].concat();
            for body in [&wrapped, &case.bytes] {
                let outcome = parse(body).map_err(|error| error.wire().slug.text());
                assert!(!case.name.starts_with("n_") || outcome == Err("bad_json"), "{}", case.name);
            }
        }
    }
}
