//! What can be wrong, in plain words: one row for each cause, with its exit code and what to do.

use crate::domain::chat::error_code;
use crate::domain::chat::error_code::ErrorClass;

/// A cause that `chatgate doctor` tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the table says it")]
pub enum Cause {
    KeyIsPem,
    KeyHasBlanks,
    KeyIsUnusual,
    WrongKey,
    SignatureRefused,
    Clock,
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

/// What is said of a cause.
struct Row {
    exit_code: u8,
    slug: &'static str,
    what: &'static str,
    advice: &'static str,
}

impl Cause {
    /// Every cause, in the order of their exit codes; the one without a code of its own is the last.
    pub const ALL: [Cause; 27] = [
        Cause::KeyIsPem,
        Cause::KeyHasBlanks,
        Cause::KeyIsUnusual,
        Cause::WrongKey,
        Cause::SignatureRefused,
        Cause::Clock,
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

    /// Exit code of `chatgate doctor`: 10 to 39, or 1 for a refusal that has no row of its own.
    pub const fn exit_code(self) -> u8 {
        self.row().exit_code
    }

    /// Its word for machines.
    pub const fn slug(self) -> &'static str {
        self.row().slug
    }

    /// What is wrong, in a few words.
    pub const fn what(self) -> &'static str {
        self.row().what
    }

