//! "A follows B" (vendor page "Verifying Follow Relationships", 1047/70349).

use super::RelationKind;
use super::changes::{Change, Targets};
use super::form::{MemberPlace, RelationMember, ResponseForm};
use crate::domain::chat::command::{BLACK_LIST_ADD, FOLLOW_ADD, FOLLOW_CHECK, FOLLOW_DELETE};

pub(super) const KIND: RelationKind = RelationKind {
    index: 0,
    name: "follow",
    check: FOLLOW_CHECK,
    call_max: 100,
    fleet_letter: b'p',
    check_types: None,
    response: ResponseForm::new(
        "ResultItem",
        RelationMember { name: "FollowType", values: ["0", "1", "2", "3"], place: MemberPlace::AfterInfo },
    ),
    writes: &[
        Change { command: FOLLOW_ADD, targets: Targets::Items("FollowItem") },
        Change { command: FOLLOW_DELETE, targets: Targets::Names },
        // No page says that blocking ends a follow, and none says that it does not.
        Change { command: BLACK_LIST_ADD, targets: Targets::Names },
    ],
    unknown_writes: None,
    // The two kinds have different shapes (vendor pages 1047/70355 and 1047/70356).
    events: &[
        Change { command: "Follow.CallbackAfterFollowAdd", targets: Targets::Items("FollowList") },
        Change { command: "Follow.CallbackAfterFollowDelete", targets: Targets::Names },
        Change { command: "Sns.CallbackBlackListAdd", targets: Targets::PairList },
    ],
};
