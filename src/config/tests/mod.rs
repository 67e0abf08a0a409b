//! Whole files: what is read from them, and what is refused with which words.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::domain::caller::TokenDigest;

mod every_key;
mod refusals;
mod tls;

/// A key that must never be seen, in the form the console shows keys in.
const MARKED: &str = "0badc0de5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de5ec2e70badc0de";

const ADMIN_TOKEN: &str = "token-of-operators";

const APP: &str = "[[app]]\nname = 'main'\nsdkappid = 1400000001\nregion = 'singapore'\nsecret_key_file = 'chat-key'\n";

/// A folder with a key file and a configuration.
struct Folder {
    folder: TempDir,
    file: PathBuf,
}

impl Folder {
    fn with(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("config.toml");
        fs::write(&file, text).expect("written");
        let folder = Self { folder, file };
        folder.secret("chat-key", &format!("{MARKED}\n"));
        folder
    }

    fn secret(&self, name: &str, text: &str) {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("its mode set");
    }

    fn load(&self, variables: &[(&str, &str)]) -> Result<Config, Problems> {
        load(&self.file, &variables.iter().copied().collect())
    }

    /// The problems, each as it is printed but for the folder.
    fn problems(&self, variables: &[(&str, &str)]) -> Vec<String> {
        let problems = self.load(variables).map(|_| ()).expect_err("problems");
        let folder = format!("{}/", self.folder.path().display());
        problems.all().iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
    }

    /// The warnings, likewise.
    fn warnings(&self) -> Vec<String> {
        let folder = format!("{}/", self.folder.path().display());
        let config = self.load(&[]).unwrap_or_else(|problems| panic!("{problems}"));
        config.warnings.iter().map(|warning| warning.to_string().replace(&folder, "")).collect()
    }
}

fn config(text: &str) -> Config {
    Folder::with(text).load(&[]).unwrap_or_else(|problems| panic!("{text}\n{problems}"))
}

/// All that a file without any key but those of one app gives.
fn assert_defaults(config: &Config) {
    assert_eq!(config.server, Server::default());
    assert_eq!(config.access, Access::default());
    assert_eq!(config.cache, Cache::default());
    assert_eq!(config.follow_check, FollowCheck::default());
    assert_eq!(config.upstream, Upstream::default());
    assert_eq!(config.log, Log::default());
    assert!(config.webhook.is_none() && config.callers.is_empty() && config.trace.is_none());
    assert_eq!(config.warnings, []);
    let [app] = config.apps.as_slice() else { panic!("{config:?}") };
    assert_eq!((app.name.as_str(), app.sdkappid.get(), app.region), ("main", 1_400_000_001, Region::Singapore));
    assert_eq!(app.endpoint.to_string(), "https://adminapisgp.im.qcloud.com");
    assert_eq!(app.standby.as_ref().map(Endpoint::authority).as_deref(), Some("adminapisgp.my-imcloud.com"));
    assert_eq!(app.identifier.as_str(), "administrator");
    assert_eq!(app.secret_key.expose(), MARKED.as_bytes());
    assert_eq!(app.usersig_lifetime, Duration::from_secs(86_400));
    assert_eq!(app.quota, Quota::default());
    assert!(app.extra_roots.is_empty());
    assert_eq!(config.default_app().map(|app| app.name.as_str()), Some("main"));
}

#[test]
fn the_least_that_works_has_every_default() {
    assert_defaults(&config(include_str!("../../../config/minimal.toml")));
}

#[test]
fn the_explained_file_shows_the_defaults() {
    assert_defaults(&config(include_str!("../../../config/chatgate.toml")));
}

/// Every key that is read stands in the explained file, as a line of its own or commented out.
#[test]
fn the_explained_file_has_every_key() {
    let explained = include_str!("../../../config/chatgate.toml");
    let sections = [
        "server",
        "server.tls",
        "app.0",
        "app.0.quota",
        "access",
        "cache",
        "follow_check",
        "upstream",
        "webhook",
        "fleet",
        "log",
        "trace",
        "caller.0",
    ];
    for section in sections {
        // The message for a key that nobody could have meant lists the keys there are.
        let variable = format!("CHATGATE__{}__QQQQQQQQQQ", section.replace('.', "__").to_uppercase());
        let folder = Folder::with(&format!("{APP}[[caller]]\n"));
        let problems = folder.problems(&[(&variable, "1")]);
        let listed = problems.iter().find_map(|problem| problem.split_once("there are "));
        let keys = listed.expect("a list of keys").1;
        assert!(keys.split(", ").count() >= 2, "{keys}");
        for key in keys.split(", ") {
            let stands = explained.lines().any(|line| {
                let line = line.trim_start_matches("# ");
                line.starts_with(&format!("{key} = "))
                    || line.contains(&format!("[{}.{key}]", section.replace(".0", "")))
                    || line.contains(&format!("{}.{key} ", section.replace(".0", "")))
            });
            assert!(stands, "{section}: {key}");
        }
    }
}

