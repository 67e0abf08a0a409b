//! Proxies of the distribution, in network namespaces: the gateway has no route but the one to the proxy.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::doctor::{HEX, HEX_KEY};
use crate::support::eventually;
use crate::support::process::{Process, ProcessOutput, program};
use crate::support::secrets;
use crate::support::setup::Setup;

/// Builds two network namespaces, and runs a command of chatgate in the inner one. Arguments: directory, command of the
/// proxy, its address, program, arguments of the program.
///
/// The outer namespace has the simulator (10.78.0.1), and the proxy, a Redis, and a receiver of traces (10.77.0.1). The
/// inner one has a link to 10.77.0.1, and neither a default route nor DNS. The shell is the first process of a PID
/// namespace, so that all processes end with the one that the test started.
const SCRIPT: &str = r#"
set -e
dir=$1 proxy=$2 address=$3 program=$4
shift 4
cd "$dir"
ip link set lo up
ip address add 10.78.0.1/32 dev lo
ip link add outside type veth peer name inside
ip address add 10.77.0.1/24 dev outside
ip link set outside up
unshare --net sleep infinity &
inner=$!
while [ "$(readlink "/proc/$inner/ns/net")" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
ip link set inside netns "$inner"
inside() { nsenter --net="/proc/$inner/ns/net" -- "$@"; }
inside ip link set lo up
inside ip address add 10.77.0.2/24 dev inside
inside ip link set inside up
if inside ip route get 10.78.0.1 >&2; then exit 99; fi
"$program" sandbox --listen 10.78.0.1:443 --open --tls-dir "$dir" >sandbox.log 2>&1 &
sh -c "$proxy" >proxy.log 2>&1 &
while ! grep -qs listening sandbox.log; do sleep 0.01; done
redis-server --bind 10.77.0.1 --port 6379 --protected-mode no --save '' >redis.log 2>&1 &
python3 -m http.server --bind 10.77.0.1 4318 >traces.log 2>&1 &
for listener in "$address" 10.77.0.1:6379 10.77.0.1:4318; do
    while [ "$(ss -Htln src "$listener" | wc -l)" = 0 ]; do sleep 0.01; done
done
exec nsenter --net="/proc/$inner/ns/net" -- "$program" "$@"
"#;

/// A proxy of the distribution.
struct Program {
    /// The command that runs it in the foreground.
    command: &'static str,
    url: &'static str,
    /// What its log says of a tunnel to the simulator.
    log: &'static str,
}

const TINYPROXY: Program = Program {
    command: "exec tinyproxy -d -c tinyproxy.conf",
    url: "http://10.77.0.1:3128",
    log: "CONNECT 10.78.0.1:443 HTTP/1.1",
};

const MICROSOCKS: Program = Program {
    command: "exec microsocks -i 10.77.0.1 -p 1080 -u proxy-user -P proxy-password",
    url: "socks5h://10.77.0.1:1080",
    log: "connected to 10.78.0.1:443",
};

/// Like most proxies, it allows CONNECT to port 443 only.
const TINYPROXY_CONF: &str = "Port 3128\nListen 10.77.0.1\nTimeout 60\nLogLevel Connect\nMaxClients 100\n\
                              Allow 10.77.0.2\nBasicAuth proxy-user proxy-password\nConnectPort 443\n";

impl Program {
    /// Returns a configuration with this proxy and an endpoint behind it.
    fn setup(&self, endpoint: &str, credentials: &str) -> Setup {
        secrets::add(HEX_KEY);
        let setup = Setup::without_apps();
        setup.file("tinyproxy.conf", TINYPROXY_CONF);
        setup.file("proxy-auth", credentials);
        let dir = setup.dir().display().to_string();
        let setup = setup.app(HEX, &format!("endpoint = \"{endpoint}\"\nca_file = '{dir}/ca.pem'"));
        // The test cannot connect into the namespace, except through files.
        let setup = setup.listen(&[&format!("unix:{dir}/data.sock")]);
        let setup = setup.set("server", &format!("admin = \"unix:{dir}/admin.sock\""));
        let setup = setup.set("upstream", &format!("proxy = \"{}\"", self.url));
        setup.set("upstream", "proxy_auth_file = \"proxy-auth\"").set("upstream", "connect_timeout = \"3s\"")
    }

    /// Returns a command that runs chatgate behind the proxy. The arguments of chatgate follow.
    fn in_front_of(&self, setup: &Setup) -> Command {
        let mut command = Command::new("unshare");
        if !std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0) {
            command.arg("--map-root-user");
        }
        command.args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", SCRIPT, "sh"]);
        let (_, address) = self.url.split_once("://").expect("a URL");
        command.arg(setup.dir()).args([self.command, address]).arg(program());
        command.env("CHATGATE_SANDBOX_KEY", HEX_KEY);
        command
    }

    /// Runs `chatgate doctor` behind the proxy. Returns its exit code and the detail of the first cause.
    async fn doctor(&self, endpoint: &str, credentials: &str) -> (i32, String) {
        let setup = self.setup(endpoint, credentials);
        let mut command = self.in_front_of(&setup);
        command.args(["doctor", "--json", "--config"]).arg(setup.write()).stdout(Stdio::piped());
        let mut process = Process::spawn(command, setup.dir(), &[]);
        let code = process.exit_code().await;
        let outcome = ProcessOutput { code, stdout: process.stdout(), stderr: process.stderr() };
        let json: Value = serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"));
        (code, json["apps"][0]["causes"][0]["detail"].as_str().unwrap_or_default().to_owned())
    }
}

