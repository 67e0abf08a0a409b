//! The blocklist commands (vendor pages 1047/34911 to 34914).

use serde::Serialize;

use super::fields::{self, Body};
use super::items::{Details, ItemError, items_response_with_failures, ok_envelope};
use super::relation_check::Check;
use super::{CommandResult, Event, EventPair, RELATION_BAD_PARAMETER, RELATION_NO_ACCOUNT, Simulation, from_account};
use crate::sandbox::chat_error::ChatError;
use crate::sandbox::graph::{Graph, RelationError};

/// Maximum number of users in a call.
const TARGETS_MAX: usize = 1000;
/// Maximum page size of `black_list_get`.
const PAGE_MAX: u64 = 1000;

const BLOCKLIST_FULL: i64 = 30013;

const CHECK: Check = Check {
    list: "BlackListCheckItem",
    check_types: ["BlackCheckResult_Type_Single", "BlackCheckResult_Type_Both"],
    relations: [
        "BlackCheckResult_Type_NO",
        "BlackCheckResult_Type_BWithA",
        "BlackCheckResult_Type_AWithB",
        "BlackCheckResult_Type_BothWay",
    ],
};

impl Simulation<'_> {
    /// Blocks users. An ended friendship has no webhook of its own, because no page says that it has one.
    pub(super) fn black_list_add(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let now_secs = self.now_secs;
        let (body, pairs) = self.change_blocks(body, |graph, from, to| graph.block(from, to, now_secs))?;
        Ok(CommandResult { body, event: (!pairs.is_empty()).then_some(Event::Blocked { pairs }) })
    }

    pub(super) fn black_list_delete(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let (body, pairs) = self.change_blocks(body, Graph::unblock)?;
        Ok(CommandResult { body, event: (!pairs.is_empty()).then_some(Event::Unblocked { pairs }) })
    }

    pub(super) fn black_list_check(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        self.check_relation(body, &CHECK, |graph, from, to| graph.block_type(from, to))
    }

    pub(super) fn black_list_get(&mut self, body: &Body) -> Result<CommandResult, ChatError> {
        let from = from_account(body)?;
        let start = fields::number(body, "StartIndex", RELATION_BAD_PARAMETER)?;
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let max = fields::number(body, "MaxLimited", RELATION_BAD_PARAMETER)?;
        if !(1..=PAGE_MAX).contains(&max) {
            return Err(ChatError::new(RELATION_BAD_PARAMETER, "MaxLimited must be from 1 to 1000"));
        }
        fields::number(body, "LastSequence", RELATION_BAD_PARAMETER)?;
        self.require_user(from)?;
        let blocked = self.graph.blocked(from);
        let end = blocked.len().min(start.saturating_add(max as usize));
        let page = blocked.iter().take(end).skip(start);
        let page = BlocklistPage {
            black_list_item: page.map(|(to, since)| BlockedUser { to_account: to, since_secs: *since }).collect(),
            start_index: if end < blocked.len() { end } else { 0 },
            sequence: self.graph.block_sequence(from),
        };
        Ok(CommandResult::of(ok_envelope(&page)))
    }

    /// Applies a change to each target. Returns the response, and the pairs for which the change succeeded.
    fn change_blocks(
        &mut self,
        body: &Body,
        mut change: impl FnMut(&mut Graph, &str, &str) -> Result<(), RelationError>,
    ) -> Result<(Vec<u8>, Vec<EventPair>), ChatError> {
        let from = from_account(body)?;
        let targets = fields::users(body, "To_Account", TARGETS_MAX, RELATION_BAD_PARAMETER)?;
        self.require_user(from)?;
        let mut pairs = Vec::new();
        let items = self.relation_items(&targets, |graph, to| {
            change(graph, from, to).map_err(item_error)?;
            pairs.push(EventPair { from: from.to_owned(), to: to.to_owned() });
            Ok(Details::default())
        });
        Ok((items_response_with_failures("ResultItem", &items), pairs))
    }
}

fn item_error(error: RelationError) -> ItemError {
    let (code, info) = match error {
        RelationError::UnknownUser => (RELATION_NO_ACCOUNT, "account does not exist"),
        RelationError::Exists => (RELATION_BAD_PARAMETER, "Err_SNS_BlackListAdd_Already_Exist"),
        RelationError::Missing => (RELATION_BAD_PARAMETER, "To_Account is not on the blocklist"),
        RelationError::ListFull => (BLOCKLIST_FULL, "From_Account blocks too many accounts"),
        _ => (RELATION_BAD_PARAMETER, "an account cannot block itself"),
    };
    ItemError { code, info }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct BlocklistPage<'a> {
    black_list_item: Vec<BlockedUser<'a>>,
    /// Start of the next page; 0 after the last one.
    start_index: usize,
    /// Spelled as in the vendor's sample; its table says `CurrentSequence`.
    #[serde(rename = "CurruentSequence")]
    sequence: u64,
}

#[derive(Serialize)]
struct BlockedUser<'a> {
    #[serde(rename = "To_Account")]
    to_account: &'a str,
    #[serde(rename = "AddBlackTimeStamp")]
    since_secs: u64,
}
