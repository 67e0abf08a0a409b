//! The relations of two users that Chat checks: their JSON, and what changes them.
//!
//! The pair engine in [`pairs`](super::pairs) knows pairs of two bits and no command. A [`RelationKind`] adds what Chat
//! says of one relation: the command that checks it, its JSON, and the writes and webhooks that change it. Each kind has
//! a file of its own, and a further one needs no more than that and its place in [`KINDS`].
//!
//! - [`request`] reads what a caller asks.
//! - [`response`] writes the response to the caller and the call to Chat, and reads Chat's response.
//! - [`changes`] finds the [`Scope`](super::pairs::scope::Scope) of a write or webhook.

mod blacklist;
pub mod changes;
mod fast_path;
mod follow;
mod form;
mod friend;
pub mod request;
pub mod response;

use self::changes::Change;
use self::form::ResponseForm;
use crate::domain::chat::command::CommandName;

/// One relation of two users.
#[derive(Debug)]
pub struct RelationKind {
    /// Its position in [`KINDS`].
    pub index: usize,
    /// Its name in `relation.kinds`, in metrics, and in `/status`.
    pub name: &'static str,
    /// The command that checks it.
    pub check: CommandName<'static>,
    /// Maximum number of accounts that Chat takes in one call.
    pub call_max: usize,
    /// The byte that its entries have in their keys in Redis. It distinguishes them from those of other relations.
    pub fleet_letter: u8,
    /// The values of `CheckType`; `None` if the command has no such member.
    check_types: Option<CheckTypes>,
    response: ResponseForm,
    /// Writes that change it, except for those that remove a user.
    writes: &'static [Change<CommandName<'static>>],
    /// The service whose writes outside the built-in table may change it in any way.
    unknown_writes: Option<&'static str>,
    /// Webhooks that report a change of it.
    events: &'static [Change<&'static str>],
}

/// The values of `CheckType`.
#[derive(Debug)]
struct CheckTypes {
    /// Both bits are asked for.
    both: &'static str,
    /// Only the first bit is asked for.
    single: &'static str,
}

impl PartialEq for RelationKind {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index
    }
}

/// "A follows B": `follow/follow_check`.
pub static FOLLOW: RelationKind = follow::KIND;
/// "B is in A's friend list": `sns/friend_check`.
pub static FRIEND: RelationKind = friend::KIND;
/// "B is in A's blocklist": `sns/black_list_check`.
pub static BLACKLIST: RelationKind = blacklist::KIND;

/// Every relation.
pub static KINDS: [&RelationKind; 3] = [&FOLLOW, &FRIEND, &BLACKLIST];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::domain::chat::command::CommandKind;

    #[test]
    fn kinds_are_in_their_places_and_distinct() {
        for (index, kind) in KINDS.iter().enumerate() {
            assert_eq!(kind.index, index, "{}", kind.name);
            assert_eq!(kind.check.kind(), CommandKind::Read, "{}", kind.name);
        }
        let names: HashSet<&str> = KINDS.iter().map(|kind| kind.name).collect();
        let letters: HashSet<u8> = KINDS.iter().map(|kind| kind.fleet_letter).collect();
        let commands: HashSet<CommandName<'_>> = KINDS.iter().map(|kind| kind.check).collect();
        assert!(names.len() == KINDS.len() && letters.len() == KINDS.len() && commands.len() == KINDS.len());
    }
}
