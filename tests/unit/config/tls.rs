//! `[server.tls]` and the TLS of `[fleet]`: accepted and rejected files.

use rcgen::{CertificateParams, Issuer, KeyPair};

use super::*;

const TLS: &str = "[server.tls]\ncert_file = 'cert.pem'\nkey_file = 'key.pem'\n";

/// Creates a folder with the configuration `text`, a certificate that expires in `days`, its key, and a CA.
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
fn valid_certificate_is_accepted_and_its_key_not_printed() {
    let folder = folder(TLS, 90);
    let config = folder.load(&[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.warnings, []);
    let tls = config.server.tls.as_ref().expect("written");
    let subject = &tls.certificate.subject;
    assert!(subject.contains("the gate") && subject.ends_with(", for gate.test, 127.0.0.1"), "{subject}");
    assert_eq!(tls.serving.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert!(!tls.requires_client_cert && !config.server.requires_client_cert());
    let key = fs::read_to_string(folder.folder.path().join("key.pem")).expect("written");
    let shown = format!("{config:?}");
    assert!(key.lines().nth(1).is_some_and(|line| line.len() > 40 && !shown.contains(line)), "{shown}");
    assert_eq!(config.source.files.len(), 3, "all of them are watched");
}

#[test]
fn byte_order_mark_before_pem_is_ignored() {
    let folder = folder(TLS, 90);
    for name in ["cert.pem", "key.pem"] {
        let text = fs::read_to_string(folder.folder.path().join(name)).expect("written");
        folder.secret(name, &format!("\u{feff}{text}"));
    }
    assert_eq!(folder.warnings(), [""; 0]);
}

#[test]
fn expired_or_expiring_certificate_causes_a_warning() {
    for (days, part) in [(29, "expires in 29 days, at 20"), (0, "expires in 0 days"), (-3, "expired at 20")] {
        let warnings = folder(TLS, days).warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("server.tls.cert_file"), "{warnings:?}");
        assert!(warnings[0].contains(part), "{warnings:?}");
    }
    assert_eq!(folder(TLS, 30).warnings(), [""; 0]);
}

#[test]
fn unusable_tls_files_are_rejected_with_the_cause() {
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let old_encrypted = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00FF\n\n\
                         AAAA\n-----END RSA PRIVATE KEY-----\n";
    let odd = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (name, text, key, part) in [
        ("cert.pem", Some(""), "cert_file", "it is empty"),
        ("cert.pem", Some("words"), "cert_file", "it is not PEM"),
        ("cert.pem", Some("-----BEGIN X-----\nAAAA\n-----END X-----\n"), "cert_file", "PEM of another type"),
        ("cert.pem", Some("-----BEGIN CERTIFICATE-----\nAAAA\n"), "cert_file", "truncated"),
        ("cert.pem", Some(odd), "cert_file", "cannot"),
        ("cert.pem", None, "cert_file", "no such file"),
        ("key.pem", Some(""), "key_file", "it is empty"),
        ("key.pem", Some(encrypted), "key_file", "encrypted"),
        ("key.pem", Some(old_encrypted), "key_file", "encrypted"),
        ("key.pem", Some(odd), "key_file", "it contains a certificate, so check whether the files are swapped"),
        ("key.pem", Some("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "key_file", "type of key"),
        ("key.pem", None, "key_file", "no such file"),
        ("ca.pem", Some(""), "client_ca_file", "no certificate in the file"),
        ("ca.pem", Some(odd), "client_ca_file", "trust anchor"),
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
fn key_of_another_certificate_is_rejected() {
    let problems = folder(&TLS.replace("key.pem", "other.pem"), 90).problems(&[]);
    assert!(
        problems.len() == 1 && problems[0].contains("server.tls.key_file: the key does not belong"),
        "{problems:?}"
    );
    let problems = folder(&TLS.replace("cert.pem", "x").replace("key.pem", "cert.pem").replace("'x'", "'key.pem'"), 90);
    let problems = problems.problems(&[]);
    assert!(
        problems.iter().all(|line| line.contains("check whether the files are swapped")) && problems.len() == 2,
        "{problems:?}"
    );
}

#[test]
fn world_readable_key_causes_a_warning() {
    let folder = folder(TLS, 90);
    let path = folder.folder.path().join("key.pem");
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("its mode set");
    let warnings = folder.warnings();
    assert!(
        warnings.len() == 1 && warnings[0].contains("server.tls.key_file: the file is world-readable"),
        "{warnings:?}"
    );
}

#[test]
fn client_ca_authenticates_callers_but_not_operators() {
    let listen = "[server]\nlisten = '0.0.0.0:8700'\n";
    let with_ca = format!("{TLS}client_ca_file = 'ca.pem'\n");
    let with_client_ca = folder(&format!("{listen}{with_ca}"), 90);
    let config = with_client_ca.load(&[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(config.server.requires_client_cert() && config.refuse_open_listeners().is_ok());
    let open = folder(&format!("{listen}{TLS}"), 90).problems(&[]);
    assert!(open.len() == 1 && open[0].contains("server.listen: reachable from"), "{open:?}");
    let admin = format!("{listen}admin = '0.0.0.0:8701'\n{with_ca}");
    let open = folder(&admin, 90).problems(&[]);
    assert!(open.len() == 1 && open[0].contains("server.admin: reachable from"), "{open:?}");
    // A CA that cannot be read is the only problem.
    let missing = folder(&format!("{listen}{}", with_ca.replace("ca.pem", "none")), 90).problems(&[]);
    assert!(missing.len() == 1 && missing[0].contains("client_ca_file"), "{missing:?}");
}

#[test]
fn names_in_client_certificates_require_a_client_ca() {
    let caller = "[[caller]]\nname = 'a'\ncertificates = ['spiffe://prod/a', 'A.prod']\n";
    let with_ca = folder(&format!("{TLS}client_ca_file = 'ca.pem'\n{caller}"), 90);
    let config = with_ca.load(&[]).unwrap_or_else(|problems| panic!("{problems}"));
    let names = config.callers[0].certificates.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names, ["spiffe://prod/a", "a.prod"]);
    let problems = folder(&format!("{TLS}{caller}"), 90).problems(&[]);
    assert!(problems.len() == 1 && problems[0].contains("no client shows a certificate"), "{problems:?}");
}

#[test]
fn tls_without_a_tcp_listener_causes_a_warning() {
    let warnings = folder(&format!("[server]\nlisten = 'unix:/run/x.sock'\n{TLS}"), 90).warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("server.tls: has no effect"), "{warnings:?}");
}

const FLEET: &str =
    "[fleet]\nredis = 'rediss://redis.test'\nca_file = 'ca.pem'\ncert_file = 'cert.pem'\nkey_file = 'key.pem'\n";

#[test]
fn fleet_tls_files_are_read_and_the_key_not_printed() {
    let folder = folder(FLEET, 90);
    let config = folder.load(&[]).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.warnings, []);
    let fleet = config.fleet.as_ref().expect("written");
    assert!(fleet.tls.as_ref().is_some_and(|tls| tls.0.client_auth_cert_resolver.has_certs()));
    let key = fs::read_to_string(folder.folder.path().join("key.pem")).expect("written");
    let shown = format!("{config:?}");
    assert!(key.lines().nth(1).is_some_and(|line| line.len() > 40 && !shown.contains(line)), "{shown}");
    assert_eq!(config.source.files.len(), 4, "all of them are watched");
    // Without files, rediss:// uses the public roots; redis:// uses no TLS.
    for (scheme, has_tls) in [("rediss", true), ("redis", false)] {
        let text = format!("{APP}[fleet]\nredis = '{scheme}://h'\n");
        let fleet = Folder::with(&text).load(&[]).expect("good").fleet.expect("written");
        assert_eq!(fleet.tls.is_some(), has_tls);
        assert!(fleet.tls.is_none_or(|tls| !tls.0.client_auth_cert_resolver.has_certs()));
    }
}

#[test]
fn unusable_fleet_tls_files_are_rejected_with_the_cause() {
    for (from, to, key, part) in [
        ("'rediss:", "'redis:", "ca_file", "requires TLS, but the URL begins with redis://"),
        ("ca_file = 'ca.pem'\n", "", "", ""),
        ("ca_file = 'ca.pem'", "ca_file = 'key.pem'", "ca_file", "no certificate"),
        ("ca_file = 'ca.pem'", "ca_file = 'none'", "ca_file", "no such file"),
        ("cert_file = 'cert.pem'\n", "", "cert_file", "missing"),
        ("key_file = 'key.pem'\n", "", "key_file", "missing"),
        ("'key.pem'", "'other.pem'", "key_file", "does not belong"),
        ("'key.pem'", "'ca.pem'", "key_file", "check whether the files are swapped"),
        ("redis.test'", "redis.test/#insecure'", "redis", "must not contain '#'"),
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
    assert!(warnings.len() == 1 && warnings[0].contains("Redis rejects it"), "{warnings:?}");
}
