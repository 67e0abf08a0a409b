//! Command names, the built-in table of commands, and the patterns of allow lists.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::LazyLock;

use rustc_hash::FxHashMap;

use crate::domain::quote::looks_like_key;

/// Maximum length of a service or command name, in bytes. Chat's longest has less than 40.
const SEGMENT_LEN_MAX: usize = 64;

/// The command that callers use most, and that the cache answers.
pub const FOLLOW_CHECK: CommandName<'static> = named("follow", "follow_check");
/// A write that adds follow relations.
pub const FOLLOW_ADD: CommandName<'static> = named("follow", "follow_add");
/// A write that removes follow relations.
pub const FOLLOW_DELETE: CommandName<'static> = named("follow", "follow_delete");
/// Checks whether users are in each other's friend lists.
pub const FRIEND_CHECK: CommandName<'static> = named("sns", "friend_check");
/// A write that adds friends.
pub const FRIEND_ADD: CommandName<'static> = named("sns", "friend_add");
/// A write that adds friends, without a webhook.
pub const FRIEND_IMPORT: CommandName<'static> = named("sns", "friend_import");
/// A write that removes friends.
pub const FRIEND_DELETE: CommandName<'static> = named("sns", "friend_delete");
/// A write that removes every friend of its user.
pub const FRIEND_DELETE_ALL: CommandName<'static> = named("sns", "friend_delete_all");
/// Checks whether users are in each other's blocklists.
pub const BLACK_LIST_CHECK: CommandName<'static> = named("sns", "black_list_check");
/// A write that blocks users.
pub const BLACK_LIST_ADD: CommandName<'static> = named("sns", "black_list_add");
/// A write that unblocks users.
pub const BLACK_LIST_DELETE: CommandName<'static> = named("sns", "black_list_delete");
/// A write that removes every relation of its users.
pub const ACCOUNT_DELETE: CommandName<'static> = named("im_open_login_svc", "account_delete");
/// A write that adds an account, with its nickname and face.
pub const ACCOUNT_IMPORT: CommandName<'static> = named("im_open_login_svc", "account_import");
/// A write that adds several accounts.
pub const MULTIACCOUNT_IMPORT: CommandName<'static> = named("im_open_login_svc", "multiaccount_import");
/// A write that removes the account of a chatbot.
pub const DELETE_ROBOT: CommandName<'static> = named("openim_robot_http_svc", "delete_robot");

const fn named(service: &'static str, command: &'static str) -> CommandName<'static> {
    CommandName { service, command }
}

/// The two path segments after `/v4/`, each `[A-Za-z0-9_]{1,64}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CommandName<'a> {
    service: &'a str,
    command: &'a str,
}

/// The text is not `service/command`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be service/command, each 1 to 64 letters, digits, or '_'")]
pub struct NotACommand;

impl<'a> CommandName<'a> {
    /// Parses `service/command`. Nothing is decoded or normalized.
    pub fn parse(text: &'a str) -> Result<Self, NotACommand> {
        let (service, command) = text.split_once('/').ok_or(NotACommand)?;
        if is_segment(service) && is_segment(command) { Ok(Self { service, command }) } else { Err(NotACommand) }
    }

    /// The first segment, `follow` in `follow/follow_check`.
    pub fn service(&self) -> &'a str {
        self.service
    }

    /// The second segment, `follow_check` in `follow/follow_check`.
    pub fn command(&self) -> &'a str {
        self.command
    }

    /// Returns whether the two names differ at most in upper and lower case. No page says whether Chat distinguishes it.
    pub fn eq_ignore_case(self, other: CommandName<'_>) -> bool {
        self.service.eq_ignore_ascii_case(other.service) && self.command.eq_ignore_ascii_case(other.command)
    }

    /// Returns the name for a message or the log: `other` if it could be a key, because any caller can send any name.
    pub fn shown(&self) -> String {
        let could_be_key = looks_like_key(self.service) || looks_like_key(self.command);
        if could_be_key && self.known().is_none() { "other".to_owned() } else { self.to_string() }
    }

    /// Returns its row in the built-in table.
    pub fn known(&self) -> Option<&'static KnownCommand> {
        row_number(*self).map(|row| &KNOWN_COMMANDS[row])
    }

    /// Returns whether it is a read or a write.
    pub fn kind(&self) -> CommandKind {
        CommandKind::of(self.known())
    }
}

impl fmt::Display for CommandName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.command)
    }
}

