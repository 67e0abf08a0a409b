//! What `friend_check` and `black_list_check` share (vendor pages 1047/34907 and 34913).

use super::fields::{self, Body};
use super::items::{Details, items_response_with_failures};
use super::{CommandResult, RELATION_BAD_PARAMETER, Simulation, from_account};
use crate::sandbox::chat_error::ChatError;
use crate::sandbox::graph::Graph;

/// Maximum number of targets.
const CHECK_MAX: usize = 1000;

/// The names of a check.
pub(super) struct Check {
    /// The member that holds the items.
    pub(super) list: &'static str,
    /// `CheckType` for one list, and for the lists of both users.
    pub(super) check_types: [&'static str; 2],
    /// `Relation` by number: 2 if To_Account is in the list of From_Account, plus 1 for the reverse.
    pub(super) relations: [&'static str; 4],
}

impl Simulation<'_> {
    /// Answers a check; `directions` returns the number of a pair for [`Check::relations`].
    ///
    /// An unknown From_Account is an error of the call, and an unknown To_Account one of its item; no page says so.
    pub(super) fn check_relation(
        &mut self,
        body: &Body,
        check: &Check,
        directions: impl Fn(&Graph, &str, &str) -> u8,
    ) -> Result<CommandResult, ChatError> {
        let from = from_account(body)?;
        let targets = fields::users(body, "To_Account", CHECK_MAX, RELATION_BAD_PARAMETER)?;
        let check_type = fields::choice(body, "CheckType", check.check_types, None, RELATION_BAD_PARAMETER)?;
        self.require_user(from)?;
        // A check of one list does not look at the other one.
        let looked_at = if check_type == 0 { 0b10 } else { 0b11 };
        let mut items = self.relation_items(&targets, |graph, to| {
            let number = directions(graph, from, to) & looked_at;
            Ok(Details { relation: check.relations.get(usize::from(number)).copied(), ..Details::default() })
        });
        for item in &mut items {
            // The vendor's samples of failed items have it.
            item.details.relation.get_or_insert(check.relations[0]);
        }
        Ok(CommandResult::of(items_response_with_failures(check.list, &items)))
    }
}
