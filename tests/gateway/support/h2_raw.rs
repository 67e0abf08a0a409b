//! HTTP/2 frame by frame, for clients that break the protocol.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::{PATIENCE, within};

/// Frame types (RFC 9113 section 6).
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// Flags of HEADERS and DATA.
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// Returns the bytes of a frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Returns the header block of `POST path` to localhost, without compression (RFC 7541 section 6.2.2).
pub(crate) fn post_headers(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    // Static table: 3 is `:method: POST`, 6 is `:scheme: http`, 4 and 1 are the names `:path` and `:authority`.
    [&[0x83, 0x86, 0x04][..], &text(path), &[0x01], &text("localhost")].concat()
}

/// Returns a field line of a header block, without compression.
pub(crate) fn field_line(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

/// The outcome of flooding a connection.
#[derive(Debug)]
pub(crate) struct FloodOutcome {
    /// Bytes of the flood that the gateway accepted.
    pub(crate) sent: usize,
    /// Whether the gateway closed the connection before the flood ended.
    pub(crate) closed: bool,
    /// The error code of its GOAWAY.
    pub(crate) goaway: Option<u32>,
}

/// A connection with prior knowledge, after the exchange of settings.
pub(crate) struct RawHttp2 {
    read: OwnedReadHalf,
    write: OwnedWriteHalf,
    unread: Vec<u8>,
}

impl RawHttp2 {
    pub(crate) async fn open(address: &str) -> RawHttp2 {
        let (read, write) = TcpStream::connect(address).await.expect("accepted").into_split();
        let mut raw = RawHttp2 { read, write, unread: Vec::new() };
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        raw.send(&[&preface[..], &frame(SETTINGS, 0, 0, &[]), &frame(SETTINGS, 1, 0, &[])].concat()).await;
        raw
    }

    /// Writes bytes unchanged, and returns whether the write succeeded.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        within(PATIENCE, "writing to the gateway", self.write.write_all(bytes)).await.is_ok()
    }

    /// Reads the next frame: type, flags, stream, payload. Returns `None` once the connection is closed.
    pub(crate) async fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        loop {
            if let Some(found) = take_frame(&mut self.unread) {
                return Some(found);
            }
            if !matches!(self.read.read_buf(&mut self.unread).await, Ok(1..)) {
                return None;
            }
        }
    }

    /// Writes `piece(n)` for n from 0 to `count` until the gateway closes the connection, and reads its frames
    /// meanwhile. The result says whether the gateway closed the connection: within [`PATIENCE`] after a failed write,
    /// otherwise within 500 ms after the flood.
    pub(crate) async fn flood(self, count: usize, piece: impl Fn(usize) -> Vec<u8>) -> FloodOutcome {
        let RawHttp2 { mut read, mut write, mut unread } = self;
        let reading = async {
            let mut goaway = None;
            loop {
                while let Some((kind, _, _, payload)) = take_frame(&mut unread) {
                    if kind == GOAWAY {
                        goaway = Some(u32::from_be_bytes(payload[4..8].try_into().expect("four bytes")));
                    }
                }
                if !matches!(read.read_buf(&mut unread).await, Ok(1..)) {
                    return goaway;
                }
            }
        };
        let writing = async {
            let mut sent = 0;
            for n in 0..count {
                let bytes = piece(n);
                if write.write_all(&bytes).await.is_err() {
                    return (sent, true);
                }
                sent += bytes.len();
            }
            (sent, false)
        };
        tokio::pin!(reading);
        let mut closed = None;
        let (sent, failed) = within(PATIENCE, "the flood", async {
            tokio::pin!(writing);
            tokio::select! {
                biased;
                end = &mut writing => end,
                goaway = &mut reading => {
                    closed = Some(goaway);
                    writing.await
                }
            }
        })
        .await;
        if closed.is_none() {
            closed =
                tokio::time::timeout(if failed { PATIENCE } else { Duration::from_millis(500) }, reading).await.ok();
        }
        FloodOutcome { sent, closed: failed || closed.is_some(), goaway: closed.flatten() }
    }
}

fn take_frame(unread: &mut Vec<u8>) -> Option<(u8, u8, u32, Vec<u8>)> {
    let head: [u8; 9] = unread.get(..9)?.try_into().expect("nine bytes");
    let len = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let payload = unread.get(9..9 + len)?.to_vec();
    unread.drain(..9 + len);
    Some((head[3], head[4], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}
