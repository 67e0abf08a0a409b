//! One relation: directed links between users.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

/// Directed links, each with a value. Both users of a link store it, so neither list needs a search.
///
/// Only existing users may have links: deleting a user must call [`Links::remove_user`].
#[derive(Clone)]
pub(super) struct Links<T> {
    users: HashMap<Arc<str>, UserLinks<T>>,
    len: usize,
    changes: u64,
}

#[derive(Clone)]
struct UserLinks<T> {
    to: BTreeMap<Arc<str>, T>,
    from: BTreeSet<Arc<str>>,
    /// The number of the latest change of `to`.
    sequence: u64,
}

impl<T> Links<T> {
    /// Number of links.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns whether a link from `from` to `to` exists.
    pub(super) fn has(&self, from: &str, to: &str) -> bool {
        self.get(from, to).is_some()
    }

    /// Returns both directions as a number: 2 for a link from `from` to `to`, plus 1 for one from `to` to `from`.
    pub(super) fn directions(&self, from: &str, to: &str) -> u8 {
        2 * u8::from(self.has(from, to)) + u8::from(self.has(to, from))
    }

    /// Returns the value of a link.
    pub(super) fn get(&self, from: &str, to: &str) -> Option<&T> {
        self.users.get(from)?.to.get(to)
    }

    /// Returns the users that `from` has links to, sorted by name, with the values.
    pub(super) fn list(&self, from: &str) -> &BTreeMap<Arc<str>, T> {
        self.users.get(from).map_or(const { &BTreeMap::new() }, |user| &user.to)
    }

    /// Returns the users that have links to `to`, sorted by name.
    pub(super) fn list_to(&self, to: &str) -> &BTreeSet<Arc<str>> {
        static NONE: LazyLock<BTreeSet<Arc<str>>> = LazyLock::new(BTreeSet::new);
        self.users.get(to).map_or(&*NONE, |user| &user.from)
    }

    /// Returns the number of the latest change of a user's list: greater after each change, 0 before the first one.
    pub(super) fn sequence(&self, from: &str) -> u64 {
        self.users.get(from).map_or(0, |user| user.sequence)
    }

    /// Adds a link, or replaces the value of an existing one.
    pub(super) fn set(&mut self, from: &Arc<str>, to: &Arc<str>, value: T) {
        if self.change(from).to.insert(Arc::clone(to), value).is_none() {
            self.entry(to).from.insert(Arc::clone(from));
            self.len += 1;
        }
    }

    /// Removes a link. Returns whether it existed.
    pub(super) fn remove(&mut self, from: &str, to: &str) -> bool {
        let Some((name, _)) = self.users.get_key_value(from).filter(|(_, user)| user.to.contains_key(to)) else {
            return false;
        };
        let name = Arc::clone(name);
        self.change(&name).to.remove(to);
        if let Some(user) = self.users.get_mut(to) {
            user.from.remove(from);
        }
        self.len -= 1;
        true
    }

    /// Removes all links of a user, in both directions.
    pub(super) fn remove_user(&mut self, name: &str) {
        let (to, from): (Vec<_>, Vec<_>) =
            (self.list(name).keys().cloned().collect(), self.list_to(name).iter().cloned().collect());
        for other in to {
            self.remove(name, &other);
        }
        for other in from {
            self.remove(&other, name);
        }
        self.users.remove(name);
    }

    fn entry(&mut self, name: &Arc<str>) -> &mut UserLinks<T> {
        self.users.entry(Arc::clone(name)).or_insert_with(|| UserLinks {
            to: BTreeMap::new(),
            from: BTreeSet::new(),
            sequence: 0,
        })
    }

    /// Returns the links of a user whose list is about to change.
    fn change(&mut self, name: &Arc<str>) -> &mut UserLinks<T> {
        // The numbers are those of the whole relation, so that a user that was deleted and imported again does not
        // repeat one.
        self.changes += 1;
        let sequence = self.changes;
        let user = self.entry(name);
        user.sequence = sequence;
        user
    }
}

impl<T> Default for Links<T> {
    fn default() -> Self {
        Self { users: HashMap::new(), len: 0, changes: 0 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Compares the links with a plain set of pairs after any series of changes.
        #[test]
        fn links_match_a_plain_set_of_pairs(steps in prop::collection::vec((0u8..3, 0usize..5, 0usize..5), 0..60)) {
            let names: [Arc<str>; 5] = ["a", "b", "c", "d", "e"].map(Arc::from);
            let (mut links, mut set) = (Links::default(), BTreeMap::new());
            for (step, (change, from, to)) in steps.into_iter().enumerate() {
                let before = links.sequence(&names[from]);
                match change {
                    0 => {
                        links.set(&names[from], &names[to], step);
                        set.insert((from, to), step);
                    }
                    1 => {
                        let existed = set.remove(&(from, to)).is_some();
                        prop_assert_eq!(links.remove(&names[from], &names[to]), existed);
                        prop_assert_eq!(links.sequence(&names[from]) > before, existed);
                    }
                    _ => {
                        links.remove_user(&names[from]);
                        set.retain(|pair, _| pair.0 != from && pair.1 != from);
                    }
                }
            }
            prop_assert_eq!(links.len(), set.len());
            for (from, name) in names.iter().enumerate() {
                let list: Vec<_> = links.list(name).iter().map(|(to, value)| (to.clone(), *value)).collect();
                let expected = set.iter().filter(|(pair, _)| pair.0 == from);
                let expected: Vec<_> = expected.map(|(pair, value)| (names[pair.1].clone(), *value)).collect();
                prop_assert_eq!(list, expected);
                let list_to: Vec<_> = links.list_to(name).iter().cloned().collect();
                let expected = set.keys().filter(|pair| pair.1 == from);
                prop_assert_eq!(list_to, expected.map(|pair| names[pair.0].clone()).collect::<Vec<_>>());
                for (to, other) in names.iter().enumerate() {
                    let directions =
                        2 * u8::from(set.contains_key(&(from, to))) + u8::from(set.contains_key(&(to, from)));
                    prop_assert_eq!(links.directions(name, other), directions);
                }
            }
        }
    }
}