#[test]
fn a_fleet_is_read_and_its_password_shown_nowhere() {
    let folder = Folder::with(&format!("{APP}[fleet]\nredis = 'rediss://10.0.0.1:6380/2'\n"));
    let fleet = folder.load(&[]).expect("good").fleet.expect("a fleet");
    assert_eq!((fleet.redis.expose(), &*fleet.prefix, fleet.share), ("rediss://10.0.0.1:6380/2", "chatgate", 0.25));
    let folder = Folder::with(&format!("{APP}[fleet]\nurl_file = 'url'\nprefix = 'a:b'\nshare = 1\n"));
    folder.secret("url", &format!("redis://:{MARKED}@host\n"));
    let config = folder.load(&[]).expect("good");
    assert!(!format!("{config:?}").contains(MARKED));
    let fleet = config.fleet.expect("a fleet");
    assert_eq!((fleet.redis.expose(), fleet.share), (&*format!("redis://:{MARKED}@host"), 1.0));
    folder.secret("url", &format!("http://:{MARKED}@host\n"));
    let problems = folder.problems(&[]);
    assert!(problems.len() == 1 && problems[0].contains("is not an address of Redis"), "{problems:?}");
    assert!(!problems[0].contains(MARKED));
}

#[test]
fn traces_are_told_where_to_go_and_what_they_come_from() {
    let folder = Folder::with(&format!("{APP}[trace]\notlp = 'http://collector.test:4317'\n"));
    let trace = folder.load(&[]).expect("good").trace.expect("written");
    assert_eq!((trace.otlp.to_string().as_str(), trace.sample), ("http://collector.test:4317", 1.0));
    assert_eq!((trace.service(), trace.resource.len()), ("chatgate", 1));
    let certificate = rcgen::generate_simple_self_signed(["x".to_owned()]).expect("a certificate").cert;
    let folder = Folder::with(&format!("{APP}[trace]\notlp = 'https://[::1]'\nsample = 0.25\nca_file = 'ca'\n"));
    folder.secret("ca", &certificate.pem());
    let attributes = "a=1, b = x%2Cy ,service.name=mine,=,c,d=%ff,";
    let config = folder.load(&[("OTEL_RESOURCE_ATTRIBUTES", attributes)]).expect("good");
    let trace = config.trace.expect("written");
    assert_eq!((trace.otlp.to_string().as_str(), trace.sample), ("https://[::1]", 0.25));
    assert_eq!(trace.extra_roots, [certificate.der().clone()]);
    let resource: Vec<(&str, &str)> = trace.resource.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(resource, [("a", "1"), ("b", "x,y"), ("service.name", "mine")]);
    assert_eq!(config.warnings.len(), 3, "{:?}", config.warnings);
    let both = [("OTEL_RESOURCE_ATTRIBUTES", attributes), ("OTEL_SERVICE_NAME", "ours")];
    assert_eq!(folder.load(&both).expect("good").trace.expect("written").service(), "ours");
    let many: String = (0..ATTRIBUTES_MAX + 5).map(|number| format!("n{number}=x,")).collect();
    let config = folder.load(&[("OTEL_RESOURCE_ATTRIBUTES", &many)]).expect("good");
    assert_eq!(config.trace.expect("written").resource.len(), ATTRIBUTES_MAX);
    let folder = Folder::with(&format!("{APP}[trace]\notlp = 'http://x:4317'\nca_file = 'ca'\n"));
    folder.secret("ca", &certificate.pem());
    assert!(folder.warnings().iter().any(|warning| warning.contains("trace.ca_file: is for TLS")));
}

