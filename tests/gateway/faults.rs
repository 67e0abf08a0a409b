//! Network and server failures between the gateway and Chat. [`Trial`] asserts what holds under every fault; these
//! tests assert which errors the callers get.

use std::time::Duration;

use crate::support::graph::OK;
use crate::support::link::NetworkState;
use crate::support::reply::{Reply, ReplyKind};
use crate::support::tls::Ca;
use crate::support::trial::{FaultTrial, run};

const UNREACHABLE: &str = "upstream_unreachable";
const TIMEOUT: &str = "upstream_timeout";
const INVALID: &str = "upstream_invalid";

// While no connection succeeds, calls share the pauses between attempts, so a read may reach its deadline.

#[tokio::test]
async fn refused_connections_make_upstream_unreachable() {
    let (trial, outcome) = run("refused", NetworkState::Refusing).await;
    outcome.assert_writes_only(&[UNREACHABLE]);
    outcome.assert_reads_only(&[UNREACHABLE, TIMEOUT]);
    assert!(trial.chat.accepted_connections() > 0);
}

#[tokio::test]
async fn dropped_connection_attempts_make_upstream_unreachable() {
    let (_, outcome) = run("connecting hangs", NetworkState::DroppingSyn).await;
    outcome.assert_writes_only(&[UNREACHABLE]);
    outcome.assert_reads_only(&[UNREACHABLE, TIMEOUT]);
}

#[tokio::test]
async fn silent_connections_time_out() {
    let (_, outcome) = run("black hole", NetworkState::Stalled).await;
    outcome.assert_only(&[TIMEOUT]);
}

#[tokio::test]
async fn lost_responses_time_out() {
    let (trial, outcome) = run("responses lost", NetworkState::ResponsesStalled).await;
    outcome.assert_only(&[TIMEOUT]);
    assert!(trial.chat.call_count() > 5, "the requests did reach Chat");
}

#[tokio::test]
async fn reset_requests_make_upstream_unreachable() {
    let (_, outcome) = run("reset on sending", NetworkState::Resetting).await;
    outcome.assert_only(&[UNREACHABLE]);
}

#[tokio::test]
async fn reset_responses_make_upstream_unreachable() {
    let (_, outcome) = run("reset on response", NetworkState::ResettingResponses).await;
    outcome.assert_only(&[UNREACHABLE]);
}

#[tokio::test]
async fn short_delays_fail_no_request() {
    let (_, outcome) = run("delay", NetworkState::Delayed(Duration::from_millis(60))).await;
    outcome.assert_only(&["ok"]);
}

#[tokio::test]
async fn delays_beyond_the_deadline_time_out() {
    let (_, outcome) = run("delay beyond the deadline", NetworkState::Delayed(Duration::from_secs(3))).await;
    outcome.assert_only(&[TIMEOUT]);
}

#[tokio::test]
async fn slow_response_within_the_deadline_is_accepted() {
    let (_, outcome) = run("slow response", NetworkState::ByteByByte(Duration::ZERO)).await;
    outcome.assert_only(&["ok"]);
}

#[tokio::test]
async fn slow_response_beyond_the_deadline_times_out() {
    let (_, outcome) =
        run("slow response beyond the deadline", NetworkState::ByteByByte(Duration::from_millis(25))).await;
    outcome.assert_only(&[TIMEOUT]);
}

#[tokio::test]
async fn reset_idle_connections_fail_no_read() {
    let trial = FaultTrial::start().await;
    for _ in 0..5 {
        trial.link.reset_all();
        let outcome = trial.run_requests("idle connections reset").await;
        // A write that was being sent during the reset is not retried.
        outcome.assert_writes_only(&["ok", UNREACHABLE]);
        outcome.assert_reads_only(&["ok"]);
    }
    trial.wait_for_recovery("idle connections reset").await;
}

#[tokio::test]
async fn broken_responses_are_invalid_or_unreachable_and_recover() {
    let trial = FaultTrial::start().await;
    let headers = |length: usize| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n")
    };
    let huge = format!(r#"{{"ErrorCode":0,"x":"{}"}}"#, "y".repeat(64 * 1024));
    let noise: Vec<u8> = (0..2048_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let chunked =
        |size: usize| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{size:x}\r\n{OK}\r\n0\r\n\r\n");
    let faults: [(&str, Reply, &[&str]); 14] = [
        ("closed without a byte", Reply::bytes(""), &[UNREACHABLE]),
        ("truncated headers", Reply::bytes("HTTP/1.1 200 OK\r\nContent-"), &[UNREACHABLE]),
        ("truncated body", Reply::bytes(format!("{}{}", headers(OK.len()), &OK[..20])), &[UNREACHABLE]),
        (
            "truncated body, reset",
            ReplyKind::Reset(format!("{}{}", headers(OK.len()), &OK[..20]).into()).into(),
            &[UNREACHABLE],
        ),
        ("garbage", Reply::bytes(noise), &[INVALID]),
        ("another protocol", Reply::bytes("SSH-2.0-OpenSSH_9.6\r\n"), &[INVALID]),
        ("body longer than Content-Length", Reply::bytes(format!("{}{OK}", headers(OK.len() - 9))), &[INVALID]),
        (
            "body shorter than Content-Length, closed",
            Reply::bytes(format!("{}{OK}", headers(OK.len() + 9))),
            &[UNREACHABLE],
        ),
        ("body shorter than Content-Length, open", Reply::stall(format!("{}{OK}", headers(OK.len() + 9))), &[TIMEOUT]),
        ("chunk longer than its size", Reply::bytes(chunked(OK.len() - 9)), &[UNREACHABLE]),
        (
            "two Content-Length headers",
            Reply::bytes(format!("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n{}", &headers(OK.len())[17..])),
            &[INVALID],
        ),
        ("body over max_answer", Reply::json(huge), &[INVALID]),
        ("502 in HTML", Reply::typed(502, "text/html", "<html>bad gateway</html>"), &[INVALID]),
        ("503, empty", Reply::typed(503, "text/plain", ""), &[INVALID]),
    ];
    for (name, reply, slugs) in faults {
        trial.chat.reply_always(reply);
        trial.run_requests(name).await.assert_only(slugs);
        trial.chat.clear_script();
        trial.wait_for_recovery(name).await;
    }
}

#[tokio::test]
async fn bad_certificate_blocks_calls_until_it_is_replaced() {
    let (ca, other_ca) = (Ca::new(), Ca::new());
    let trial = FaultTrial::start_tls(ca.acceptor("localhost"), &ca.pem()).await;
    let faults = [
        ("certificate of another CA", other_ca.acceptor("localhost")),
        ("expired certificate", ca.expired_acceptor("localhost")),
        ("certificate not yet valid", ca.early_acceptor("localhost")),
        ("certificate for another name", ca.acceptor("console.tim.qq.com")),
    ];
    for (name, acceptor) in faults {
        let before = trial.chat.call_count();
        trial.chat.set_certificate(acceptor);
        trial.link.reset_all();
        let outcome = trial.run_requests(name).await;
        outcome.assert_writes_only(&[UNREACHABLE]);
        outcome.assert_reads_only(&[UNREACHABLE, TIMEOUT]);
        assert_eq!(trial.chat.call_count(), before, "{name}: Chat received a request");
        trial.chat.set_certificate(ca.acceptor("localhost"));
        trial.wait_for_recovery(name).await;
    }
}
