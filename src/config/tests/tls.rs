//! `server.tls`: what is served with, and what is refused in which words.

use rcgen::{CertificateParams, Issuer, KeyPair};

use super::*;

const TLS: &str = "[server.tls]\ncert_file = 'cert.pem'\nkey_file = 'key.pem'\n";

/// A folder whose configuration is `text`, with a certificate that ends in so many days, its key, and a CA.
fn folder(text: &str, days: i64) -> Folder {
    let folder = Folder::with(&format!("{APP}{text}"));
    let ca_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).expect("signed");
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().expect("a key");
    let names = ["gate.test", "127.0.0.1"].map(str::to_owned);
    let mut params = CertificateParams::new(names).expect("names");
    params.distinguished_name.push(rcgen::DnType::CommonName, "the gate");
    let now = std::time::UNIX_EPOCH + crate::clock::unix_now();
    let span = Duration::from_secs(days.unsigned_abs() * 24 * 3600 + 60);
    params.not_after = if days < 0 { now - span } else { now + span }.into();
    let cert = params.signed_by(&key, &issuer).expect("signed");
    folder.secret("cert.pem", &cert.pem());
    folder.secret("key.pem", &key.serialize_pem());
    folder.secret("ca.pem", &ca.pem());
    folder.secret("other.pem", &KeyPair::generate().expect("a key").serialize_pem());
    folder
}

