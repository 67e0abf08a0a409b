//! `chatgate demo`: a gateway and the Chat simulator in one process, without credentials, files, or network.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::config::{
    Access, Cache, Config, Endpoint, Fleet, ListenAddr, Log, Quota, RedisForm, RedisUrl, Relation, Server, Upstream,
};
use crate::domain::chat::app::{Identifier, SdkAppId, SecretKey};
use crate::domain::chat::command::{CommandPattern, DeclaredReads};
use crate::domain::relation::KINDS;
use crate::runtime::serve;
use crate::runtime::serve::ServeError;
use crate::sandbox::{Sandbox, SandboxConfig, SandboxTls, SeedGraph};

/// Default addresses, the same as those of `serve`. If one of them is in use, the demo takes free ports.
const DATA: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8700);
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8701);
/// A free port on loopback.
const ANY: SocketAddr = SocketAddr::new(DATA.ip(), 0);
/// Rate limit in calls per second and command: the vendor's usual value.
const PER_SECOND: NonZeroU32 = NonZeroU32::new(200).expect("not 0");

/// Options of `chatgate demo`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DemoArgs {
    /// Address of the data listener [default: 127.0.0.1:8700, or a free port if that is in use]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Address of the admin listener [default: 127.0.0.1:8701, or a free port if that is in use]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// Number of replicas, 1 to 16; more than one requires --redis
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub replicas: u8,
    /// Redis or Valkey that the replicas share, as redis://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub redis: Option<RedisUrl>,
}

/// Why the demo cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    /// A gateway failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The Chat simulator failed to start.
    #[error("cannot start the Chat simulator: {0}")]
    Sandbox(String),
    /// Other machines could reach the address.
    #[error("{0} is not a loopback address, and the demo has no authentication; use a loopback address")]
    NotLoopback(SocketAddr),
    /// Several replicas have no Redis to share.
    #[error("several replicas need a Redis to share; add --redis redis://HOST:PORT")]
    NoRedis,
    /// The thread of a replica failed to start.
    #[error("cannot start a replica: {0}")]
    Thread(io::Error),
}

/// Runs gateway and simulator until SIGTERM or SIGINT. Once everything listens, `print` gets the commands to try.
///
/// # Errors
/// See [`DemoError`].
pub(crate) fn run(args: &DemoArgs, print: impl FnOnce(&str)) -> Result<ExitCode, DemoError> {
    for address in args.listen.iter().chain(&args.admin) {
        if !address.ip().is_loopback() {
            return Err(DemoError::NotLoopback(*address));
        }
    }
    if args.replicas > 1 && args.redis.is_none() {
        return Err(DemoError::NoRedis);
    }
    let mut simulator = DemoSimulator::start()?;
    let share = 1.0 / f64::from(args.replicas);
    simulator.fleet = args.redis.clone().map(|redis| Fleet::new(RedisForm::Primary(redis), &fleet_prefix(), share));
    let first = bind_first(args, &simulator)?;
    let others = (1..args.replicas).map(|_| serve::Server::bind(simulator.gateway_config(ANY, ANY), None));
    let others = others.collect::<Result<Vec<_>, _>>()?;
    let mut text = guide(&first.addresses()[0], &first.admin_address());
    for other in &others {
        text += &format!("# Another replica: {}, admin listener {}\n", other.addresses()[0], other.admin_address());
    }
    print(&text);
    let quits: Vec<_> = others.iter().map(serve::Server::quit).collect();
    let start = |other: serve::Server| thread::Builder::new().name("replica".to_owned()).spawn(move || other.run());
    let threads = others.into_iter().map(start).collect::<Result<Vec<_>, _>>().map_err(DemoError::Thread)?;
    let result = first.run();
    quits.iter().for_each(CancellationToken::cancel);
    for thread in threads {
        // The demo returns the result of the first replica.
        let _ = thread.join();
    }
    simulator.stop();
    Ok(result?)
}

/// Binds the first replica: to its addresses, or to free ports if a default address is in use by another demo.
fn bind_first(args: &DemoArgs, simulator: &DemoSimulator) -> Result<serve::Server, ServeError> {
    let config = simulator.gateway_config(args.listen.unwrap_or(DATA), args.admin.unwrap_or(ADMIN));
    match serve::Server::bind(config, None) {
        Err(ServeError::Bind(_)) if args.listen.is_none() || args.admin.is_none() => {
            let config = simulator.gateway_config(args.listen.unwrap_or(ANY), args.admin.unwrap_or(ANY));
            serve::Server::bind(config, None)
        }
        result => result,
    }
}

/// Returns a random prefix for keys in Redis: each demo has another secret key, so it must not use the entries of an
/// earlier one.
fn fleet_prefix() -> String {
    format!("chatgate-demo-{:08x}", clock::random_u32())
}

