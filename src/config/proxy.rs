//! `upstream.proxy`: the egress proxy between this machine and Chat.

use std::fmt;

use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::address::{Endpoint, normalize_host, split_port};
use super::no_proxy::{Bypass, BypassError, ENTRIES_MAX};
use super::problem::NOT_UTF8;
use super::section::{SecretNames, Section};
use super::tree::{Location, Node};
use super::units::{ParseResult, parsed, text};

/// An egress proxy: calls to Chat go through it in a tunnel, in which TLS is between chatgate and Chat.
#[derive(Debug, Clone, PartialEq)]
pub struct Proxy {
    /// How to ask it for a tunnel.
    pub protocol: ProxyProtocol,
    /// Name in lower case, or IP address; IPv6 in brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Credentials; `None`: the proxy needs none.
    pub auth: Option<ProxyAuth>,
    /// Endpoints that are called directly, up to 512: entries of `no_proxy`, then of `NO_PROXY`.
    pub bypass: Vec<Bypass>,
    /// The environment variable that names the proxy; `None`: the configuration file names it.
    pub variable: Option<&'static str>,
}

/// How to ask a proxy for a tunnel. With either, the proxy resolves the name of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// The method CONNECT of HTTP/1.1 (RFC 9110 section 9.3.6).
    Http,
    /// SOCKS 5 (RFC 1928).
    Socks5,
}

impl Proxy {
    /// Returns whether an endpoint is called without the proxy. A proxy cannot reach the loopback addresses of this
    /// machine.
    pub fn is_bypassed_for(&self, endpoint: &Endpoint) -> bool {
        endpoint.is_loopback() || self.bypass.iter().any(|entry| entry.matches(endpoint))
    }
}

/// Shows the proxy without its credentials.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.protocol {
            ProxyProtocol::Http => "http",
            ProxyProtocol::Socks5 => "socks5h",
        };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

/// User and password for a proxy, each of up to 255 bytes, which is the limit of SOCKS 5 (RFC 1929). It has no
/// `Display`, `Debug` hides it, and it is wiped on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyAuth {
    user: Zeroizing<String>,
    password: Zeroizing<String>,
}

impl ProxyAuth {
    /// Returns the user, only for the code that connects. It is not empty and has no colon.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Returns the password, only for the code that connects. It may be empty.
    pub fn password(&self) -> &str {
        &self.password
    }

    fn new(user: Zeroizing<String>, password: Zeroizing<String>) -> Result<Self, &'static str> {
        if user.is_empty() || user.contains(':') {
            return Err(NOT_CREDENTIALS);
        }
        if user.len() > AUTH_LEN_MAX || password.len() > AUTH_LEN_MAX {
            return Err("user or password is longer than 255 bytes; check that these are the right credentials");
        }
        if user.chars().chain(password.chars()).any(char::is_control) {
            return Err("contains a control character; write USER:PASSWORD as plain text");
        }
        Ok(Self { user, password })
    }

    /// Parses `USER:PASSWORD`.
    pub(crate) fn of_line(line: &str) -> Result<Self, &'static str> {
        let (user, password) = line.split_once(':').ok_or(NOT_CREDENTIALS)?;
        Self::new(Zeroizing::new(user.to_owned()), Zeroizing::new(password.to_owned()))
    }

    /// Parses the percent-encoded credentials of a URL, in which the password may be missing.
    fn of_url(userinfo: &str) -> Result<Self, &'static str> {
        let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        let decoded = |text: &str| {
            let decoded = percent_decode_str(text).decode_utf8().map_err(|_| NOT_UTF8)?;
            Ok::<_, &'static str>(Zeroizing::new(decoded.into_owned()))
        };
        Self::new(decoded(user)?, decoded(password)?)
    }
}

impl fmt::Debug for ProxyAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyAuth(hidden)")
    }
}

/// Maximum length of the user and of the password in bytes (RFC 1929 section 2).
const AUTH_LEN_MAX: usize = 255;
/// Variables that name a proxy for HTTPS, in the order of curl: lower case first, and the specific before the general.
const VARIABLES: [&str; 4] = ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
/// Variables that list the exceptions, in the same order.
const NO_PROXY_VARIABLES: [&str; 2] = ["no_proxy", "NO_PROXY"];
const PROXY: &str = "proxy";
const NO_PROXY: &str = "no_proxy";
const AUTH: SecretNames = SecretNames { inline: "proxy_auth", file: "proxy_auth_file", env: "proxy_auth_env" };

const NOT_A_PROXY: &str = "not a proxy; use \"http://HOST:PORT\", \"socks5h://HOST:PORT\", or \"env\"";
const NOT_CREDENTIALS: &str = "not credentials; write one line USER:PASSWORD";
const CREDENTIALS: &str = "must not contain credentials; put USER:PASSWORD into a file and set proxy_auth_file";
const NO_PORT: &str = "must have a port, as in \"http://HOST:3128\"";
const EXTRA: &str = "must have only scheme, host, and port; use \"http://HOST:PORT\"";
const HTTPS: &str =
    "TLS to the proxy is not supported; use \"http://HOST:PORT\" (TLS to Chat passes through the proxy)";
const OTHER_SOCKS: &str = "not supported; use \"socks5h://HOST:PORT\", with which the proxy resolves names";

