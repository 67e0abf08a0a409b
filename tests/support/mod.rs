//! Shared by the tests that run the real program: starting it, reading its output, and calling it with curl.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use serde_json::Value;

/// Longest wait for a line of output or for the exit. Both normally take far less.
const PATIENCE: Duration = Duration::from_secs(30);

/// The stream to which a line was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// A running chatgate. Dropping it kills the process.
pub(crate) struct Program {
    child: Child,
    lines: Receiver<(Stream, String)>,
    output: Vec<(Stream, String)>,
}

impl Program {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    /// Starts it with additional environment variables.
    pub(crate) fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_chatgate"))
            .args(arguments)
            .envs(environment.iter().copied())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (sender, lines) = channel();
        forward(Stream::Stdout, child.stdout.take().expect("it was piped"), sender.clone());
        forward(Stream::Stderr, child.stderr.take().expect("it was piped"), sender);
        Self { child, lines, output: Vec::new() }
    }

    /// Starts a demo on free ports, and returns it with the addresses of its data and admin listeners.
    #[allow(dead_code, reason = "not every test uses it")]
    pub(crate) fn demo() -> (Self, String, String) {
        let mut demo = Self::start(&["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        let (data, admin) = (demo.address("data"), demo.address("admin"));
        (demo, data, admin)
    }

    /// Waits until the log reports this listener, and returns its address.
    #[allow(dead_code, reason = "not every test uses it")]
    pub(crate) fn address(&mut self, listener: &str) -> String {
        self.wait_until(|program| {
            let events = program.lines_on(Stream::Stderr).filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let mut found = events.filter(|event| event["listener"] == listener);
            found.find_map(|event| event["address"].as_str().map(str::to_owned))
        })
    }

    /// Waits until `wanted` finds its result in the output so far.
    pub(crate) fn wait_until<T>(&mut self, wanted: impl Fn(&Self) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(self) {
                return found;
            }
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.output.push(line),
                Err(reason) => panic!("the expected line did not appear ({reason}); output:\n{:#?}", self.output),
            }
        }
    }

    /// Returns the lines written to one stream so far.
    pub(crate) fn lines_on(&self, stream: Stream) -> impl Iterator<Item = &str> {
        self.output.iter().filter(move |(from, _)| *from == stream).map(|(_, line)| line.as_str())
    }

    /// Sends SIGTERM, as an operator does, and waits until all output has been read.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        // The shell's built-in kill, because small images have no other.
        shell(&format!("kill -TERM {}", self.child.id()));
        // Both readers disconnect once the program has closed its streams.
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => self.output.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the program does not exit: {:#?}", self.output),
            }
        }
        self.child.wait().expect("a child can be waited for")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn forward(stream: Stream, from: impl Read + Send + 'static, to: Sender<(Stream, String)>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if to.send((stream, line)).is_err() {
                return;
            }
        }
    });
}

/// Runs a script in `sh` without the machine's proxy and curl settings, and returns its stdout.
pub(crate) fn shell(script: &str) -> String {
    let output = Command::new("sh")
        .args(["-euc", script])
        .env("NO_PROXY", "*")
        .env("no_proxy", "*")
        .env("CURL_HOME", env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .output()
        .expect("sh runs");
    assert!(output.status.success(), "{}: {script}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("the output is text")
}
