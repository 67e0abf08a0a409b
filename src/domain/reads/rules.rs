//! Which commands may be cached, and what is special about each.
//!
//! `domain/chat/read_caching.csv` has a row for every read of Chat's command table:
//!
//! | column | contents |
//! | --- | --- |
//! | caching | `yes`, `no`, or `imported`: only responses in which every account is imported |
//! | request | members of the request: `X` must be present; `X=0` must be absent, 0, or empty |
//! | without | members that a response must not have at any level, because they change with every message |
//! | also_invalidated_by | services besides its own whose writes change the response |
//! | advised_max_seconds | a longer time has a warning |
//! | reason | why not, or why only under a condition |
//! | doc | the source page |
//!
//! Any other command may be cached as the operator names it. Then chatgate treats it as a read.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::fence::Services;
use super::scope::ReadScope;
use crate::domain::chat::command::{CommandKind, CommandName, KNOWN_COMMANDS};

/// Maximum number of commands that a configuration may name.
pub const COMMANDS_MAX: usize = 100;

/// A row of the table.
#[derive(Debug)]
pub(crate) struct Row {
    caching: Caching,
    request: Vec<RequestMember>,
    without: Vec<&'static str>,
    also_invalidated_by: Vec<&'static str>,
    advised_max: Option<Duration>,
    reason: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caching {
    Yes,
    No,
    Imported,
}

/// What a cacheable request has at its outermost level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestMember {
    /// This member.
    Present(&'static str),
    /// No such member, or one that is 0 or empty.
    Zero(&'static str),
}

static TABLE: LazyLock<FxHashMap<CommandName<'static>, Row>> = LazyLock::new(|| {
    let lines = include_str!("../chat/read_caching.csv").lines().skip(1);
    lines.map(|line| read_row(line).expect("a row of the built-in table")).collect()
});

fn read_row(line: &'static str) -> Option<(CommandName<'static>, Row)> {
    let mut cells = line.split(',');
    let (service, command) = (cells.next()?, cells.next()?);
    let mut known = KNOWN_COMMANDS.iter().map(|known| known.name);
    let name = known.find(|known| (known.service(), known.command()) == (service, command))?;
    let caching = match cells.next()? {
        "yes" => Caching::Yes,
        "no" => Caching::No,
        "imported" => Caching::Imported,
        _ => return None,
    };
    let request = cells.next()?.split_whitespace().map(|member| match member.strip_suffix("=0") {
        Some(name) => RequestMember::Zero(name),
        None => RequestMember::Present(member),
    });
    let request = request.collect();
    let without = cells.next()?.split_whitespace().collect();
    let also_invalidated_by = cells.next()?.split_whitespace().collect();
    let advised_max = match cells.next()? {
        "" => None,
        seconds => Some(Duration::from_secs(seconds.parse().ok()?)),
    };
    let reason = cells.next()?;
    let is_whole = cells.next().is_some_and(|doc| !doc.is_empty()) && cells.next().is_none();
    is_whole.then_some((name, Row { caching, request, without, also_invalidated_by, advised_max, reason }))
}

/// Why a command must not be cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotCacheable {
    /// It changes something, or may do so.
    #[error("must not be cached: it is a write; remove it")]
    Write,
    /// The row of the table has the reason.
    #[error("must not be cached: {0}; remove it")]
    Read(&'static str),
}

/// A command that the configuration names.
#[derive(Debug, Clone)]
pub struct CachedRead {
    /// `service/command`
    pub name: Arc<str>,
    /// How long a response may answer.
    pub ttl: Duration,
    /// The services whose writes invalidate it.
    pub(crate) services: Services,
    row: Option<&'static Row>,
}

impl PartialEq for CachedRead {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name && self.ttl == other.ttl
    }
}

impl Eq for CachedRead {}

impl CachedRead {
    /// Applies the rule of a command.
    ///
    /// # Errors
    /// If it must not be cached.
    pub fn new(name: CommandName<'_>, ttl: Duration) -> Result<Self, NotCacheable> {
        let row = match name.known() {
            Some(known) if known.kind == CommandKind::Write => return Err(NotCacheable::Write),
            Some(known) => TABLE.get(&known.name),
            None => None,
        };
        if let Some(Row { caching: Caching::No, reason, .. }) = row {
            return Err(NotCacheable::Read(reason));
        }
        let further = row.map_or(&[][..], |row| &row.also_invalidated_by);
        let services = Services::new([name.service()].into_iter().chain(further.iter().copied()));
        Ok(Self { name: name.to_string().into(), ttl, services, row })
    }

    /// Returns a warning if the table advises a shorter time: the most that it advises, and the reason.
    pub fn advice(&self) -> Option<(Duration, &'static str)> {
        let row = self.row?;
        row.advised_max.filter(|advised| self.ttl > *advised).map(|advised| (advised, row.reason))
    }

    /// Returns what a cacheable request has.
    pub(crate) fn request_members(&self) -> &'static [RequestMember] {
        self.row.map_or(&[], |row| &row.request)
    }

    /// Returns the members that a cacheable response does not have.
    pub(crate) fn forbidden_members(&self) -> &'static [&'static str] {
        self.row.map_or(&[], |row| &row.without)
    }

    /// Returns whether only responses are cached in which every account is imported.
    pub(crate) fn needs_imported_accounts(&self) -> bool {
        self.row.is_some_and(|row| row.caching == Caching::Imported)
    }
}

/// All commands that the configuration names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CachedReads {
    by_service: FxHashMap<Box<str>, Vec<CachedRead>>,
    len: usize,
}