#[test]
fn a_good_certificate_is_taken_and_the_key_is_not_shown() {
    let folder = folder(TLS, 90);
    let config = folder.load(&[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.warnings, []);
    let tls = config.server.tls.as_ref().expect("written");
    let subject = &tls.certificate.subject;
    assert!(subject.contains("the gate") && subject.ends_with(", for gate.test, 127.0.0.1"), "{subject}");
    assert_eq!(tls.serving.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert!(!tls.asks_callers && !config.server.asks_for_certificates());
    let key = fs::read_to_string(folder.folder.path().join("key.pem")).expect("written");
    let shown = format!("{config:?}");
    assert!(key.lines().nth(1).is_some_and(|line| line.len() > 40 && !shown.contains(line)), "{shown}");
    assert_eq!(config.source.files.len(), 3, "all of them are watched");
}

#[test]
fn an_end_that_is_near_or_over_is_warned_of() {
    for (days, part) in [(29, "ends in 29 days, at 20"), (0, "ends in 0 days"), (-3, "ended at 20")] {
        let warnings = folder(TLS, days).warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("server.tls.cert_file"), "{warnings:?}");
        assert!(warnings[0].contains(part), "{warnings:?}");
    }
    assert_eq!(folder(TLS, 30).warnings(), [""; 0]);
}

#[test]
fn what_cannot_be_served_with_is_refused_with_its_cause() {
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let odd = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (name, text, key, part) in [
        ("cert.pem", Some(""), "cert_file", "it is empty"),
        ("cert.pem", Some("words"), "cert_file", "it is no PEM at all"),
        ("cert.pem", Some("-----BEGIN X-----\nAAAA\n-----END X-----\n"), "cert_file", "PEM of another kind"),
        ("cert.pem", Some("-----BEGIN CERTIFICATE-----\nAAAA\n"), "cert_file", "cut off"),
        ("cert.pem", Some(odd), "cert_file", "cannot be"),
        ("cert.pem", None, "cert_file", "there is no such file"),
        ("key.pem", Some(""), "key_file", "it is empty"),
        ("key.pem", Some(encrypted), "key_file", "encrypted"),
        ("key.pem", Some(odd), "key_file", "it has a certificate; were the files mixed up?"),
        ("key.pem", Some("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "key_file", "of a kind"),
        ("key.pem", None, "key_file", "there is no such file"),
        ("ca.pem", Some(""), "client_ca_file", "no certificate"),
        ("ca.pem", Some(odd), "client_ca_file", "root of trust"),
    ] {
        let folder = folder(&format!("{TLS}client_ca_file = 'ca.pem'\n"), 90);
        match text {
            Some(text) => folder.secret(name, text),
            None => fs::remove_file(folder.folder.path().join(name)).expect("written"),
        }
        let problems = folder.problems(&[]);
        let about = format!("server.tls.{key}: ");
        assert!(problems.iter().any(|line| line.contains(&about) && line.contains(part)), "{part}\n{problems:?}");
    }
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let problems = folder(&TLS.replace("key.pem", "other.pem"), 90).problems(&[]);
    assert!(
        problems.len() == 1 && problems[0].contains("server.tls.key_file: the key does not belong"),
        "{problems:?}"
    );
    let problems = folder(&TLS.replace("cert.pem", "x").replace("key.pem", "cert.pem").replace("'x'", "'key.pem'"), 90);
    let problems = problems.problems(&[]);
    assert!(
        problems.iter().all(|line| line.contains("were the files mixed up?")) && problems.len() == 2,
        "{problems:?}"
    );
}

#[test]
fn a_key_that_all_can_read_is_warned_of() {
    let folder = folder(TLS, 90);
    let path = folder.folder.path().join("key.pem");
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("its mode set");
    let warnings = folder.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("server.tls.key_file: every user"), "{warnings:?}");
}

#[test]
fn a_client_ca_is_asking_who_calls_but_not_who_operates() {
    let listen = "[server]\nlisten = '0.0.0.0:8700'\n";
    let with_ca = format!("{TLS}client_ca_file = 'ca.pem'\n");
    let asking = folder(&format!("{listen}{with_ca}"), 90);
    let config = asking.load(&[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(config.server.asks_for_certificates() && config.refuse_open_listeners().is_ok());
    let open = folder(&format!("{listen}{TLS}"), 90).problems(&[]);
    assert!(open.len() == 1 && open[0].contains("server.listen: other machines"), "{open:?}");
    let admin = format!("{listen}admin = '0.0.0.0:8701'\n{with_ca}");
    let open = folder(&admin, 90).problems(&[]);
    assert!(open.len() == 1 && open[0].contains("server.admin: other machines"), "{open:?}");
    // A CA that cannot be read is the one thing that is wrong.
    let missing = folder(&format!("{listen}{}", with_ca.replace("ca.pem", "none")), 90).problems(&[]);
    assert!(missing.len() == 1 && missing[0].contains("client_ca_file"), "{missing:?}");
}

#[test]
fn tls_without_a_tcp_listener_is_doubtful() {
    let warnings = folder(&format!("[server]\nlisten = 'unix:/run/x.sock'\n{TLS}"), 90).warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("server.tls: is for TCP"), "{warnings:?}");
}

const FLEET: &str =
    "[fleet]\nredis = 'rediss://redis.test'\nca_file = 'ca.pem'\ncert_file = 'cert.pem'\nkey_file = 'key.pem'\n";

#[test]
fn what_a_fleet_trusts_and_shows_is_read_and_its_key_not_shown() {
    let folder = folder(FLEET, 90);
    let config = folder.load(&[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.warnings, []);
    let fleet = config.fleet.as_ref().expect("written");
    assert!(fleet.tls.as_ref().is_some_and(|tls| tls.0.client_auth_cert_resolver.has_certs()));
    let key = fs::read_to_string(folder.folder.path().join("key.pem")).expect("written");
    let shown = format!("{config:?}");
    assert!(key.lines().nth(1).is_some_and(|line| line.len() > 40 && !shown.contains(line)), "{shown}");
    assert_eq!(config.source.files.len(), 4, "all of them are watched");
    // Without files it is TLS with the public roots, and without rediss:// none.
    for (scheme, has_tls) in [("rediss", true), ("redis", false)] {
        let text = format!("{APP}[fleet]\nredis = '{scheme}://h'\n");
        let fleet = Folder::with(&text).load(&[]).expect("good").fleet.expect("written");
        assert_eq!(fleet.tls.is_some(), has_tls);
        assert!(fleet.tls.is_none_or(|tls| !tls.0.client_auth_cert_resolver.has_certs()));
    }
}

#[test]
fn what_a_fleet_cannot_trust_or_show_is_refused_with_its_cause() {
    for (from, to, key, part) in [
        ("'rediss:", "'redis:", "ca_file", "is for TLS, and the address begins with redis://"),
        ("ca_file = 'ca.pem'\n", "", "", ""),
        ("ca_file = 'ca.pem'", "ca_file = 'key.pem'", "ca_file", "has no certificate"),
        ("ca_file = 'ca.pem'", "ca_file = 'none'", "ca_file", "there is no such file"),
        ("cert_file = 'cert.pem'\n", "", "cert_file", "is missing"),
        ("key_file = 'key.pem'\n", "", "key_file", "is missing"),
        ("'key.pem'", "'other.pem'", "key_file", "does not belong"),
        ("'key.pem'", "'ca.pem'", "key_file", "were the files mixed up?"),
        ("redis.test'", "redis.test/#insecure'", "redis", "has a # in it"),
    ] {
        let folder = folder(&FLEET.replace(from, to), 90);
        if key.is_empty() {
            assert!(folder.load(&[]).is_ok());
            continue;
        }
        let problems = folder.problems(&[]);
        let about = format!("fleet.{key}: ");
        assert!(
            problems.len() == 1 && problems[0].contains(&about) && problems[0].contains(part),
            "{part}\n{problems:?}"
        );
    }
    let warnings = folder(FLEET, -3).warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("Redis refuses it"), "{warnings:?}");
}
