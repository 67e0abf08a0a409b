//! Whose failure a failed connection is, if a proxy is in between: that of the proxy, or that of the domain behind it.
//!
//! Only a failure of the domain moves calls to the other domain. A proxy that fails does so for both, and if it works
//! again a moment later, that must not look as if the primary domain had failed.

/// Why a proxy opens no tunnel, other than that it cannot reach the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxyFailure {
    /// No connection to the proxy: DNS lookup or TCP failed.
    Unreachable,
    /// It requires credentials, or rejects the ones it got.
    Unauthorized,
    /// It does not allow a tunnel to this domain, or tunnels at all.
    Refused,
    /// It closes the connection, or answers in another protocol.
    Invalid,
}

impl ProxyFailure {
    /// Every kind.
    #[cfg(test)]
    pub(crate) const ALL: [ProxyFailure; 4] =
        [ProxyFailure::Unreachable, ProxyFailure::Unauthorized, ProxyFailure::Refused, ProxyFailure::Invalid];

    /// Returns what is wrong and the key to look at, for errors, logs, and `/status`.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            ProxyFailure::Unreachable => "the proxy is unreachable (upstream.proxy)",
            ProxyFailure::Unauthorized => "the proxy rejects the credentials (upstream.proxy_auth_file)",
            ProxyFailure::Refused => "the proxy does not allow the connection (its access rules)",
            ProxyFailure::Invalid => "the proxy does not answer as its scheme requires (upstream.proxy)",
        }
    }
}

/// What a failed connection shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectFailure {
    /// The domain cannot be reached.
    Domain,
    /// The proxy failed, so it is unknown whether the domain can be reached.
    Proxy(ProxyFailure),
}

/// Returns the failure that the HTTP status of a response to CONNECT shows; `None`: the tunnel is open.
///
/// RFC 9110 section 15.6 gives 502, 503, and 504 to proxies that get no valid response, no service, or no response in
/// time. 500 is what tinyproxy sends if it cannot connect, and 401 if the credentials are wrong. A status that leaves the reason open counts as the domain's:
/// calls then move only if the proxy does reach the other domain, and return within seconds. The other way around, an
/// app would stay with a domain that is unreachable.
pub(crate) const fn of_connect_status(status: u16) -> Option<ConnectFailure> {
    match status {
        200..=299 => None,
        401 | 407 => Some(ConnectFailure::Proxy(ProxyFailure::Unauthorized)),
        500 | 502 | 503 | 504 => Some(ConnectFailure::Domain),
        _ => Some(ConnectFailure::Proxy(ProxyFailure::Refused)),
    }
}

/// Returns the failure that a reply of SOCKS 5 shows (RFC 1928 section 6); `None`: the tunnel is open.
///
/// 1 is a general failure, which microsocks sends for a name that it cannot resolve; it counts as the domain's for the
/// reason above. 3 to 6: the network or host is unreachable, the connection is refused, or the TTL has expired. 2 is the
/// proxy's rules; 7 and 8 are commands and addresses that it does not support.
pub(crate) const fn of_socks_reply(reply: u8) -> Option<ConnectFailure> {
    match reply {
        0 => None,
        1 | 3..=6 => Some(ConnectFailure::Domain),
        _ => Some(ConnectFailure::Proxy(ProxyFailure::Refused)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_status_separates_proxy_from_domain() {
        for status in [200, 204, 299] {
            assert_eq!(of_connect_status(status), None);
        }
        for status in [500, 502, 503, 504] {
            assert_eq!(of_connect_status(status), Some(ConnectFailure::Domain), "{status}");
        }
        for status in [401, 407] {
            let failure = ConnectFailure::Proxy(ProxyFailure::Unauthorized);
            assert_eq!(of_connect_status(status), Some(failure), "{status}");
        }
        for status in [100, 199, 300, 302, 400, 403, 404, 405, 408, 429, 501, 505, 599] {
            assert_eq!(of_connect_status(status), Some(ConnectFailure::Proxy(ProxyFailure::Refused)), "{status}");
        }
    }

    #[test]
    fn socks_reply_separates_proxy_from_domain() {
        assert_eq!(of_socks_reply(0), None);
        for reply in [1, 3, 4, 5, 6] {
            assert_eq!(of_socks_reply(reply), Some(ConnectFailure::Domain), "{reply}");
        }
        for reply in [2, 7, 8, 9, 91, 255] {
            assert_eq!(of_socks_reply(reply), Some(ConnectFailure::Proxy(ProxyFailure::Refused)), "{reply}");
        }
    }
}
