//! The profile commands (vendor pages 1047/34916 and 34917), with the standard fields only.

use serde_json::Value;

use super::fields::{self, Body};
use super::items::{Details, Field, items_response_with_failures};
use super::{CommandResult, Event, Simulation};
use crate::domain::chat::envelope;
use crate::sandbox::chat_error::ChatError;
use crate::sandbox::graph::{ALLOW_TYPE, known_tag};

/// Maximum number of users of `portrait_get`, and of fields of either command.
const LIST_MAX: usize = 100;
/// Maximum length of a text, in bytes (code 40601).
pub(super) const TEXT_LEN_MAX: usize = 500;
const ALLOW_TYPES: [&str; 3] = ["AllowType_Type_AllowAny", "AllowType_Type_NeedConfirm", "AllowType_Type_DenyAny"];

const BAD_PARAMETER: i64 = 40001;
const NO_ACCOUNT: i64 = 40003;
const NO_TAG: i64 = 40009;
const TEXT_TOO_LONG: i64 = 40601;

impl Simulation<'_> {
    pub(super) fn portrait_set(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let from = fields::user(body, "From_Account", BAD_PARAMETER)?;
        let items = fields::objects(body, "ProfileItem", LIST_MAX, BAD_PARAMETER)?;
        let fields = items.into_iter().map(|item| {
            let tag = tag(item.get("Tag").unwrap_or(&Value::Null))?;
            Ok((tag, value(tag, item.get("Value").unwrap_or(&Value::Null))?))
        });
        let fields: Vec<(&'static str, Value)> = fields.collect::<Result<_, ChatError>>()?;
        if !self.graph.exists(from) {
            return Err(ChatError::new(NO_ACCOUNT, "From_Account does not exist"));
        }
        self.graph.set_profile(from, fields.clone());
        let event = Some(Event::ProfileSet { from: from.to_owned(), fields });
        Ok(CommandResult { body: envelope::write(0, ""), event })
    }

    /// Answers with the fields that have a value. An unknown user is an error of its item; no page says so.
    pub(super) fn portrait_get(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let targets = fields::users(body, "To_Account", LIST_MAX, BAD_PARAMETER)?;
        let tags = fields::list(body, "TagList", LIST_MAX, BAD_PARAMETER)?;
        let tags: Vec<&'static str> = tags.iter().map(tag).collect::<Result<_, ChatError>>()?;
        let items = targets.iter().map(|to| {
            self.item(to, NO_ACCOUNT, |graph| {
                let profile = graph.profile(to);
                let field = |tag: &&'static str| Some(Field { tag, value: profile?.get(tag)?.clone() });
                let fields = tags.iter().filter_map(field).collect();
                Ok(Details { profile_item: Some(fields), ..Details::default() })
            })
        });
        let items: Vec<_> = items.collect();
        Ok(CommandResult::of(items_response_with_failures("UserProfileItem", &items)))
    }
}

fn tag(value: &Value) -> Result<&'static str, ChatError> {
    let text = value.as_str().ok_or_else(|| ChatError::new(BAD_PARAMETER, "a tag must be text"))?;
    let (tag, _) = known_tag(text).ok_or_else(|| ChatError::new(NO_TAG, "a tag does not exist"))?;
    Ok(tag)
}

/// Checks the value of a field.
fn value(tag: &'static str, value: &Value) -> Result<Value, ChatError> {
    let is_text = known_tag(tag).is_some_and(|(_, is_text)| is_text);
    match value {
        Value::String(text) if is_text && text.len() > TEXT_LEN_MAX => {
            Err(ChatError::new(TEXT_TOO_LONG, format!("{tag} must have at most {TEXT_LEN_MAX} bytes")))
        }
        Value::String(text) if tag == ALLOW_TYPE && !ALLOW_TYPES.contains(&text.as_str()) => {
            Err(ChatError::new(BAD_PARAMETER, format!("{tag} must be one of {}", ALLOW_TYPES.join(", "))))
        }
        Value::String(_) if is_text => Ok(value.clone()),
        Value::Number(number) if !is_text && number.is_u64() => Ok(value.clone()),
        _ => Err(ChatError::new(BAD_PARAMETER, format!("{tag} has a value of the wrong type"))),
    }
}
