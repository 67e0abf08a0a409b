//! Many concurrent callers; each response is checked against a model.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::app::MAIN;
use crate::support::chat::FakeChat;
use crate::support::client::{Conn, TestRequest};
use crate::support::h2::Http2;
use crate::support::reply::Reply;
use crate::support::response::Response;
use crate::support::setup::Setup;
use crate::support::{PATIENCE, within};

/// The expected response to a request.
enum Expected {
    Types(Vec<(String, u8)>),
    Echo(String),
    Error(u16, &'static str, i64),
}

impl Expected {
    #[track_caller]
    fn check(&self, response: &Response) {
        match self {
            Expected::Types(items) => assert_eq!(&response.items(), items),
            Expected::Echo(body) => response.assert_relayed(200, echo(body)),
            Expected::Error(status, slug, code) => response.assert_error(*status, slug, *code),
        }
    }
}

fn echo(body: &str) -> String {
    format!(r#"{{"ActionStatus":"OK","ErrorCode":0,"ErrorInfo":"","Echo":{body}}}"#)
}

fn user(number: usize) -> String {
    format!("user{number:02}")
}

/// Returns the `n`-th mixed request and the expected response.
fn mixed_request(n: usize, random: &mut fastrand::Rng, chat: &FakeChat) -> (TestRequest, Expected) {
    match n % 10 {
        0..=4 => {
            let from = user(random.usize(..40));
            let to: Vec<String> = (0..random.usize(1..20)).map(|_| user(random.usize(..40))).collect();
            let types = to.iter().map(|to| (to.clone(), chat.graph().follow_type(MAIN.sdkappid, &from, to))).collect();
            (TestRequest::check(&from, &to), Expected::Types(types))
        }
        5 | 6 => {
            let body = format!("{{ \"n\": {n}, \"filler\":\"{}\" }}", "x".repeat(random.usize(..5000)));
            (TestRequest::command("openim/sendmsg").body(&body), Expected::Echo(body))
        }
        7 => (TestRequest::command("openim/sendmsg").body(format!("[{n}]")), Expected::Error(400, "bad_json", 60003)),
        8 => (TestRequest::post(&format!("/v4/{n}/")), Expected::Error(404, "not_found", 60009)),
        _ => (TestRequest::check("", &["x"]), Expected::Error(400, "bad_parameter", 30001)),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_mixed_requests_get_the_right_responses() {
    let chat = FakeChat::start().await;
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..400 {
        chat.follow(&user(random.usize(..40)), &user(random.usize(..40)));
    }
    chat.script(|call| {
        let body = String::from_utf8(call.body.clone()).expect("UTF-8");
        (call.command() == "openim/sendmsg").then(|| Reply::json(echo(&body)))
    });
    let gateway = Setup::new(&chat).timeout("10s").start().await;
    let mut shared = Vec::new();
    for _ in 0..4 {
        shared.push(Http2::open(gateway.address()).await);
    }
    let start = std::sync::Arc::new(tokio::sync::Barrier::new(500));
    let tasks: Vec<_> = (0..500)
        .map(|n| {
            let (request, expected) = mixed_request(n, &mut random, &chat);
            let request = request.header("X-Request-Id", &format!("id-{n}"));
            let (address, http2, start) = (gateway.address().to_owned(), shared[n % 4].clone(), start.clone());
            tokio::spawn(async move {
                let own = if n % 3 == 0 { None } else { Some(Conn::open(&address).await.expect("accepted")) };
                start.wait().await;
                let response = match own {
                    Some(mut conn) => conn.request(&request).await,
                    None => http2.request(&request).await,
                };
                assert_eq!(response.request_id(), format!("id-{n}"));
                expected.check(&response);
            })
        })
        .collect();
    for task in tasks {
        within(PATIENCE, "all requests are answered", task).await.expect("the expected response");
    }
    let mut lookups: BTreeMap<(String, String), usize> = BTreeMap::new();
    for call in chat.calls_of("follow/follow_check") {
        assert!(call.to_accounts().len() <= 100);
        call.pairs().into_iter().for_each(|pair| *lookups.entry(pair).or_default() += 1);
    }
    let repeated: BTreeSet<_> = lookups.iter().filter(|(_, count)| **count > 1).collect();
    assert!(repeated.is_empty(), "looked up more than once: {repeated:?}");
    assert_eq!(chat.calls_of("openim/sendmsg").len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_checks_never_see_state_before_an_acknowledged_write() {
    let chat = FakeChat::start().await;
    let gateway = Setup::new(&chat).set("cache", r#"ttl = "1h""#).timeout("10s").start().await;
    // Each writer has its own users, so it knows the true state after each of its writes. All tasks share the pending
    // lookups of the gateway, and the readers check the same pairs all the time.
    let stop = tokio_util::sync::CancellationToken::new();
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (address, stop) = (gateway.address().to_owned(), stop.clone());
            tokio::spawn(async move {
                let mut conn = Conn::open(&address).await.expect("accepted");
                while !stop.is_cancelled() {
                    for n in 0..8 {
                        conn.request(&TestRequest::check(&format!("to{n}"), &[format!("from{n}")])).await.items();
                    }
                }
            })
        })
        .collect();
    let writers: Vec<_> = (0..8)
        .map(|n| {
            let address = gateway.address().to_owned();
            tokio::spawn(async move {
                let mut conn = Conn::open(&address).await.expect("accepted");
                let (from, to) = (format!("from{n}"), format!("to{n}"));
                for round in 0..20 {
                    let (request, expected) = if round % 2 == 0 {
                        let body = format!(r#"{{"From_Account":"{from}","FollowItem":[{{"To_Account":"{to}"}}]}}"#);
                        (TestRequest::command("follow/follow_add").body(body), [2, 1])
                    } else {
                        let body = crate::support::client::check_body(&from, &[&to]);
                        (TestRequest::command("follow/follow_delete").body(body), [0, 0])
                    };
                    assert_eq!(conn.request(&request).await.status, 200);
                    assert_eq!(
                        conn.request(&TestRequest::check(&from, &[&to])).await.follow_types(),
                        [expected[0]],
                        "round {round}"
                    );
                    assert_eq!(
                        conn.request(&TestRequest::check(&to, &[&from])).await.follow_types(),
                        [expected[1]],
                        "round {round}"
                    );
                }
            })
        })
        .collect();
    for task in writers {
        within(PATIENCE, "a writer finishes", task).await.expect("no response that predates a write");
    }
    stop.cancel();
    for task in readers {
        within(PATIENCE, "a reader finishes", task).await.expect("correct responses");
    }
}
