//! The targets: chatgate and the installed peers, each configured as an expert would.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chatgate::clock;
use tempfile::TempDir;

/// Query parameters for peers that cannot sign. They use a fixed signature.
const SIGNED: &str = "sdkappid=1400000001&identifier=administrator&contenttype=json&usersig=";
/// The file of a run under callgrind.
const PROFILE: &str = "callgrind.out";
/// The longest time until a target listens.
const START_MAX: Duration = Duration::from_secs(60);
/// Length of a real UserSig.
const USERSIG_LEN: usize = 180;

/// The setup of a target.
#[derive(Clone, Copy)]
pub(crate) struct Setup<'a> {
    /// Address of the fake Chat.
    pub(crate) chat: SocketAddr,
    /// The CA file, if the connection to Chat uses TLS.
    pub(crate) ca: Option<&'a Path>,
    /// The response body of a bare server.
    pub(crate) answer: &'a str,
    /// Whether the target runs on one CPU only (if `taskset` is installed).
    pub(crate) pinned: bool,
    /// Whether chatgate runs under callgrind, and logs no requests: it is so slow there that sampled lines would count.
    pub(crate) counted: bool,
    /// Options of chatgate: cache TTL, cache capacity, and lifetime of a signature.
    pub(crate) ttl: &'static str,
    pub(crate) max_pairs: usize,
    pub(crate) usersig_lifetime: &'static str,
}

impl<'a> Setup<'a> {
    /// Returns a setup on one CPU, in which nothing expires during a run.
    pub(crate) fn new(chat: SocketAddr, ca: Option<&'a Path>, answer: &'a str) -> Self {
        Self {
            chat,
            ca,
            answer,
            pinned: true,
            counted: false,
            ttl: "1h",
            max_pairs: 1_000_000,
            usersig_lifetime: "24h",
        }
    }
}

/// A server under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// A bare hyper server with a fixed response: the machine's limit.
    Bare,
    /// nginx with Lua, a fixed signature, and a shared dictionary of pairs.
    NginxLua,
    /// haproxy with a fixed signature and without a cache.
    Haproxy,
    Chatgate,
}

impl Target {
    pub(crate) const ALL: [Target; 4] = [Target::Bare, Target::NginxLua, Target::Haproxy, Target::Chatgate];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Target::Bare => "bare hyper",
            Target::NginxLua => "nginx + Lua",
            Target::Haproxy => "haproxy",
            Target::Chatgate => "chatgate",
        }
    }

    /// Returns whether the target is installed on this machine.
    pub(crate) fn is_installed(self) -> bool {
        match self {
            Target::Bare | Target::Chatgate => true,
            Target::NginxLua => modules().is_some() && runs("nginx", "-v"),
            Target::Haproxy => runs("haproxy", "-v"),
        }
    }

    /// Starts the target in front of the fake Chat.
    pub(crate) fn start(self, setup: Setup<'_>) -> Running {
        let Setup { chat, ca, answer, .. } = setup;
        let dir = TempDir::new().expect("a directory");
        let address = free_address();
        let in_dir = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).expect("a file");
            path
        };
        let mut command = if setup.pinned { pinned() } else { Command::new("env") };
        match self {
            Target::Bare => {
                let answer = in_dir("answer.json", answer);
                command.arg(std::env::current_exe().expect("a running program has a file"));
                command.args(["--bare", &address.to_string()]).arg(answer);
            }
            Target::NginxLua => {
                let config = in_dir("nginx.conf", &nginx(address, chat, ca, dir.path()));
                in_dir("follow.lua", include_str!("follow.lua"));
                command.args(["nginx", "-p"]).arg(dir.path()).args(["-e", "error.log", "-c"]).arg(config);
            }
            Target::Haproxy => {
                let config = in_dir("haproxy.cfg", &haproxy(address, chat, ca));
                command.args(["haproxy", "-db", "-f"]).arg(config);
            }
            Target::Chatgate => {
                let config = in_dir("chatgate.toml", &chatgate(address, setup, dir.path()));
                if setup.counted {
                    let profile = dir.path().join(PROFILE).display().to_string();
                    command.args(["valgrind", "--tool=callgrind"]).arg(format!("--callgrind-out-file={profile}"));
                }
                command.arg(env!("CARGO_BIN_EXE_chatgate")).args(["serve", "--config"]).arg(config);
                command.env("BENCH_KEY", "bench");
            }
        }
        let log = File::create(dir.path().join("output")).expect("a file");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file")).stderr(log);
        let child = command.spawn().expect("an installed target");
        let running = Running { child, address, dir };
        running.wait();
        running
    }
}

/// A running target. Dropping it stops the process.
pub(crate) struct Running {
    child: Child,
    pub(crate) address: SocketAddr,
    dir: TempDir,
}

