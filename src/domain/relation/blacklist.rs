//! "B is in A's blocklist" (vendor page "Verifying Blocklist", 1047/34913).

use super::changes::{Change, Targets};
use super::form::{MemberPlace, RelationMember, ResponseForm};
use super::{CheckTypes, RelationKind};
use crate::domain::chat::command::{BLACK_LIST_ADD, BLACK_LIST_CHECK, BLACK_LIST_DELETE};

pub(super) const KIND: RelationKind = RelationKind {
    index: 2,
    name: "blacklist",
    check: BLACK_LIST_CHECK,
    call_max: 1000,
    fleet_letter: b'b',
    check_types: Some(CheckTypes { both: "BlackCheckResult_Type_Both", single: "BlackCheckResult_Type_Single" }),
    response: ResponseForm::new(
        "BlackListCheckItem",
        RelationMember {
            name: "Relation",
            values: [
                r#""BlackCheckResult_Type_NO""#,
                r#""BlackCheckResult_Type_BWithA""#,
                r#""BlackCheckResult_Type_AWithB""#,
                r#""BlackCheckResult_Type_BothWay""#,
            ],
            place: MemberPlace::BeforeCode,
        },
    ),
    writes: &[
        Change { command: BLACK_LIST_ADD, targets: Targets::Names },
        Change { command: BLACK_LIST_DELETE, targets: Targets::Names },
    ],
    unknown_writes: Some("sns"),
    events: &[
        Change { command: "Sns.CallbackBlackListAdd", targets: Targets::PairList },
        Change { command: "Sns.CallbackBlackListDelete", targets: Targets::PairList },
    ],
};
