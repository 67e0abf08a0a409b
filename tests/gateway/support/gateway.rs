//! A running gateway.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::client::{Conn, TestRequest};
use super::process::Process;
use super::response::Response;
use super::turn::Turn;
use super::{eventually, within};

/// A `chatgate serve` process with its own directory and free ports. Dropping it kills the process.
pub(crate) struct Gateway {
    process: Process,
    /// Addresses of the data listeners, in the order of the log: `ip:port` or `unix:/path`.
    data: Vec<String>,
    admin: String,
    dir: Arc<TempDir>,
    _turn: Arc<Turn>,
}

impl Gateway {
    /// Starts `serve` with this configuration and waits until `listeners` data listeners and the admin listener are up.
    /// `dir` contains the files that the configuration names.
    pub(crate) async fn start(config: &str, dir: Arc<TempDir>, env: &[(&str, &str)], listeners: usize) -> Gateway {
        let file = dir.path().join("chatgate.toml");
        std::fs::write(&file, config).expect("own directory");
        let turn = super::turn::shared().await;
        let process = Process::start(&["serve", "--config", &file.to_string_lossy()], dir.path(), env);
        Gateway::attach(process, turn, dir, listeners).await
    }

    /// Wraps a process that the test has started, and waits as [`Gateway::start`] does.
    pub(crate) async fn attach(mut process: Process, turn: Arc<Turn>, dir: Arc<TempDir>, listeners: usize) -> Gateway {
        let (data, admin) = eventually("the gateway listens", async || {
            if let Some(code) = process.try_exit() {
                let config = std::fs::read_to_string(dir.path().join("chatgate.toml")).unwrap_or_default();
                panic!("exited with code {code} before listening:\n{}\n{config}", process.stderr());
            }
            let log = process.stderr();
            let data = listener_addresses(&log, "data");
            let admin = listener_addresses(&log, "admin").pop()?;
            (data.len() == listeners).then_some((data, admin))
        })
        .await;
        Gateway { process, data, admin, dir, _turn: turn }
    }

    /// Starts `serve` at known addresses, for a log that does not contain them.
    pub(crate) async fn start_at(config: &str, dir: Arc<TempDir>, data: Vec<String>, admin: String) -> Gateway {
        let turn = super::turn::shared().await;
        let file = dir.path().join("chatgate.toml");
        std::fs::write(&file, config).expect("own directory");
        let process = Process::start(&["serve", "--config", &file.to_string_lossy()], dir.path(), &[]);
        let mut gateway = Gateway { process, data, admin, dir, _turn: turn };
        eventually("the gateway listens", async || {
            assert_eq!(gateway.process.try_exit(), None, "{}", gateway.log());
            (gateway.is_accepting().await && Conn::open(&gateway.admin).await.is_ok()).then_some(())
        })
        .await;
        gateway
    }

    /// Returns the address of the first data listener.
    pub(crate) fn address(&self) -> &str {
        &self.data[0]
    }

    /// Returns the addresses of all data listeners.
    pub(crate) fn addresses(&self) -> &[String] {
        &self.data
    }

    /// Returns the address of the admin listener.
    pub(crate) fn admin(&self) -> &str {
        &self.admin
    }

    /// Returns the gateway's directory.
    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Returns the log so far.
    pub(crate) fn log(&self) -> String {
        self.process.stderr()
    }

    /// Returns the text on stdout so far.
    pub(crate) fn stdout(&self) -> String {
        self.process.stdout()
    }

    /// Opens a connection to the data listener.
    pub(crate) async fn connect(&self) -> Conn {
        Conn::open(self.address()).await.expect("the data listener accepts")
    }

    /// Sends one request on a new connection.
    pub(crate) async fn send(&self, request: TestRequest) -> Response {
        within(super::PATIENCE, "a response", self.connect().await.request(&request)).await
    }

    /// Sends `POST /v4/{command}`.
    pub(crate) async fn call(&self, command: &str, body: impl AsRef<[u8]>) -> Response {
        self.send(TestRequest::command(command).body(body)).await
    }

    /// Sends `follow/follow_check` with a plain body.
    pub(crate) async fn check(&self, from: &str, to: &[&str]) -> Response {
        self.send(TestRequest::check(from, to)).await
    }

    /// Sends `GET` to the admin listener.
    pub(crate) async fn admin_get(&self, path: &str) -> Response {
        self.send_to_admin(TestRequest::new("GET", path)).await
    }

    /// Sends one request to the admin listener on a new connection.
    pub(crate) async fn send_to_admin(&self, request: TestRequest) -> Response {
        let mut conn = Conn::open(&self.admin).await.expect("the admin listener accepts");
        within(super::PATIENCE, "a response", conn.request(&request)).await
    }

    /// Returns whether the data listener still accepts and answers a new connection.
    pub(crate) async fn is_accepting(&self) -> bool {
        let Ok(mut conn) = Conn::open(self.address()).await else { return false };
        conn.send(TestRequest::new("GET", "/round-trip").bytes()).await;
        conn.try_read_response().await.is_some()
    }

    /// Returns the process ID.
    pub(crate) fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Returns the CPU time used so far, in kernel ticks of usually 10 ms.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        self.process.cpu_ticks()
    }

    /// Returns the resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.process.resident_bytes()
    }

    /// Sends a signal, such as `"TERM"`.
    pub(crate) fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Waits for an exit that something else caused, at most `limit`.
    pub(crate) async fn exit_code_within(&mut self, limit: Duration) -> i32 {
        self.process.exit_code_within(limit).await
    }

    /// Sends SIGKILL, so that the gateway cannot clean up, and waits for the exit.
    pub(crate) async fn kill(mut self) {
        self.signal("KILL");
        self.process.exit_code().await;
    }

    /// Sends SIGTERM and returns the exit code.
    pub(crate) async fn stop(mut self) -> i32 {
        self.signal("TERM");
        self.process.exit_code().await
    }

    /// Waits until exactly `count` requests are in flight: read completely, authorized, and not answered yet. Each has
    /// then at least started its next step.
    pub(crate) async fn wait_for_in_flight(&self, count: u64) {
        eventually(&format!("{count} requests in flight"), async || {
            (self.admin_get("/status").await.json()["requests_in_flight"]["now"] == count).then_some(())
        })
        .await;
    }

    /// Waits until no connection to the data listener is left. What its callers have abandoned then runs on its own.
    pub(crate) async fn wait_for_no_connections(&self) {
        eventually("no connections", async || {
            (self.admin_get("/status").await.json()["connections"]["now"] == 0).then_some(())
        })
        .await;
    }

    /// Makes 20 round trips through the gateway. It has then very likely started on everything written to it before.
    /// Tests use this to make a race likely, never to make a wrong response pass.
    pub(crate) async fn round_trips(&self) {
        for _ in 0..20 {
            self.send(TestRequest::new("GET", "/round-trip")).await;
        }
    }
}

/// Returns the addresses that the log reports for this listener.
pub(crate) fn listener_addresses(log: &str, listener: &str) -> Vec<String> {
    log_events(log)
        .into_iter()
        .filter(|line| line["message"] == "listening" && line["listener"] == listener)
        .filter_map(|line| Some(line["address"].as_str()?.to_owned()))
        .collect()
}

/// Returns the complete lines of a JSON log.
pub(crate) fn log_events(log: &str) -> Vec<Value> {
    log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
