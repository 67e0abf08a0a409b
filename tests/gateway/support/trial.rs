//! A gateway under an injected fault: its connection to Chat fails in one way, requests continue, and the connection
//! recovers.
//!
//! Under every fault:
//!
//! * every request is answered in time, and no response is wrong;
//! * no write is applied twice, and no write that was reported as successful is missing;
//! * the other app is not affected, and cached pairs are still answered;
//! * after the fault the gateway recovers automatically.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::app::{MAIN, OTHER};
use super::chat::FakeChat;
use super::client::{Conn, TestRequest};
use super::gateway::Gateway;
use super::graph::OK;
use super::link::{Link, NetworkState};
use super::response::Response;
use super::setup::Setup;
use super::{eventually, now};

const WRITE: &str = "openim/sendmsg";
const READ: &str = "openim/querystate";

/// `upstream.timeout` of the gateway.
const DEADLINE: Duration = Duration::from_secs(3);
/// How much later than the deadline a response may arrive on a busy machine.
const SLACK: Duration = Duration::from_secs(4);
/// Requests of each kind during a fault.
const ROUNDS: u64 = 5;

/// The main app behind a link, the other app without one, and a gateway for both.
pub(crate) struct FaultTrial {
    pub(crate) chat: FakeChat,
    pub(crate) link: Link,
    gateway: Gateway,
    other: FakeChat,
    numbers: AtomicU64,
}

/// The number of responses by result, for requests of one kind: `ok` for Chat's response, otherwise the slug.
pub(crate) type Tally = BTreeMap<String, usize>;

/// The results of the main app's requests.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) writes: Tally,
    pub(crate) reads: Tally,
    pub(crate) checks: Tally,
}

impl Outcome {
    /// Asserts that requests of every kind ended only with these results.
    #[track_caller]
    pub(crate) fn assert_only(&self, slugs: &[&str]) {
        self.assert_writes_only(slugs);
        self.assert_reads_only(slugs);
    }

    #[track_caller]
    pub(crate) fn assert_writes_only(&self, slugs: &[&str]) {
        assert!(self.writes.keys().all(|slug| slugs.contains(&slug.as_str())), "{self:?}");
    }

    #[track_caller]
    pub(crate) fn assert_reads_only(&self, slugs: &[&str]) {
        let mut kinds = self.reads.keys().chain(self.checks.keys());
        assert!(kinds.all(|slug| slugs.contains(&slug.as_str())), "{self:?}");
    }
}

impl FaultTrial {
    /// Starts with a healthy network, over plain HTTP.
    pub(crate) async fn start() -> FaultTrial {
        FaultTrial::start_as("127.0.0.1", None, String::new()).await
    }

    /// Starts with a healthy network, over HTTPS with this certificate of `localhost`, issued by the trusted CA `ca`.
    pub(crate) async fn start_tls(acceptor: TlsAcceptor, ca: &str) -> FaultTrial {
        FaultTrial::start_as("localhost", Some(acceptor), ca.to_owned()).await
    }

    async fn start_as(host: &str, tls: Option<TlsAcceptor>, ca: String) -> FaultTrial {
        let mut link = Link::new();
        let authority = format!("{host}:{}", link.address().port());
        let chat = FakeChat::start_behind("127.0.0.1:0".parse().expect("an address"), authority, tls).await;
        link.relay_to(chat.address()).await;
        for user in ["u1", "u3", "known"] {
            chat.follow("ann", user);
        }
        let other = FakeChat::start().await;
        let setup = Setup::without_apps();
        let ca_line = match &*ca {
            "" => String::new(),
            ca => format!("ca_file = '{}'", setup.file("ca.pem", ca).display()),
        };
        let gateway = setup
            .app(MAIN, &format!("{}\ndefault = true\n{ca_line}", chat.app_lines()))
            .app(OTHER, &other.app_lines())
            .set("upstream", &format!("timeout = \"{}s\"", DEADLINE.as_secs()))
            .set("upstream", "attempt_timeout = \"1500ms\"")
            .set("upstream", "connect_timeout = \"500ms\"")
            .set("upstream", "max_answer = \"64KiB\"")
            .start()
            .await;
        gateway.check("ann", &["known"]).await.items();
        FaultTrial { chat, link, gateway, other, numbers: AtomicU64::new(0) }
    }