fn is_segment(text: &str) -> bool {
    (1..=SEGMENT_LEN_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Whether a command can be repeated without side effects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandKind {
    /// Changes nothing, so it may be retried.
    Read,
    /// May change state, so it is sent at most once.
    Write,
}

impl CommandKind {
    /// Returns the kind of a command, given its row. A command without a row counts as a write.
    pub fn of(known: Option<&KnownCommand>) -> Self {
        known.map_or(CommandKind::Write, |known| known.kind)
    }
}

/// Commands outside the built-in table that an app declares as reads, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeclaredReads(Vec<String>);

impl DeclaredReads {
    /// Declares a command. Returns `false` if it is declared already.
    pub fn add(&mut self, name: CommandName<'_>) -> bool {
        let is_new = !self.contains(name);
        if is_new {
            self.0.push(name.to_string());
        }
        is_new
    }

    /// Returns the kind of a command, given its row. The table takes precedence over a declaration.
    pub fn kind(&self, name: CommandName<'_>, known: Option<&KnownCommand>) -> CommandKind {
        if known.is_none() && self.contains(name) { CommandKind::Read } else { CommandKind::of(known) }
    }

    /// Iterates over the commands, each as `service/command`.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    fn contains(&self, name: CommandName<'_>) -> bool {
        self.0.iter().any(|declared| CommandName::parse(declared) == Ok(name))
    }
}

/// A row of the built-in table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownCommand {
    /// Its name.
    pub name: CommandName<'static>,
    /// Read or write.
    pub kind: CommandKind,
    /// Rate limit that its vendor page states, in calls per second; `None` if the page states none.
    pub vendor_qps: Option<NonZeroU32>,
}

/// Rate limit in calls per second that most command pages state, and that applies to commands without one (vendor page
/// "Use Limits", 269 使用限制).
pub const VENDOR_QPS_DEFAULT: NonZeroU32 = NonZeroU32::new(200).expect("not 0");

/// All commands that the vendor documents, in the order of the file.
///
/// `commands.csv` has the columns service, command, title, kind, qps_limit, and doc (the source page). Only the title
/// may be quoted, so the columns are split off from both ends.
pub static KNOWN_COMMANDS: LazyLock<Vec<KnownCommand>> = LazyLock::new(|| {
    include_str!("commands.csv").lines().skip(1).map(|line| row(line).expect("a row of the built-in table")).collect()
});

/// Returns the index of a command in [`KNOWN_COMMANDS`].
pub fn row_number(name: CommandName<'_>) -> Option<usize> {
    ROWS.get(&name).copied()
}

static ROWS: LazyLock<FxHashMap<CommandName<'static>, usize>> =
    LazyLock::new(|| KNOWN_COMMANDS.iter().zip(0..).map(|(known, row)| (known.name, row)).collect());

fn row(line: &'static str) -> Option<KnownCommand> {
    let (service, rest) = line.split_once(',')?;
    let (command, rest) = rest.split_once(',')?;
    let mut from_end = rest.rsplitn(4, ',');
    let (_doc, qps, kind) = (from_end.next()?, from_end.next()?, from_end.next()?);
    Some(KnownCommand {
        name: (is_segment(service) && is_segment(command)).then_some(CommandName { service, command })?,
        kind: match kind {
            "read" => CommandKind::Read,
            "write" => CommandKind::Write,
            _ => return None,
        },
        vendor_qps: if qps.is_empty() { None } else { Some(qps.parse().ok()?) },
    })
}

/// A pattern of an allow list: `*`, `service/*`, or `service/command`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CommandPattern {
    /// Every command.
    Any,
    /// Every command of one service.
    Service(Box<str>),
    /// One command: service, command.
    One(Box<str>, Box<str>),
}

impl CommandPattern {
    /// Returns whether the pattern matches this command.
    pub fn matches(&self, name: CommandName<'_>) -> bool {
        match self {
            CommandPattern::Any => true,
            CommandPattern::Service(service) => **service == *name.service,
            CommandPattern::One(service, command) => **service == *name.service && **command == *name.command,
        }
    }
}

/// The text is not a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a pattern; use \"*\", \"service/*\", or \"service/command\"")]
pub struct NotAPattern;

impl FromStr for CommandPattern {
    type Err = NotAPattern;

    fn from_str(text: &str) -> Result<Self, NotAPattern> {
        if text == "*" {
            return Ok(CommandPattern::Any);
        }
        if let Some(service) = text.strip_suffix("/*") {
            return if is_segment(service) { Ok(CommandPattern::Service(service.into())) } else { Err(NotAPattern) };
        }
        let name = CommandName::parse(text).map_err(|NotACommand| NotAPattern)?;
        Ok(CommandPattern::One(name.service.into(), name.command.into()))
    }
}

