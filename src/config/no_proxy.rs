//! Domains that are called without the proxy: the entries of `upstream.no_proxy` and of `NO_PROXY`.
//!
//! No standard defines `NO_PROXY`. The rules here are those of Go's `golang.org/x/net/http/httpproxy`, the most precise
//! of the common ones. Entries are compared with the text of an endpoint. No name is resolved for that, because behind a
//! proxy this machine may not be able to.

use std::fmt;
use std::net::IpAddr;

use super::address::{Endpoint, normalize_host, split_port};

/// Maximum number of entries.
pub(super) const ENTRIES_MAX: usize = 256;
/// Maximum length of an entry in bytes: a domain name with a port.
const ENTRY_LEN_MAX: usize = 300;

/// Hosts that are called without the proxy.
///
/// | entry | hosts |
/// | --- | --- |
/// | `*` | all |
/// | `chat.internal` | this name, and all names below it |
/// | `.chat.internal`, `*.chat.internal` | all names below this name |
/// | `10.1.2.3`, `::1` | this address |
/// | `10.0.0.0/8`, `fd00::/8` | the addresses of this network |
///
/// An entry with `:PORT` is for this port only; an IPv6 address then has brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bypass {
    hosts: Hosts,
    /// `None`: all ports.
    port: Option<u16>,
    /// The entry as it was written, in lower case.
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    All,
    Name {
        /// In lower case, without a dot at either end.
        name: String,
        /// Whether the name itself is included, and not only the names below it.
        itself: bool,
    },
    Network {
        address: IpAddr,
        /// Number of leading bits that are compared.
        bits: u8,
    },
}

/// The reason why a string is not an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a host; use a name, \".suffix\", an IP address, a network such as \"10.0.0.0/8\", or \"*\"")]
pub struct BypassError;

impl std::str::FromStr for Bypass {
    type Err = BypassError;

    fn from_str(text: &str) -> Result<Self, BypassError> {
        let text = text.to_ascii_lowercase();
        if text.len() > ENTRY_LEN_MAX {
            return Err(BypassError);
        }
        let (hosts, port) = parse(&text).ok_or(BypassError)?;
        Ok(Self { hosts, port, text })
    }
}

impl fmt::Display for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Bypass {
    /// Returns whether the endpoint is called without the proxy.
    pub fn matches(&self, endpoint: &Endpoint) -> bool {
        if self.port.is_some_and(|port| port != endpoint.port) {
            return false;
        }
        let host = endpoint.host.trim_matches(['[', ']']).trim_end_matches('.');
        match (&self.hosts, host.parse::<IpAddr>()) {
            (Hosts::All, _) => true,
            (Hosts::Network { address, bits }, Ok(ip)) => is_in_network(ip.to_canonical(), *address, *bits),
            (Hosts::Name { name, itself }, Err(_)) => match host.strip_suffix(name.as_str()) {
                Some("") => *itself,
                Some(rest) => rest.ends_with('.'),
                None => false,
            },
            (Hosts::Network { .. }, Err(_)) | (Hosts::Name { .. }, Ok(_)) => false,
        }
    }
}

fn parse(text: &str) -> Option<(Hosts, Option<u16>)> {
    if let Some((address, bits)) = text.split_once('/') {
        let address: IpAddr = address.parse().ok()?;
        let has_digits_only = !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = bits.parse().ok().filter(|bits| has_digits_only && *bits <= bits_of(address))?;
        return Some((Hosts::Network { address, bits }, None));
    }
    // An IPv6 address without brackets has colons, but no port.
    let (host, port) = if text.parse::<IpAddr>().is_ok() { (text, None) } else { split_port(text)? };
    if host == "*" {
        return Some((Hosts::All, port));
    }
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Some((Hosts::Network { address, bits: bits_of(address) }, port));
    }
    let below = host.strip_prefix("*.").or_else(|| host.strip_prefix('.'));
    let name = below.unwrap_or(host).trim_end_matches('.');
    let (name, _) = normalize_host(name)?;
    Some((Hosts::Name { name, itself: below.is_none() }, port))
}

const fn bits_of(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn is_in_network(ip: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (ip, network) {
        (IpAddr::V4(ip), IpAddr::V4(network)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            (ip.to_bits() ^ network.to_bits()) & mask == 0
        }
        (IpAddr::V6(ip), IpAddr::V6(network)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            (ip.to_bits() ^ network.to_bits()) & mask == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_match_names_networks_and_ports() {
        for (entry, host, matches) in [
            ("*", "https://a.test", true),
            ("*", "https://[::1]", true),
            ("chat.internal", "https://chat.internal", true),
            ("chat.internal", "https://a.b.chat.internal", true),
            ("chat.internal", "https://mychat.internal", false),
            ("chat.internal", "https://chat.internal.test", false),
            ("Chat.Internal.", "https://CHAT.internal", true),
            ("internal", "https://chat.internal", true),
            (".internal", "https://chat.internal", true),
            (".internal", "https://internal", false),
            ("*.internal", "https://a.chat.internal", true),
            ("*.internal", "https://internal", false),
            ("10.0.0.1", "https://10.0.0.1", true),
            ("10.0.0.1", "https://10.0.0.10", false),
            ("10.0.0.0/8", "https://10.255.0.1", true),
            ("10.9.9.9/8", "https://10.255.0.1", true),
            ("10.0.0.0/8", "https://11.0.0.1", false),
            ("10.0.0.0/8", "https://10.test", false),
            ("10.0.0.0/9", "https://10.128.0.1", false),
            ("10.0.0.0/32", "https://10.0.0.1", false),
            ("0.0.0.0/0", "https://203.0.113.1", true),
            ("0.0.0.0/0", "https://[2001:db8::1]", false),
            ("10.0.0.0/8", "https://[::ffff:10.0.0.1]", true),
            ("fd00::/8", "https://[fd12::1]", true),
            ("fd00::/8", "https://[fe80::1]", false),
            ("::/0", "https://[fe80::1]", true),
            ("2001:db8::1", "https://[2001:db8::1]", true),
            ("[2001:db8::1]", "https://[2001:db8::1]:8443", true),
            ("[2001:db8::1]:443", "https://[2001:db8::1]:8443", false),
            ("chat.internal:443", "https://chat.internal", true),
            ("chat.internal:443", "https://chat.internal:8443", false),
            ("10.0.0.1:8443", "https://10.0.0.1:8443", true),
            ("*:8443", "https://a.test:8443", true),
            ("*:8443", "https://a.test", false),
        ] {
            let parsed: Bypass = entry.parse().expect(entry);
            assert_eq!(parsed.matches(&host.parse().expect(host)), matches, "{entry} {host}");
            assert_eq!(parsed.to_string(), entry.to_ascii_lowercase());
        }
    }

    #[test]
    fn text_other_than_a_host_is_no_entry() {
        let long = format!("{}.test", "a".repeat(300));
        for bad in [
            "",
            ".",
            "*.",
            "a b",
            "http://a",
            "a/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "fd00::/129",
            "a:0",
            "a:65536",
            "a:x",
            "10.0.0.0/8:443",
            "a*",
            "*a",
            "a/b",
            "[10.0.0.x]",
            "-",
            &long,
        ] {
            assert_eq!(bad.parse::<Bypass>(), Err(BypassError), "{bad:?}");
        }
    }
}
