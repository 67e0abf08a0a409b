//! `[server]`: listeners and their limits.

use std::time::Duration;

use super::address::ListenAddr;
use super::address::host_name;
use super::caller::Caller;
use super::caller::read_token;
use super::section::{SecretNames, Section};
use super::tls::Tls;
use super::tree::{Location, Node};
use super::units::{NOT_A_STRING, ParseResult, boolean, count, duration, hours, millis, parsed, size};
use crate::domain::caller::BearerToken;
use crate::domain::quote::{quoted, with_value};

/// Maximum number of addresses in `listen`.
const LISTEN_MAX: usize = 16;
/// Maximum number of entries in `hosts` and in `unix_uids`.
const ENTRIES_MAX: usize = 100;

/// The token of operators.
const ADMIN_TOKEN: SecretNames =
    SecretNames { inline: "admin_token", file: "admin_token_file", env: "admin_token_env" };

/// `[server]`: listeners and their limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Addresses of the data listener: 1 to 16. Default 127.0.0.1:8700.
    pub listen: Vec<ListenAddr>,
    /// Address of the admin listener. Default 127.0.0.1:8701.
    pub admin: ListenAddr,
    /// Mode of the Unix sockets, 0 to 0o777. Default 0o660.
    pub unix_mode: u32,
    /// Users with access to the Unix sockets, up to 100. If empty, only the mode limits access.
    pub unix_uids: Vec<u32>,
    /// Token that admin actions must send. `None`: admin actions are accepted from this machine only.
    pub admin_token: Option<BearerToken>,
    /// Names accepted in `Host` in addition to loopback names and the listen addresses: lower case, without a port,
    /// IPv6 in brackets. Up to 100.
    pub hosts: Vec<String>,
    /// Maximum size of a request body in bytes, 1 KiB to 64 MiB. Default 1 MiB.
    pub max_body: usize,
    /// Maximum number of connections, 1 to 1,000,000; additional ones are closed. Default 4096.
    pub max_connections: usize,
    /// Maximum number of connections to the admin listener, 8 to 1,000,000. Default 64.
    pub admin_max_connections: usize,
    /// Maximum number of requests in flight, 1 to 1,000,000. Default 2048.
    pub max_requests: usize,
    /// Maximum bytes of buffered bodies, of requests and responses together, 1 KiB to 64 GiB. Default 256 MiB.
    pub max_buffered: usize,
    /// Timeout of a TLS handshake, 10 ms to 1 h. Default 10 s.
    pub handshake_timeout: Duration,
    /// Timeout of the request headers, 10 ms to 1 h. Default 10 s.
    pub head_timeout: Duration,
    /// Timeout of the whole request body, 10 ms to 1 h. Default 30 s.
    pub body_timeout: Duration,
    /// Timeout for a caller to accept its response, 10 ms to 1 h. Default 30 s.
    pub write_timeout: Duration,
    /// How long a connection may be idle, 10 ms to 24 h. Default 75 s.
    pub idle_timeout: Duration,
    /// How long to continue normally after SIGTERM before the drain, up to 1 h. Default 0.
    pub drain_delay: Duration,
    /// Timeout of the drain, up to 1 h. Default 25 s.
    pub drain_timeout: Duration,
    /// Whether responses may have a `Chatgate-Explain` header. Default false.
    pub explain: bool,
    /// TLS of the TCP addresses in `listen`; `None`: plain TCP.
    pub tls: Option<Tls>,
}

impl Server {
    /// Returns whether callers over TCP need a client certificate.
    pub fn requires_client_cert(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.requires_client_cert)
    }
}

impl Default for Server {
    fn default() -> Self {
        let loopback = |port| ListenAddr::Tcp(([127, 0, 0, 1], port).into());
        Self {
            listen: vec![loopback(8700)],
            admin: loopback(8701),
            unix_mode: 0o660,
            unix_uids: Vec::new(),
            admin_token: None,
            hosts: Vec::new(),
            max_body: 1 << 20,
            max_connections: 4096,
            admin_max_connections: 64,
            max_requests: 2048,
            max_buffered: 256 << 20,
            handshake_timeout: Duration::from_secs(10),
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            drain_delay: Duration::ZERO,
            drain_timeout: Duration::from_secs(25),
            explain: false,
            tls: None,
        }
    }
}

/// A parsed `[server]`, with facts for the checks across sections.
pub(super) struct ServerReading {
    pub(super) server: Server,
    /// Locations of the addresses in `server.listen`, in their order.
    pub(super) listen_locations: Vec<Location>,
    /// Whether callers need a client certificate, even if the TLS settings are invalid.
    pub(super) requires_client_cert: bool,
}

