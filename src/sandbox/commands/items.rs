//! Responses: an item for each target, and the members of every envelope.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::{RELATION_NO_ACCOUNT, Simulation};
use crate::sandbox::graph::{FollowCounts, Graph};

/// The result of a command for one target.
#[derive(Debug, Serialize)]
pub(super) struct Item<'a> {
    #[serde(rename = "To_Account")]
    to_account: &'a str,
    #[serde(flatten)]
    pub(super) details: Details,
    #[serde(rename = "ResultCode")]
    result_code: i64,
    #[serde(rename = "ResultInfo")]
    result_info: &'static str,
}

/// Further members of an item; a command uses at most one.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Details {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) follow_type: Option<u8>,
    #[serde(flatten)]
    pub(super) counts: Option<Counts>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) relation: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) profile_item: Option<Vec<Field>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sns_profile_item: Option<Vec<Field>>,
}

/// The lengths of a user's follow lists.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Counts {
    follower_count: usize,
    following_count: usize,
    mutual_following_count: usize,
}

impl From<FollowCounts> for Counts {
    fn from(counts: FollowCounts) -> Self {
        Self {
            follower_count: counts.followers,
            following_count: counts.following,
            mutual_following_count: counts.mutual,
        }
    }
}

/// A field of a profile or of a friend.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Field {
    pub(super) tag: &'static str,
    pub(super) value: Value,
}

/// Why an item failed: its ResultCode and ResultInfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ItemError {
    pub(super) code: i64,
    pub(super) info: &'static str,
}

impl Item<'_> {
    pub(super) fn is_ok(&self) -> bool {
        self.result_code == 0
    }
}

impl Simulation<'_> {
    /// Runs a command for one target, unless an injected fault hits the target or it does not exist. The error of a
    /// target that does not exist has the code `no_account`.
    pub(super) fn item<'t>(
        &mut self,
        to: &'t str,
        no_account: i64,
        run: impl FnOnce(&mut Graph) -> Result<Details, ItemError>,
    ) -> Item<'t> {
        let fault = self.item_fault.and_then(|fault| fault.code_for(to));
        let result = match fault {
            Some(code) => Err(ItemError { code, info: "injected fault" }),
            None if !self.graph.exists(to) => Err(ItemError { code: no_account, info: "account does not exist" }),
            None => run(self.graph),
        };
        match result {
            Ok(details) => Item { to_account: to, details, result_code: 0, result_info: "" },
            Err(ItemError { code, info }) => {
                Item { to_account: to, details: Details::default(), result_code: code, result_info: info }
            }
        }
    }

    /// Runs a relation command for each target, as [`Simulation::item`] does for one.
    pub(super) fn relation_items<'t>(
        &mut self,
        targets: &[&'t str],
        mut run: impl FnMut(&mut Graph, &str) -> Result<Details, ItemError>,
    ) -> Vec<Item<'t>> {
        targets.iter().map(|to| self.item(to, RELATION_NO_ACCOUNT, |graph| run(graph, to))).collect()
    }
}

/// Returns the response of a `follow` command: an envelope with the items in the member `list`.
pub(super) fn items_response(list: &'static str, items: &[Item<'_>]) -> Vec<u8> {
    ok_envelope(&Items { list, items, lists_failures: false })
}

/// Returns the response of an `sns` or `profile` command: as [`items_response`], and if an item failed, its target is
/// also in `Fail_Account`.
pub(super) fn items_response_with_failures(list: &'static str, items: &[Item<'_>]) -> Vec<u8> {
    ok_envelope(&Items { list, items, lists_failures: true })
}

struct Items<'a> {
    list: &'static str,
    items: &'a [Item<'a>],
    lists_failures: bool,
}

impl Serialize for Items<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(self.list, self.items)?;
        let failed: Vec<&str> = self.items.iter().filter(|item| !item.is_ok()).map(|item| item.to_account).collect();
        if self.lists_failures && !failed.is_empty() {
            map.serialize_entry("Fail_Account", &failed)?;
        }
        map.end()
    }
}

/// Writes the members of a command followed by the members of every envelope.
pub(super) fn ok_envelope(members: &impl Serialize) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct OkEnvelope<'a, T> {
        #[serde(flatten)]
        members: &'a T,
        action_status: &'static str,
        error_code: i64,
        error_info: &'static str,
        error_display: &'static str,
    }
    let envelope = OkEnvelope { members, action_status: "OK", error_code: 0, error_info: "", error_display: "" };
    serde_json::to_vec(&envelope).expect("strings and numbers serialize to JSON")
}
