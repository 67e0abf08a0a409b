//! HTTP/2 peers that ask for more than they may.

use crate::support::chat::FakeChat;
use crate::support::client::Ask;
use crate::support::graph::OK;
use crate::support::h2::Http2;
use crate::support::setup::gateway;

const CALL: &str = "openim/querystate";

#[tokio::test]
async fn a_head_that_is_too_large_is_refused_in_our_words() {
    let chat = FakeChat::start().await;
    let gateway = gateway(&chat).await;
    let http2 = Http2::open(gateway.address()).await;
    let lines = |count: usize| (0..count).fold(Ask::command(CALL), |ask, n| ask.header(&format!("x-{n}"), "v"));
    let large = |size: usize| Ask::command(CALL).header("x-large", &"v".repeat(size));
    http2.ask(&lines(90)).await.assert_relayed(200, OK);
    for ask in [lines(101), lines(500), large(65 * 1024), large(100 * 1024)] {
        http2.ask(&ask).await.assert_error(431, "head_too_large", 129_431);
    }
    http2.ask(&Ask::command(CALL)).await.assert_relayed(200, OK);
    assert_eq!(chat.count(), 2);
    gateway.call(CALL, "{}").await.assert_relayed(200, OK);
}
