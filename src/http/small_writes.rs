//! Short pieces are written as one: the kernel takes more time to gather them (`writev`) than it takes here to put them
//! together for a plain `send`. A head with a small body, as nearly every request and answer is, is two pieces.

use std::cell::Cell;
use std::io::IoSlice;

/// What is longer is left to the kernel: from some kilobytes on, copying takes as long as it spares.
const JOINED_LEN_MAX: usize = 2 * 1024;

thread_local! {
    /// Where they are put together, one write at a time.
    static ROOM: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Has short pieces written as one, in their order; `None` if they are long, or one already, and nothing was done.
pub fn write_merged<T>(pieces: &[IoSlice<'_>], write: impl FnOnce(&[u8]) -> T) -> Option<T> {
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    if pieces.len() < 2 || len > JOINED_LEN_MAX {
        return None;
    }
    // Taken, not borrowed: whoever writes may come here again.
    let mut room = ROOM.take();
    room.clear();
    pieces.iter().for_each(|piece| room.extend_from_slice(piece));
    let written = write(&room);
    ROOM.set(room);
    Some(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined_up(pieces: &[&[u8]]) -> Option<Vec<u8>> {
        let pieces: Vec<_> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        write_merged(&pieces, <[u8]>::to_vec)
    }

    #[test]
    fn short_pieces_are_one_and_nothing_of_the_last_ones_is_left() {
        assert_eq!(joined_up(&[b"a long one", b"", b"another"]).as_deref(), Some(&b"a long oneanother"[..]));
        assert_eq!(joined_up(&[b"a", b"b"]).as_deref(), Some(&b"ab"[..]));
        assert_eq!(joined_up(&[b"", b""]).as_deref(), Some(&b""[..]));
    }

    #[test]
    fn one_piece_and_long_ones_are_left_alone() {
        assert_eq!(joined_up(&[]), None);
        assert_eq!(joined_up(&[b"one"]), None);
        let half = vec![b'x'; JOINED_LEN_MAX / 2];
        assert_eq!(joined_up(&[&half, &half]).map(|whole| whole.len()), Some(JOINED_LEN_MAX));
        assert_eq!(joined_up(&[&half, &half, b"x"]), None);
    }

    #[test]
    fn a_write_within_a_write_has_room_of_its_own() {
        let pieces = [IoSlice::new(b"out"), IoSlice::new(b"er")];
        let both = write_merged(&pieces, |outer| (joined_up(&[b"in", b"ner"]), outer.to_vec()));
        assert_eq!(both, Some((Some(b"inner".to_vec()), b"outer".to_vec())));
    }
}