#[test]
fn who_shortens_the_whole_shortens_its_parts() {
    let upstream = config(&format!("{APP}[upstream]\ntimeout = '200ms'\n")).upstream;
    assert_eq!((upstream.attempt_timeout.as_millis(), upstream.connect_timeout.as_millis()), (200, 200));
    let upstream = config(&format!("{APP}[upstream]\nattempt_timeout = '2s'\n")).upstream;
    assert_eq!((upstream.timeout.as_millis(), upstream.connect_timeout.as_millis()), (5000, 1000));
}

#[test]
fn the_environment_overrides_the_file() {
    let folder = Folder::with(&format!("{APP}[server]\nlisten = '127.0.0.1:1'\n"));
    let config = folder
        .load(&[
            ("CHATGATE__SERVER__LISTEN", "['127.0.0.1:2', '[::1]:2']"),
            ("CHATGATE__SERVER__ADMIN", "[::1]:3"),
            ("CHATGATE__SERVER__EXPLAIN", "true"),
            ("CHATGATE__CACHE__TTL", "1m"),
            ("CHATGATE__CACHE__MAX_PAIRS", "17"),
            ("CHATGATE__APP__0__REGION", "seoul"),
            ("CHATGATE__APP__0__QUOTA__COMMANDS", "{ 'follow/follow_add' = '3/s' }"),
            ("CHATGATE_CONFIG", "elsewhere"),
            ("CHATGATE", "x"),
        ])
        .unwrap_or_else(|problems| panic!("{problems}"));
    let listen: Vec<String> = config.server.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["127.0.0.1:2", "[::1]:2"]);
    assert_eq!(config.server.admin.to_string(), "[::1]:3");
    assert!(config.server.explain);
    assert_eq!((config.cache.ttl, config.cache.max_pairs), (Duration::from_secs(60), 17));
    assert_eq!(config.apps[0].endpoint.host, "adminapikr.im.qcloud.com");
    assert_eq!(config.apps[0].quota.commands.len(), 1);
}

#[test]
fn problems_of_the_environment_name_the_variable() {
    let folder = Folder::with(&format!("{APP}[server]\nlisten = 'x'\n"));
    let problems = folder.problems(&[
        ("CHATGATE__CACHE__TTL", "soon"),
        ("CHATGATE__SERVER__LISTNE", "127.0.0.1:1"),
        ("CHATGATE__APP__7__NAME", "main"),
    ]);
    assert_eq!(problems.len(), 4, "{problems:#?}");
    assert!(problems[0].starts_with("config.toml:7: server.listen: is not an address"), "{problems:#?}");
    assert!(problems[1].starts_with("CHATGATE__APP__7__NAME: app.7.name: has 1 items"), "{problems:#?}");
    assert!(problems[2].starts_with("CHATGATE__CACHE__TTL: cache.ttl: is not a duration"), "{problems:#?}");
    assert!(problems[3].contains("SERVER__LISTNE: server.listne: there is no such key; did you mean \"listen\"?"));
}

#[test]
fn doubts_are_warnings() {
    let folder = Folder::with(
        r#"
        [server]
        unix_mode = "0666"
        max_body = "2MiB"
        max_buffered = "1MiB"
        [[app]]
        name = "main"
        sdkappid = 1
        region = "china"
        secret_key_file = "readable"
        quota.per_command = "201/s"
        quota.commands = { "follow/folow_add" = "1/s", "im_open_login_svc/account_delete" = "101/s" }
        [access]
        allow = ["folow/*", "*"]
        "#,
    );
    folder.secret("readable", "key ");
    fs::set_permissions(folder.folder.path().join("readable"), fs::Permissions::from_mode(0o644)).expect("its mode");
    let warnings = folder.warnings();
    for expected in [
        "config.toml:3: server.unix_mode: lets every user",
        "config.toml:5: server.max_buffered: is less than max_body",
        "config.toml:10: app[0].secret_key_file: every user of this machine can read",
        "config.toml:10: app[0].secret_key_file: the secret begins or ends with a blank",
        "config.toml:11: app[0].quota.per_command: is above the 200/s",
        "config.toml:12: app[0].quota.commands.\"follow/folow_add\": names no command that chatgate knows; did you mean \"follow/follow_add\"?",
        "config.toml:12: app[0].quota.commands.\"im_open_login_svc/account_delete\": is above the 100/s",
        "config.toml:14: access.allow: names no command that chatgate knows; did you mean \"follow/*\"?",
    ] {
        assert!(warnings.iter().any(|warning| warning.starts_with(expected)), "{expected}\n{warnings:#?}");
    }
    assert_eq!(warnings.len(), 8, "{warnings:#?}");
}

