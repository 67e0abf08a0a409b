//! The fence of cached reads: no response from before a write of a service it depends on.
//!
//! It gives the guarantee of the [fence of pairs](crate::domain::pairs::fence) by the same two marks of a write, at
//! service level: Chat's commands name what they change in too many ways, and a mark that is too wide only costs a call.
//!
//! Marks are in an array. Each service of Chat's command table has a slot of its own. All others share the rest by a hash
//! of their names, so any caller may name any service and the memory stays fixed. Services with the same slot share their
//! marks, which costs an occasional call and never gives a wrong response.

use std::hash::{Hash, Hasher};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustc_hash::{FxHashMap, FxHasher};

use super::scope::ReadScope;
use crate::domain::chat::command::KNOWN_COMMANDS;
use crate::domain::tick::Tick;

/// Slots for the marks of services, 2 KiB per app. Chat has about 30 services.
const SLOTS: usize = 256;

/// The services that a response depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Services(Box<[u8]>);

impl Services {
    pub(super) fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        const { assert!(SLOTS == u8::MAX as usize + 1) };
        let mut slots: Vec<u8> = names.map(slot_of).collect();
        slots.sort_unstable();
        slots.dedup();
        Self(slots.into())
    }

    pub(super) fn overlap(&self, scope: &ReadScope) -> bool {
        match scope {
            ReadScope::Services(names) => names.iter().any(|name| self.has(slot_of(name))),
            ReadScope::All => true,
        }
    }

    pub(super) fn has(&self, slot: u8) -> bool {
        self.0.contains(&slot)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u8> {
        self.0.iter().copied()
    }
}

/// The slots of the services in Chat's command table, from 0.
static KNOWN: LazyLock<FxHashMap<&'static str, u8>> = LazyLock::new(|| {
    let mut slots = FxHashMap::default();
    for known in KNOWN_COMMANDS.iter() {
        let next = u8::try_from(slots.len()).expect("far fewer services than slots");
        slots.entry(known.name.service()).or_insert(next);
    }
    slots
});

/// Names that differ only in upper and lower case have the same slot: no page says whether Chat distinguishes it.
fn slot_of(service: &str) -> u8 {
    let service = service.to_ascii_lowercase();
    if let Some(slot) = KNOWN.get(&*service) {
        return *slot;
    }
    let mut hasher = FxHasher::default();
    service.hash(&mut hasher);
    let rest = SLOTS - KNOWN.len();
    // The high bits are the well-mixed ones.
    let at = KNOWN.len() + (hasher.finish() >> 32) as usize % rest;
    u8::try_from(at).expect("below the number of slots")
}

/// The marks of one app.
#[derive(Debug)]
pub struct ReadFence {
    services: [AtomicU64; SLOTS],
    app: AtomicU64,
}

impl Default for ReadFence {
    fn default() -> Self {
        Self { services: [const { AtomicU64::new(0) }; SLOTS], app: AtomicU64::new(0) }
    }
}

impl ReadFence {
    /// Makes every response in the scope void whose call was sent up to `now`.
    pub fn mark(&self, scope: &ReadScope, now: Tick) {
        // Marks only move forward, so the later of two concurrent marks remains.
        let mark = |slot: &AtomicU64| slot.fetch_max(now.micros(), Ordering::SeqCst);
        match scope {
            ReadScope::Services(names) => names.iter().for_each(|name| {
                mark(&self.services[usize::from(slot_of(name))]);
            }),
            ReadScope::All => {
                mark(&self.app);
            }
        }
    }

    /// Returns the latest mark of these services. A response is void if its call was sent at that time or earlier.
    pub fn last_mark(&self, services: &Services) -> Tick {
        let read = |slot: &AtomicU64| slot.load(Ordering::SeqCst);
        let of_services = services.iter().map(|slot| read(&self.services[usize::from(slot)])).max();
        Tick::from_micros(of_services.unwrap_or(0).max(read(&self.app)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::domain::chat::command::CommandName;

    fn services(names: &[&str]) -> Services {
        Services::new(names.iter().copied())
    }

    fn scope(write: &str) -> ReadScope {
        ReadScope::of_write(CommandName::parse(write).expect(write))
    }

    #[test]
    fn mark_covers_the_responses_that_depend_on_the_service() {
        let fence = ReadFence::default();
        let at = Tick::from_micros;
        let (profile, friends, groups) =
            (services(&["profile"]), services(&["sns", "profile"]), services(&["group_open_http_svc"]));
        assert_eq!(fence.last_mark(&profile), Tick::NEVER);
        fence.mark(&scope("profile/portrait_set"), at(10));
        assert_eq!([&profile, &friends, &groups].map(|on| fence.last_mark(on)), [at(10), at(10), Tick::NEVER]);
        fence.mark(&scope("sns/friend_add"), at(12));
        fence.mark(&scope("profile/portrait_set"), at(9));
        assert_eq!([&profile, &friends, &groups].map(|on| fence.last_mark(on)), [at(10), at(12), Tick::NEVER]);
        fence.mark(&ReadScope::All, at(20));
        assert_eq!([&profile, &friends, &groups].map(|on| fence.last_mark(on)), [at(20); 3]);
    }

    #[test]
    fn scopes_overlap_the_services_they_name() {
        let friends = services(&["sns", "profile"]);
        for (write, expected) in [
            ("profile/portrait_set", true),
            ("sns/group_add", true),
            ("im_open_login_svc/account_import", true),
            ("im_open_login_svc/account_delete", true),
            ("im_open_login_svc/kick", false),
            ("follow/follow_add", false),
        ] {
            assert_eq!(friends.overlap(&scope(write)), expected, "{write}");
        }
    }

    #[test]
    fn every_service_of_chat_has_a_slot_of_its_own() {
        let slots: BTreeSet<u8> = KNOWN.values().copied().collect();
        assert_eq!(slots.len(), KNOWN.len());
        assert!(KNOWN.len() < SLOTS / 4, "enough slots are left for others");
        let others: BTreeSet<u8> = (0..5000).map(|number| slot_of(&format!("future{number}"))).collect();
        assert!(others.is_disjoint(&slots));
        assert_eq!(others.len(), SLOTS - KNOWN.len(), "others share all the rest");
        for (one, other) in [("profile", "Profile"), ("future", "FuTure")] {
            assert_eq!(slot_of(one), slot_of(other));
        }
    }
}
