//! HTTP/2 peers that ask for more than they may.

use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::Ask;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::h2_raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, End, HEADERS, PING, PRIORITY, RST_STREAM, RawHttp2, SETTINGS,
    WINDOW_UPDATE, frame, line, post,
};
use crate::support::setup::{Setup, gateway};
use crate::support::{eventually, now, turn};

const CALL: &str = "openim/querystate";

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_in_our_words() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let http2 = Http2::open(gateway.address()).await;
    let lines = |count: usize| (0..count).fold(Ask::command(CALL), |ask, n| ask.header(&format!("x-{n}"), "v"));
    let large = |size: usize| Ask::command(CALL).header("x-large", &"v".repeat(size));
    http2.ask(&lines(90)).await.assert_relayed(200, OK);
    // Lines that are not heeded count like all others.
    let names = (0..101).fold(Ask::command(CALL), |ask, _| ask.header("x-request-id", "v"));
    for ask in [lines(101), lines(500), large(65 * 1024), large(100 * 1024), names] {
        http2.ask(&ask).await.assert_error(431, "head_too_large", 129_431);
    }
    http2.ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    assert_eq!(chat.count(), 2);
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

/// Memory that a flood may leave behind, in bytes: threads come to life, buffers and the allocator's pools
/// fill once.
const MEMORY_SLACK: u64 = 8 << 20;

/// Floods a connection of its own with `count` pieces. While it lasts and afterwards others are served,
/// and memory stays.
async fn flooded(gateway: &Gateway, count: usize, piece: impl Fn(usize) -> Vec<u8>) -> End {
    let before = gateway.memory();
    let flooding = RawHttp2::open(gateway.address()).await.flood(count, piece);
    let others = async {
        for _ in 0..10 {
            gateway.call(CALL, "{}").await.assert_relayed(200, OK);
        }
    };
    let (end, ()) = tokio::join!(flooding, others);
    // The allocator gives back when it is next at work.
    eventually(&format!("memory is free again after {end:?}"), async || {
        gateway.call(CALL, "{}").await.assert_relayed(200, OK);
        (gateway.memory().saturating_sub(before) < MEMORY_SLACK).then_some(())
    })
    .await;
    end
}

/// A request's head on the n-th stream.
fn head(n: usize, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream(n), &post("/v4/openim/querystate"))
}

fn stream(n: usize) -> u32 {
    u32::try_from(2 * n + 1).expect("a number of a stream")
}

#[tokio::test]
async fn streams_opened_and_reset_at_once_end_the_connection() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let calm = 8_u32.to_be_bytes();
    let end = flooded(&gateway, 20_000, |n| [head(n, 0), frame(RST_STREAM, 0, stream(n), &calm)].concat()).await;
    assert!(end.cut, "{end:?}");
    let end =
        flooded(&gateway, 20_000, |n| [head(n, END_STREAM), frame(RST_STREAM, 0, stream(n), &calm)].concat()).await;
    assert!(end.cut, "{end:?}");
}

#[tokio::test]
async fn streams_that_the_gateway_must_reset_end_the_connection() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    // A window of 0 more is an error of the stream alone (RFC 9113 section 6.9).
    let none = 0_u32.to_be_bytes();
    let end = flooded(&gateway, 20_000, |n| [head(n, 0), frame(WINDOW_UPDATE, 0, stream(n), &none)].concat()).await;
    assert!(end.cut, "{end:?}");
}

#[tokio::test]
async fn a_head_without_an_end_ends_the_connection() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let large = line("x", &"v".repeat(100)).repeat(100);
    for piece in [&[][..], &[0x82], &large] {
        let end = flooded(&gateway, 50_000, |n| match n {
            0 => frame(HEADERS, 0, 1, &post("/v4/openim/querystate")),
            _ => frame(CONTINUATION, 0, 1, piece),
        })
        .await;
        assert!(end.cut, "{end:?}");
    }
    assert_eq!(chat.count(), 33);
}

