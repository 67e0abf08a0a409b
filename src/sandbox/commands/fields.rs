//! Members of request bodies: user names and lists, with the errors of Chat.

use serde_json::{Map, Value};

use crate::domain::chat::app::check_user_id;
use crate::sandbox::chat_error::ChatError;

/// The body of a request.
pub(super) type Body = Map<String, Value>;

const USER_ID_NOT_TEXT: i64 = 60015;

/// Returns a member that is a user name. `bad` is the service's code for a bad parameter.
pub(super) fn user<'a>(body: &'a Body, member: &str, bad: i64) -> Result<&'a str, ChatError> {
    match body.get(member) {
        Some(value) => user_id(value, member, bad),
        None => Err(ChatError::new(bad, format!("{member} is missing"))),
    }
}

/// Returns a member that is an array of 1 to `max` user names.
pub(super) fn users<'a>(body: &'a Body, member: &str, max: usize, bad: i64) -> Result<Vec<&'a str>, ChatError> {
    list(body, member, max, bad)?.iter().map(|value| user_id(value, member, bad)).collect()
}

/// Returns the user names in a member that is an array of 1 to `max` objects, each with the name in `inner`.
pub(super) fn users_in<'a>(
    body: &'a Body,
    member: &str,
    inner: &str,
    max: usize,
    bad: i64,
) -> Result<Vec<&'a str>, ChatError> {
    objects(body, member, max, bad)?.into_iter().map(|object| user(object, inner, bad)).collect()
}

/// Returns a member that is an array of 1 to `max` objects.
pub(super) fn objects<'a>(body: &'a Body, member: &str, max: usize, bad: i64) -> Result<Vec<&'a Body>, ChatError> {
    let objects = list(body, member, max, bad)?.iter().map(Value::as_object).collect::<Option<_>>();
    objects.ok_or_else(|| ChatError::new(bad, format!("{member} must hold objects")))
}

/// Returns a member that is an array of 1 to `max` values.
pub(super) fn list<'a>(body: &'a Body, member: &str, max: usize, bad: i64) -> Result<&'a [Value], ChatError> {
    let list = body.get(member).and_then(Value::as_array);
    let list = list.ok_or_else(|| ChatError::new(bad, format!("{member} must be an array")))?;
    if (1..=max).contains(&list.len()) {
        Ok(list)
    } else {
        Err(ChatError::new(bad, format!("{member} must have 1 to {max} entries")))
    }
}

/// Returns a member that is an integer, not negative.
pub(super) fn number(body: &Body, member: &str, bad: i64) -> Result<u64, ChatError> {
    let number = body.get(member).and_then(Value::as_u64);
    number.ok_or_else(|| ChatError::new(bad, format!("{member} must be an integer")))
}

/// Returns a member that is text of at most `max` bytes, or `""` if it is missing.
pub(super) fn text<'a>(body: &'a Body, member: &str, max: usize, bad: i64) -> Result<&'a str, ChatError> {
    match body.get(member) {
        None => Ok(""),
        Some(Value::String(text)) if text.len() <= max => Ok(text),
        Some(_) => Err(ChatError::new(bad, format!("{member} must be text of at most {max} bytes"))),
    }
}

/// Returns the position of a member's text among the `choices`, or `default` if the member is missing.
pub(super) fn choice(
    body: &Body,
    member: &str,
    choices: [&str; 2],
    default: Option<usize>,
    bad: i64,
) -> Result<usize, ChatError> {
    let [first, second] = choices;
    let chosen = match body.get(member) {
        None => default,
        Some(value) => choices.iter().position(|choice| value.as_str() == Some(choice)),
    };
    chosen.ok_or_else(|| ChatError::new(bad, format!("{member} must be {first} or {second}")))
}

fn user_id<'a>(value: &'a Value, member: &str, bad: i64) -> Result<&'a str, ChatError> {
    let text = value.as_str().ok_or_else(|| ChatError::new(USER_ID_NOT_TEXT, format!("{member} is not a string")))?;
    check_user_id(text).map_err(|error| ChatError::new(bad, format!("a user in {member} {error}")))?;
    Ok(text)
}
