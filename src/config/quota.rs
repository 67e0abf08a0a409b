//! `[app.quota]`: calls per second of an app.

use std::collections::HashMap;
use std::num::NonZeroU32;

use super::access::unknown_command;
use super::section::{NamedEntry, Section};
use super::units::{NOT_A_COMMAND, rate};
use crate::domain::chat::command::{CommandName, VENDOR_QPS_DEFAULT};
use crate::domain::quote::{quoted, with_value};

/// `[app.quota]`: rates of one app in calls per second, as Chat counts them, per app and command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// Rate of each command without an entry in `commands`. Default 200, Chat's usual limit.
    pub per_command: NonZeroU32,
    /// Rate of all commands of the app together; `None`: unlimited.
    pub total: Option<NonZeroU32>,
    /// The part of `per_command` that callers of class `batch` leave to interactive callers; less than `per_command`.
    /// `None`: nothing. See [`Quota::reserve_of`].
    pub reserve: Option<NonZeroU32>,
    /// Rates of single commands, by `service/command`.
    pub commands: HashMap<String, NonZeroU32>,
}

impl Default for Quota {
    fn default() -> Self {
        Self { per_command: VENDOR_QPS_DEFAULT, total: None, reserve: None, commands: HashMap::new() }
    }
}

impl Quota {
    /// Returns the rate of a command.
    ///
    /// An entry in `commands` applies unchanged, even above Chat's documented limit, because Tencent can raise limits
    /// (the configuration warns in this case). Without an entry the rate is `per_command`, or Chat's limit if that is
    /// below 200. A `per_command` above 200 raises only the commands with the usual limit.
    pub fn limit(&self, name: CommandName<'_>) -> NonZeroU32 {
        // The map is usually empty; then the name need not be formatted for the lookup.
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

    /// Returns how many calls per second of a rate callers of class `batch` leave alone. A rate below `per_command`
    /// reserves the same fraction, so that each command has calls for both classes.
    pub fn reserve_of(&self, rate: NonZeroU32) -> u32 {
        let reserve = self.reserve.map_or(0, NonZeroU32::get);
        let part = u64::from(reserve) * u64::from(rate.get()) / u64::from(self.per_command.get());
        u32::try_from(part).map_or(reserve, |part| part.min(reserve))
    }
}

impl Quota {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let mut quota = Self::default();
        section.read("per_command", &mut quota.per_command, rate);
        if quota.per_command > VENDOR_QPS_DEFAULT {
            section.warning("per_command", section.with_value("per_command", above_vendor_limit(VENDOR_QPS_DEFAULT)));
        }
        quota.total = section.optional("total", rate);
        quota.reserve = section.optional("reserve", rate);
        if quota.reserve.is_some_and(|reserve| reserve >= quota.per_command) {
            let message = "leaves nothing to callers of class \"batch\"; set it below per_command";
            section.wrong_value("reserve", message);
        }
        for entry in section.named_entries("commands") {
            if let Some(per_second) = read_command_rate(&section, &entry) {
                quota.commands.insert(entry.name.to_owned(), per_second);
            }
        }
        section.finish();
        quota
    }
}

/// Reads the rate of one command.
fn read_command_rate(section: &Section<'_>, entry: &NamedEntry<'_>) -> Option<NonZeroU32> {
    let Ok(name) = CommandName::parse(entry.name) else {
        section.problem_at(entry.key_location, &entry.path, with_value(NOT_A_COMMAND, &quoted(entry.name)));
        return None;
    };
    let per_second = match rate(entry.node) {
        Ok(per_second) => per_second,
        Err(message) => {
            section.problem_at(&entry.node.location, &entry.path, entry.node.with_value(message));
            return None;
        }
    };
    let vendor_limit = lower_limit(name).unwrap_or(VENDOR_QPS_DEFAULT);
    if name.known().is_none() && !section.has_declared(|declared| declared == name) {
        section.warning_at(entry.key_location, &entry.path, unknown_command(entry.name));
    } else if per_second > vendor_limit {
        section.warning_at(&entry.node.location, &entry.path, entry.node.with_value(above_vendor_limit(vendor_limit)));
    }
    Some(per_second)
}

fn above_vendor_limit(limit: NonZeroU32) -> String {
    format!("exceeds Chat's limit of {limit}/s; lower it, unless Tencent raised the limit of this app")
}

/// Returns Chat's limit for a command if it is below the usual limit.
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
    fn lower_vendor_limits_are_built_in() {
        let quota = Quota::default();
        assert_eq!(limit(&quota, "follow/follow_check"), 200);
        assert_eq!(limit(&quota, "im_open_login_svc/account_delete"), 100);
        assert_eq!(limit(&quota, "group_open_http_svc/get_appid_group_list"), 1);
        assert_eq!(limit(&quota, "openim/modify_c2c_msg"), 200, "its page states no number");
        assert_eq!(limit(&quota, "future/unheard_of"), 200);
    }

    #[test]
    fn per_command_lowers_all_and_raises_only_usual_limits() {
        let low = Quota { per_command: rate(50), ..Quota::default() };
        assert_eq!(limit(&low, "follow/follow_check"), 50);
        assert_eq!(limit(&low, "im_open_login_svc/account_delete"), 50);
        assert_eq!(limit(&low, "group_open_http_svc/get_appid_group_list"), 1);
        let high = Quota { per_command: rate(10_000_000), ..Quota::default() };
        assert_eq!(limit(&high, "follow/follow_check"), 10_000_000);
        assert_eq!(limit(&high, "im_open_login_svc/account_delete"), 100);
    }

    #[test]
    fn entry_overrides_per_command_and_vendor_limit() {
        let commands = HashMap::from([
            ("im_open_login_svc/account_delete".to_owned(), rate(300)),
            ("follow/follow_check".to_owned(), rate(7)),
        ]);
        let quota = Quota { commands, per_command: rate(50), ..Quota::default() };
        assert_eq!(limit(&quota, "im_open_login_svc/account_delete"), 300);
        assert_eq!(limit(&quota, "follow/follow_check"), 7);
        assert_eq!(limit(&quota, "follow/follow_add"), 50);
    }

    #[test]
    fn lower_rates_reserve_the_same_fraction() {
        let quota = Quota { reserve: Some(rate(20)), ..Quota::default() };
        let reserved = [200, 1000, 100, 10, 9, 1].map(|per_second| quota.reserve_of(rate(per_second)));
        assert_eq!(reserved, [20, 20, 10, 1, 0, 0]);
        assert_eq!(Quota::default().reserve_of(rate(200)), 0);
        let large = Quota { per_command: rate(u32::MAX), reserve: Some(rate(u32::MAX - 1)), ..Quota::default() };
        assert_eq!(large.reserve_of(rate(u32::MAX)), u32::MAX - 1);
    }
}
