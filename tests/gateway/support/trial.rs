//! A gateway put to the trial: its way to Chat fails in one manner, requests go on, and the way heals.
//!
//! Whatever the fault: every request is answered in time, no answer is wrong, no write is carried out twice
//! and none that was reported done is missing, the other app does not notice, what is known is known,
//! and once the fault is over the gateway serves as before without being told.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::answer::Answer;
use super::app::{MAIN, OTHER};
use super::chat::FakeChat;
use super::client::{Ask, Conn};
use super::gateway::Gateway;
use super::graph::OK;
use super::link::{Link, Weather};
use super::setup::Setup;
use super::{eventually, now};

const WRITE: &str = "openim/sendmsg";
const READ: &str = "openim/querystate";

/// `upstream.timeout` of the gateway.
const DEADLINE: Duration = Duration::from_secs(3);
/// How much later than that an answer may be seen on a busy machine.
const SLACK: Duration = Duration::from_secs(4);
/// Requests of each kind while a fault lasts.
const ROUNDS: u64 = 5;

/// The main app behind a link, the other app beside it, and a gateway for both.
pub(crate) struct Trial {
    pub(crate) chat: FakeChat,
    pub(crate) link: Link,
    gateway: Gateway,
    other: FakeChat,
    numbers: AtomicU64,
}

/// How often each came back to requests of one kind: `ok` for Chat's answer, else the slug.
pub(crate) type Tally = BTreeMap<String, usize>;

/// What came back to the main app's requests.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) writes: Tally,
    pub(crate) reads: Tally,
    pub(crate) checks: Tally,
}

impl Outcome {
    /// Asserts that nothing else than these came back, to no kind of request.
    #[track_caller]
    pub(crate) fn only(&self, slugs: &[&str]) {
        self.writes_only(slugs);
        self.reads_only(slugs);
    }

    #[track_caller]
    pub(crate) fn writes_only(&self, slugs: &[&str]) {
        assert!(self.writes.keys().all(|slug| slugs.contains(&slug.as_str())), "{self:?}");
    }

    #[track_caller]
    pub(crate) fn reads_only(&self, slugs: &[&str]) {
        let mut kinds = self.reads.keys().chain(self.checks.keys());
        assert!(kinds.all(|slug| slugs.contains(&slug.as_str())), "{self:?}");
    }
}

impl Trial {
    /// In fair weather, over plain HTTP.
    pub(crate) async fn start() -> Trial {
        Trial::start_as("127.0.0.1", None, String::new()).await
    }

    /// In fair weather, over HTTPS with this certificate of `localhost`, which a CA signed that is trusted.
    pub(crate) async fn start_tls(acceptor: TlsAcceptor, ca: &str) -> Trial {
        Trial::start_as("localhost", Some(acceptor), ca.to_owned()).await
    }

    async fn start_as(host: &str, tls: Option<TlsAcceptor>, ca: String) -> Trial {
        let mut link = Link::new();
        let authority = format!("{host}:{}", link.address().port());
        let chat = FakeChat::start_behind("127.0.0.1:0".parse().expect("an address"), authority, tls).await;
        link.lead_to(chat.address()).await;
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
        gateway.check("ann", &["known"]).await.checked();
        Trial { chat, link, gateway, other, numbers: AtomicU64::new(0) }
    }

