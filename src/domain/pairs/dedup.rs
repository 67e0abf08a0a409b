//! The distinct pairs of a request.

use super::pair::{Pair, UserKey};

/// Keeps the first item of each pair, in order. Returns the index among the kept items for each original item, or an
/// empty vector if no pair is repeated, as is usual.
///
/// If all pairs have the same `from`, the time is linear in the number of items for any names: the hash of `to` is
/// keyed, so a caller cannot choose names that collide.
pub(crate) fn dedup<T>(items: &mut Vec<T>, pair: impl Fn(&T) -> Pair) -> Vec<u32> {
    let mut table = IndexTable::new(items.len());
    let (mut kept, mut kept_index) = (0, Vec::new());
    for index in 0..items.len() {
        let own = pair(&items[index]);
        let found = table.find_or_insert(own.to, kept, |earlier| pair(&items[earlier]) == own).unwrap_or_else(|| {
            if kept != index {
                items.swap(kept, index);
            }
            kept += 1;
            kept - 1
        });
        if found != index {
            // Up to the first repeat, each item is its own; from there on, record every index.
            if kept_index.is_empty() {
                kept_index.reserve(items.len());
                kept_index.extend(0..index as u32);
            }
            kept_index.push(found as u32);
        }
    }
    items.truncate(kept);
    kept_index
}

/// Returns how many of the users are distinct.
pub(crate) fn count_distinct(users: &[UserKey]) -> usize {
    let mut table = IndexTable::new(users.len());
    let is_new = |(index, user): &(usize, &UserKey)| {
        table.find_or_insert(**user, *index, |earlier| users[earlier] == **user).is_none()
    };
    users.iter().enumerate().filter(is_new).count()
}

/// Indexes of items by the hash of a user: open addressing at half load. Slots are indexes plus one; 0 is free.
struct IndexTable {
    slots: Vec<u32>,
    mask: usize,
}

impl IndexTable {
    /// Returns a table for at most `len` items.
    fn new(len: usize) -> Self {
        let slots = (len * 2).next_power_of_two();
        Self { slots: vec![0; slots], mask: slots - 1 }
    }

    /// Returns the index of an earlier item of this user that `is_same` accepts, or inserts `index` if there is none.
    fn find_or_insert(&mut self, user: UserKey, index: usize, is_same: impl Fn(usize) -> bool) -> Option<usize> {
        let mut at = user.index_bits() as usize & self.mask;
        loop {
            match self.slots[at] as usize {
                0 => {
                    self.slots[at] = index as u32 + 1;
                    return None;
                }
                earlier if is_same(earlier - 1) => return Some(earlier - 1),
                _ => at = (at + 1) & self.mask,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::pair::UserHasher;
    use super::*;

    proptest! {
        #[test]
        fn first_item_of_each_pair_is_kept_and_indexed(
            names in proptest::collection::vec("[ab]{0,4}", 0..40),
        ) {
            let hasher = UserHasher::new(&[5; 16]);
            let from = hasher.user("from");
            let pair = |name: &str| Pair { from, to: hasher.user(name) };
            let mut first: Vec<&String> = Vec::new();
            for name in &names {
                if !first.contains(&name) {
                    first.push(name);
                }
            }
            let mut kept: Vec<&String> = names.iter().collect();
            let kept_index = dedup(&mut kept, |name| pair(name));
            prop_assert_eq!(&kept, &first);
            let users: Vec<UserKey> = names.iter().map(|name| hasher.user(name)).collect();
            prop_assert_eq!(count_distinct(&users), first.len());
            let indexed = if kept.len() == names.len() { 0 } else { names.len() };
            prop_assert_eq!(kept_index.len(), indexed);
            for (name, index) in names.iter().zip(kept_index) {
                prop_assert_eq!(kept[index as usize], name);
            }
        }
    }

    #[test]
    fn colliding_users_use_the_next_slot() {
        // Three items have a table of eight slots.
        let hasher = UserHasher::new(&[6; 16]);
        let from = hasher.user("from");
        let slot = |name: &String| hasher.user(name).index_bits() & 7;
        let mut names = (0..).map(|number| format!("user{number}"));
        let first = names.next().expect("endless");
        let second = names.find(|name| slot(name) == slot(&first)).expect("one of eight");
        let mut items = vec![&first, &second, &second];
        let kept_index = dedup(&mut items, |name| Pair { from, to: hasher.user(name) });
        assert_eq!((items, kept_index), (vec![&first, &second], vec![0, 1, 1]));
    }
}
