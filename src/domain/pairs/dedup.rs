//! The distinct pairs among those that somebody asks about.

use super::pair::Pair;

/// Keeps the first item of each pair, in their order. Says which of those kept each item was of, or nothing if each
/// pair was there once, as nearly always.
///
/// Takes a time that grows with the number of items alone, whatever the names are, if all pairs are of one `from`: the
/// hash of `to` is keyed, so nobody outside can choose names that meet in one place.
pub fn dedup<T>(items: &mut Vec<T>, pair: impl Fn(&T) -> Pair) -> Vec<u32> {
    // Open addressing at half load; 0 is free.
    let mask = (items.len() * 2).next_power_of_two() - 1;
    let mut table = vec![0u32; mask + 1];
    let (mut kept, mut kept_as) = (0, Vec::new());
    for index in 0..items.len() {
        let own = pair(&items[index]);
        let mut at = own.to.index_bits() as usize & mask;
        let place = loop {
            match table[at] as usize {
                0 => {
                    if kept != index {
                        items.swap(kept, index);
                    }
                    kept += 1;
                    table[at] = kept as u32;
                    break kept - 1;
                }
                place if pair(&items[place - 1]) == own => break place - 1,
                _ => at = (at + 1) & mask,
            }
        };
        if place != index {
            // Up to the first repetition each was one of its own; after it none is.
            if kept_as.is_empty() {
                kept_as.reserve(items.len());
                kept_as.extend(0..index as u32);
            }
            kept_as.push(place as u32);
        }
    }
    items.truncate(kept);
    kept_as
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::pair::UserHasher;
    use super::*;

    proptest! {
        #[test]
        fn each_pair_stays_where_it_was_first_and_every_item_is_of_one_that_stays(
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
            let kept_as = dedup(&mut kept, |name| pair(name));
            prop_assert_eq!(&kept, &first);
            let told_of = if kept.len() == names.len() { 0 } else { names.len() };
            prop_assert_eq!(kept_as.len(), told_of);
            for (name, place) in names.iter().zip(kept_as) {
                prop_assert_eq!(kept[place as usize], name);
            }
        }
    }

    #[test]
    fn a_place_in_the_table_that_two_share_is_gone_past() {
        // Three items have a table of eight.
        let hasher = UserHasher::new(&[6; 16]);
        let from = hasher.user("from");
        let place = |name: &String| hasher.user(name).index_bits() & 7;
        let mut names = (0..).map(|number| format!("user{number}"));
        let first = names.next().expect("endless");
        let second = names.find(|name| place(name) == place(&first)).expect("one of eight");
        let mut items = vec![&first, &second, &second];
        let kept_as = dedup(&mut items, |name| Pair { from, to: hasher.user(name) });
        assert_eq!((items, kept_as), (vec![&first, &second], vec![0, 1, 1]));
    }
}
