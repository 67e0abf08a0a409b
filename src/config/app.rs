//! `[[app]]`: an app of Chat.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::time::Duration;

use rustls::pki_types::CertificateDer;

use super::address::Endpoint;
use super::pem::{read_cas, read_named};
use super::quota::Quota;
use super::section::{SecretNames, Section};
use super::tree::{Location, Node};
use super::units::{NOT_A_COMMAND, NOT_A_STRING, ParseResult, boolean, duration, parsed};
use crate::domain::chat::app::{AppName, Identifier, SdkAppId, SecretKey};
use crate::domain::chat::command::{CommandKind, CommandName, DeclaredReads};
use crate::domain::chat::region::Region;
use crate::domain::quote::{quoted, with_value};

/// Maximum number of apps. Each app has its own cache, quota, and connection pool.
pub const APPS_MAX: usize = 256;

/// Maximum number of declared reads of an app. A relayed call to a command outside the built-in table compares its name
/// with each of them.
const READS_MAX: usize = 100;

const SECRET_KEY: SecretNames = SecretNames { inline: "secret_key", file: "secret_key_file", env: "secret_key_env" };

/// The administrator that the console creates for every app.
const IDENTIFIER_DEFAULT: &str = "administrator";

/// Maximum lifetime of a signature: the default of the vendor libraries, 180 days ("Use Limits", 1047/34381). chatgate
/// renews signatures automatically, so a longer lifetime would only make a stolen signature last longer.
pub(crate) const USERSIG_LIFETIME_MAX: Duration = Duration::from_secs(180 * 24 * 3600);

/// Minimum lifetime of a signature. It is renewed when a fifth is left, and the remaining 2 s suffice for a call.
const LIFETIME_MIN: Duration = Duration::from_secs(10);

/// Default lifetime of a signature.
pub(crate) const USERSIG_LIFETIME_DEFAULT: Duration = Duration::from_secs(24 * 3600);

/// `[[app]]`: an app of Chat and the account that signs for it.
#[derive(Debug, Clone)]
pub struct App {
    /// Name for callers and metrics.
    pub name: AppName,
    /// SDKAppID.
    pub sdkappid: SdkAppId,
    /// Data center; `None` if the file has `endpoint` and no `region`.
    pub region: Option<Region>,
    /// Endpoint of calls.
    pub endpoint: Endpoint,
    /// Endpoint of calls while `endpoint` is unreachable. Default: the region's standby domain, or `None` if the file
    /// has `endpoint`.
    pub standby: Option<Endpoint>,
    /// Certificates trusted for this app in addition to the public roots.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// Administrator account that signs. Default `administrator`.
    pub identifier: Identifier,
    /// Secret key of the app.
    pub secret_key: SecretKey,
    /// Lifetime of a signature: whole seconds, 10 s to 180 days. Default 24 h.
    pub usersig_lifetime: Duration,
    /// Whether requests that name no app are for this app.
    pub default: bool,
    /// Commands outside the built-in table that may be retried like reads, up to 100.
    pub reads: DeclaredReads,
    /// Calls per second.
    pub quota: Quota,
}

impl App {
    /// Returns whether the standby domain is one that the vendor does not document.
    pub(crate) fn has_undocumented_standby(&self) -> bool {
        let is_own = |region: Region| self.standby == Some(Endpoint::https(region.standby_host()));
        self.region.is_some_and(|region| !region.has_documented_standby() && is_own(region))
    }
}

/// Reads all apps. Returns the valid ones, and the names of all, including invalid ones.
pub(super) fn read_apps(root: &mut Section<'_>) -> (Vec<App>, HashSet<AppName>) {
    let sections = root.sections("app");
    if !root.has("app") || root.is_empty_list("app") {
        root.problem("app", "missing; add an [[app]] with name, sdkappid, region, and secret_key_file");
    }
    if sections.len() > APPS_MAX {
        root.problem("app", format_args!("more than {APPS_MAX} apps; remove some"));
        return Default::default();
    }
    let mut unique = UniqueApps::default();
    let apps = sections.into_iter().filter_map(|section| App::read(section, &mut unique)).collect();
    (apps, unique.names.into_keys().collect())
}

/// Values that only one app may have, with the location of their first use.
#[derive(Default)]
struct UniqueApps {
    names: HashMap<AppName, Location>,
    sdkappids: HashMap<SdkAppId, Location>,
    default: Option<Location>,
}

impl UniqueApps {
    fn check_default(&mut self, section: &Section<'_>) {
        match &self.default {
            Some(first) => section.problem("default", format_args!("another app is the default{first}; keep only one")),
            None => self.default = Some(section.location_of("default").clone()),
        }
    }
}

