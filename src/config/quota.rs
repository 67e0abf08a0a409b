//! How many calls a second an app may make.

use std::collections::HashMap;
use std::num::NonZeroU32;

use crate::domain::chat::command::{CommandName, VENDOR_QPS_DEFAULT};

/// Rates of one app, in calls a second, as Chat counts them: for each app and command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// For each command that nothing below says otherwise about. Default: 200, the vendor's own.
    pub per_command: NonZeroU32,
    /// For all commands of the app together; `None` for no such bound.
    pub total: Option<NonZeroU32>,
    /// For single commands, by `service/command`.
    pub commands: HashMap<String, NonZeroU32>,
}

impl Default for Quota {
    fn default() -> Self {
        Self { per_command: VENDOR_QPS_DEFAULT, total: None, commands: HashMap::new() }
    }
}

impl Quota {
    /// The rate of a command.
    ///
    /// An entry of its own is the operator's word and holds as it is, also above the number the vendor
    /// states, for limits can be raised for money (the configuration warns of it). Without an entry it is
    /// `per_command`, or the vendor's number where that is below the usual 200. A `per_command` above 200
    /// lifts the ordinary commands, but not those that the vendor holds lower.
    pub fn limit(&self, name: CommandName<'_>) -> NonZeroU32 {
        // Nearly always empty, and then the name need not be written out to look it up.
        if !self.commands.is_empty()
            && let Some(own) = self.commands.get(&name.to_string())
        {
            return *own;
        }
        match lower_limit(name) {
            Some(vendor) => vendor.min(self.per_command),
            None => self.per_command,
        }
    }
}

/// The vendor's number for a command, where it is below the usual one.
pub fn lower_limit(name: CommandName<'_>) -> Option<NonZeroU32> {
    name.known().and_then(|known| known.vendor_qps).filter(|qps| *qps < VENDOR_QPS_DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(quota: &Quota, name: &str) -> u32 {
        quota.limit(CommandName::parse(name).expect(name)).get()
    }

    fn rate(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).expect("not 0")
    }

    #[test]
    fn the_vendors_lower_limits_are_built_in() {
        let quota = Quota::default();
        assert_eq!(limit(&quota, "follow/follow_check"), 200);
        assert_eq!(limit(&quota, "im_open_login_svc/account_delete"), 100);
        assert_eq!(limit(&quota, "group_open_http_svc/get_appid_group_list"), 1);
        assert_eq!(limit(&quota, "openim/modify_c2c_msg"), 200, "its page states no number");
        assert_eq!(limit(&quota, "future/unheard_of"), 200);
    }

    #[test]
    fn per_command_lowers_all_and_lifts_only_ordinary_ones() {
        let low = Quota { per_command: rate(50), ..Quota::default() };
        assert_eq!(limit(&low, "follow/follow_check"), 50);
        assert_eq!(limit(&low, "im_open_login_svc/account_delete"), 50);
        assert_eq!(limit(&low, "group_open_http_svc/get_appid_group_list"), 1);
        let high = Quota { per_command: rate(10_000_000), ..Quota::default() };
        assert_eq!(limit(&high, "follow/follow_check"), 10_000_000);
        assert_eq!(limit(&high, "im_open_login_svc/account_delete"), 100);
    }

    #[test]
    fn an_entry_is_the_operators_word() {
        let commands = HashMap::from([
            ("im_open_login_svc/account_delete".to_owned(), rate(300)),
            ("follow/follow_check".to_owned(), rate(7)),
        ]);
        let quota = Quota { commands, per_command: rate(50), total: None };
        assert_eq!(limit(&quota, "im_open_login_svc/account_delete"), 300);
        assert_eq!(limit(&quota, "follow/follow_check"), 7);
        assert_eq!(limit(&quota, "follow/follow_add"), 50);
    }
}
