//! A gateway and a Chat to talk to, in one process: no credentials, no file, no network.

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
    Access, Cache, Config, Endpoint, Fleet, FollowCheck, ListenAddr, Log, Quota, RedisUrl, Server, Upstream,
};
use crate::domain::chat::app::{Identifier, SdkAppId, SecretKey};
use crate::domain::chat::command::CommandPattern;
use crate::domain::chat::region::Region;
use crate::runtime::serve;
use crate::runtime::serve::ServeError;
use crate::sandbox::{Sandbox, SandboxConfig, SandboxTls, SeedGraph};

/// Where the demo listens if nobody says otherwise and the ports are free: as `serve` does.
const DATA: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8700);
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8701);
/// Calls a second of each command, the vendor's usual number.
const PER_SECOND: NonZeroU32 = NonZeroU32::new(200).expect("not 0");

/// `chatgate demo`
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// Where the gateway listens [default: 127.0.0.1:8700, or any free port if that is taken]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Where its admin listener is [default: 127.0.0.1:8701, or any free port if that is taken]
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,
    /// So many gateways that share what they know, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub replicas: u8,
    /// The Redis or Valkey that they share it through, as redis://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub redis: Option<RedisUrl>,
}

/// Why there is no demo.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The gateway.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The stand-in for Chat.
    #[error("the stand-in for Chat cannot start: {0}")]
    Sandbox(String),
    /// An address that others could reach.
    #[error("the demo lets everybody in, so it listens on loopback only; {0} is not")]
    NotLoopback(SocketAddr),
    /// Replicas that would not know of each other.
    #[error("replicas share what they know through Redis; say where it is with --redis redis://HOST:PORT")]
    NoRedis,
    /// A thread.
    #[error("a replica cannot start: {0}")]
    Thread(io::Error),
}

/// Runs both until SIGTERM or SIGINT. `print` gets the lines for the user once everything listens.
///
/// # Errors
/// See [`DemoError`].
pub fn run(args: &DemoArgs, print: impl FnOnce(&str)) -> Result<ExitCode, DemoError> {
    for address in args.listen.iter().chain(&args.admin) {
        if !address.ip().is_loopback() {
            return Err(DemoError::NotLoopback(*address));
        }
    }
    if args.replicas > 1 && args.redis.is_none() {
        return Err(DemoError::NoRedis);
    }
    let fleet = args.redis.clone().map(|redis| Fleet::new(redis, &demo_prefix(), 1.0 / f64::from(args.replicas)));
    let mut chat = Chat::start()?;
    chat.fleet = fleet;
    let config = chat.gateway(args.listen.unwrap_or(DATA), args.admin.unwrap_or(ADMIN));
    let server = match serve::Server::bind(config, None) {
        // A demo is not to fail because another one is running.
        Err(ServeError::Bind(_)) if args.listen.is_none() || args.admin.is_none() => {
            let any = SocketAddr::new(DATA.ip(), 0);
            serve::Server::bind(chat.gateway(args.listen.unwrap_or(any), args.admin.unwrap_or(any)), None)
        }
        other => other,
    }?;
    let any = SocketAddr::new(DATA.ip(), 0);
    let others = (1..args.replicas).map(|_| serve::Server::bind(chat.gateway(any, any), None));
    let others = others.collect::<Result<Vec<_>, _>>()?;
    let mut text = guide(&server.addresses()[0], &server.admin_address());
    for other in &others {
        text += &format!("# Another replica: {}, for operators {}\n", other.addresses()[0], other.admin_address());
    }
    print(&text);
    let quits: Vec<_> = others.iter().map(serve::Server::quit).collect();
    let start = |other: serve::Server| thread::Builder::new().name("replica".to_owned()).spawn(move || other.run());
    let threads = others.into_iter().map(start).collect::<Result<Vec<_>, _>>().map_err(DemoError::Thread)?;
    let outcome = server.run();
    quits.iter().for_each(CancellationToken::cancel);
    for thread in threads {
        // The first one's outcome is the demo's.
        let _ = thread.join();
    }
    chat.stop();
    Ok(outcome?)
}

/// Names of its own: each demo has another key, and what another one left in Redis is none of its business.
fn demo_prefix() -> String {
    format!("chatgate-demo-{:08x}", clock::random_u32())
}

/// What to do with it.
fn guide(data: &str, admin: &str) -> String {
    let check = |body: &str, more: &str| format!("curl -s -D- http://{data}/v4/follow/follow_check{more} -d '{body}'");
    let first = check(r#"{"From_Account":"alice","To_Account":["bob","carol","dave"]}"#, "");
    let turned = check(r#"{"From_Account":"carol","To_Account":["alice"]}"#, "");
    let write = r#"{"From_Account":"alice","To_Account":["bob"]}"#;
    let after = check(r#"{"From_Account":"alice","To_Account":["bob","carol"]}"#, "");
    let cached = check(r#"{"From_Account":"bob","To_Account":["dave"]}"#, " -H 'Cache-Control: only-if-cached'");
    format!(
        "chatgate is listening on {data}, in front of a stand-in for Chat where\n\
         alice and bob follow each other, alice follows carol, and dave follows alice.\n\
         Paste these into another shell; Ctrl-C ends the demo.\n\
         \n\
         # Whom does alice follow, who follows her? Fetched from Chat, signed, over TLS:\n\
         {first}\n\
         # The same again: a hit, Chat is not asked:\n\
         {first}\n\
         # The other side of a known pair is known too:\n\
         {turned}\n\
         # Any other command is relayed; a write forgets its pairs:\n\
         curl -s http://{data}/v4/follow/follow_delete -d '{write}'\n\
         {after}\n\
         # Answers of chatgate's own have the vendor's form:\n\
         {cached}\n\
         # For operators:\n\
         curl -s http://{admin}/readyz\n"
    )
}

/// The running stand-in for Chat.
struct Chat {
    sdkappid: SdkAppId,
    identifier: Identifier,
    key: SecretKey,
    ca: CertificateDer<'static>,
    address: SocketAddr,
    /// What gateways in front of it share.
    fleet: Option<Fleet>,
    stop: CancellationToken,
    thread: thread::JoinHandle<()>,
}

impl Chat {
    fn start() -> Result<Self, DemoError> {
        let fail = |error: &dyn std::fmt::Display| DemoError::Sandbox(error.to_string());
        let sdkappid = SdkAppId::new(1_400_000_001).expect("not 0");
        let identifier: Identifier = "administrator".parse().expect("a name");
        let random = clock::os_random().map_err(|error| fail(&error))?;
        let key = random.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let key = SecretKey::new(&key).expect("not empty");
        let edge = |from: &str, to: &str| (from.to_owned(), to.to_owned());
        let config = SandboxConfig {
            listen: SocketAddr::new(DATA.ip(), 0),
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

    /// The configuration of a gateway in front of it.
    fn gateway(&self, listen: SocketAddr, admin: SocketAddr) -> Config {
        let app = crate::config::App {
            name: "demo".parse().expect("a name"),
            sdkappid: self.sdkappid,
            region: Region::Singapore,
            endpoint: Endpoint { tls: true, host: self.address.ip().to_string(), port: self.address.port() },
            standby: None,
            extra_roots: vec![self.ca.clone()],
            identifier: self.identifier.clone(),
            secret_key: self.key.clone(),
            usersig_lifetime: Duration::from_secs(24 * 60 * 60),
            default: true,
            quota: Quota { per_command: PER_SECOND, total: None, commands: Default::default() },
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
            follow_check: FollowCheck::default(),
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
        // It has nothing to say that the user needs.
        let _ = self.thread.join();
    }
}
