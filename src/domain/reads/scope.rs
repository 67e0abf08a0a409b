//! The cached reads that a write or an event may have changed.

use std::borrow::Cow;

use crate::domain::chat::command::{ACCOUNT_DELETE, ACCOUNT_IMPORT, CommandName, DELETE_ROBOT, MULTIACCOUNT_IMPORT};

/// The service of profiles.
const PROFILE: &str = "profile";

/// The narrowest set of services that certainly contains every response a write may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadScope {
    /// Responses that depend on one of these services.
    Services(Vec<Cow<'static, str>>),
    /// Every response of the app.
    All,
}

impl ReadScope {
    /// Returns what a write may change: its own service. An import of accounts also sets nicknames and faces, and the
    /// end of an account changes everything.
    pub fn of_write(name: CommandName<'_>) -> Self {
        let own = match name.known() {
            Some(known) => Cow::Borrowed(known.name.service()),
            None => Cow::Owned(name.service().to_owned()),
        };
        // No page says whether Chat distinguishes upper and lower case.
        let is = |write| name.eq_ignore_case(write);
        if is(ACCOUNT_DELETE) || is(DELETE_ROBOT) {
            ReadScope::All
        } else if is(ACCOUNT_IMPORT) || is(MULTIACCOUNT_IMPORT) {
            ReadScope::Services(vec![own, Cow::Borrowed(PROFILE)])
        } else {
            ReadScope::Services(vec![own])
        }
    }

    /// Returns what an event may report, by the first part of its `CallbackCommand`; `None` if it reports no change of a
    /// response (vendor page "Webhook Command List", 1047/34355).
    pub fn of_event(command: &str) -> Option<Self> {
        let (family, _) = command.split_once('.')?;
        let service = match family {
            "Sns" => "sns",
            "Follow" => "follow",
            "Profile" => PROFILE,
            "Group" => "group_open_http_svc",
            // Logins and logouts.
            "State" => "openim",
            _ => return None,
        };
        Some(ReadScope::Services(vec![Cow::Borrowed(service)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_write(text: &str) -> ReadScope {
        ReadScope::of_write(CommandName::parse(text).expect(text))
    }

    fn services(names: &[&'static str]) -> ReadScope {
        ReadScope::Services(names.iter().map(|name| Cow::Borrowed(*name)).collect())
    }

    #[test]
    fn write_changes_its_own_service() {
        assert_eq!(of_write("profile/portrait_set"), services(&["profile"]));
        assert_eq!(of_write("future/set"), services(&["future"]));
    }

    #[test]
    fn imports_change_profiles_and_deletions_change_all() {
        for import in ["im_open_login_svc/account_import", "im_open_login_svc/multiaccount_import"] {
            assert_eq!(of_write(import), services(&["im_open_login_svc", "profile"]));
        }
        assert_eq!(of_write("im_open_login_svc/kick"), services(&["im_open_login_svc"]));
        assert_eq!(of_write("im_open_login_svc/account_delete"), ReadScope::All);
        assert_eq!(of_write("openim_robot_http_svc/delete_robot"), ReadScope::All);
        // Chat may read names in another case as these.
        assert_eq!(of_write("im_open_login_svc/Account_Delete"), ReadScope::All);
        assert_eq!(of_write("IM_Open_Login_Svc/account_import"), services(&["IM_Open_Login_Svc", "profile"]));
    }

    #[test]
    fn event_changes_the_service_of_its_family() {
        for (event, service) in [
            ("Sns.CallbackFriendAdd", "sns"),
            ("Follow.CallbackAfterFollowAdd", "follow"),
            ("Profile.CallbackPortraitSet", "profile"),
            ("Group.CallbackAfterMemberExit", "group_open_http_svc"),
            ("State.StateChange", "openim"),
        ] {
            assert_eq!(ReadScope::of_event(event), Some(services(&[service])), "{event}");
        }
        for event in ["", "Sns", "C2C.CallbackAfterSendMsg", "Alert.RequestOverLimit", "sns.CallbackFriendAdd"] {
            assert_eq!(ReadScope::of_event(event), None, "{event}");
        }
    }
}
