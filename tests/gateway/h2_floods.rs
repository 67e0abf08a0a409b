//! HTTP/2 peers that exceed the gateway's limits.

use std::time::Duration;

use crate::support::chat::FakeChat;
use crate::support::client::TestRequest;
use crate::support::gateway::Gateway;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::h2_raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, FloodOutcome, HEADERS, PING, PRIORITY, RST_STREAM, RawHttp2, SETTINGS,
    WINDOW_UPDATE, field_line, frame, post_headers,
};
use crate::support::setup::{Setup, gateway};
use crate::support::{eventually, now, turn};

const CALL: &str = "openim/querystate";

#[tokio::test]
async fn oversized_headers_are_rejected_with_a_chatgate_error() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let http2 = Http2::open(gateway.address()).await;
    let lines =
        |count: usize| (0..count).fold(TestRequest::command(CALL), |request, n| request.header(&format!("x-{n}"), "v"));
    let large = |size: usize| TestRequest::command(CALL).header("x-large", &"v".repeat(size));
    http2.request(&lines(90)).await.assert_relayed(200, OK);
    // Repeated header lines count one by one.
    let names = (0..101).fold(TestRequest::command(CALL), |request, _| request.header("x-request-id", "v"));
    for request in [lines(101), lines(500), large(65 * 1024), large(100 * 1024), names] {
        http2.request(&request).await.assert_error(431, "head_too_large", 129_431);
    }
    // Over 128 KiB, the HTTP/2 library answers below chatgate: without an ID, a line, or a metric.
    let bare = http2.request(&large(140 * 1024)).await;
    assert_eq!((bare.status, bare.body.len()), (431, 0), "{bare:?}");
    for header in ["x-request-id", "chatgate-error", "chatgate-error-code"] {
        assert_eq!(bare.header(header), None, "{bare:?}");
    }
    let counted = r#"chatgate_requests_total{app="",command="other",outcome="head_too_large"} 5"#;
    let metrics = gateway.admin_get("/metrics").await.text();
    assert!(metrics.contains(counted), "{metrics}");
    http2.request(&TestRequest::command(CALL)).await.assert_relayed(200, OK);
    assert_eq!(chat.call_count(), 2);
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

/// Memory growth allowed after a flood, in bytes. Threads start once, and buffers and the allocator's pools
/// fill once.
const MEMORY_SLACK: u64 = 8 << 20;

/// Floods a new connection with `count` pieces. Asserts that other callers are served during and after the
/// flood, and that memory returns to its earlier level.
async fn flood(gateway: &Gateway, count: usize, piece: impl Fn(usize) -> Vec<u8>) -> FloodOutcome {
    let before = gateway.resident_bytes();
    let flooding = RawHttp2::open(gateway.address()).await.flood(count, piece);
    let others = async {
        for _ in 0..10 {
            gateway.call(CALL, "{}").await.assert_relayed(200, OK);
        }
    };
    let (end, ()) = tokio::join!(flooding, others);
    // The allocator returns memory on its next activity.
    eventually(&format!("memory is freed after {end:?}"), async || {
        gateway.call(CALL, "{}").await.assert_relayed(200, OK);
        (gateway.resident_bytes().saturating_sub(before) < MEMORY_SLACK).then_some(())
    })
    .await;
    end
}

/// Builds the HEADERS frame of a request on the n-th stream.
fn head(n: usize, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream(n), &post_headers("/v4/openim/querystate"))
}

fn stream(n: usize) -> u32 {
    u32::try_from(2 * n + 1).expect("a stream number")
}

#[tokio::test]
async fn rapid_stream_resets_close_the_connection() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let cancel = 8_u32.to_be_bytes();
    let end = flood(&gateway, 20_000, |n| [head(n, 0), frame(RST_STREAM, 0, stream(n), &cancel)].concat()).await;
    assert!(end.closed, "{end:?}");
    let end =
        flood(&gateway, 20_000, |n| [head(n, END_STREAM), frame(RST_STREAM, 0, stream(n), &cancel)].concat()).await;
    assert!(end.closed, "{end:?}");
}

