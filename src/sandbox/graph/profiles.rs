//! Profiles: the standard fields of a user (vendor page 1047/33520).

use std::collections::BTreeMap;

use serde_json::Value;

use super::Graph;

/// Tag of the nickname.
pub(in crate::sandbox) const NICK: &str = "Tag_Profile_IM_Nick";
/// Tag of the address of the avatar.
pub(in crate::sandbox) const IMAGE: &str = "Tag_Profile_IM_Image";
/// Tag of the treatment of friend requests.
pub(in crate::sandbox) const ALLOW_TYPE: &str = "Tag_Profile_IM_AllowType";

/// The standard fields, and whether the value is text; all others are numbers.
///
/// There are no custom fields, because an app must configure them in the console first.
const TAGS: [(&str, bool); 12] = [
    (NICK, true),
    ("Tag_Profile_IM_Gender", true),
    ("Tag_Profile_IM_BirthDay", false),
    ("Tag_Profile_IM_Location", true),
    ("Tag_Profile_IM_SelfSignature", true),
    (ALLOW_TYPE, true),
    ("Tag_Profile_IM_Language", false),
    (IMAGE, true),
    ("Tag_Profile_IM_MsgSettings", false),
    ("Tag_Profile_IM_AdminForbidType", true),
    ("Tag_Profile_IM_Level", false),
    ("Tag_Profile_IM_Role", false),
];

/// The fields of a user that have a value, by tag.
pub(in crate::sandbox) type Profile = BTreeMap<&'static str, Value>;

/// Returns the tag of a standard field, and whether its value is text.
pub(in crate::sandbox) fn known_tag(tag: &str) -> Option<(&'static str, bool)> {
    TAGS.into_iter().find(|(known, _)| *known == tag)
}

impl Graph {
    /// Returns the profile of a user.
    pub(in crate::sandbox) fn profile(&self, name: &str) -> Option<&Profile> {
        self.users.get(name)
    }

    /// Sets fields of a user, if it exists.
    pub(in crate::sandbox) fn set_profile(
        &mut self,
        name: &str,
        fields: impl IntoIterator<Item = (&'static str, Value)>,
    ) {
        if let Some(profile) = self.users.get_mut(name) {
            profile.extend(fields);
        }
    }
}
