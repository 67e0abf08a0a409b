//! Causes of problems: one row per cause, with its exit code, description, and advice.

use crate::domain::chat::error_code;
use crate::domain::chat::error_code::ErrorClass;
use crate::domain::policy::proxy::{ConnectFailure, ProxyFailure};

/// A cause that `chatgate doctor` distinguishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the table describes them")]
pub(in crate::cli) enum Cause {
    KeyIsPem,
    KeyHasBlanks,
    KeyIsUnusual,
    WrongKey,
    SignatureRefused,
    Clock,
    ProxyUnreachable,
    ProxyAuth,
    ProxyRefused,
    NotProxy,
    Dns,
    Connect,
    Certificate,
    CertificateName,
    CertificateTime,
    Tls,
    NotChat,
    NoAnswer,
    PrimaryDown,
    StandbyDown,
    WrongRegion,
    UnknownIdentifier,
    NotAdministrator,
    Altered,
    IpRefused,
    Plan,
    Disabled,
    Throttled,
    LockedOut,
    ChatFault,
    Refused,
}

/// The properties of a cause.
struct CauseRow {
    exit_code: u8,
    slug: &'static str,
    what: &'static str,
    advice: &'static str,
}

impl Cause {
    /// All causes in the order of their exit codes. The cause without a code of its own is the last.
    pub(in crate::cli) const ALL: [Cause; 31] = [
        Cause::KeyIsPem,
        Cause::KeyHasBlanks,
        Cause::KeyIsUnusual,
        Cause::WrongKey,
        Cause::SignatureRefused,
        Cause::Clock,
        Cause::ProxyUnreachable,
        Cause::ProxyAuth,
        Cause::ProxyRefused,
        Cause::NotProxy,
        Cause::Dns,
        Cause::Connect,
        Cause::Certificate,
        Cause::CertificateName,
        Cause::CertificateTime,
        Cause::Tls,
        Cause::NotChat,
        Cause::NoAnswer,
        Cause::PrimaryDown,
        Cause::StandbyDown,
        Cause::WrongRegion,
        Cause::UnknownIdentifier,
        Cause::NotAdministrator,
        Cause::Altered,
        Cause::IpRefused,
        Cause::Plan,
        Cause::Disabled,
        Cause::Throttled,
        Cause::LockedOut,
        Cause::ChatFault,
        Cause::Refused,
    ];

    /// Returns the exit code of `chatgate doctor`: 10 to 39, or 1 for an error of Chat without a cause of its own.
    pub(in crate::cli) const fn exit_code(self) -> u8 {
        self.row().exit_code
    }

