//! The simulated commands: follows, friends, blocklists, and the accounts and profiles that they need.
//!
//! Shapes and limits follow the vendor pages that each file names. Where they are silent, the simulator does the
//! following: a failed item leaves the envelope OK, items are in the order of the request including repeats, and a
//! relation of a user to itself is an error.

mod accounts;
mod blocks;
mod fields;
mod follow;
mod friends;
mod items;
mod profiles;
mod relation_check;

use serde_json::Value;

use self::fields::Body;
use super::chat_error::ChatError;
use super::faults::ItemFault;
use super::graph::Graph;
use crate::domain::chat::command::CommandName;
use crate::domain::chat::envelope;

const RELATION_BAD_PARAMETER: i64 = 30001;
const RELATION_NO_ACCOUNT: i64 = 30003;

/// Executes commands on a graph.
pub(super) struct Simulation<'a> {
    pub(super) graph: &'a mut Graph,
    /// The time in Unix seconds.
    pub(super) now_secs: u64,
    /// The injected fault that hits targets of this call.
    pub(super) item_fault: Option<&'a ItemFault>,
}

/// The response of a command, and the event for webhooks.
#[derive(Debug)]
pub(super) struct CommandResult {
    pub(super) body: Vec<u8>,
    pub(super) event: Option<Event>,
}

/// A change for a webhook, with the targets for which the command succeeded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    Followed { from: String, to: Vec<String> },
    Unfollowed { from: String, to: Vec<String> },
    FriendsAdded { initiator: String, pairs: Vec<EventPair>, forced: bool },
    FriendsDeleted { pairs: Vec<EventPair> },
    Blocked { pairs: Vec<EventPair> },
    Unblocked { pairs: Vec<EventPair> },
    ProfileSet { from: String, fields: Vec<(&'static str, Value)> },
}

/// An entry of a list that changed: the list of `from`, which has or had `to`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EventPair {
    pub(super) from: String,
    pub(super) to: String,
}

impl Simulation<'_> {
    /// Executes a command of the built-in table. A command that is not simulated answers OK and does nothing.
    pub(super) fn execute(&mut self, name: CommandName<'_>, body: &Body) -> Result<CommandResult, ChatError> {
        match (name.service(), name.command()) {
            ("follow", "follow_add") => self.follow_add(body),
            ("follow", "follow_delete") => self.follow_delete(body),
            ("follow", "follow_check") => self.follow_check(body),
            ("follow", "follow_get") => self.follow_get(body),
            ("follow", "follow_get_info") => self.follow_get_info(body),
            ("sns", "friend_add") => self.friend_add(body),
            ("sns", "friend_import") => self.friend_import(body),
            ("sns", "friend_update") => self.friend_update(body),
            ("sns", "friend_delete") => self.friend_delete(body),
            ("sns", "friend_delete_all") => self.friend_delete_all(body),
            ("sns", "friend_check") => self.friend_check(body),
            ("sns", "friend_get") => self.friend_get(body),
            ("sns", "friend_get_list") => self.friend_get_list(body),
            ("sns", "black_list_add") => self.black_list_add(body),
            ("sns", "black_list_delete") => self.black_list_delete(body),
            ("sns", "black_list_check") => self.black_list_check(body),
            ("sns", "black_list_get") => self.black_list_get(body),
            ("profile", "portrait_set") => self.portrait_set(body),
            ("profile", "portrait_get") => self.portrait_get(body),
            ("im_open_login_svc", "account_import") => self.account_import(body),
            ("im_open_login_svc", "multiaccount_import") => self.multiaccount_import(body),
            ("im_open_login_svc", "account_delete") => self.account_delete(body),
            ("im_open_login_svc", "account_check") => self.account_check(body),
            _ => Ok(CommandResult::of(envelope::write(0, ""))),
        }
    }

    fn require_user(&self, from: &str) -> Result<(), ChatError> {
        let is_known = self.graph.exists(from);
        if is_known { Ok(()) } else { Err(ChatError::new(RELATION_NO_ACCOUNT, "From_Account does not exist")) }
    }
}

/// Returns the user that a relation command is about.
fn from_account(body: &Body) -> Result<&str, ChatError> {
    fields::user(body, "From_Account", RELATION_BAD_PARAMETER)
}

impl CommandResult {
    /// Returns the result of a command that changed nothing, or nothing that has a webhook.
    fn of(body: Vec<u8>) -> Self {
        Self { body, event: None }
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/sandbox_commands.rs"]
mod tests;
