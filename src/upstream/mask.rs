//! Nothing of ours comes back: a usersig that Chat echoes is masked in the answer.

use bytes::Bytes;
use memchr::memmem;

/// The body, with `usersig` covered by as many asterisks wherever it stands, percent-encoded or not.
///
/// Length and everything else stay as they are.
pub(super) fn mask(body: Bytes, usersig: &str) -> Bytes {
    // Every spelling begins the same, so one search tells of nearly every answer that it is clean.
    let beginning = usersig.split('*').next().unwrap_or_default();
    if memmem::find(&body, beginning.as_bytes()).is_none() {
        return body;
    }
    // Of a usersig's characters only `*` is ever percent-encoded, and not by everybody.
    let encoded = usersig.replace('*', "%2A");
    let encoded_lower = usersig.replace('*', "%2a");
    let mut masked: Option<Vec<u8>> = None;
    for needle in [usersig, &encoded, &encoded_lower] {
        let finder = memmem::Finder::new(needle.as_bytes());
        while let Some(at) = finder.find(masked.as_deref().unwrap_or(&body)) {
            masked.get_or_insert_with(|| body.to_vec())[at..at + needle.len()].fill(b'*');
        }
    }
    masked.map_or(body, Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_it_is_covered_and_the_rest_stays() {
        let text = "eJw*ab* eJw%2Aab%2A eJw%2aab%2a eJw*ab";
        assert_eq!(&mask(Bytes::from(text), "eJw*ab*")[..], b"******* *********** *********** eJw*ab");
        let clean = Bytes::from_static(b"nothing here");
        assert_eq!(mask(clean.clone(), "eJw*ab*"), clean);
    }
}