    /// Returns the identifier for programs.
    pub(in crate::cli) const fn slug(self) -> &'static str {
        self.row().slug
    }

    /// Returns the description.
    pub(in crate::cli) const fn what(self) -> &'static str {
        self.row().what
    }

    /// Returns the advice.
    pub(in crate::cli) const fn advice(self) -> &'static str {
        self.row().advice
    }

    /// Returns whether the domain is unreachable, so that calls go to the other domain.
    pub(in crate::cli) const fn is_unreachable(self) -> bool {
        matches!(
            self,
            Cause::Dns
                | Cause::Connect
                | Cause::Certificate
                | Cause::CertificateName
                | Cause::CertificateTime
                | Cause::Tls
        )
    }

    /// Returns the cause of a failed connection. A failure of the proxy makes no domain unreachable.
    pub(super) const fn of_connection(failure: ConnectFailure) -> Cause {
        match failure {
            ConnectFailure::Domain => Cause::Connect,
            ConnectFailure::Proxy(ProxyFailure::Unreachable) => Cause::ProxyUnreachable,
            ConnectFailure::Proxy(ProxyFailure::Unauthorized) => Cause::ProxyAuth,
            ConnectFailure::Proxy(ProxyFailure::Refused) => Cause::ProxyRefused,
            ConnectFailure::Proxy(ProxyFailure::Invalid) => Cause::NotProxy,
        }
    }

    /// Returns the cause of an ErrorCode; `None` for 0. Source: vendor pages "Error Codes" (1047/34348) and UserSig
    /// (1047/34385). Codes with the same meaning share a cause.
    pub(super) fn of_code(code: i64) -> Option<Cause> {
        Some(match code {
            0 => return None,
            // The vendor's pages disagree on 70003 and 70005: a key of another type or app, or a truncated signature.
            70003 | 70005 | 70009 => Cause::WrongKey,
            70001 | 70002 | 70052 | 60004 | 60005 | 20002 => Cause::SignatureRefused,
            60026 | 70016 | 70020 => Cause::WrongRegion,
            70107 | 20003 | 30002 | 30003 => Cause::UnknownIdentifier,
            60010 | 70403 | 30004 | 10007 => Cause::NotAdministrator,
            60002 | 60012 | 60025 | 70013 | 70014 => Cause::Altered,
            60021 => Cause::IpRefused,
            60020 | 60027 | 60028 => Cause::Plan,
            60006 | 60016 | 60017 | 70051 | 70114 => Cause::Disabled,
            70050 => Cause::LockedOut,
            60007 | 60011 | 60018 | 60019 => Cause::Throttled,
            _ => match error_code::lookup(code).map(|row| row.class) {
                Some(ErrorClass::Transient) => Cause::ChatFault,
                _ => Cause::Refused,
            },
        })
    }

    const fn row(self) -> CauseRow {
        let (exit_code, slug, what, advice) = match self {
            Cause::KeyIsPem => (
                10,
                "key_is_pem",
                "the key is a PEM key of the first-generation signatures, not the app's secret key",
                "In the console, open the app's basic information and copy the secret key, one line of 64 hex digits. If \
                 the console offers only a PEM key, upgrade the app to HMAC-SHA256 first.",
            ),
            Cause::KeyHasBlanks => (
                11,
                "key_has_blanks",
                "Chat rejects the key, which begins or ends with whitespace or a byte order mark",
                "Write the file again with nothing but the key, for example: printf %s 'KEY' > FILE",
            ),
            Cause::KeyIsUnusual => (
                12,
                "key_is_unusual",
                "Chat rejects the key, which is not in the console's format of 64 hex digits",
                "Copy the whole secret key from the console again. It is incomplete, or it is another secret.",
            ),
            Cause::WrongKey => (
                13,
                "wrong_key",
                "Chat rejects the key: it belongs to another app, or it was changed in the console",
                "Compare app.sdkappid and the key with the console, which shows them next to each other.",
            ),
            Cause::SignatureRefused => (
                14,
                "signature_refused",
                "Chat rejects the signature, even a fresh one",
                "Check app.identifier and app.usersig_lifetime. Check whether the administrator account was deleted or \
                 its logins were revoked.",
            ),
            Cause::Clock => (
                15,
                "clock",
                "this machine's clock differs from Chat's by a minute or more",
                "Set up time synchronization (chrony, systemd-timesyncd, or the host of the virtual machine).",
            ),
            Cause::ProxyUnreachable => (
                16,
                "proxy_unreachable",
                "cannot connect to the proxy",
                "Check upstream.proxy (or HTTPS_PROXY), the name of the proxy, and whether this machine may connect to \
                 its port.",
            ),
            Cause::ProxyAuth => (
                17,
                "proxy_auth",
                "the proxy rejects the credentials, or requires some",
                "Set upstream.proxy_auth_file to a file with USER:PASSWORD, and check both. chatgate supports Basic \
                 authentication for http:// proxies, and user and password for socks5h:// proxies.",
            ),
            Cause::ProxyRefused => (
                18,
                "proxy_refused",
                "the proxy does not allow a connection to the domain",
                "In the access rules of the proxy, allow CONNECT from this machine to port 443 of the domain and of the \
                 standby domain.",
            ),
            Cause::NotProxy => (
                19,
                "not_proxy",
                "the server at upstream.proxy does not answer like a proxy of its scheme",
                "Check the scheme and the port of upstream.proxy: http:// for CONNECT, socks5h:// for SOCKS 5.",
            ),
            Cause::Dns => (
                20,
                "dns",
                "the name cannot be resolved",
                "Check /etc/resolv.conf, network policies for port 53, and app.endpoint if you set it. If you run a \
                 private DNS server, its queries should leave from the same region and carrier as this machine \
                 (Tencent's advice).",
            ),
            Cause::Connect => (
                21,
                "connect",
                "cannot connect to the address",
                "Allow this machine, or the proxy in upstream.proxy, to reach the domain on port 443 (firewall, security \
                 group, egress policy, routes). If machines here reach the internet through a proxy, set upstream.proxy; chatgate uses proxy variables \
                 only with upstream.proxy = \"env\".",
            ),
            Cause::Certificate => (
                22,
                "certificate",
                "the certificate is not signed by a trusted CA",
                "A proxy between this machine and Chat may intercept TLS. If it is your own proxy, exclude Chat's \
                 domains from it, or set app.ca_file to its CA.",
            ),
            Cause::CertificateName => (
                23,
                "certificate_name",
                "the certificate is for another name",
                "The address does not belong to Chat. Check app.endpoint, /etc/hosts, DNS, and proxies on the path.",
            ),
            Cause::CertificateTime => (
                24,
                "certificate_time",
                "the certificate has expired or is not yet valid",
                "Check this machine's date. If it is correct, the server is not Chat, or its certificate was not renewed.",
            ),
            Cause::Tls => (
                25,
                "tls",
                "the connection works, but the TLS handshake fails",
                "The server is not Chat, or a firewall cuts the connection. Check the port of app.endpoint, firewalls \
                 that inspect traffic, and proxies.",
            ),
            Cause::NotChat => (
                26,
                "not_chat",
                "the server is not Chat, but perhaps a proxy or a login page",
                "Check app.endpoint, and remove proxies that intercept TLS or redirect to a page from the path.",
            ),
            Cause::NoAnswer => (
                27,
                "no_answer",
                "the call was sent, and no response arrived",
                "Try again. If the problem remains, check upstream.attempt_timeout and the network path.",
            ),
            Cause::PrimaryDown => (
                28,
                "primary_down",
                "the primary domain is unreachable, so calls go to the standby domain",
                "chatgate works, but without a fallback.",
            ),
            Cause::StandbyDown => (
                29,
                "standby_down",
                "the standby domain does not work, but the primary domain does",
                "chatgate works, but without a fallback.",
            ),
            Cause::WrongRegion => (
                30,
                "wrong_region",
                "Chat does not know this app in this region",
                "Compare app.region with the data center in the console, and app.sdkappid digit by digit.",
            ),
            Cause::UnknownIdentifier => (
                31,
                "unknown_identifier",
                "Chat does not know the account that signs",
                "Check the spelling of app.identifier, including capitals. The console creates `administrator`.",
            ),
            Cause::NotAdministrator => (
                32,
                "not_administrator",
                "the account that signs is not an administrator of the app",
                "Make it an administrator in the console, or set app.identifier to an administrator.",
            ),
            Cause::Altered => (
                33,
                "altered",
                "Chat cannot parse the URL of the call, so an intermediary probably changes it",
                "Remove the proxy or firewall that decodes or shortens URLs from the path.",
            ),
            Cause::IpRefused => (
                34,
                "ip_refused",
                "Chat rejects calls from this machine's IP address",
                "Add the public address of this machine (or of its NAT gateway) to the app's IP allow list, or ask \
                 Tencent's support.",
            ),
            Cause::Plan => (
                35,
                "plan",
                "the app's plan does not cover the call: expired, unpaid, used up, or for another product",
                "Check the plan in the console. A payment takes effect after about five minutes.",
            ),
            Cause::Disabled => (
                36,
                "disabled",
                "the app, the account, or the command is disabled",
                "Check the app's state in the console, and ask Tencent's support for the reason.",
            ),
            Cause::Throttled => (
                37,
                "throttled",
                "too many calls are made for this app",
                "Find the other clients of this app, and divide the rate limit among them with [app.quota].",
            ),
            Cause::LockedOut => (
                38,
                "locked_out",
                "Chat has received too many invalid signatures of this app",
                "Stop the client that signs with a wrong key, wait a minute, and try again.",
            ),
            Cause::ChatFault => (
                39,
                "chat_fault",
                "an error inside Chat",
                "Try again in a minute. If the error remains, check Tencent's status page.",
            ),
            Cause::Refused => (
                1,
                "refused",
                "Chat rejects the call",
                "Look up the code on Tencent's page of error codes (1047/34348).",
            ),
        };
        CauseRow { exit_code, slug, what, advice }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::domain::policy::outcome::{hint, is_accepted};

    #[test]
    fn causes_have_distinct_exit_codes_slugs_and_descriptions() {
        let own: Vec<Cause> = Cause::ALL.into_iter().filter(|cause| cause.exit_code() != 1).collect();
        assert_eq!(own.len(), Cause::ALL.len() - 1, "only one cause has code 1");
        assert!(own.iter().all(|cause| (10..=40).contains(&cause.exit_code())));
        assert!(own.is_sorted_by_key(|cause| cause.exit_code()));
        let distinct =
            |property: fn(Cause) -> &'static str| Cause::ALL.map(property).into_iter().collect::<HashSet<_>>().len();
        assert_eq!(own.iter().map(|cause| cause.exit_code()).collect::<HashSet<_>>().len(), own.len());
        assert_eq!(distinct(Cause::slug), Cause::ALL.len());
        assert_eq!(distinct(Cause::what), Cause::ALL.len());
    }

    #[test]
    fn operations_page_lists_every_cause() {
        let operations = include_str!("../../../docs/operations.md");
        for cause in Cause::ALL.into_iter().filter(|cause| cause.exit_code() != 1) {
            let row = format!("| {} | `{}` |", cause.exit_code(), cause.slug());
            assert!(operations.contains(&row), "docs/operations.md has no row {row}");
        }
    }

    #[test]
    fn every_parking_code_has_a_specific_cause() {
        for row in error_code::table() {
            let code = *row.codes.start();
            let cause = Cause::of_code(code).expect("not 0");
            if !is_accepted(code) || (hint(code) != hint(0) && code != 30005) {
                assert_ne!(cause, Cause::Refused, "{code}");
            }
            if row.class == ErrorClass::Transient {
                assert_eq!(cause, Cause::ChatFault, "{code}");
            }
        }
        assert_eq!(Cause::of_code(0), None);
        assert_eq!(Cause::of_code(123_456), Some(Cause::Refused));
    }
}
