//! The account commands (vendor pages 1047/34953 to 34956).

use serde::Serialize;
use serde_json::{Value, json};

use super::fields::{self, Body};
use super::items::ok_envelope;
use super::profiles::TEXT_LEN_MAX;
use super::{CommandResult, Simulation};
use crate::domain::chat::envelope;
use crate::sandbox::chat_error::ChatError;
use crate::sandbox::graph::{GraphFull, IMAGE, NICK};

/// Maximum number of accounts in a call.
const ACCOUNTS_MAX: usize = 100;

const ACCOUNT_NOT_FOUND: i64 = 70107;
const ACCOUNTS_FULL: i64 = 70398;
const ACCOUNT_BAD_PARAMETER: i64 = 70402;

impl Simulation<'_> {
    pub(super) fn account_import(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        // Older vendor pages call the member Identifier.
        let member = if body.contains_key("UserID") { "UserID" } else { "Identifier" };
        let name = fields::user(body, member, ACCOUNT_BAD_PARAMETER)?;
        let profile = profile(body)?;
        self.import(name, profile)
            .map_err(|GraphFull| ChatError::new(ACCOUNTS_FULL, "the simulator holds no more accounts"))?;
        Ok(CommandResult::of(envelope::write(0, "")))
    }

    pub(super) fn multiaccount_import(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        // Both forms are documented: the older one is a list of names, the newer one a list of objects.
        let accounts: Vec<(&str, Vec<(&'static str, Value)>)> = if body.contains_key("Accounts") {
            let names = fields::users(body, "Accounts", ACCOUNTS_MAX, ACCOUNT_BAD_PARAMETER)?;
            names.into_iter().map(|name| (name, Vec::new())).collect()
        } else {
            let accounts = fields::objects(body, "AccountList", ACCOUNTS_MAX, ACCOUNT_BAD_PARAMETER)?;
            let account = |account| Ok((fields::user(account, "UserID", ACCOUNT_BAD_PARAMETER)?, profile(account)?));
            accounts.into_iter().map(account).collect::<Result<_, ChatError>>()?
        };
        let failed = accounts.into_iter().filter_map(|(name, profile)| self.import(name, profile).err().map(|_| name));
        let response = ImportResponse { fail_accounts: failed.collect() };
        Ok(CommandResult::of(ok_envelope(&response)))
    }

    pub(super) fn account_delete(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let names = fields::users_in(body, "DeleteItem", "UserID", ACCOUNTS_MAX, ACCOUNT_BAD_PARAMETER)?;
        let items = names.iter().map(|name| {
            let (result_code, result_info) =
                if self.graph.delete(name) { (0, "") } else { (ACCOUNT_NOT_FOUND, "account does not exist") };
            AccountItem { user_id: name, result_code, result_info, account_status: None }
        });
        let response = AccountItemsResponse { result_item: items.collect() };
        Ok(CommandResult::of(ok_envelope(&response)))
    }

    pub(super) fn account_check(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let names = fields::users_in(body, "CheckItem", "UserID", ACCOUNTS_MAX, ACCOUNT_BAD_PARAMETER)?;
        let items = names.iter().map(|name| {
            let status = if self.graph.exists(name) { "Imported" } else { "NotImported" };
            AccountItem { user_id: name, result_code: 0, result_info: "", account_status: Some(status) }
        });
        let response = AccountItemsResponse { result_item: items.collect() };
        Ok(CommandResult::of(ok_envelope(&response)))
    }

    /// Adds a user if it does not exist, and sets these fields of its profile.
    fn import(&mut self, name: &str, profile: Vec<(&'static str, Value)>) -> Result<(), GraphFull> {
        self.graph.import(name)?;
        self.graph.set_profile(name, profile);
        Ok(())
    }
}

/// Returns the fields of a profile that an import sets.
fn profile(account: &Body) -> Result<Vec<(&'static str, Value)>, ChatError> {
    let mut fields = Vec::new();
    for (member, tag) in [("Nick", NICK), ("FaceUrl", IMAGE)] {
        if account.contains_key(member) {
            fields.push((tag, json!(fields::text(account, member, TEXT_LEN_MAX, ACCOUNT_BAD_PARAMETER)?)));
        }
    }
    Ok(fields)
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ImportResponse<'a> {
    fail_accounts: Vec<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AccountItemsResponse<'a> {
    result_item: Vec<AccountItem<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct AccountItem<'a> {
    #[serde(rename = "UserID")]
    user_id: &'a str,
    result_code: i64,
    result_info: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_status: Option<&'static str>,
}
