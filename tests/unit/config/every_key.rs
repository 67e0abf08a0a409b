//! A file with every key, each with a value other than its default.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;

use super::*;
use crate::domain::relation::{BLACKLIST, FOLLOW};

const EVERY_KEY: &str = r#"
[server]
listen = ["127.0.0.1:1", "unix:/run/x.sock"]
admin = "[::1]:2"
unix_mode = "0600"
unix_uids = [0, 1000]
admin_token_file = "admin-token"
hosts = ["Chatgate.Internal", "::1"]
max_body = "2MiB"
max_connections = 3
admin_max_connections = 9
max_requests = 4
max_buffered = "5MB"
handshake_timeout = "6s"
head_timeout = "7s"
body_timeout = "8s"
write_timeout = "9s"
idle_timeout = "10s"
drain_delay = "11s"
drain_timeout = "12s"
explain = true

[[app]]
name = "one"
sdkappid = 1
endpoint = "http://127.0.0.1:9700"
identifier = "boss"
secret_key_env = "KEY"
usersig_lifetime = "10s"
reads = ["future/get", "future/list"]
quota.per_command = "20/s"
quota.total = "30/s"
quota.reserve = "4/s"
quota.commands = { "follow/follow_add" = "7/s" }

[[app]]
name = "two"
sdkappid = 4294967295
region = "tokyo"
ca_file = "ca.pem"
secret_key_file = "chat-key"
default = true

[access]
allow = ["follow/*", "profile/portrait_get"]
report_only = true
require_header = true
open = true

[[caller]]
name = "feed"
token_file = ["feed-token", "feed-token-next"]
usersig_key_file = "feed-sdk-key"
unix_uids = [1000, 0]
apps = ["two", "one"]
allow = ["*"]
report_only = false
quota = "50/s"

[[caller]]
name = "chat-2"
token_env = "CHAT_TOKEN"
class = "batch"

[cache]
ttl = "13s"
max_pairs = 14
write_settle = "15ms"
stale_if_error = "21s"
stale_while_revalidate = "22s"
max_bytes = "3MiB"
commands = { "profile/portrait_get" = "22s", "future/get" = "23ms" }

[relation]
kinds = ["blacklist", "follow"]
max_to = 16
call_max = 200
flip = false

[upstream]
timeout = "17s"
attempt_timeout = "16s"
connect_timeout = "15s"
attempts = 2
retry_budget = 0.3
max_answer = "1KiB"
max_in_flight = 18
connection_max_age = "19s"
idle_timeout = "20s"
proxy = "socks5h://Proxy.Internal:1080"
proxy_auth_file = "proxy-auth"
no_proxy = ["10.0.0.0/8", ".Internal"]

[webhook]
listen = "0.0.0.0:8702"
app_tokens = { one = { env = "KEY" }, two = { file = "chat-key" } }
window = "21s"
forward = { two = "http://App:8080/im" }
forward_timeout = "22ms"

[log]
format = "text"
level = "debug"
requests = "all"
"#;

/// Loads [`EVERY_KEY`]. Also returns the certificate in the CA file.
fn load_every_key() -> (Config, CertificateDer<'static>) {
    let folder = Folder::with(EVERY_KEY);
    let certificate = rcgen::generate_simple_self_signed(["ca.test".to_owned()]).expect("a certificate").cert;
    folder.secret("ca.pem", &certificate.pem());
    folder.secret("admin-token", &format!("{ADMIN_TOKEN}\n"));
    folder.secret("proxy-auth", "me:pass:word\n");
    folder.secret("feed-token", "token-of-the-feed\r\n");
    folder.secret("feed-token-next", "next-token-of-the-feed");
    folder.secret("feed-sdk-key", "key-of-the-sdk\n");
    let config = folder
        .load(&[("KEY", MARKED), ("CHAT_TOKEN", "token-of-the-chat")])
        .unwrap_or_else(|problems| panic!("{problems}"));
    (config, certificate.der().clone())
}

fn address(text: &str) -> ListenAddr {
    text.parse().expect(text)
}

const fn secs(number: u64) -> Duration {
    Duration::from_secs(number)
}

#[test]
fn every_key_of_the_server_is_read() {
    let (config, _) = load_every_key();
    let server = Server {
        listen: vec![address("127.0.0.1:1"), address("unix:/run/x.sock")],
        admin: address("[::1]:2"),
        unix_mode: 0o600,
        unix_uids: vec![0, 1000],
        admin_token: BearerToken::new(ADMIN_TOKEN).ok(),
        hosts: vec!["chatgate.internal".into(), "[::1]".into()],
        max_body: 2 << 20,
        max_connections: 3,
        admin_max_connections: 9,
        max_requests: 4,
        max_buffered: 5_000_000,
        handshake_timeout: secs(6),
        head_timeout: secs(7),
        body_timeout: secs(8),
        write_timeout: secs(9),
        idle_timeout: secs(10),
        drain_delay: secs(11),
        drain_timeout: secs(12),
        explain: true,
        tls: None,
    };
    assert_eq!(config.server, server);
}