impl fmt::Display for CommandPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandPattern::Any => f.write_str("*"),
            CommandPattern::Service(service) => write!(f, "{service}/*"),
            CommandPattern::One(service, command) => write!(f, "{service}/{command}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_command_table_is_read() {
        let lines = include_str!("commands.csv").lines().count() - 1;
        assert_eq!(KNOWN_COMMANDS.len(), lines);
        assert_eq!(ROWS.len(), lines, "a command is listed twice");
        for name in [FOLLOW_CHECK, FOLLOW_ADD, FOLLOW_DELETE, ACCOUNT_DELETE, DELETE_ROBOT] {
            assert!(name.known().is_some(), "{name}");
        }
    }

    #[test]
    fn command_title_may_contain_commas() {
        let known = CommandName::parse("follow/follow_get").expect("a name").known().expect("known");
        assert_eq!(known.kind, CommandKind::Read);
        assert_eq!(known.vendor_qps, NonZeroU32::new(200));
    }

    #[test]
    fn limits_and_kinds_come_from_the_table() {
        let limit = |text| CommandName::parse(text).expect("a name").known().expect("known").vendor_qps;
        assert_eq!(limit("group_open_http_svc/get_appid_group_list"), NonZeroU32::new(1));
        assert_eq!(limit("im_open_login_svc/account_delete"), NonZeroU32::new(100));
        assert_eq!(limit("openim/modify_c2c_msg"), None);
        assert_eq!(FOLLOW_CHECK.kind(), CommandKind::Read);
        assert_eq!(CommandName::parse("future/unknown").expect("a name").kind(), CommandKind::Write);
    }

    #[test]
    fn declared_reads_are_reads_unless_the_table_says_otherwise() {
        let mut reads = DeclaredReads::default();
        let unknown = CommandName::parse("future/unknown").expect("a name");
        assert_eq!(reads.kind(unknown, unknown.known()), CommandKind::Write);
        assert!(reads.add(unknown) && !reads.add(unknown) && reads.add(FOLLOW_ADD));
        assert_eq!(reads.iter().collect::<Vec<_>>(), ["future/unknown", "follow/follow_add"]);
        assert_eq!(reads.kind(unknown, unknown.known()), CommandKind::Read);
        assert_eq!(reads.kind(FOLLOW_ADD, FOLLOW_ADD.known()), CommandKind::Write);
        assert_eq!(reads.kind(FOLLOW_CHECK, FOLLOW_CHECK.known()), CommandKind::Read);
        let other = CommandName::parse("future/unknown_too").expect("a name");
        assert_eq!(reads.kind(other, None), CommandKind::Write);
    }

    #[test]
    fn shown_name_is_never_a_key() {
        let shown = |text: &str| CommandName::parse(text).expect("a name").shown();
        assert_eq!(shown("follow/follow_check"), "follow/follow_check");
        assert_eq!(shown("future/a_command_without_a_row_in_the_table"), "future/a_command_without_a_row_in_the_table");
        let key = "0badc0de5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de";
        assert_eq!([shown(&format!("follow/{key}")), shown(&format!("{key}/x"))], ["other", "other"]);
    }

    #[test]
    fn command_names_are_parsed_without_normalization() {
        assert_eq!(CommandName::parse("follow/follow_check"), Ok(FOLLOW_CHECK));
        assert!(CommandName::parse("ConfigSvc/GetIPList").is_ok());
        let long = format!("{}/b", "a".repeat(65));
        for bad in
            ["", "/", "follow", "follow/", "/x", "a/b/c", "a/b/", "a/b c", "a/%62", "a/b.", "a/..", "ä/b", "a/*", &long]
        {
            assert_eq!(CommandName::parse(bad), Err(NotACommand), "{bad:?}");
        }
    }

    #[test]
    fn patterns_match_exactly_their_commands() {
        let matches = |pattern: &str, name| pattern.parse::<CommandPattern>().expect("a pattern").matches(name);
        assert!(matches("*", FOLLOW_CHECK));
        assert!(matches("follow/*", FOLLOW_ADD));
        assert!(!matches("follow/*", ACCOUNT_DELETE));
        assert!(matches("follow/follow_check", FOLLOW_CHECK));
        assert!(!matches("follow/follow_check", FOLLOW_ADD));
        for bad in ["", "**", "*/follow_check", "follow/fol*", "follow", "/*", "follow/*/x", " *"] {
            assert_eq!(bad.parse::<CommandPattern>(), Err(NotAPattern), "{bad:?}");
        }
    }
}
