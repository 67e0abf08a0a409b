//! "B is in A's friend list" (vendor page "Verifying Friend", 1047/34907).

use super::changes::{Change, Targets};
use super::form::{MemberPlace, RelationMember, ResponseForm};
use super::{CheckTypes, RelationKind};
use crate::domain::chat::command::{
    BLACK_LIST_ADD, BLACK_LIST_DELETE, FRIEND_ADD, FRIEND_CHECK, FRIEND_DELETE, FRIEND_DELETE_ALL, FRIEND_IMPORT,
};

pub(super) const KIND: RelationKind = RelationKind {
    index: 1,
    name: "friend",
    check: FRIEND_CHECK,
    call_max: 1000,
    fleet_letter: b'f',
    check_types: Some(CheckTypes { both: "CheckResult_Type_Both", single: "CheckResult_Type_Single" }),
    response: ResponseForm::new(
        "InfoItem",
        RelationMember {
            name: "Relation",
            values: [
                r#""CheckResult_Type_NoRelation""#,
                r#""CheckResult_Type_BWithA""#,
                r#""CheckResult_Type_AWithB""#,
                r#""CheckResult_Type_BothWay""#,
            ],
            place: MemberPlace::BeforeCode,
        },
    ),
    writes: &[
        Change { command: FRIEND_ADD, targets: Targets::Items("AddFriendItem") },
        Change { command: FRIEND_IMPORT, targets: Targets::Items("AddFriendItem") },
        Change { command: FRIEND_DELETE, targets: Targets::Names },
        Change { command: FRIEND_DELETE_ALL, targets: Targets::EveryPair },
        // Blocking ends the friendship in both directions, unless the console says otherwise.
        Change { command: BLACK_LIST_ADD, targets: Targets::Names },
        // No page says whether the friendship comes back.
        Change { command: BLACK_LIST_DELETE, targets: Targets::Names },
    ],
    unknown_writes: Some("sns"),
    events: &[
        Change { command: "Sns.CallbackFriendAdd", targets: Targets::PairList },
        Change { command: "Sns.CallbackFriendDelete", targets: Targets::PairList },
        Change { command: "Sns.CallbackBlackListAdd", targets: Targets::PairList },
        Change { command: "Sns.CallbackBlackListDelete", targets: Targets::PairList },
    ],
};