/// Returns the introduction and the commands to try, which can be pasted as a whole. zsh runs the lines that begin with
/// `#`, too, if they are typed, so they contain no character that a shell treats specially.
fn guide(data: &str, admin: &str) -> String {
    let check =
        |body: &str, options: &str| format!("curl -s -D- http://{data}/v4/follow/follow_check{options} -d '{body}'");
    let first = check(r#"{"From_Account":"alice","To_Account":["bob","carol","dave"]}"#, "");
    let flipped = check(r#"{"From_Account":"carol","To_Account":["alice"]}"#, "");
    let friends = r#"{"From_Account":"alice","To_Account":["bob","carol"],"CheckType":"CheckResult_Type_Both"}"#;
    let write = r#"{"From_Account":"alice","To_Account":["bob"]}"#;
    let after = check(r#"{"From_Account":"alice","To_Account":["bob","carol"]}"#, "");
    let cached = check(r#"{"From_Account":"bob","To_Account":["dave"]}"#, " -H 'Cache-Control: only-if-cached'");
    format!(
        "# chatgate is listening on {data}, in front of a Chat simulator in which\n\
         # alice and bob follow each other and are friends, alice follows carol, and dave follows alice.\n\
         # Run these commands in a second terminal. Ctrl-C ends the demo.\n\
         \n\
         # Relations between alice and three accounts, with one signed call to Chat over TLS:\n\
         {first}\n\
         # The same request again is a hit. No call to Chat is made:\n\
         {first}\n\
         # A cached pair answers in both directions:\n\
         {flipped}\n\
         # Friends are checked in the same way, and so are blocklists:\n\
         curl -s -D- http://{data}/v4/sns/friend_check -d '{friends}'\n\
         # chatgate relays every other command. After a write, it fetches only the affected pairs again:\n\
         curl -s http://{data}/v4/follow/follow_delete -d '{write}'\n\
         {after}\n\
         # Errors of chatgate have the same form as errors of Chat:\n\
         {cached}\n\
         # The admin listener reports whether the gateway is ready:\n\
         curl -s http://{admin}/readyz\n"
    )
}

/// The running Chat simulator.
struct DemoSimulator {
    sdkappid: SdkAppId,
    identifier: Identifier,
    key: SecretKey,
    ca: CertificateDer<'static>,
    address: SocketAddr,
    /// The fleet that its gateways form.
    fleet: Option<Fleet>,
    stop: CancellationToken,
    thread: thread::JoinHandle<()>,
}

impl DemoSimulator {
    fn start() -> Result<Self, DemoError> {
        let fail = |error: &dyn std::fmt::Display| DemoError::Sandbox(error.to_string());
        let sdkappid = SdkAppId::new(1_400_000_001).expect("not 0");
        let identifier: Identifier = "administrator".parse().expect("a valid name");
        let random = clock::os_random().map_err(|error| fail(&error))?;
        let key = random.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let key = SecretKey::new(&key).expect("not empty");
        let edge = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let config = SandboxConfig {
            listen: ANY,
            sdkappid,
            identifier: identifier.clone(),
            secret_key: key.clone(),
            tls: SandboxTls::Memory,
            qps: PER_SECOND,
            latency: Duration::ZERO,
            webhook: None,
            seed_graph: Some(SeedGraph {
                users: ["alice", "bob", "carol", "dave"].map(str::to_owned).to_vec(),
                edges: vec![edge("alice", "bob"), edge("bob", "alice"), edge("alice", "carol"), edge("dave", "alice")],
                friends: vec![edge("alice", "bob"), edge("bob", "alice")],
                ..SeedGraph::default()
            }),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error: io::Error| fail(&error))?;
        let sandbox = runtime.block_on(Sandbox::bind(config)).map_err(|error| fail(&error))?;
        let ca = CertificateDer::from_pem_slice(sandbox.ca_pem().unwrap_or_default().as_bytes());
        let ca = ca.map_err(|error| fail(&error))?;
        let (address, stop) = (sandbox.address(), CancellationToken::new());
        let stopped = stop.clone();
        let thread = thread::Builder::new()
            .name("sandbox".to_owned())
            .spawn(move || runtime.block_on(sandbox.run(stopped)))
            .map_err(|error| fail(&error))?;
        Ok(Self { sdkappid, identifier, key, ca, address, fleet: None, stop, thread })
    }

    /// Returns the configuration of a gateway in front of the simulator.
    fn gateway_config(&self, listen: SocketAddr, admin: SocketAddr) -> Config {
        let app = crate::config::App {
            name: "demo".parse().expect("a valid name"),
            sdkappid: self.sdkappid,
            region: None,
            endpoint: Endpoint { tls: true, host: self.address.ip().to_string(), port: self.address.port() },
            standby: None,
            extra_roots: vec![self.ca.clone()],
            identifier: self.identifier.clone(),
            secret_key: self.key.clone(),
            usersig_lifetime: Duration::from_secs(24 * 60 * 60),
            default: true,
            reads: DeclaredReads::default(),
            quota: Quota { per_command: PER_SECOND, ..Quota::default() },
        };
        Config {
            server: Server {
                listen: vec![ListenAddr::Tcp(listen)],
                admin: ListenAddr::Tcp(admin),
                explain: true,
                ..Server::default()
            },
            apps: vec![app],
            access: Access { allow: vec![CommandPattern::Any], ..Access::default() },
            callers: Vec::new(),
            cache: Cache { max_pairs: 100_000, ..Cache::default() },
            relation: Relation { kinds: KINDS.to_vec(), ..Relation::default() },
            upstream: Upstream::default(),
            webhook: None,
            fleet: self.fleet.clone(),
            log: Log::default(),
            trace: None,
            warnings: Vec::new(),
            source: Default::default(),
        }
    }

    fn stop(self) {
        self.stop.cancel();
        // The result of this thread is of no interest: the demo ends.
        let _ = self.thread.join();
    }
}
