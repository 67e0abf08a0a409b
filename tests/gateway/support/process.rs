//! The real binary as a process, with captured output.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use super::{PATIENCE, eventually, hosts, secrets};

/// Returns the path of the tested program. The variable `CHATGATE_TEST_PROGRAM` selects another build of it.
pub(crate) fn program() -> &'static str {
    static CHOSEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("CHATGATE_TEST_PROGRAM").ok());
    CHOSEN.as_deref().unwrap_or(env!("CARGO_BIN_EXE_chatgate"))
}

/// A running program. Dropping it kills the process by its ID, searches the output for secrets, and checks the length of
/// its messages.
pub(crate) struct Process {
    child: Child,
    readers: Vec<JoinHandle<()>>,
    stdout: Captured,
    stderr: Captured,
    /// The exit code, once known.
    exit: Option<i32>,
}

/// The result of a finished program.
#[derive(Debug)]
pub(crate) struct ProcessOutput {
    /// The exit code; -1 after a signal.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Process {
    /// Starts `chatgate` with these arguments in `dir`, with the host names of `dir` if it has a hosts file. Proxy and
    /// key-log variables are traps: proxies would break every upstream call, and a key log would leave a file.
    pub(crate) fn start(args: &[&str], dir: &Path, env: &[(&str, &str)]) -> Process {
        let mut command = hosts::command(program(), dir);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped());
        Process::spawn(command, dir, env)
    }

    /// Starts a custom command that becomes `chatgate`. Its stdout is captured if it is piped.
    pub(crate) fn spawn(mut command: Command, dir: &Path, env: &[(&str, &str)]) -> Process {
        command.current_dir(dir).stderr(Stdio::piped());
        command.env_remove("CHATGATE_CONFIG").env("SSLKEYLOGFILE", dir.join(KEY_LOG)).env("NO_COLOR", "1");
        for proxy in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
            command.env(proxy, "http://127.0.0.1:9");
        }
        let mut child = command.envs(env.iter().copied()).spawn().expect("the binary starts");
        let (stdout, stderr) = (Captured::default(), Captured::default());
        let mut readers = vec![stderr.read_from(child.stderr.take().expect("piped"))];
        readers.extend(child.stdout.take().map(|pipe| stdout.read_from(pipe)));
        Process { child, readers, stdout, stderr, exit: None }
    }

    /// Runs `chatgate` until it exits, at most [`PATIENCE`].
    pub(crate) async fn run(args: &[&str], dir: &Path, env: &[(&str, &str)]) -> ProcessOutput {
        let mut process = Process::start(args, dir, env);
        let code = process.exit_code().await;
        ProcessOutput { code, stdout: process.stdout(), stderr: process.stderr() }
    }

    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Sends a signal (`"TERM"`, `"HUP"`) to this process only.
    pub(crate) fn signal(&self, name: &str) {
        assert!(self.exit.is_none(), "the process has already exited");
        // The shell's built-in kill, because small images have no other.
        let line = format!("kill -s {name} {}", self.child.id());
        let status = Command::new("sh").args(["-c", &line]).status().expect("a shell");
        assert!(status.success(), "{line}");
    }

    /// Returns the process ID.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the CPU time used so far, in kernel ticks of usually 10 ms (proc(5), fields 14 and 15).
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("the process is running");
        // The name in parentheses may contain anything, so parsing starts after it.
        let after = stat.rsplit_once(") ").expect("a name in parentheses").1;
        let fields: Vec<u64> = after.split(' ').skip(11).take(2).map(|field| field.parse().expect("ticks")).collect();
        fields.iter().sum()
    }

    /// Returns the resident memory in bytes (proc(5), VmRSS).
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the process is running");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a VmRSS line");
        line.trim().strip_suffix(" kB").and_then(|kib| kib.parse::<u64>().ok()).expect("KiB") * 1024
    }

    /// Returns the exit code if the process has exited; -1 after a signal.
    pub(crate) fn try_exit(&mut self) -> Option<i32> {
        if self.exit.is_none()
            && let Some(status) = self.child.try_wait().expect("own child")
        {
            self.exit = Some(status.code().unwrap_or(-1));
            for reader in self.readers.drain(..) {
                reader.join().expect("a reader that ends with its pipe");
            }
        }
        self.exit
    }

    /// Waits for the exit, at most [`PATIENCE`].
    pub(crate) async fn exit_code(&mut self) -> i32 {
        eventually("the program ends", async || self.try_exit()).await
    }

    /// Waits for the exit, and panics if it takes longer than `limit`.
    pub(crate) async fn exit_code_within(&mut self, limit: Duration) -> i32 {
        assert!(limit <= PATIENCE, "{limit:?}");
        let start = super::now();
        let code = self.exit_code().await;
        assert!(start.elapsed() <= limit, "exited only after {:?}", start.elapsed());
        code
    }
}

/// Maximum length of a message and of a line of the log, in bytes.
const LINE_LEN_MAX: usize = 1024;

const KEY_LOG: &str = "key-log-that-must-not-exist";

impl Drop for Process {
    fn drop(&mut self) {
        if self.try_exit().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            for reader in self.readers.drain(..) {
                let _ = reader.join();
            }
        }
        if std::thread::panicking() {
            let log = self.stderr();
            let tail: Vec<&str> = log.lines().rev().take(40).collect();
            eprintln!("--- the last lines of its log ---");
            tail.into_iter().rev().for_each(|line| eprintln!("{line}"));
            return;
        }
        secrets::assert_none_in("stdout", self.stdout().as_bytes());
        secrets::assert_none_in("stderr", self.stderr().as_bytes());
        let stderr = self.stderr();
        let longest = stderr.lines().max_by_key(|line| line.len()).unwrap_or_default();
        assert!(longest.len() <= LINE_LEN_MAX, "a line of stderr has {} bytes: {longest}", longest.len());
    }
}

/// The bytes read from a pipe so far.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn read_from(&self, mut pipe: impl Read + Send + 'static) -> JoinHandle<()> {
        let captured = self.0.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 8192];
            while let Ok(count @ 1..) = pipe.read(&mut chunk) {
                captured.lock().extend_from_slice(&chunk[..count]);
            }
        })
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}