    /// What to do about it.
    pub const fn advice(self) -> &'static str {
        self.row().advice
    }

    /// Whether it means that the domain cannot be reached, so that calls go to the other one.
    pub const fn is_unreachable(self) -> bool {
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

    /// What Chat's code says; `None` for 0. Source: vendor page "Error Codes" (1047/34348) and its UserSig page
    /// (1047/34385); codes of one meaning share a cause.
    pub fn of_code(code: i64) -> Option<Cause> {
        Some(match code {
            0 => return None,
            // 70003 and 70005 are what a key of another kind or app gives on some pages, a cut signature on others.
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

    const fn row(self) -> Row {
        let (exit_code, slug, what, advice) = match self {
            Cause::KeyIsPem => (
                10,
                "key_is_pem",
                "the key is a PEM key of the first generation of signatures, not the app's secret key",
                "In the console open the app's basic information and copy the secret key, one line of 64 hex digits. If \
                 only a PEM key is offered there, upgrade the app to HMAC-SHA256 first.",
            ),
            Cause::KeyHasBlanks => (
                11,
                "key_has_blanks",
                "Chat refuses the key, and it begins or ends with a blank or a byte order mark, which counts as a part \
                 of it",
                "Write the file again with nothing but the key, for example: printf %s 'KEY' > FILE",
            ),
            Cause::KeyIsUnusual => (
                12,
                "key_is_unusual",
                "Chat refuses the key, and it does not look like one: the console shows 64 hex digits",
                "Copy the whole secret key from the console again; a part of it was lost, or another secret was taken.",
            ),
            Cause::WrongKey => (
                13,
                "wrong_key",
                "Chat refuses the key: it is that of another app, or was changed in the console",
                "Compare app.sdkappid and the key with the console, where they stand side by side.",
            ),
            Cause::SignatureRefused => (
                14,
                "signature_refused",
                "Chat refuses the signature, also one that was made a moment ago",
                "Check app.identifier and app.usersig_lifetime, and whether the app's administrator was deleted or its \
                 logins were revoked.",
            ),
            Cause::Clock => (
                15,
                "clock",
                "this machine's clock differs from Chat's",
                "Set up time synchronisation (chrony, systemd-timesyncd, or that of the virtual machine's host).",
            ),
            Cause::Dns => (
                20,
                "dns",
                "the name cannot be resolved",
                "Check /etc/resolv.conf, the network policy for port 53, and app.endpoint if you wrote one. Vendor's \
                 advice: a private DNS server should leave the network where the callers are.",
            ),
            Cause::Connect => (
                21,
                "connect",
                "no connection to the address",
                "Let this machine reach the domain at port 443 (firewall, security group, egress policy, routes). \
                 chatgate takes no proxy from the environment.",
            ),
            Cause::Certificate => (
                22,
                "certificate",
                "the certificate is not signed by anybody trusted here",
                "Somebody between here and Chat may be opening TLS. If that is your own proxy, take it out of the way, \
                 or name its CA with app.ca_file.",
            ),
            Cause::CertificateName => (
                23,
                "certificate_name",
                "the certificate is for another name",
                "The address is not Chat's: check app.endpoint, /etc/hosts, DNS, and proxies in between.",
            ),
            Cause::CertificateTime => (
                24,
                "certificate_time",
                "the certificate has expired or is not yet valid",
                "Check this machine's date first. If it is right, what answers there is not Chat or is out of care.",
            ),
            Cause::Tls => (
                25,
                "tls",
                "a connection, but no TLS",
                "Something answers or cuts the connection that is not Chat: check the port of app.endpoint, firewalls \
                 that inspect traffic, and proxies.",
            ),
            Cause::NotChat => (
                26,
                "not_chat",
                "what answers is not Chat, perhaps a proxy or a login page",
                "Check app.endpoint, and take proxies out of the way: chatgate has to reach Chat itself.",
            ),
            Cause::NoAnswer => (
                27,
                "no_answer",
                "the call was sent, and no answer came",
                "Try again. If it stays so, look at upstream.attempt_timeout and at the network in between.",
            ),
            Cause::PrimaryDown => (
                28,
                "primary_down",
                "the first domain cannot be reached; the standby can, so calls go there",
                "The gateway works, without a second way.",
            ),
            Cause::StandbyDown => (
                29,
                "standby_down",
                "the standby domain does not serve; the first one does",
                "The gateway works, without a second way.",
            ),
            Cause::WrongRegion => (
                30,
                "wrong_region",
                "Chat does not know this app here",
                "Check app.region against the data centre that the console shows, and app.sdkappid digit by digit.",
            ),
            Cause::UnknownIdentifier => (
                31,
                "unknown_identifier",
                "Chat does not know the account that signs",
                "Check the spelling of app.identifier, capitals included; the console makes `administrator`.",
            ),
            Cause::NotAdministrator => (
                32,
                "not_administrator",
                "the account that signs is no administrator of the app",
                "Make it one in the console, or set app.identifier to one that is.",
            ),
            Cause::Altered => (
                33,
                "altered",
                "Chat does not read the URL that was sent",
                "Something in between changes URLs, such as a proxy that decodes or cuts them: take it out of the way.",
            ),
            Cause::IpRefused => (
                34,
                "ip_refused",
                "Chat does not take calls from this machine's IP address",
                "Let the app's list of addresses take in the one that this machine is seen with from outside (that of \
                 the NAT gateway), or ask the vendor's support.",
            ),
            Cause::Plan => (
                35,
                "plan",
                "the app's plan does not cover the call: expired, in arrears, used up, or for another product",
                "Look at the plan in the console; after a payment it takes about five minutes.",
            ),
            Cause::Disabled => (
                36,
                "disabled",
                "the app, the account or the command has been disabled",
                "Look at the app's state in the console, and ask the vendor's support why.",
            ),
            Cause::Throttled => (
                37,
                "throttled",
                "too many calls are being made for this app",
                "Find who else calls as this app, and divide the limit with [app.quota].",
            ),
            Cause::LockedOut => (
                38,
                "locked_out",
                "Chat has seen too many refused signatures of this app",
                "Stop whatever signs with a wrong key, wait a minute, and try again.",
            ),
            Cause::ChatFault => {
                (39, "chat_fault", "Chat itself fails", "Try again in a minute; then look at the vendor's status page.")
            }
            Cause::Refused => (
                1,
                "refused",
                "Chat refuses the call",
                "Look its code up on the vendor's page on error codes (1047/34348).",
            ),
        };
        Row { exit_code, slug, what, advice }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::domain::policy::outcome::{hint, is_accepted};

    #[test]
    fn every_cause_has_an_exit_code_a_word_and_an_advice_of_its_own() {
        let own: Vec<Cause> = Cause::ALL.into_iter().filter(|cause| cause.exit_code() != 1).collect();
        assert_eq!(own.len(), Cause::ALL.len() - 1, "only one has the common code");
        assert!(own.iter().all(|cause| (10..=40).contains(&cause.exit_code())));
        assert!(own.is_sorted_by_key(|cause| cause.exit_code()));
        let distinct = |word: fn(Cause) -> &'static str| Cause::ALL.map(word).into_iter().collect::<HashSet<_>>().len();
        assert_eq!(own.iter().map(|cause| cause.exit_code()).collect::<HashSet<_>>().len(), own.len());
        assert_eq!(distinct(Cause::slug), Cause::ALL.len());
        assert_eq!(distinct(Cause::what), Cause::ALL.len());
    }

    #[test]
    fn operators_find_every_cause_with_its_exit_code() {
        let operations = include_str!("../../../docs/operations.md");
        for cause in Cause::ALL.into_iter().filter(|cause| cause.exit_code() != 1) {
            let row = format!("| {} | `{}` |", cause.exit_code(), cause.slug());
            assert!(operations.contains(&row), "docs/operations.md has no row {row}");
        }
    }

    #[test]
    fn every_code_for_which_the_gateway_gives_up_has_a_cause_of_its_own() {
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