impl App {
    fn read(mut section: Section<'_>, unique: &mut UniqueApps) -> Option<Self> {
        let name = section.required("name", "name = \"main\"", parsed::<AppName>);
        let sdkappid = section.required("sdkappid", "sdkappid = NUMBER, from the console", sdkappid);
        let own_endpoint = section.optional("endpoint", parsed::<Endpoint>);
        let region = read_region(&mut section);
        let extra_roots = read_named(&mut section, "ca_file", false, read_cas).unwrap_or_default();
        let identifier = if section.has("identifier") {
            section.optional("identifier", parsed::<Identifier>)
        } else {
            IDENTIFIER_DEFAULT.parse().ok()
        };
        let secret = read_secret_key(&mut section);
        let mut usersig_lifetime = USERSIG_LIFETIME_DEFAULT;
        section.read("usersig_lifetime", &mut usersig_lifetime, lifetime);
        let mut default = false;
        section.read("default", &mut default, boolean);
        let reads = read_declared_reads(&mut section);
        let quota = Quota::read(section.section("quota"));
        let own_standby = section.optional("standby", parsed::<Endpoint>);

        check_unique(&section, "name", name.clone(), &mut unique.names);
        check_unique(&section, "sdkappid", sdkappid, &mut unique.sdkappids);
        if default {
            unique.check_default(&section);
        }
        section.finish();

        let (endpoint, region_standby) = match (own_endpoint, region) {
            (Some(endpoint), _) => (endpoint, None),
            (None, Some(region)) => (Endpoint::https(region.host()), Some(Endpoint::https(region.standby_host()))),
            (None, None) => return None,
        };
        Some(Self {
            name: name?,
            sdkappid: sdkappid?,
            region,
            endpoint,
            standby: own_standby.or(region_standby),
            extra_roots,
            identifier: identifier?,
            secret_key: secret?,
            usersig_lifetime,
            default,
            reads,
            quota,
        })
    }
}

/// Reads the secret key, and warns of a format that it has by mistake.
fn read_secret_key(section: &mut Section<'_>) -> Option<SecretKey> {
    let key = section.secret(&SECRET_KEY, true).and_then(|secret| SecretKey::new(secret.expose()))?;
    let shape = key.shape();
    if shape.is_likely_mistake() {
        let name = SECRET_KEY.present_in(section);
        section.warning(name, section.with_value(name, shape));
    }
    Some(key)
}

/// Reads the region, which is optional if the app has an endpoint.
fn read_region(section: &mut Section<'_>) -> Option<Region> {
    if section.has("endpoint") {
        return section.optional("region", parsed);
    }
    let names: Vec<String> = Region::all().map(|region| format!("\"{region}\"")).collect();
    section.required("region", &format!("region = {}", names.join(" or ")), parsed)
}

/// Reads the commands that an app declares as reads.
fn read_declared_reads(section: &mut Section<'_>) -> DeclaredReads {
    let mut reads = DeclaredReads::default();
    let path = section.path_of("reads");
    for (text, location) in section.list("reads", false, 0..=READS_MAX, declared_read).unwrap_or_default() {
        let Ok(name) = CommandName::parse(&text) else { continue };
        if !reads.add(name) {
            section.problem_at(&location, &path, with_value("duplicate command; remove one", &quoted(&text)));
        } else if name.known().is_some() {
            let message = "has no effect, because chatgate knows this read; remove it";
            section.warning_at(&location, &path, with_value(message, &quoted(&text)));
        } else {
            section.declare(name);
        }
    }
    reads
}

/// Parses a command that may be declared as a read.
fn declared_read(node: &Node) -> ParseResult<String> {
    let text = node.text().ok_or_else(|| NOT_A_STRING.to_owned())?;
    let name = CommandName::parse(text).map_err(|_| NOT_A_COMMAND.to_owned())?;
    match name.known().map(|known| known.kind) {
        Some(CommandKind::Write) => {
            Err("Chat documents it as a write, which a retry could apply twice; remove it".into())
        }
        Some(CommandKind::Read) | None => Ok(text.to_owned()),
    }
}

/// Notes a problem if an earlier app has the same value.
fn check_unique<T: Hash + Eq>(section: &Section<'_>, key: &str, value: Option<T>, seen: &mut HashMap<T, Location>) {
    let Some(value) = value else { return };
    match seen.get(&value) {
        Some(first) => {
            section.wrong_value(key, format_args!("another app has this {key}{first}; each app needs its own"));
        }
        None => {
            seen.insert(value, section.location_of(key).clone());
        }
    }
}

fn sdkappid(node: &Node) -> ParseResult<SdkAppId> {
    let number = node.integer().and_then(|number| u32::try_from(number).ok());
    number
        .and_then(SdkAppId::new)
        .ok_or_else(|| format!("must be a whole number from 1 to {}, without quotes", u32::MAX))
}

/// Parses a lifetime. Signatures count in whole seconds.
fn lifetime(node: &Node) -> ParseResult<Duration> {
    let lifetime = duration(LIFETIME_MIN..=USERSIG_LIFETIME_MAX)(node)?;
    if lifetime.subsec_nanos() == 0 { Ok(lifetime) } else { Err("must be whole seconds, as in \"24h\"".to_owned()) }
}
