//! The way to Chat fails, in every manner that a way can fail, and heals. What holds under each fault is
//! asserted by [`Trial`]; here stands what the callers are told.

use std::time::Duration;

use crate::support::graph::OK;
use crate::support::link::Weather;
use crate::support::reply::{Reply, What};
use crate::support::tls::Ca;
use crate::support::trial::{Trial, weather};

const UNREACHABLE: &str = "upstream_unreachable";
const TIMEOUT: &str = "upstream_timeout";
const INVALID: &str = "upstream_invalid";

// Where no connection is to be had, calls wait for each other's pauses: a read may see its deadline pass.

#[tokio::test]
async fn nobody_listens() {
    let (trial, outcome) = weather("refused", Weather::Closed).await;
    outcome.writes_only(&[UNREACHABLE]);
    outcome.reads_only(&[UNREACHABLE, TIMEOUT]);
    assert!(trial.chat.accepted() > 0);
}

#[tokio::test]
async fn first_packets_are_lost() {
    let (_, outcome) = weather("connecting hangs", Weather::Deaf).await;
    outcome.writes_only(&[UNREACHABLE]);
    outcome.reads_only(&[UNREACHABLE, TIMEOUT]);
}

#[tokio::test]
async fn connections_are_taken_and_nothing_passes() {
    let (_, outcome) = weather("black hole", Weather::Silent).await;
    outcome.only(&[TIMEOUT]);
}

#[tokio::test]
async fn requests_pass_and_answers_do_not() {
    let (trial, outcome) = weather("answers lost", Weather::Mute).await;
    outcome.only(&[TIMEOUT]);
    assert!(trial.chat.count() > 5, "they did pass");
}

#[tokio::test]
async fn whatever_moves_is_reset() {
    let (_, outcome) = weather("reset on sending", Weather::Cutting).await;
    outcome.only(&[UNREACHABLE]);
}

#[tokio::test]
async fn answers_become_resets() {
    let (_, outcome) = weather("reset on answering", Weather::CuttingAnswers).await;
    outcome.only(&[UNREACHABLE]);
}

#[tokio::test]
async fn every_packet_is_late() {
    let (_, outcome) = weather("delay", Weather::Late(Duration::from_millis(60))).await;
    outcome.only(&["ok"]);
}

#[tokio::test]
async fn every_packet_is_too_late() {
    let (_, outcome) = weather("delay beyond the deadline", Weather::Late(Duration::from_secs(3))).await;
    outcome.only(&[TIMEOUT]);
}

#[tokio::test]
async fn an_answer_drips_in_time() {
    let (_, outcome) = weather("drip", Weather::Drip(Duration::ZERO)).await;
    outcome.only(&["ok"]);
}

#[tokio::test]
async fn an_answer_drips_for_ever() {
    let (_, outcome) = weather("drip beyond the deadline", Weather::Drip(Duration::from_millis(25))).await;
    outcome.only(&[TIMEOUT]);
}

#[tokio::test]
async fn kept_connections_are_reset_again_and_again() {
    let trial = Trial::start().await;
    for _ in 0..5 {
        trial.link.reset_all();
        let outcome = trial.strain("kept connections reset").await;
        // A write that was being sent when the reset came is not sent again.
        outcome.writes_only(&["ok", UNREACHABLE]);
        outcome.reads_only(&["ok"]);
    }
    trial.recovers("kept connections reset").await;
}

#[tokio::test]
async fn what_comes_back_is_no_answer() {
    let trial = Trial::start().await;
    let head = |length: usize| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n")
    };
    let huge = format!(r#"{{"ErrorCode":0,"x":"{}"}}"#, "y".repeat(64 * 1024));
    let noise: Vec<u8> = (0..2048_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let chunked =
        |size: usize| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{size:x}\r\n{OK}\r\n0\r\n\r\n");
    let faults: [(&str, Reply, &[&str]); 14] = [
        ("closed without a byte", Reply::bytes(""), &[UNREACHABLE]),
        ("truncated head", Reply::bytes("HTTP/1.1 200 OK\r\nContent-"), &[UNREACHABLE]),
        ("truncated body", Reply::bytes(format!("{}{}", head(OK.len()), &OK[..20])), &[UNREACHABLE]),
        (
            "truncated body, reset",
            What::Reset(format!("{}{}", head(OK.len()), &OK[..20]).into()).into(),
            &[UNREACHABLE],
        ),
        ("garbage", Reply::bytes(noise), &[INVALID]),
        ("another protocol", Reply::bytes("SSH-2.0-OpenSSH_9.6\r\n"), &[INVALID]),
        ("longer than said", Reply::bytes(format!("{}{OK}", head(OK.len() - 9))), &[INVALID]),
        ("shorter than said, closed", Reply::bytes(format!("{}{OK}", head(OK.len() + 9))), &[UNREACHABLE]),
        ("shorter than said, open", Reply::stall(format!("{}{OK}", head(OK.len() + 9))), &[TIMEOUT]),
        ("a chunk longer than said", Reply::bytes(chunked(OK.len() - 9)), &[UNREACHABLE]),
        (
            "two lengths",
            Reply::bytes(format!("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n{}", &head(OK.len())[17..])),
            &[INVALID],
        ),
        ("over max_answer", Reply::json(huge), &[INVALID]),
        ("502 in HTML", Reply::typed(502, "text/html", "<html>bad gateway</html>"), &[INVALID]),
        ("503, empty", Reply::typed(503, "text/plain", ""), &[INVALID]),
    ];
    for (name, reply, slugs) in faults {
        trial.chat.always(reply);
        trial.strain(name).await.only(slugs);
        trial.chat.no_script();
        trial.recovers(name).await;
    }
}

#[tokio::test]
async fn the_certificate_goes_bad_and_is_mended() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let trial = Trial::start_tls(ca.acceptor("localhost"), &ca.pem()).await;
    let faults = [
        ("certificate of another CA", stranger.acceptor("localhost")),
        ("expired certificate", ca.expired_acceptor("localhost")),
        ("certificate not valid yet", ca.early_acceptor("localhost")),
        ("certificate of another name", ca.acceptor("console.tim.qq.com")),
    ];
    for (name, acceptor) in faults {
        let before = trial.chat.count();
        trial.chat.show(acceptor);
        trial.link.reset_all();
        let outcome = trial.strain(name).await;
        outcome.writes_only(&[UNREACHABLE]);
        outcome.reads_only(&[UNREACHABLE, TIMEOUT]);
        assert_eq!(trial.chat.count(), before, "{name}: it saw a request");
        trial.chat.show(ca.acceptor("localhost"));
        trial.recovers(name).await;
    }
}