impl Server {
    /// Reads the section. The caller finishes it, because checks across sections need it.
    pub(super) fn read(section: &mut Section<'_>) -> ServerReading {
        let mut server = Self::default();
        let listen_locations = server.read_addresses(section);
        server.admin_token = read_token(section, &ADMIN_TOKEN, false);
        if let Some(hosts) = section.list("hosts", false, 0..=ENTRIES_MAX, host) {
            server.hosts = hosts.into_iter().map(|(host, _)| host).collect();
        }
        server.read_limits(section);
        section.read("explain", &mut server.explain, boolean);
        server.check_collisions(section);
        let has_tcp = server.listen.iter().any(|address| matches!(address, ListenAddr::Tcp(_)));
        let (tls, requires_client_cert) = Tls::read(section, has_tcp, "callers reject it");
        server.tls = tls;
        ServerReading { server, listen_locations, requires_client_cert }
    }

    /// Reads listeners and Unix socket permissions. Returns the locations of the addresses in `listen`.
    fn read_addresses(&mut self, section: &mut Section<'_>) -> Vec<Location> {
        let mut locations = vec![section.location_of("listen").clone()];
        if let Some(listen) = section.list("listen", true, 1..=LISTEN_MAX, parsed::<ListenAddr>) {
            (self.listen, locations) = listen.into_iter().unzip();
        }
        section.read("admin", &mut self.admin, parsed);
        section.read("unix_mode", &mut self.unix_mode, unix_mode);
        if self.unix_mode & 0o002 != 0 {
            let message = "every user of this machine has administrator rights, limited by access.allow; use \"0660\"";
            section.warning("unix_mode", section.with_value("unix_mode", message));
        }
        if let Some(uids) = section.list("unix_uids", false, 1..=ENTRIES_MAX, uid) {
            self.unix_uids = uids.into_iter().map(|(uid, _)| uid).collect();
        }
        locations
    }

    fn read_limits(&mut self, section: &mut Section<'_>) {
        let timeout = || duration(millis(10)..=hours(1));
        section.read("max_body", &mut self.max_body, size(1 << 10..=64 << 20));
        section.read("max_connections", &mut self.max_connections, count(1..=1_000_000));
        section.read("admin_max_connections", &mut self.admin_max_connections, count(8..=1_000_000));
        section.read("max_requests", &mut self.max_requests, count(1..=1_000_000));
        section.read("max_buffered", &mut self.max_buffered, size(1 << 10..=64 << 30));
        section.read("handshake_timeout", &mut self.handshake_timeout, timeout());
        section.read("head_timeout", &mut self.head_timeout, timeout());
        section.read("body_timeout", &mut self.body_timeout, timeout());
        section.read("write_timeout", &mut self.write_timeout, timeout());
        section.read("idle_timeout", &mut self.idle_timeout, duration(millis(10)..=hours(24)));
        section.read("drain_delay", &mut self.drain_delay, duration(millis(0)..=hours(1)));
        section.read("drain_timeout", &mut self.drain_timeout, duration(millis(0)..=hours(1)));
        if self.max_buffered < self.max_body {
            let message = "less than max_body, so larger bodies are always rejected; raise it to at least max_body";
            section.warning("max_buffered", section.with_value("max_buffered", message));
        }
    }

    /// Rejects an address that two listeners would share.
    fn check_collisions(&self, section: &Section<'_>) {
        let mut previous: Vec<&ListenAddr> = Vec::new();
        for address in &self.listen {
            if previous.iter().any(|other| other.collides_with(address)) {
                section.problem(
                    "listen",
                    with_value("duplicate address; list each address once", &quoted(&address.to_string())),
                );
                break;
            }
            previous.push(address);
        }
        if previous.iter().any(|other| other.collides_with(&self.admin)) {
            let key = if section.has("admin") { "admin" } else { "listen" };
            let message = "listen and admin have the same address; give admin its own address";
            section.problem(key, with_value(message, &quoted(&self.admin.to_string())));
        }
    }

    /// Rejects a token of operators that a caller also has.
    pub(super) fn check_with(&self, section: &Section<'_>, callers: &[Caller]) {
        let Some(digest) = self.admin_token.as_ref().map(BearerToken::digest) else { return };
        if digest.find_in(callers.iter().flat_map(|caller| &caller.tokens)).is_some() {
            let message = "a caller has the same token and could stop the gateway; create a separate token";
            section.wrong_value(ADMIN_TOKEN.present_in(section), message);
        }
    }
}

fn unix_mode(node: &Node) -> ParseResult<u32> {
    let digits =
        node.text().filter(|text| (3..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()));
    let mode = digits.and_then(|digits| u32::from_str_radix(digits, 8).ok());
    mode.filter(|mode| *mode <= 0o777).ok_or_else(|| "must be octal digits in quotes, \"000\" to \"0777\"".to_owned())
}

pub(super) fn uid(node: &Node) -> ParseResult<u32> {
    let number = node.integer().and_then(|number| u32::try_from(number).ok());
    number.ok_or_else(|| "must be a numeric user ID without quotes, as `id -u` prints it".to_owned())
}

fn host(node: &Node) -> ParseResult<String> {
    host_name(node.text().ok_or(NOT_A_STRING)?).map_err(str::to_owned)
}