#[tokio::test]
async fn repeated_stream_errors_close_the_connection() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    // An increment of 0 is a stream error, not a connection error (RFC 9113 section 6.9).
    let zero = 0_u32.to_be_bytes();
    let end = flood(&gateway, 20_000, |n| [head(n, 0), frame(WINDOW_UPDATE, 0, stream(n), &zero)].concat()).await;
    assert!(end.closed, "{end:?}");
}

#[tokio::test]
async fn endless_header_block_closes_the_connection() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let large = field_line("x", &"v".repeat(100)).repeat(100);
    for piece in [&[][..], &[0x82], &large] {
        let end = flood(&gateway, 50_000, |n| match n {
            0 => frame(HEADERS, 0, 1, &post_headers("/v4/openim/querystate")),
            _ => frame(CONTINUATION, 0, 1, piece),
        })
        .await;
        assert!(end.closed, "{end:?}");
    }
    assert_eq!(chat.call_count(), 33);
}

#[tokio::test]
async fn control_frame_floods_do_not_grow_memory() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let many = |frame: Vec<u8>| frame.repeat(100);
    let too_large = 0x7fff_ffff_u32.to_be_bytes();
    for (may_continue, piece) in [
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
        let end = flood(&gateway, 10_000, |_| piece.clone()).await;
        // A connection that stays open has sent more bytes than memory may grow by.
        assert!(if may_continue { end.sent as u64 > MEMORY_SLACK } else { end.closed }, "{end:?}");
        assert!(end.goaway.is_some() || !end.closed, "{end:?}");
    }
}

#[tokio::test]
async fn empty_data_frames_close_the_connection() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let end = flood(&gateway, 100_000, |n| if n == 0 { head(0, 0) } else { frame(DATA, 0, 1, &[]) }).await;
    assert!(end.closed, "{end:?}");
    assert_eq!(chat.call_count(), 11);
}

#[tokio::test]
async fn ping_only_connection_is_closed_after_the_timeout() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let setup = Setup::new(&chat).set("server", r#"head_timeout = "1s""#).set("server", r#"write_timeout = "1s""#);
    let gateway = setup.start().await;
    let pings = frame(PING, 0, 0, b"whatever").repeat(100);
    let start = now();
    let end = RawHttp2::open(gateway.address()).await.flood(usize::MAX, |_| pings.clone()).await;
    assert!(end.closed && start.elapsed() < Duration::from_secs(10), "{end:?} after {:?}", start.elapsed());
    // This peer does not read. Its PING acknowledgements fill the kernel's buffers, then the gateway stops reading.
    let mut non_reading = RawHttp2::open(gateway.address()).await;
    let start = now();
    while non_reading.send(&pings).await {}
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn slow_second_header_block_is_closed_by_head_timeout() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"head_timeout = "1s""#).start().await;
    let mut peer = RawHttp2::open(gateway.address()).await;
    let block = post_headers("/nowhere");
    assert!(peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await);
    while !matches!(peer.next().await.expect("a response"), (HEADERS, _, 1, _)) {}
    let start = now();
    assert!(peer.send(&frame(HEADERS, END_STREAM, 3, &block[..3])).await);
    for byte in block[3..].iter().chain(&field_line("x", &"v".repeat(100))) {
        if !peer.send(&frame(CONTINUATION, 0, 3, &[*byte])).await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!((Duration::from_millis(900)..Duration::from_secs(8)).contains(&start.elapsed()), "{:?}", start.elapsed());
    while peer.next().await.is_some() {}
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}

#[tokio::test]
async fn responses_without_flow_control_window_expire_after_write_timeout() {
    let _exclusive = turn::exclusive().await;
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("server", r#"write_timeout = "1s""#).start().await;
    let mut peer = RawHttp2::open(gateway.address()).await;
    // SETTINGS_INITIAL_WINDOW_SIZE = 0 (RFC 9113 section 6.5.2).
    assert!(peer.send(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await);
    assert!(peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &post_headers("/nowhere"))).await);
    while !matches!(peer.next().await.expect("response headers"), (HEADERS, _, 1, _)) {}
    let start = now();
    // The peer keeps sending requests, so it is never idle, but it reads no response.
    for n in 1.. {
        if !peer.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream(n), &post_headers("/nowhere"))).await {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(start.elapsed() < Duration::from_secs(8), "the responses are still buffered");
    }
    assert!(start.elapsed() >= Duration::from_millis(900), "{:?}", start.elapsed());
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}