const CHAT: &str = "https://10.78.0.1";
const CREDENTIALS: &str = "proxy-user:proxy-password\n";

#[tokio::test]
async fn gateway_without_another_route_reaches_chat_through_distribution_proxies() {
    for program in [TINYPROXY, MICROSOCKS] {
        let setup = program.setup(CHAT, CREDENTIALS);
        let command = program.in_front_of(&setup);
        let gateway = setup.start_with_command(command).await;
        let response = gateway.call("openim/querystate", r#"{"To_Account":["administrator"]}"#).await;
        assert_eq!((response.status, &response.json()["ErrorCode"]), (200, &Value::from(0)), "{}", response.text());
        let log = std::fs::read_to_string(gateway.dir().join("proxy.log")).expect("the proxy's output");
        assert!(log.contains(program.log), "{log}");
        assert!(!log.contains("querystate") && !log.contains("usersig"), "{log}");
    }
}

#[tokio::test]
async fn redis_and_traces_are_reached_without_the_proxy() {
    for program in [TINYPROXY, MICROSOCKS] {
        let setup = program.setup(CHAT, CREDENTIALS).set("fleet", "redis = 'redis://10.77.0.1:6379'");
        let setup = setup.set("trace", "otlp = 'http://10.77.0.1:4318'");
        let command = program.in_front_of(&setup);
        let gateway = setup.start_with_command(command).await;
        gateway.call("openim/querystate", r#"{"To_Account":["administrator"]}"#).await.json();
        eventually("the replica is connected to Redis", async || {
            (gateway.admin_get("/status").await.json()["fleet"]["mode"] == "connected").then_some(())
        })
        .await;
        let output = |name: &str| std::fs::read_to_string(gateway.dir().join(name)).expect("the output of a program");
        eventually("the spans arrive", async || output("traces.log").contains("POST /v1/traces").then_some(())).await;
        let log = output("proxy.log");
        assert!(log.contains(program.log), "{log}");
        let others = ["10.77.0.1:6379", "10.77.0.1:4318"].iter().any(|other| log.contains(other));
        assert!(!others, "the proxy was asked for more than Chat: {log}");
    }
}

#[tokio::test]
async fn doctor_understands_what_distribution_proxies_answer() {
    for program in [TINYPROXY, MICROSOCKS] {
        assert_eq!(program.doctor(CHAT, CREDENTIALS).await, (0, String::new()));
        assert_eq!(program.doctor(CHAT, "proxy-user:another\n").await.0, 17, "{}", program.url);
        // The proxy has no route to the address, and no DNS for the name: the target's failures, and not the proxy's.
        for endpoint in ["https://10.79.0.1", "https://no-such-host.test"] {
            let (code, detail) = program.doctor(endpoint, CREDENTIALS).await;
            assert_eq!(code, 21, "{} {endpoint}: {detail}", program.url);
        }
    }
    let (code, detail) = TINYPROXY.doctor("https://10.78.0.1:8443", CREDENTIALS).await;
    assert_eq!((code, detail.as_str()), (18, "the proxy answers CONNECT with HTTP status 403"));
}
