//! Suggestions for mistyped words: "did you mean ...?".

use strsim::osa_distance;

/// Maximum length in bytes of a word that gets a suggestion. Every known word is far shorter, and the cost of a
/// comparison grows with the length.
const WORD_LEN_MAX: usize = 200;

/// Returns the candidate with the smallest edit distance, if it is close enough to be a typo.
///
/// The distance counts inserted, deleted, and replaced characters and swaps of neighbors (optimal string alignment).
/// The limit is a third of the word's length, from 1 to 4.
pub(super) fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > WORD_LEN_MAX {
        return None;
    }
    let limit = (word.chars().count() / 3).clamp(1, 4);
    let distances = candidates.into_iter().map(|candidate| (osa_distance(word, candidate), candidate));
    distances.filter(|(distance, _)| *distance <= limit).min().map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_get_a_suggestion_and_unrelated_words_do_not() {
        let keys = ["listen", "admin", "max_body", "max_requests"];
        assert_eq!(closest("lisetn", keys), Some("listen"));
        assert_eq!(closest("listens", keys), Some("listen"));
        assert_eq!(closest("max-body", keys), Some("max_body"));
        assert_eq!(closest("Admin", keys), Some("admin"));
        assert_eq!(closest("colour", keys), None);
        assert_eq!(closest("", keys), None);
        assert_eq!(closest(&"x".repeat(100_000), keys), None);
    }

    #[test]
    fn distances_are_counted_in_characters() {
        for (from, to, expected) in
            [("", "", 0), ("", "ab", 2), ("ab", "ba", 1), ("kitten", "sitting", 3), ("ö", "o", 1)]
        {
            assert_eq!(osa_distance(from, to), expected, "{from} {to}");
            assert_eq!(osa_distance(to, from), expected, "{to} {from}");
        }
    }
}
