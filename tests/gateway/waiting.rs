//! Lookups of pairs that are already in flight.

use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::gateway::Gateway;
use crate::support::graph::{check_response, error_response, item};
use crate::support::reply::{Gate, Reply};
use crate::support::response::Response;
use crate::support::setup::Setup;

/// Sends these requests, each on its own connection. The others are sent after the first one's call is upstream.
async fn send_all(gateway: &Gateway, chat: &FakeChat, requests: &[TestRequest]) -> Vec<Conn> {
    let (mut conns, before) = (Vec::new(), chat.call_count());
    for request in requests {
        let mut conn = gateway.connect().await;
        conn.send(request.bytes()).await;
        conns.push(conn);
        if conns.len() == 1 {
            chat.wait_for_calls(before + 1).await;
        }
    }
    conns
}

/// Does the same as [`send_all`] and waits until all requests are in flight. Upstream must hold back its responses.
async fn send_all_and_wait(gateway: &Gateway, chat: &FakeChat, requests: &[TestRequest]) -> Vec<Conn> {
    let conns = send_all(gateway, chat, requests).await;
    gateway.wait_for_in_flight(requests.len() as u64).await;
    conns
}

async fn read_responses(conns: Vec<Conn>) -> Vec<Response> {
    let mut responses = Vec::new();
    for mut conn in conns {
        responses.push(conn.read_response().await);
    }
    responses
}

#[tokio::test]
async fn identical_concurrent_lookups_share_one_call() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let gateway = Setup::new(&chat).timeout("60s").start().await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let conns = send_all_and_wait(&gateway, &chat, &vec![TestRequest::check("ann", &["bob"]); 100]).await;
    assert_eq!(chat.call_count(), 1);
    gate.open();
    let responses = read_responses(conns).await;
    let mut joined = 0;
    for (number, response) in responses.iter().enumerate() {
        assert_eq!(response.follow_types(), [2]);
        let counts = response.cache_status().counts();
        if number == 0 {
            assert_eq!(counts, (0, 0, 1));
        } else {
            assert!([(1, 0, 0), (0, 1, 0)].contains(&counts), "{response:?}");
            joined += counts.1;
        }
    }
    assert!(joined >= 1, "none of 99 lookups joined the one in flight");
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn lookup_joins_the_flipped_pair_and_fetches_the_rest() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    chat.follow("cyd", "bob");
    let gateway = Setup::new(&chat).timeout("60s").start().await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let conns = send_all_and_wait(
        &gateway,
        &chat,
        &[TestRequest::check("ann", &["bob"]), TestRequest::check("bob", &["ann", "cyd"])],
    )
    .await;
    chat.wait_for_calls(2).await;
    gate.open();
    let responses = read_responses(conns).await;
    assert_eq!(responses[0].follow_types(), [2]);
    assert_eq!(responses[1].follow_types(), [1, 1]);
    assert_eq!(responses[1].cache_status().counts(), (0, 1, 1));
    let pairs: Vec<_> = chat.calls().iter().flat_map(|call| call.pairs()).collect();
    let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(pairs, [pair("ann", "bob"), pair("bob", "cyd")], "each pair is fetched once");
}

#[tokio::test]
async fn lookup_continues_for_other_waiters_after_the_first_disconnects() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let gateway = Setup::new(&chat).timeout("60s").start().await;
    let gate = Gate::closed();
    chat.reply_always(Reply::from_graph().after(&gate));
    let mut conns = send_all_and_wait(&gateway, &chat, &vec![TestRequest::check("ann", &["bob"]); 20]).await;
    drop(conns.remove(0));
    gateway.wait_for_in_flight(19).await;
    gate.open();
    for response in read_responses(conns).await {
        assert_eq!(response.follow_types(), [2]);
    }
    assert_eq!(chat.call_count(), 1);
}

#[tokio::test]
async fn failed_call_is_reported_to_all_waiters() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).timeout("60s").start().await;
    let gate = Gate::closed();
    let body = error_response(30001, "Err_Parameter");
    chat.reply_always(Reply::json(body.clone()).after(&gate));
    let conns = send_all_and_wait(&gateway, &chat, &vec![TestRequest::check("ann", &["bob"]); 10]).await;
    gate.open();
    for response in read_responses(conns).await {
        response.assert_relayed(200, &body);
    }
    chat.clear_script();
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0]);
}

#[tokio::test]
async fn invalid_account_of_one_caller_does_not_affect_others() {
    let chat = FakeChat::start().await;
    chat.follow("ann", "bob");
    let gateway = Setup::new(&chat).timeout("60s").start().await;
    let gate = Gate::closed();
    let (script_gate, bad) = (gate.clone(), error_response(30003, "Err_Unknown"));
    // Chat fails every call that contains the account `bad`.
    let expected = bad.clone();
    chat.script(move |call| {
        let has_bad_account = call.source_account() == "bad" || call.to_accounts().iter().any(|to| to == "bad");
        Some(if has_bad_account { Reply::json(bad.clone()) } else { Reply::from_graph() }.after(&script_gate))
    });
    let conns = send_all_and_wait(
        &gateway,
        &chat,
        &[TestRequest::check("ann", &["bad", "bob"]), TestRequest::check("ann", &["bob"])],
    )
    .await;
    gate.open();
    let responses = read_responses(conns).await;
    responses[0].assert_relayed(200, &expected);
    assert_eq!(responses[1].follow_types(), [2]);
}

#[tokio::test]
async fn item_failure_in_one_direction_spares_the_other() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).timeout("60s").start().await;
    let gate = Gate::closed();
    let script_gate = gate.clone();
    // The item fails in ann's direction and succeeds in bob's.
    chat.script(move |call| {
        let reply = if call.source_account() == "ann" {
            check_response(&[crate::support::graph::failed_item("bob", 30003)])
        } else {
            check_response(&[item("ann", 3)])
        };
        Some(Reply::json(reply).after(&script_gate))
    });
    let conns =
        send_all_and_wait(&gateway, &chat, &[TestRequest::check("ann", &["bob"]), TestRequest::check("bob", &["ann"])])
            .await;
    gate.open();
    let responses = read_responses(conns).await;
    assert!(responses[0].text().contains("30003"), "{:?}", responses[0]);
    assert_eq!(responses[1].follow_types(), [3], "fetched again in bob's direction");
}

#[tokio::test]
async fn each_waiter_times_out_at_its_own_deadline() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).timeout("1s").start().await;
    chat.reply_always(Reply::hang());
    let conns = send_all(&gateway, &chat, &vec![TestRequest::check("ann", &["bob"]); 5]).await;
    for response in read_responses(conns).await {
        response.assert_error(504, "upstream_timeout", 60008);
    }
    chat.clear_script();
    assert_eq!(gateway.check("ann", &["bob"]).await.follow_types(), [0], "an unfinished lookup blocks no later one");
}
