//! Random faults from a seed: every request is answered in time, no response is wrong, and no write is applied twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::graph::{OK, error_response};
use crate::support::now;
use crate::support::reply::{Reply, ReplyKind};
use crate::support::setup::Setup;

const SEEDS: std::ops::Range<u64> = 0..4;
const REQUESTS: u64 = 240;
const CALLERS: u64 = 12;
const USERS: u64 = 9;

/// Returns the `n`-th number of a seed's sequence without the ones before it (splitmix64).
fn random(seed: u64, n: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(n).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// Returns the injected reply for a call, or `None` if Chat responds correctly (most calls).
fn injected_reply(seed: u64, n: u64) -> Option<Reply> {
    let number = random(seed, n);
    Some(match number % 40 {
        0 => Reply::reset(),
        1 => Reply::bytes(""),
        2 => Reply::bytes(&b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"ErrorCode\":0,"[..]),
        3 => ReplyKind::Reset(b"HTTP/1.1 200 OK\r\n".to_vec()).into(),
        4 => Reply::hang(),
        5 => Reply::stall(&b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"[..]),
        6 => Reply::typed(502, "text/html", "<html>"),
        7 => Reply::json("[]"),
        8 => Reply::json(error_response(60008, "timeout")),
        9 => Reply::json(error_response(60007, "too many")),
        10 => Reply::json(error_response(70001, "expired")),
        11 => Reply::json(error_response(30006, "internal")),
        12 => Reply::json(OK),
        13 => Reply::json(
            r#"{"ResultItem":[{"To_Account":"u1","ResultCode":0,"ResultInfo":"","FollowType":9}],"ErrorCode":0}"#,
        ),
        _ => return None,
    })
}

#[tokio::test]
async fn random_faults_cause_no_wrong_response_or_repeated_write() {
    for seed in SEEDS {
        let chat = FakeChat::start().await;
        for n in 0..USERS * USERS / 2 {
            let number = random(seed ^ 0xABCD, n);
            chat.follow(&format!("u{}", number % USERS), &format!("u{}", number / USERS % USERS));
        }
        let counter = AtomicU64::new(0);
        // Bodies of writes that reached Chat and were not rejected for their signature, with their count.
        let applied = Arc::new(Mutex::new(HashMap::<Vec<u8>, u32>::new()));
        let seen = Arc::clone(&applied);
        chat.script(move |call| {
            let n = counter.fetch_add(1, Ordering::Relaxed);
            let reply = injected_reply(seed, n);
            let rejected = random(seed, n) % 40 == 10;
            if call.command() == "openim/sendmsg" && !rejected {
                *seen.lock().entry(call.body.clone()).or_default() += 1;
            }
            reply
        });
        let gateway = Setup::new(&chat)
            .set("upstream", "timeout = \"1500ms\"")
            .set("upstream", "attempt_timeout = \"400ms\"")
            .set("cache", "ttl = \"20ms\"")
            .set("cache", "stale_if_error = \"1h\"")
            .start()
            .await;
        let mut callers = Vec::new();
        for caller in 0..CALLERS {
            let (address, graph) = (gateway.address().to_owned(), chat.graph().clone());
            callers.push(tokio::spawn(async move {
                let mut conn = Conn::open(&address).await.expect("accepted");
                for n in (caller..REQUESTS).step_by(CALLERS as usize) {
                    let number = random(seed ^ 0x1234, n);
                    let from = format!("u{}", number % USERS);
                    let to: Vec<String> =
                        (0..1 + number / 16 % 5).map(|n| format!("u{}", (number / 64 + n) % USERS)).collect();
                    let request = match number / 8 % 3 {
                        0 => TestRequest::command("openim/sendmsg").body(format!("{{\"n\":{n}}}")),
                        1 => TestRequest::command("openim/querystate").body("{}"),
                        _ => TestRequest::check(&from, &to),
                    };
                    let started = now();
                    let response = conn.request(&request).await;
                    let took = now() - started;
                    assert!(took < Duration::from_secs(6), "seed {seed}, request {n} took {took:?}");
                    let code = response.json()["ErrorCode"].as_i64().expect("an envelope");
                    if code == 0 && number / 8 % 3 == 2 {
                        // 9 is injected. Any other value must be correct.
                        let expected: Vec<u8> =
                            to.iter().map(|to| graph.follow_type(MAIN.sdkappid, &from, to)).collect();
                        for (actual, expected) in response.follow_types().into_iter().zip(expected) {
                            assert!(actual == expected || actual == 9, "seed {seed}, request {n}: {response:?}");
                        }
                    }
                }
            }));
        }
        for caller in callers {
            caller.await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        for (body, times) in applied.lock().iter() {
            assert_eq!(*times, 1, "seed {seed}: {} was applied more than once", String::from_utf8_lossy(body));
        }
        chat.clear_script();
        assert!(gateway.call("openim/querystate", "{}").await.text() == OK, "seed {seed}: not recovered");
    }
}