    /// Sends requests of every kind in parallel, and asserts the guarantees. `name` is the fault's name.
    pub(crate) async fn run_requests(&self, name: &str) -> Outcome {
        let mut tasks = JoinSet::new();
        for _ in 0..ROUNDS {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let body = format!("{{\"n\":{number}}}");
            let other = |request: TestRequest| request.header("Chatgate-App", OTHER.name);
            let requests = [
                ("write", TestRequest::command(WRITE).body(&body)),
                ("read", TestRequest::command(READ).body(&body)),
                ("check", TestRequest::check("ann", &[format!("u{number}")])),
                ("known", TestRequest::check("ann", &["known"])),
                ("other", other(TestRequest::command(WRITE).body(&body))),
                ("other", other(TestRequest::check("ann", &[format!("u{number}")]))),
            ];
            for (kind, request) in requests {
                let address = self.gateway.address().to_owned();
                tasks.spawn(async move {
                    let start = now();
                    let response = Conn::open(&address).await.expect("accepted").request(&request).await;
                    (kind, number, response, now() - start)
                });
            }
        }
        let mut tallies: HashMap<&str, Tally> = HashMap::new();
        let mut done = Vec::new();
        for (kind, number, response, took) in tasks.join_all().await {
            assert!(took < DEADLINE + SLACK, "{name}: {kind} took {took:?}: {response:?}");
            let outcome = outcome(name, kind, number, &response);
            if kind == "write" && outcome == "ok" {
                done.push(number);
            }
            *tallies.entry(kind).or_default().entry(outcome).or_default() += 1;
        }
        let requests: usize = tallies.values().flat_map(Tally::values).sum();
        assert_eq!(requests as u64, ROUNDS * 6, "{name}: a request has no response");
        let only_ok = |kind: &str| tallies[kind].keys().eq(["ok"]);
        assert!(only_ok("other"), "{name}: the other app was affected: {tallies:?}");
        assert!(only_ok("known"), "{name}: a cached pair was not answered: {tallies:?}");
        self.assert_writes(name, &done);
        let mut take = |kind: &str| tallies.remove(kind).unwrap_or_default();
        let outcome = Outcome { writes: take("write"), reads: take("read"), checks: take("check") };
        eprintln!("fault: {name}; requests {requests}; {outcome:?}");
        outcome
    }

    /// Waits until the gateway has recovered. The fault must have ended.
    pub(crate) async fn wait_for_recovery(&self, name: &str) {
        let start = now();
        let mut tried = 0;
        eventually(&format!("recovery from {name}"), async || {
            tried += 1;
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let write = self.gateway.call(WRITE, format!("{{\"n\":{number}}}")).await;
            let check = self.gateway.check("ann", &[&format!("u{number}")]).await;
            let outcomes =
                [("write", write), ("check", check)].map(|(kind, response)| outcome(name, kind, number, &response));
            (outcomes == ["ok", "ok"]).then_some(())
        })
        .await;
        let took = now() - start;
        self.assert_writes(name, &[]);
        eprintln!("recovery: {name}; {} ms; tries {tried}", took.as_millis());
    }

    /// Asserts that no write reached Chat twice, and that all of `done` did.
    fn assert_writes(&self, name: &str, done: &[u64]) {
        let mut applied: HashMap<u64, u32> = HashMap::new();
        for call in self.chat.calls_of(WRITE) {
            *applied.entry(call.json()["n"].as_u64().expect("a number")).or_default() += 1;
        }
        for (number, times) in &applied {
            assert_eq!(*times, 1, "{name}: write {number} was sent more than once");
        }
        for number in done {
            assert!(
                applied.contains_key(number),
                "{name}: write {number} was reported as successful and never arrived"
            );
        }
        assert_eq!(self.other.violations(), [""; 0], "{name}");
    }
}

/// Returns `ok` or the slug. Panics if a response is wrong, or is neither Chat's nor an expected error of the gateway.
fn outcome(name: &str, kind: &str, number: u64, response: &Response) -> String {
    if let Some(slug) = response.slug() {
        let expected = match slug {
            "upstream_unreachable" => (502, 129_502),
            "upstream_invalid" => (502, 60013),
            "upstream_timeout" => (504, 60008),
            _ => panic!("{name}: {kind}: {response:?}"),
        };
        response.assert_error(expected.0, slug, expected.1);
        return slug.to_owned();
    }
    match kind {
        "write" | "read" => response.assert_relayed(200, OK),
        "known" => assert_eq!(response.follow_types(), [2], "{name}"),
        "check" => assert_eq!(response.follow_types(), [if [1, 3].contains(&number) { 2 } else { 0 }], "{name}"),
        _ => assert_eq!((response.status, &response.json()["ErrorCode"]), (200, &0.into()), "{name}: {response:?}"),
    }
    "ok".to_owned()
}

/// Runs a trial with a network fault.
pub(crate) async fn run(name: &str, fault: NetworkState) -> (FaultTrial, Outcome) {
    let mut trial = FaultTrial::start().await;
    trial.link.set(fault).await;
    let outcome = trial.run_requests(name).await;
    trial.link.set(NetworkState::Healthy).await;
    trial.wait_for_recovery(name).await;
    (trial, outcome)
}