impl CachedReads {
    /// Adds a command. At most [`COMMANDS_MAX`] are looked at; the configuration has no more.
    pub fn add(&mut self, read: CachedRead) {
        let (service, _) = read.name.split_once('/').expect("a name has two parts");
        self.by_service.entry(service.into()).or_default().push(read);
        self.len += 1;
    }

    /// Returns the number of commands.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether no command is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns a command, if it is cached.
    #[inline]
    pub fn get(&self, name: CommandName<'_>) -> Option<&CachedRead> {
        if self.is_empty() {
            return None;
        }
        let of_service = self.by_service.get(name.service())?;
        of_service.iter().find(|read| read.name[name.service().len() + 1..] == *name.command())
    }

    /// Iterates over the commands in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &CachedRead> {
        let mut all: Vec<_> = self.by_service.values().flatten().collect();
        all.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        all.into_iter()
    }

    /// Returns whether a response of any of these commands is in the scope.
    pub fn is_affected_by(&self, scope: &ReadScope) -> bool {
        self.by_service.values().flatten().any(|read| read.services.overlap(scope))
    }

    /// Returns whether every write that these commands depend on is one that `before` depends on too.
    pub fn depends_on_no_more_than(&self, before: &Self) -> bool {
        let known = |service| before.by_service.values().flatten().any(|read| read.services.has(service));
        self.by_service.values().flatten().flat_map(|read| read.services.iter()).all(known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn name(text: &str) -> CommandName<'_> {
        CommandName::parse(text).expect(text)
    }

    #[test]
    fn every_read_of_chat_has_a_row() {
        let lines = include_str!("../chat/read_caching.csv").lines().count() - 1;
        assert_eq!(TABLE.len(), lines, "a command is listed twice");
        for known in KNOWN_COMMANDS.iter() {
            assert_eq!(TABLE.contains_key(&known.name), known.kind == CommandKind::Read, "{}", known.name);
        }
        for (name, row) in TABLE.iter() {
            assert!(row.caching == Caching::Yes || !row.reason.is_empty(), "{name} has no reason");
            assert!(row.advised_max.is_none() || !row.reason.is_empty(), "{name} has no reason");
            for service in &row.also_invalidated_by {
                let mut of_service = KNOWN_COMMANDS.iter().filter(|known| known.name.service() == *service);
                let has_write = of_service.any(|known| known.kind == CommandKind::Write);
                assert!(has_write, "{name}: {service} has no write");
            }
        }
    }

    #[test]
    fn writes_pages_and_volatile_reads_are_not_cacheable() {
        let reason = |text| CachedRead::new(name(text), TTL).expect_err(text).to_string();
        for write in ["profile/portrait_set", "follow/follow_add", "im_open_login_svc/account_delete"] {
            assert_eq!(reason(write), "must not be cached: it is a write; remove it");
        }
        for (read, part) in [
            ("follow/follow_check", "caches its pairs"),
            ("sns/friend_check", "caches its pairs"),
            ("sns/friend_get", "page"),
            ("follow/follow_get", "page"),
            ("group_open_http_svc/get_group_member_info", "page"),
            ("group_open_http_svc/group_msg_get_simple", "every message"),
            ("recentcontact/get_list", "every message"),
            ("openim/get_c2c_unread_msg_num", "every message"),
            ("openconfigsvr/getnospeaking", "without a call"),
            ("im_cos_msg/get_cos_sig", "credential"),
            ("im_msg_audit/batch_content_moderation", "billed"),
        ] {
            assert!(reason(read).contains(part), "{read}: {}", reason(read));
        }
    }

    #[test]
    fn named_commands_are_found_and_no_others() {
        let mut reads = CachedReads::default();
        for text in ["profile/portrait_get", "sns/group_get", "sns/friend_get_list", "future/get"] {
            reads.add(CachedRead::new(name(text), TTL).expect(text));
        }
        for text in ["profile/portrait_get", "sns/group_get", "sns/friend_get_list", "future/get"] {
            assert_eq!(&*reads.get(name(text)).expect(text).name, text);
        }
        for text in ["profile/portrait_set", "sns/group_ge", "sns/group_get2", "future/set", "other/get"] {
            assert_eq!(reads.get(name(text)), None, "{text}");
        }
        let names: Vec<_> = reads.iter().map(|read| &*read.name).collect();
        assert_eq!(names, ["future/get", "profile/portrait_get", "sns/friend_get_list", "sns/group_get"]);
        assert_eq!(reads.len(), 4);
    }

    #[test]
    fn long_ttl_of_a_login_status_has_advice() {
        let advice = |ttl| CachedRead::new(name("openim/query_online_status"), ttl).expect("cacheable").advice();
        assert_eq!(advice(Duration::from_secs(2)), None);
        assert_eq!(advice(Duration::from_secs(3)), Some((Duration::from_secs(2), "a login changes it")));
        assert_eq!(CachedRead::new(name("profile/portrait_get"), TTL).expect("cacheable").advice(), None);
    }

    #[test]
    fn further_dependencies_are_noticed() {
        let of = |names: &[&str]| {
            let mut reads = CachedReads::default();
            names.iter().for_each(|text| reads.add(CachedRead::new(name(text), TTL).expect(text)));
            reads
        };
        let (none, profile) = (of(&[]), of(&["profile/portrait_get"]));
        let friends = of(&["sns/friend_get_list"]);
        assert!(none.depends_on_no_more_than(&profile) && profile.depends_on_no_more_than(&profile));
        assert!(profile.depends_on_no_more_than(&friends), "a list of friends has profiles");
        assert!(!friends.depends_on_no_more_than(&profile) && !profile.depends_on_no_more_than(&none));
    }
}