#[tokio::test]
async fn frames_that_ask_nothing_cost_no_memory() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let many = |frame: Vec<u8>| frame.repeat(100);
    let too_large = 0x7fff_ffff_u32.to_be_bytes();
    for (may_go_on, piece) in [
        (true, many(frame(PING, 0, 0, b"whatever"))),
        (true, many(frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]))),
        (true, many(frame(PRIORITY, 0, 3, &[0, 0, 0, 1, 9]))),
        (true, many(frame(0xbe, 0, 0, &[7; 10]))),
        (true, many(frame(WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes()))),
        (false, many(frame(WINDOW_UPDATE, 0, 0, &too_large))),
        (false, many(frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]))),
        (false, many(frame(SETTINGS, 0, 1, &[]))),
        (false, many(frame(PING, 0, 0, b"short"))),
    ] {
        let end = flooded(&gateway, 10_000, |_| piece.clone()).await;
        // What goes on is more than all the memory that it may cost.
        assert!(if may_go_on { end.sent as u64 > MEMORY_SLACK } else { end.cut }, "{end:?}");
        assert!(end.goaway.is_some() || !end.cut, "{end:?}");
    }
}

#[tokio::test]
async fn pieces_of_a_body_with_nothing_in_them_end_the_connection() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let end = flooded(&gateway, 100_000, |n| if n == 0 { head(0, 0) } else { frame(DATA, 0, 1, &[]) }).await;
    assert!(end.cut, "{end:?}");
    assert_eq!(chat.count(), 11);
}

#[tokio::test]
async fn a_peer_that_only_pings_is_closed_when_its_time_is_up_whether_it_reads_or_not() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("server", r#"head_timeout = "1s""#).set("server", r#"write_timeout = "1s""#);
    let gateway = setup.start().await;
    let pings = frame(PING, 0, 0, b"whatever").repeat(100);
    let begun = now();
    let end = RawHttp2::open(gateway.address()).await.flood(usize::MAX, |_| pings.clone()).await;
    assert!(end.cut && begun.elapsed() < Duration::from_secs(10), "{end:?} after {:?}", begun.elapsed());
    // It does not read: answers to its PINGs pile up in the kernel, and then nothing of it is read either.
    let mut deaf = RawHttp2::open(gateway.address()).await;
    let begun = now();
    while deaf.send(&pings).await {}
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn a_further_head_that_drips_is_closed_by_head_timeout() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"head_timeout = "1s""#).start().await;
    let mut peer = RawHttp2::open(gateway.address()).await;
    let block = post("/nowhere");
    assert!(peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await);
    while !matches!(peer.next().await.expect("an answer"), (HEADERS, _, 1, _)) {}
    let begun = now();
    assert!(peer.send(&frame(HEADERS, END_STREAM, 3, &block[..3])).await);
    for byte in block[3..].iter().chain(&line("x", &"v".repeat(100))) {
        if !peer.send(&frame(CONTINUATION, 0, 3, &[*byte])).await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!((Duration::from_millis(900)..Duration::from_secs(8)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    while peer.next().await.is_some() {}
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn answers_that_a_peer_opens_no_window_for_are_kept_no_longer_than_write_timeout() {
    let _alone = turn::alone().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"write_timeout = "1s""#).start().await;
    let mut peer = RawHttp2::open(gateway.address()).await;
    // SETTINGS_INITIAL_WINDOW_SIZE = 0 (RFC 9113 section 6.5.2).
    assert!(peer.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await);
    assert!(peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &post("/nowhere"))).await);
    while !matches!(peer.next().await.expect("a head"), (HEADERS, _, 1, _)) {}
    let begun = now();
    // It goes on asking, so it never looks idle; it takes no answer.
    for n in 1.. {
        if !peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream(n), &post("/nowhere"))).await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(begun.elapsed() < Duration::from_secs(8), "its answers are still kept");
    }
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}