/// A file that has the secret wherever a slip could put it, and one that is right: neither shows it.
#[test]
fn secrets_are_never_seen() {
    let config =
        config(&format!("{APP}[webhook]\nlisten = '127.0.0.1:0'\napp_tokens = {{ main = {{ file = 'chat-key' }} }}\n"));
    assert!(config.webhook.is_some());
    assert!(!format!("{config:?}").contains(MARKED) && !format!("{config:#?}").contains(MARKED));
    let slips = [
        format!("{APP}secret_key = '{MARKED}'\n"),
        format!("{APP}secret_key_env = '{MARKED}'\n"),
        APP.replace("chat-key", MARKED),
        APP.replace("'main'", &format!("'{MARKED}'")),
        APP.replace("1400000001", &format!("'{MARKED}'")),
        APP.replace("'singapore'", &format!("'{MARKED}'")),
        format!("{APP}identifier = '{MARKED}'\nendpoint = 'https://{MARKED}@x'\nca_file = '{MARKED}'\n"),
        format!("{APP}{MARKED} = 1\n"),
        format!("{APP}{MARKED}\n"),
        format!("{APP}secret_key = {MARKED}\n"),
        format!("{APP}secret_key = '{MARKED}\n"),
        format!("{APP}[{MARKED}]\n"),
        format!("{APP}quota.commands = {{ '{MARKED}' = '{MARKED}' }}\n"),
        format!("{APP}[access]\nallow = ['{MARKED}']\n"),
        format!("{APP}[server]\nlisten = '{MARKED}'\nhosts = ['{MARKED} ']\nunix_mode = '{MARKED}'\n"),
        format!("{APP}[fleet]\nredis = 'redis://:{MARKED}@host'\n"),
        format!("{APP}[webhook]\napp_tokens = {{ main = '{MARKED}' }}\n"),
        format!("{APP}[[caller]]\nname = 'a'\ntoken = '{MARKED}'\n"),
        format!("{APP}[log]\nlevel = '{MARKED}'\nformat = ['{MARKED}']\n"),
    ];
    for text in slips {
        let folder = Folder::with(&text);
        let problems = folder.load(&[]).map(|_| ()).expect_err(&text);
        let printed = format!("{problems} {problems:?}");
        assert!(!printed.contains(&MARKED[..16]), "{text}\n{printed}");
    }
    let env = [("CHATGATE__APP__0__SECRET_KEY", MARKED), ("CHATGATE__LOG__LEVEL", MARKED)];
    let problems = Folder::with(APP).problems(&env).join("\n");
    assert!(problems.contains("must not stand in the configuration") && !problems.contains(MARKED), "{problems}");
}

#[test]
fn a_path_starts_at_the_folder_of_the_file() {
    let folder = Folder::with(APP);
    assert!(folder.load(&[]).is_ok());
    let absolute = folder.folder.path().join("chat-key").display().to_string();
    let elsewhere = Folder::with(&APP.replace("chat-key", &absolute));
    assert!(elsewhere.load(&[]).is_ok());
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in any::<String>(), value in "\\PC*") {
        let folder = Folder::with(&text);
        let _ = folder.load(&[]);
        let folder = Folder::with(APP);
        for key in ["SERVER__LISTEN", "SERVER__HOSTS", "APP__0__ENDPOINT", "CACHE__TTL", "SERVER__MAX_BODY", "APP"] {
            let value = value.replace('\0', "");
            let _ = folder.load(&[(format!("CHATGATE__{key}").as_str(), value.as_str())]);
        }
    }

    /// Texts near to real ones: the explained file with a stretch of it replaced.
    #[test]
    fn no_damage_makes_it_panic(start in 0usize..8000, len in 0usize..40, put in "[\\PC\n]{0,12}") {
        let whole = include_str!("../../../config/chatgate.toml");
        let mut text: Vec<char> = whole.chars().collect();
        let start = start.min(text.len());
        let end = (start + len).min(text.len());
        text.splice(start..end, put.chars());
        let folder = Folder::with(&text.into_iter().collect::<String>());
        if let Err(problems) = folder.load(&[]) {
            prop_assert!(!problems.all().is_empty());
        }
    }
}