    /// Sends requests of every kind, several at a time, and judges what comes back. `name` is the fault's.
    pub(crate) async fn strain(&self, name: &str) -> Outcome {
        let mut tasks = JoinSet::new();
        for _ in 0..ROUNDS {
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let body = format!("{{\"n\":{number}}}");
            let other = |ask: Ask| ask.header("Chatgate-App", OTHER.name);
            let asks = [
                ("write", Ask::command(WRITE).body(&body)),
                ("read", Ask::command(READ).body(&body)),
                ("check", Ask::check("ann", &[format!("u{number}")])),
                ("known", Ask::check("ann", &["known"])),
                ("other", other(Ask::command(WRITE).body(&body))),
                ("other", other(Ask::check("ann", &[format!("u{number}")]))),
            ];
            for (kind, ask) in asks {
                let (address, ask) = (self.gateway.address().to_owned(), ask);
                tasks.spawn(async move {
                    let begun = now();
                    let answer = Conn::open(&address).await.expect("accepted").ask(&ask).await;
                    (kind, number, answer, now() - begun)
                });
            }
        }
        let mut tallies: HashMap<&str, Tally> = HashMap::new();
        let mut done = Vec::new();
        for (kind, number, answer, took) in tasks.join_all().await {
            assert!(took < DEADLINE + SLACK, "{name}: {kind} took {took:?}: {answer:?}");
            let outcome = outcome(name, kind, number, &answer);
            if kind == "write" && outcome == "ok" {
                done.push(number);
            }
            *tallies.entry(kind).or_default().entry(outcome).or_default() += 1;
        }
        let requests: usize = tallies.values().flat_map(Tally::values).sum();
        assert_eq!(requests as u64, ROUNDS * 6, "{name}: a request was lost");
        let only_ok = |kind: &str| tallies[kind].keys().eq(["ok"]);
        assert!(only_ok("other"), "{name}: the other app noticed: {tallies:?}");
        assert!(only_ok("known"), "{name}: what is known was not answered: {tallies:?}");
        self.assert_writes(name, &done);
        let mut take = |kind: &str| tallies.remove(kind).unwrap_or_default();
        let outcome = Outcome { writes: take("write"), reads: take("read"), checks: take("check") };
        eprintln!("fault: {name}; requests {requests}; {outcome:?}");
        outcome
    }

    /// Asserts that the gateway serves as before, of itself. The fault must be over.
    pub(crate) async fn recovers(&self, name: &str) {
        let begun = now();
        let mut tried = 0;
        eventually(&format!("recovery from {name}"), async || {
            tried += 1;
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let write = self.gateway.call(WRITE, format!("{{\"n\":{number}}}")).await;
            let check = self.gateway.check("ann", &[&format!("u{number}")]).await;
            let outcomes =
                [("write", write), ("check", check)].map(|(kind, answer)| outcome(name, kind, number, &answer));
            (outcomes == ["ok", "ok"]).then_some(())
        })
        .await;
        let took = now() - begun;
        self.assert_writes(name, &[]);
        eprintln!("recovery: {name}; {} ms; tries {tried}", took.as_millis());
    }

    /// No write reached Chat twice, and all of `done` did.
    fn assert_writes(&self, name: &str, done: &[u64]) {
        let mut carried_out: HashMap<u64, u32> = HashMap::new();
        for call in self.chat.calls_of(WRITE) {
            *carried_out.entry(call.json()["n"].as_u64().expect("a number")).or_default() += 1;
        }
        for (number, times) in &carried_out {
            assert_eq!(*times, 1, "{name}: write {number} was sent again");
        }
        for number in done {
            assert!(carried_out.contains_key(number), "{name}: write {number} was reported done and never came");
        }
        assert_eq!(self.other.violations(), [""; 0], "{name}");
    }
}

/// `ok` or the slug. Panics if an answer is neither Chat's own nor one of the gateway's, or not true.
fn outcome(name: &str, kind: &str, number: u64, answer: &Answer) -> String {
    if let Some(slug) = answer.slug() {
        let expected = match slug {
            "upstream_unreachable" => (502, 129_502),
            "upstream_invalid" => (502, 60013),
            "upstream_timeout" => (504, 60008),
            _ => panic!("{name}: {kind}: {answer:?}"),
        };
        answer.assert_error(expected.0, slug, expected.1);
        return slug.to_owned();
    }
    match kind {
        "write" | "read" => answer.assert_relayed(200, OK),
        "known" => assert_eq!(answer.types(), [2], "{name}"),
        "check" => assert_eq!(answer.types(), [if [1, 3].contains(&number) { 2 } else { 0 }], "{name}"),
        _ => assert_eq!((answer.status, &answer.json()["ErrorCode"]), (200, &0.into()), "{name}: {answer:?}"),
    }
    "ok".to_owned()
}

/// The trial of a fault of the network.
pub(crate) async fn weather(name: &str, weather: Weather) -> (Trial, Outcome) {
    let mut trial = Trial::start().await;
    trial.link.set(weather).await;
    let outcome = trial.strain(name).await;
    trial.link.set(Weather::Fair).await;
    trial.recovers(name).await;
    (trial, outcome)
}