impl Proxy {
    /// Reads the keys of `[upstream]` that describe the proxy.
    pub(super) fn read(section: &mut Section<'_>) -> Option<Self> {
        let named = section.optional(PROXY, named_proxy);
        let auth = section.secret(&AUTH, false).and_then(|secret| {
            let auth = ProxyAuth::of_line(secret.expose());
            auth.map_err(|message| section.wrong_value(AUTH.present_in(section), message)).ok()
        });
        let listed = section.list(NO_PROXY, false, 0..=ENTRIES_MAX, parsed::<Bypass>).unwrap_or_default();
        if !section.has(PROXY) {
            let unused = [AUTH.file, AUTH.env, NO_PROXY].into_iter().filter(|key| section.has(key));
            unused.for_each(|key| section.problem(key, "requires proxy; set upstream.proxy, or remove this key"));
            return None;
        }
        let mut bypass: Vec<Bypass> = listed.into_iter().map(|(entry, _)| entry).collect();
        let (url, variable) = match named? {
            NamedProxy::Url(url) => (url, None),
            NamedProxy::Environment => {
                bypass.extend(bypass_of_environment(section));
                let (url, variable) = proxy_of_environment(section)?;
                (url, Some(variable))
            }
        };
        let ProxyUrl { protocol, host, port, auth: url_auth } = url;
        if let (Some(_), Some(_), Some(variable)) = (&auth, &url_auth, variable) {
            let message = format_args!("conflicts with the credentials in {variable}; set only one of them");
            section.problem(AUTH.present_in(section), message);
        }
        Some(Self { protocol, host, port, auth: auth.or(url_auth), bypass, variable })
    }
}

/// The value of `upstream.proxy`.
enum NamedProxy {
    Url(ProxyUrl),
    Environment,
}

fn named_proxy(node: &Node) -> ParseResult<NamedProxy> {
    let text = text(node)?;
    if text == "env" {
        return Ok(NamedProxy::Environment);
    }
    let (scheme, rest) = text.split_once("://").ok_or(NOT_A_PROXY)?;
    if rest.contains('@') {
        return Err(CREDENTIALS.to_owned());
    }
    Ok(NamedProxy::Url(ProxyUrl::parse(scheme, rest)?))
}

/// A proxy as a URL describes it.
struct ProxyUrl {
    protocol: ProxyProtocol,
    host: String,
    port: u16,
    auth: Option<ProxyAuth>,
}

impl ProxyUrl {
    /// Parses a URL that is split at `://`.
    fn parse(scheme: &str, rest: &str) -> Result<Self, &'static str> {
        let protocol = match scheme.to_ascii_lowercase().as_str() {
            "http" => ProxyProtocol::Http,
            "socks5h" => ProxyProtocol::Socks5,
            "https" => return Err(HTTPS),
            "socks" | "socks4" | "socks4a" | "socks5" => return Err(OTHER_SOCKS),
            _ => return Err(NOT_A_PROXY),
        };
        let (userinfo, address) = match rest.rsplit_once('@') {
            Some((userinfo, address)) => (Some(userinfo), address),
            None => (None, rest),
        };
        let address = address.strip_suffix('/').unwrap_or(address);
        if address.contains(['/', '?', '#']) {
            return Err(EXTRA);
        }
        let (host, port) = split_port(address).ok_or(NOT_A_PROXY)?;
        let (host, _) = normalize_host(host).ok_or(NOT_A_PROXY)?;
        let port = port.ok_or(NO_PORT)?;
        Ok(Self { protocol, host, port, auth: userinfo.map(ProxyAuth::of_url).transpose()? })
    }
}

/// Returns the proxy that the environment names, and the variable. Credentials in the URL are accepted, because the
/// variables have no other place for them. As elsewhere, a URL without a scheme means `http://`, and an empty variable
/// means none.
fn proxy_of_environment(section: &Section<'_>) -> Option<(ProxyUrl, &'static str)> {
    let Some((variable, value)) = first_set(section, VARIABLES) else {
        let message = "no proxy variable is set, so calls go out directly; set HTTPS_PROXY, or remove this key";
        section.warning(PROXY, message);
        return None;
    };
    let parse = |value: &str| {
        let (scheme, rest) = value.split_once("://").unwrap_or(("http", value));
        ProxyUrl::parse(scheme, rest)
    };
    let url = value.and_then(parse);
    let url = url.map_err(|message| section.problem_at(&Location::Variable(variable.into()), PATH, message));
    Some((url.ok()?, variable))
}

/// The path of the key in messages about variables.
const PATH: &str = "upstream.proxy";

/// Returns the entries of `NO_PROXY`. Invalid entries are ignored with a warning: the variable is often set for a whole
/// machine, and programs disagree on its form.
fn bypass_of_environment(section: &Section<'_>) -> Vec<Bypass> {
    let Some((variable, value)) = first_set(section, NO_PROXY_VARIABLES) else { return Vec::new() };
    let location = Location::Variable(variable.into());
    let listed = match value {
        Ok(listed) => listed,
        Err(message) => {
            section.problem_at(&location, PATH, message);
            return Vec::new();
        }
    };
    let entries = listed.split(|end: char| end == ',' || end.is_whitespace()).filter(|entry| !entry.is_empty());
    let mut bypass = Vec::new();
    for entry in entries {
        match entry.parse() {
            Ok(_) if bypass.len() >= ENTRIES_MAX => {
                let message = format_args!("must have at most {ENTRIES_MAX} entries; use suffixes or networks");
                section.problem_at(&location, PATH, message);
                break;
            }
            Ok(entry) => bypass.push(entry),
            Err(BypassError) => {
                section.warning_at(&location, PATH, format_args!("ignoring an entry that is {BypassError}"))
            }
        }
    }
    bypass
}

/// Returns the first of the variables that is set and not empty.
fn first_set<'a, const N: usize>(
    section: &Section<'a>,
    names: [&'static str; N],
) -> Option<(&'static str, Result<&'a str, &'static str>)> {
    let env = section.env();
    let is_set = |name: &&str| env.get(name).is_some_and(|value| !value.is_empty());
    let name = names.into_iter().find(is_set)?;
    Some((name, env.get(name)?.to_str().ok_or(NOT_UTF8)))
}
