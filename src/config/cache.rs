//! `[cache]`: the cache of pairs, and that of other reads.

use std::sync::Arc;
use std::time::Duration;

use super::access::unknown_command;
use super::section::{NamedEntry, Section};
use super::units::{NOT_A_COMMAND, count, duration, hours, millis, show_duration, size};
use crate::domain::chat::command::CommandName;
use crate::domain::quote::{quoted, with_value};
use crate::domain::reads::rules::{COMMANDS_MAX, CachedRead, CachedReads};

/// `[cache]`: the cache of pairs, and that of other reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Maximum age of a cached pair, 0 (no caching) to 24 h. Default 30 s.
    pub ttl: Duration,
    /// Maximum number of cached pairs per app, 1 to 100,000,000. Default 1,000,000.
    pub max_pairs: usize,
    /// How long past its ttl a pair is served while Chat fails or the quota is exhausted, up to 24 h. Default 0.
    pub stale_if_error: Duration,
    /// How long past its ttl a pair is served at once while it is looked up again, up to 24 h. Default 0.
    pub stale_while_revalidate: Duration,
    /// How long after a relayed write what it may have changed is not cached, up to 5 min. Default 1 s.
    pub write_settle: Duration,
    /// Maximum size of all cached responses of other reads, 1 MiB to 64 GiB. Default 64 MiB.
    pub max_bytes: usize,
    /// Other reads that are cached, up to 100. Default none.
    pub commands: Arc<CachedReads>,
}

const MIB: usize = 1024 * 1024;

/// The shortest time that a response may be cached; less would save no call.
const TTL_MIN: Duration = millis(1);

impl Default for Cache {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            max_pairs: 1_000_000,
            stale_if_error: Duration::ZERO,
            stale_while_revalidate: Duration::ZERO,
            write_settle: Duration::from_secs(1),
            max_bytes: 64 * MIB,
            commands: Arc::default(),
        }
    }
}

impl Cache {
    pub(super) fn read(mut section: Section<'_>) -> Self {
        let mut cache = Self::default();
        section.read("ttl", &mut cache.ttl, duration(millis(0)..=hours(24)));
        section.read("max_pairs", &mut cache.max_pairs, count(1..=100_000_000));
        section.read("write_settle", &mut cache.write_settle, duration(millis(0)..=millis(300_000)));
        section.read("stale_if_error", &mut cache.stale_if_error, duration(millis(0)..=hours(24)));
        const REVALIDATE: &str = "stale_while_revalidate";
        section.read(REVALIDATE, &mut cache.stale_while_revalidate, duration(millis(0)..=hours(24)));
        if cache.ttl.is_zero() && !cache.stale_while_revalidate.is_zero() {
            section.warning(REVALIDATE, "has no effect, because ttl is 0s; set a ttl");
            cache.stale_while_revalidate = Duration::ZERO;
        }
        section.read("max_bytes", &mut cache.max_bytes, size(MIB..=64 * 1024 * MIB));
        cache.commands = Arc::new(read_commands(&mut section));
        section.finish();
        cache
    }
}

/// Reads `[cache.commands]`.
fn read_commands(section: &mut Section<'_>) -> CachedReads {
    let mut reads = CachedReads::default();
    let entries = section.named_entries("commands");
    if entries.len() > COMMANDS_MAX {
        section.problem("commands", format_args!("more than {COMMANDS_MAX} commands; remove some"));
        return reads;
    }
    entries.iter().filter_map(|entry| read_command(section, entry)).for_each(|read| reads.add(read));
    reads
}

/// Reads one command and its ttl.
fn read_command(section: &Section<'_>, entry: &NamedEntry<'_>) -> Option<CachedRead> {
    let NamedEntry { name, path, key_location, node } = entry;
    let Ok(command) = CommandName::parse(name) else {
        let message = if name.contains('*') { IS_A_PATTERN } else { NOT_A_COMMAND };
        section.problem_at(key_location, path, with_value(message, &quoted(name)));
        return None;
    };
    let ttl = duration(TTL_MIN..=hours(24))(node)
        .map_err(|message| section.problem_at(&node.location, path, node.with_value(message)))
        .ok()?;
    let read = CachedRead::new(command, ttl).map_err(|error| section.problem_at(key_location, path, error)).ok()?;
    if command.known().is_none() && !section.has_declared(|declared| declared == command) {
        section.warning_at(key_location, path, unknown_command(name));
    }
    if let Some((advised, reason)) = read.advice() {
        let advised = show_duration(advised);
        section.warning_at(
            &node.location,
            path,
            format_args!("long for a response like this: {reason}; use at most {advised}"),
        );
    }
    Some(read)
}

const IS_A_PATTERN: &str = "patterns are not allowed; name each command as \"service/command\"";