impl Running {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns chatgate's admin socket.
    pub(crate) fn admin(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    /// Stops a target under callgrind, and returns what callgrind has written.
    pub(crate) fn profile(mut self) -> String {
        self.stop();
        fs::read_to_string(self.dir.path().join(PROFILE)).unwrap_or_default()
    }

    fn stop(&mut self) {
        // The number of a process that was waited for may belong to another one.
        if let Ok(None) = self.child.try_wait() {
            // All targets exit cleanly after SIGTERM.
            let pid = rustix::process::Pid::from_child(&self.child);
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let _ = self.child.wait();
        }
    }

    fn wait(&self) {
        let until = clock::now() + START_MAX;
        while TcpStream::connect(self.address).is_err() {
            let output = || fs::read_to_string(self.dir.path().join("output")).unwrap_or_default();
            assert!(clock::now() < until, "the target does not listen: {}", output());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Returns whether a program is installed.
pub(crate) fn runs(program: &str, argument: &str) -> bool {
    let output = Command::new(program).arg(argument).stdout(Stdio::null()).stderr(Stdio::null()).status();
    output.is_ok_and(|status| status.success())
}

/// Returns a command that runs its arguments on the last CPU, or on any CPU if `taskset` is not installed.
fn pinned() -> Command {
    let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
    if !runs("taskset", "--version") {
        return Command::new("env");
    }
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &last.to_string()]);
    command
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

/// Returns the required nginx modules from the usual folders of distributions.
fn modules() -> Option<[PathBuf; 2]> {
    let places = ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/local/nginx/modules"];
    let modules =
        |place: &&str| ["ndk_http_module.so", "ngx_http_lua_module.so"].map(|module| Path::new(place).join(module));
    places.iter().map(modules).find(|modules| modules.iter().all(|module| module.exists()))
}

fn usersig() -> String {
    "eJw1".chars().cycle().take(USERSIG_LEN).collect()
}

fn nginx(address: SocketAddr, chat: SocketAddr, ca: Option<&Path>, dir: &Path) -> String {
    let [ndk, lua] = modules().expect("an installed target").map(|module| module.display().to_string());
    let (dir, usersig) = (dir.display(), usersig());
    let (scheme, tls) = match ca {
        None => ("http", String::new()),
        Some(ca) => (
            "https",
            format!(
                "proxy_ssl_trusted_certificate {}; proxy_ssl_verify on; proxy_ssl_name localhost; proxy_ssl_server_name on;",
                ca.display()
            ),
        ),
    };
    format!(
        r#"load_module {ndk};
load_module {lua};
daemon off;
worker_processes 1;
pid {dir}/pid;
error_log {dir}/error.log error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
    client_max_body_size 16m;
    client_body_buffer_size 2m;
    keepalive_requests 100000000;
    lua_shared_dict pairs 256m;
    init_by_lua_block {{ follow = dofile("{dir}/follow.lua") }}
    upstream chat {{ server {chat}; keepalive 256; keepalive_requests 100000000; }}
    server {{
        listen {address} backlog=4096;
        location /v4/ {{
            set_by_lua_block $random {{ return math.random(0, 4294967295) }}
            rewrite ^ "$uri?{SIGNED}{usersig}&random=$random" break;
            proxy_pass {scheme}://chat;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host localhost;
            {tls}
        }}
        location = /v4/follow/follow_check {{ content_by_lua_block {{ follow() }} }}
    }}
}}
"#
    )
}

fn haproxy(address: SocketAddr, chat: SocketAddr, ca: Option<&Path>) -> String {
    let usersig = usersig();
    let tls = ca.map_or_else(String::new, |ca| {
        format!("ssl verify required ca-file {} sni str(localhost) verifyhost localhost", ca.display())
    });
    format!(
        r#"global
    nbthread 1
    maxconn 4096
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 5s
    option http-keep-alive
    http-reuse always
frontend gateway
    bind {address}
    default_backend chat
backend chat
    http-request set-query {SIGNED}{usersig}&random=%[rand(4294967295)]
    http-request set-header Host localhost
    server chat {chat} {tls}
"#
    )
}

/// Returns the default configuration, except for limits that a benchmark must not reach: the quota and the TTL.
fn chatgate(address: SocketAddr, setup: Setup<'_>, dir: &Path) -> String {
    let Setup { chat, ca, ttl, max_pairs, usersig_lifetime, .. } = setup;
    let dir = dir.display();
    let requests = if setup.counted { "off" } else { "sampled" };
    let (endpoint, ca) = match ca {
        None => (format!("http://{chat}"), String::new()),
        Some(ca) => (format!("https://localhost:{}", chat.port()), format!("ca_file = \"{}\"", ca.display())),
    };
    format!(
        r#"[server]
listen = "{address}"
admin = "unix:{dir}/admin.sock"
max_body = "2MiB"
[[app]]
name = "bench"
sdkappid = 1400000001
region = "singapore"
endpoint = "{endpoint}"
{ca}
identifier = "administrator"
secret_key_env = "BENCH_KEY"
usersig_lifetime = "{usersig_lifetime}"
[app.quota]
per_command = "10000000/s"
[access]
allow = ["*"]
[cache]
ttl = "{ttl}"
max_pairs = {max_pairs}
[upstream]
max_in_flight = 256
[log]
requests = "{requests}"
"#
    )
}