#[test]
fn every_key_of_access_and_callers_is_read() {
    let (config, _) = load_every_key();
    let allow: Vec<String> = config.access.allow.iter().map(ToString::to_string).collect();
    assert_eq!(allow, ["follow/*", "profile/portrait_get"]);
    assert!(config.access.report_only && config.access.require_header && config.access.open);
    let [feed, chat] = config.callers.as_slice() else { panic!("{:?}", config.callers) };
    let index = |token: &[u8]| TokenDigest::of(token).find_in(feed.tokens.iter().chain(&chat.tokens));
    assert_eq!((feed.tokens.len(), chat.tokens.len()), (2, 1));
    assert_eq!(index(b"token-of-the-feed"), Some(0));
    assert_eq!(index(b"next-token-of-the-feed"), Some(1));
    assert_eq!(index(b"token-of-the-chat"), Some(2));
    assert_eq!(feed.usersig_key.as_ref().map(SecretKey::expose), Some(&b"key-of-the-sdk"[..]));
    assert_eq!((feed.unix_uids.as_slice(), &*feed.certificates), ([1000, 0].as_slice(), [].as_slice()));
    assert!(chat.usersig_key.is_none() && chat.unix_uids.is_empty());
    let apps: Vec<&str> = feed.apps.iter().flatten().map(AppName::as_str).collect();
    assert_eq!((feed.name.as_str(), apps.as_slice()), ("feed", ["two", "one"].as_slice()));
    assert_eq!((&feed.allow, feed.report_only), (&vec![CommandPattern::Any], false));
    assert_eq!(feed.quota.map(|quota| quota.get()), Some(50));
    assert_eq!((chat.name.as_str(), &chat.apps, chat.quota), ("chat-2", &None, None));
    assert_eq!((feed.class.name(), chat.class.name()), ("interactive", "batch"));
    assert_eq!((&chat.allow, chat.report_only), (&Access::default().allow, true));
}

#[test]
fn every_key_of_the_other_sections_is_read() {
    let (config, _) = load_every_key();
    let reads: Vec<_> = config.cache.commands.iter().map(|read| (&*read.name, read.ttl)).collect();
    assert_eq!(reads, [("future/get", Duration::from_millis(23)), ("profile/portrait_get", secs(22))]);
    let cache = Cache {
        ttl: secs(13),
        max_pairs: 14,
        stale_if_error: secs(21),
        stale_while_revalidate: secs(22),
        write_settle: Duration::from_millis(15),
        max_bytes: 3 * 1024 * 1024,
        commands: Arc::clone(&config.cache.commands),
    };
    assert_eq!(config.cache, cache);
    assert_eq!(config.relation, Relation { kinds: vec![&FOLLOW, &BLACKLIST], max_to: 16, call_max: 200, flip: false });
    let upstream = Upstream {
        attempts: 2,
        retry_budget: 0.3,
        timeout: secs(17),
        attempt_timeout: secs(16),
        connect_timeout: secs(15),
        max_answer: 1024,
        max_in_flight: 18,
        connection_max_age: secs(19),
        idle_timeout: secs(20),
        proxy: Some(Proxy {
            protocol: ProxyProtocol::Socks5,
            host: "proxy.internal".to_owned(),
            port: 1080,
            auth: Some(ProxyAuth::of_line("me:pass:word").expect("credentials")),
            bypass: vec!["10.0.0.0/8".parse().expect("a network"), ".internal".parse().expect("a suffix")],
            variable: None,
        }),
    };
    assert_eq!(config.upstream, upstream);
    let webhook = config.webhook.as_ref().expect("written");
    assert_eq!((&webhook.listen, webhook.window, webhook.tokens.len()), (&address("0.0.0.0:8702"), secs(21), 2));
    let targets: Vec<_> = webhook.forward.iter().collect();
    let [(app, target)] = targets.as_slice() else { panic!("{targets:?}") };
    assert_eq!((app.as_str(), target.endpoint.to_string().as_str(), &*target.path), ("two", "http://app:8080", "/im"));
    assert!(webhook.forward_timeout == Duration::from_millis(22) && webhook.tls.is_none());
    let (format, level) = (LogFormat::Text, tracing::Level::DEBUG);
    assert_eq!(config.log, Log { format, level, requests: LogRequests::All });
}

#[test]
fn every_key_of_an_app_is_read() {
    let (config, ca) = load_every_key();
    assert_eq!(config.default_app().map(|app| app.name.as_str()), Some("two"));
    let [one, two] = config.apps.as_slice() else { panic!("{:?}", config.apps) };
    assert_eq!((one.endpoint.to_string().as_str(), &one.standby), ("http://127.0.0.1:9700", &None));
    assert_eq!((one.identifier.as_str(), one.secret_key.expose()), ("boss", MARKED.as_bytes()));
    assert_eq!(one.usersig_lifetime, secs(10));
    assert_eq!(one.quota.reserve.map(|reserve| reserve.get()), Some(4));
    assert_eq!((one.quota.per_command.get(), one.quota.total.map(|total| total.get())), (20, Some(30)));
    assert_eq!((one.region, one.reads.iter().collect::<Vec<_>>()), (None, vec!["future/get", "future/list"]));
    assert_eq!(one.quota.commands.get("follow/follow_add").map(|rate| rate.get()), Some(7));
    assert_eq!((two.sdkappid.get(), two.region.map(Region::name)), (u32::MAX, Some("tokyo")));
    assert_eq!(two.extra_roots, [ca]);
}
