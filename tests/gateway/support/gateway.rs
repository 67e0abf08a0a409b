//! A running gateway.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::answer::Answer;
use super::client::{Ask, Conn};
use super::process::Process;
use super::turn::Turn;
use super::{eventually, within};

/// `chatgate serve` with its own directory and free ports. Dropping it kills it.
pub(crate) struct Gateway {
    process: Process,
    /// Addresses of the data listeners, in the order of the log: `ip:port` or `unix:/path`.
    data: Vec<String>,
    admin: String,
    dir: Arc<TempDir>,
    _turn: Arc<Turn>,
}

impl Gateway {
    /// Starts `serve` with the text as its configuration and waits until `listeners` data listeners
    /// and the admin listener are up. `dir` holds the files that the text names.
    pub(crate) async fn start(config: &str, dir: Arc<TempDir>, env: &[(&str, &str)], listeners: usize) -> Gateway {
        let file = dir.path().join("chatgate.toml");
        std::fs::write(&file, config).expect("own directory");
        let turn = super::turn::shared().await;
        let process = Process::start(&["serve", "--config", &file.to_string_lossy()], dir.path(), env);
        Gateway::of(process, turn, dir, listeners).await
    }

    /// The same of a process that the test has started.
    pub(crate) async fn of(mut process: Process, turn: Arc<Turn>, dir: Arc<TempDir>, listeners: usize) -> Gateway {
        let (data, admin) = eventually("the gateway listens", async || {
            if let Some(code) = process.try_exit() {
                let config = std::fs::read_to_string(dir.path().join("chatgate.toml")).unwrap_or_default();
                panic!("ended with {code} instead of listening:\n{}\n{config}", process.stderr());
            }
            let log = process.stderr();
            let data = listening(&log, "data");
            let admin = listening(&log, "admin").pop()?;
            (data.len() == listeners).then_some((data, admin))
        })
        .await;
        Gateway { process, data, admin, dir, _turn: turn }
    }

    /// The same at addresses that are known before, for a log that does not tell them.
    pub(crate) async fn start_at(config: &str, dir: Arc<TempDir>, data: Vec<String>, admin: String) -> Gateway {
        let turn = super::turn::shared().await;
        let file = dir.path().join("chatgate.toml");
        std::fs::write(&file, config).expect("own directory");
        let process = Process::start(&["serve", "--config", &file.to_string_lossy()], dir.path(), &[]);
        let mut gateway = Gateway { process, data, admin, dir, _turn: turn };
        eventually("the gateway listens", async || {
            assert_eq!(gateway.process.try_exit(), None, "{}", gateway.log());
            (gateway.accepts().await && Conn::open(&gateway.admin).await.is_ok()).then_some(())
        })
        .await;
        gateway
    }

    /// Address of the first data listener.
    pub(crate) fn address(&self) -> &str {
        &self.data[0]
    }

    /// Addresses of all data listeners.
    pub(crate) fn addresses(&self) -> &[String] {
        &self.data
    }

    /// Address of the admin listener.
    pub(crate) fn admin(&self) -> &str {
        &self.admin
    }

    /// Its own directory.
    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// The log so far.
    pub(crate) fn log(&self) -> String {
        self.process.stderr()
    }

    /// What it printed on stdout so far.
    pub(crate) fn stdout(&self) -> String {
        self.process.stdout()
    }

    /// A new connection to the data listener.
    pub(crate) async fn connect(&self) -> Conn {
        Conn::open(self.address()).await.expect("the data listener accepts")
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, ask: Ask) -> Answer {
        within(super::PATIENCE, "an answer", self.connect().await.ask(&ask)).await
    }

    /// `POST /v4/{command}`.
    pub(crate) async fn call(&self, command: &str, body: impl AsRef<[u8]>) -> Answer {
        self.ask(Ask::command(command).body(body)).await
    }

    /// `follow/follow_check` with a plain body.
    pub(crate) async fn check(&self, from: &str, to: &[&str]) -> Answer {
        self.ask(Ask::check(from, to)).await
    }

    /// `GET` from the admin listener.
    pub(crate) async fn admin_get(&self, path: &str) -> Answer {
        let mut conn = Conn::open(&self.admin).await.expect("the admin listener accepts");
        within(super::PATIENCE, "an answer", conn.ask(&Ask::new("GET", path))).await
    }

    /// Whether a new connection to the data listener is still taken and answered.
    pub(crate) async fn accepts(&self) -> bool {
        let Ok(mut conn) = Conn::open(self.address()).await else { return false };
        conn.send(Ask::new("GET", "/round-trip").bytes()).await;
        conn.try_answer().await.is_some()
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Processor time it has used, in ticks of usually 10 ms.
    pub(crate) fn ticks(&self) -> u64 {
        self.process.ticks()
    }

    /// Memory that it holds, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.process.memory()
    }

    /// Sends a signal, for instance `"TERM"`.
    pub(crate) fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits for the end that something else caused, at most `limit`.
    pub(crate) async fn exit_code_within(&mut self, limit: Duration) -> i32 {
        self.process.exit_code_within(limit).await
    }

    /// SIGKILL: it gets no chance to tidy up.
    pub(crate) async fn kill(mut self) {
        self.signal("KILL");
        self.process.exit_code().await;
    }

    /// SIGTERM, then the exit code.
    pub(crate) async fn stop(mut self) -> i32 {
        self.signal("TERM");
        self.process.exit_code().await
    }

    /// Waits until exactly so many requests are at work: read whole, allowed, and not answered yet. What each does next
    /// it has then begun, if not done.
    pub(crate) async fn at_work(&self, count: u64) {
        eventually(&format!("{count} requests are at work"), async || {
            (self.admin_get("/status").await.json()["requests_in_flight"]["now"] == count).then_some(())
        })
        .await;
    }

    /// Some round trips through the gateway. Whatever was written to it before is then very likely
    /// being worked on. Tests use it to make a race likely, never to make a wrong answer pass.
    pub(crate) async fn round_trips(&self) {
        for _ in 0..20 {
            self.ask(Ask::new("GET", "/round-trip")).await;
        }
    }
}

/// The addresses that the log's listening lines name for this listener.
pub(crate) fn listening(log: &str, listener: &str) -> Vec<String> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["message"] == "listening" && line["listener"] == listener)
        .filter_map(|line| Some(line["address"].as_str()?.to_owned()))
        .collect()
}
