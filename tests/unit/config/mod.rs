//! Whole files: values, problems, and warnings.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::domain::caller::{BearerToken, TokenDigest};
use crate::domain::chat::app::{AppName, SecretKey};
use crate::domain::chat::command::CommandPattern;
use crate::domain::chat::region::Region;

mod every_key;
mod problems;
mod proxy;
mod quoting;
mod tls;

/// A key in the format of the console that must never be printed.
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
        folder.secret("proxy-auth", "me:password\n");
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

    /// Returns the problems as they are printed, without the folder.
    fn problems(&self, variables: &[(&str, &str)]) -> Vec<String> {
        let problems = self.load(variables).map(|_| ()).expect_err("problems");
        let folder = format!("{}/", self.folder.path().display());
        problems.all().iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
    }

    /// Returns the warnings as they are printed, without the folder.
    fn warnings(&self) -> Vec<String> {
        let folder = format!("{}/", self.folder.path().display());
        let config = self.load(&[]).unwrap_or_else(|problems| panic!("{problems}"));
        config.warnings.iter().map(|warning| warning.to_string().replace(&folder, "")).collect()
    }
}

fn config(text: &str) -> Config {
    Folder::with(text).load(&[]).unwrap_or_else(|problems| panic!("{text}\n{problems}"))
}

/// Asserts that the configuration has one app and every default.
fn assert_defaults(config: &Config) {
    assert_eq!(config.server, Server::default());
    assert_eq!(config.access, Access::default());
    assert_eq!(config.cache, Cache::default());
    assert_eq!(config.relation, Relation::default());
    assert_eq!(config.upstream, Upstream::default());
    assert_eq!(config.log, Log::default());
    assert!(config.webhook.is_none() && config.callers.is_empty() && config.trace.is_none());
    assert_eq!(config.warnings, []);
    let [app] = config.apps.as_slice() else { panic!("{config:?}") };
    assert_eq!((app.name.as_str(), app.sdkappid.get()), ("main", 1_400_000_001));
    assert_eq!((app.region.map(Region::name), app.reads.iter().count()), (Some("singapore"), 0));
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
fn minimal_file_has_every_default() {
    assert_defaults(&config(include_str!("../../../config/minimal.toml")));
}

#[test]
fn commented_file_shows_the_defaults() {
    assert_defaults(&config(include_str!("../../../config/chatgate.toml")));
}

/// Every valid key is in the commented file, set or commented out.
#[test]
fn commented_file_has_every_key() {
    let commented = include_str!("../../../config/chatgate.toml");
    let sections = [
        "server",
        "server.tls",
        "app.0",
        "app.0.quota",
        "access",
        "cache",
        "relation",
        "upstream",
        "webhook",
        "webhook.tls",
        "fleet",
        "log",
        "trace",
        "caller.0",
    ];
    for section in sections {
        // The message for a key that resembles no other lists the valid keys.
        let variable = format!("CHATGATE__{}__QQQQQQQQQQ", section.replace('.', "__").to_uppercase());
        let folder = Folder::with(&format!("{APP}[[caller]]\n"));
        let problems = folder.problems(&[(&variable, "1")]);
        let listed = problems.iter().find_map(|problem| problem.split_once("valid keys: "));
        let keys = listed.expect("a list of keys").1;
        assert!(keys.split(", ").count() >= 2, "{keys}");
        for key in keys.split(", ") {
            let is_listed = commented.lines().any(|line| {
                let line = line.trim_start_matches("# ");
                line.starts_with(&format!("{key} = "))
                    || line.contains(&format!("[{}.{key}]", section.replace(".0", "")))
                    || line.contains(&format!("{}.{key} ", section.replace(".0", "")))
            });
            assert!(is_listed, "{section}: {key}");
        }
    }
}

#[test]
fn fleet_password_is_never_printed() {
    let url = |fleet: &Fleet| match &fleet.redis {
        RedisForm::Primary(url) => url.clone(),
        form => panic!("{form:?}"),
    };
    let folder = Folder::with(&format!("{APP}[fleet]\nredis = 'rediss://10.0.0.1:6380/2'\n"));
    let fleet = folder.load(&[]).expect("good").fleet.expect("a fleet");
    assert_eq!((url(&fleet).expose(), &*fleet.prefix, fleet.share), ("rediss://10.0.0.1:6380/2", "chatgate", 0.25));
    let folder = Folder::with(&format!("{APP}[fleet]\nurl_file = 'url'\nprefix = 'a:b'\nshare = 1\n"));
    folder.secret("url", &format!("redis://:{MARKED}@host\n"));
    let config = folder.load(&[]).expect("good");
    assert!(!format!("{config:?}").contains(MARKED));
    let fleet = config.fleet.expect("a fleet");
    assert_eq!((url(&fleet).expose(), fleet.share), (&*format!("redis://:{MARKED}@host"), 1.0));
    folder.secret("url", &format!("http://:{MARKED}@host\n"));
    let problems = folder.problems(&[]);
    assert!(problems.len() == 1 && problems[0].contains("not a Redis URL"), "{problems:?}");
    assert!(!problems[0].contains(MARKED));
}

#[test]
fn second_password_of_redis_is_rejected() {
    for (url, key, expected) in [
        (format!("redis://:{MARKED}@host"), "password_file = 'url'", Some("fleet.password_file: conflicts with")),
        (format!("redis://gate:{MARKED}@host"), "password_env = 'REDIS'", Some("fleet.password_env: conflicts with")),
        ("redis://gate@host".to_owned(), "password_file = 'url'", None),
    ] {
        let folder = Folder::with(&format!("{APP}[fleet]\nurl_file = 'url'\n{key}\n"));
        folder.secret("url", &url);
        let variables = [("REDIS", MARKED)];
        let Some(expected) = expected else {
            folder.load(&variables).expect("good");
            continue;
        };
        let problems = folder.problems(&variables);
        assert!(problems.len() == 1 && problems[0].contains(expected), "{problems:?}");
        assert!(!problems[0].contains(MARKED));
    }
}

#[test]
fn every_form_of_redis_is_read_with_its_login() {
    let load = |lines: &str| {
        let folder = Folder::with(&format!("{APP}[fleet]\n{lines}\n"));
        folder.secret("password", MARKED);
        let config = folder.load(&[]).expect("good");
        assert!(!format!("{config:?}").contains(MARKED));
        config.fleet.expect("a fleet")
    };
    let login =
        |login: &RedisLogin| login.password.as_ref().map(|password| (login.username.clone(), password.to_string()));
    let expected = Some((Some("gate".to_owned()), MARKED.to_owned()));

    let fleet = load("redis = ['redis://a:1', 'redis://b']\nusername = 'gate'\npassword_file = 'password'");
    let RedisForm::Cluster(nodes) = &fleet.redis else { panic!("{fleet:?}") };
    assert_eq!(nodes.iter().map(RedisUrl::expose).collect::<Vec<_>>(), ["redis://a:1", "redis://b"]);
    assert_eq!((login(&fleet.login), fleet.tls.is_some()), (expected.clone(), false));

    let fleet = load("redis = ['rediss://a']");
    assert!(matches!(&fleet.redis, RedisForm::Cluster(nodes) if nodes.len() == 1), "{fleet:?}");
    assert_eq!((login(&fleet.login), fleet.tls.is_some()), (None, true));

    let fleet = load(
        "sentinels = ['rediss://a:26379']\nmaster = 'chat'\nsentinel_username = 'gate'\nsentinel_password_file = 'password'",
    );
    let RedisForm::Sentinel { sentinels, master, login: at_sentinels } = &fleet.redis else { panic!("{fleet:?}") };
    assert_eq!((sentinels.len(), &**master, login(at_sentinels)), (1, "chat", expected));
    assert_eq!((login(&fleet.login), fleet.tls.is_some()), (None, true));
}

#[test]
fn trace_settings_include_resource_attributes_of_the_environment() {
    let folder = Folder::with(&format!("{APP}[trace]\notlp = 'http://collector.test:4318'\n"));
    let trace = folder.load(&[]).expect("good").trace.expect("written");
    assert_eq!((trace.otlp.to_string().as_str(), trace.sample), ("http://collector.test:4318/v1/traces", 1.0));
    assert_eq!((trace.service(), trace.resource.len()), ("chatgate", 1));
    let certificate = rcgen::generate_simple_self_signed(["x".to_owned()]).expect("a certificate").cert;
    let folder = Folder::with(&format!("{APP}[trace]\notlp = 'https://[::1]'\nsample = 0.25\nca_file = 'ca'\n"));
    folder.secret("ca", &certificate.pem());
    let attributes = "a=1, b = x%2Cy ,service.name=mine,=,c,d=%ff,";
    let config = folder.load(&[("OTEL_RESOURCE_ATTRIBUTES", attributes)]).expect("good");
    let trace = config.trace.expect("written");
    assert_eq!((trace.otlp.to_string().as_str(), trace.sample), ("https://[::1]/v1/traces", 0.25));
    assert_eq!(trace.extra_roots, [certificate.der().clone()]);
    let resource: Vec<(&str, &str)> = trace.resource.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(resource, [("a", "1"), ("b", "x,y"), ("service.name", "mine")]);
    assert_eq!(config.warnings.len(), 3, "{:?}", config.warnings);
    let both = [("OTEL_RESOURCE_ATTRIBUTES", attributes), ("OTEL_SERVICE_NAME", "ours")];
    assert_eq!(folder.load(&both).expect("good").trace.expect("written").service(), "ours");
    let many: String = (0..ATTRIBUTES_MAX + 5).map(|number| format!("n{number}=x,")).collect();
    let config = folder.load(&[("OTEL_RESOURCE_ATTRIBUTES", &many)]).expect("good");
    assert_eq!(config.trace.expect("written").resource.len(), ATTRIBUTES_MAX);
    let folder = Folder::with(&format!("{APP}[trace]\notlp = 'http://x:4318'\nca_file = 'ca'\n"));
    folder.secret("ca", &certificate.pem());
    assert!(folder.warnings().iter().any(|warning| warning.contains("trace.ca_file: has no effect")));
}

#[test]
fn trace_url_is_a_base_and_the_grpc_port_is_noted() {
    let longest = format!("/{}", "a".repeat(1024 - 1 - TRACES_PATH.len()));
    for (base, path) in [
        ("", "/v1/traces"),
        ("/", "/v1/traces"),
        ("/v1/traces", "/v1/traces"),
        ("/v1/traces/", "/v1/traces"),
        ("/otlp", "/otlp/v1/traces"),
        ("/a/b/", "/a/b/v1/traces"),
        (&*longest, &*format!("{longest}/v1/traces")),
    ] {
        let folder = Folder::with(&format!("{APP}[trace]\notlp = 'http://x:4318{base}'\n"));
        let config = folder.load(&[]).expect("good");
        assert_eq!(config.trace.expect("written").otlp.to_string(), format!("http://x:4318{path}"));
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    }
    let too_long = Folder::with(&format!("{APP}[trace]\notlp = 'http://x:4318{longest}a'\n")).problems(&[]);
    assert!(too_long.len() == 1 && too_long[0].contains("exceeds 1024 bytes"), "{too_long:?}");
    let warnings = Folder::with(&format!("{APP}[trace]\notlp = 'http://x:4317'\n")).warnings();
    let [warning] = warnings.as_slice() else { panic!("{warnings:?}") };
    assert!(warning.contains("trace.otlp: 4317 is the port for gRPC"), "{warning}");
}

#[test]
fn trace_headers_come_from_the_environment_and_stay_hidden() {
    let folder = Folder::with(&format!("{APP}[trace]\notlp = 'http://x:4318'\n"));
    let load = |headers: &str| folder.load(&[("OTEL_EXPORTER_OTLP_HEADERS", headers)]).expect("good");
    let config = load(&format!("Authorization=Bearer%20{MARKED}, x-tenant = a=b ,"));
    let headers = &config.trace.as_ref().expect("written").headers;
    let expected = [("authorization", format!("Bearer {MARKED}")), ("x-tenant", "a=b".to_owned())];
    let found: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
    assert_eq!(found, expected.each_ref().map(|(name, value)| (*name, &**value)));
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert!(!format!("{config:?}").contains(MARKED));

    let long = "a".repeat(8 * 1024);
    let config =
        load(&format!("{MARKED}, x y={MARKED}, a=%0a{MARKED}, content-length=1, host=x, long={long}a, fits={long}"));
    assert_eq!(config.trace.expect("written").headers.len(), 1);
    let warnings = format!("{:?}", config.warnings);
    assert!(config.warnings.len() == 6 && !warnings.contains(MARKED), "{warnings}");
    let many: String = (0..HEADERS_MAX + 5).map(|number| format!("x-{number}=y,")).collect();
    let config = load(&many);
    assert_eq!((config.trace.expect("written").headers.len(), config.warnings.len()), (HEADERS_MAX, 5));
}

#[test]
fn shorter_timeout_shortens_the_default_timeouts_inside_it() {
    let upstream = config(&format!("{APP}[upstream]\ntimeout = '200ms'\n")).upstream;
    assert_eq!((upstream.attempt_timeout.as_millis(), upstream.connect_timeout.as_millis()), (200, 200));
    let upstream = config(&format!("{APP}[upstream]\nattempt_timeout = '2s'\n")).upstream;
    assert_eq!((upstream.timeout.as_millis(), upstream.connect_timeout.as_millis()), (5000, 1000));
}

#[test]
fn standby_of_a_region_can_be_replaced() {
    let riyadh = APP.replace("singapore", "riyadh");
    let app = |text: &str| config(text).apps.remove(0);
    let standby = |app: &App| app.standby.as_ref().map(Endpoint::authority);
    let default = app(&riyadh);
    assert_eq!(default.endpoint.authority(), "adminapiksa.im.qcloud.com");
    assert_eq!(standby(&default).as_deref(), Some("adminapiksa.my-imcloud.com"));
    assert!(default.has_undocumented_standby() && !app(APP).has_undocumented_standby());
    let own = app(&format!("{riyadh}standby = 'https://standby.test'\n"));
    assert_eq!(standby(&own).as_deref(), Some("standby.test"));
    assert!(!own.has_undocumented_standby());
}

#[test]
fn declared_read_is_no_unknown_command() {
    let rest = "quota.commands = { 'future/get' = '5/s' }\n[access]\nallow = ['future/get']\n";
    assert_eq!(Folder::with(&format!("{APP}{rest}")).warnings().len(), 2);
    let warnings = Folder::with(&format!("{APP}reads = ['future/get']\n{rest}")).warnings();
    assert_eq!(warnings, [""; 0]);
    let warnings = Folder::with(&format!("{APP}reads = ['future/list']\n{rest}")).warnings();
    assert_eq!(warnings.len(), 2, "{warnings:#?}");
}

#[test]
fn declared_reads_are_bounded() {
    let with_reads = |count: usize| {
        let names: Vec<String> = (0..count).map(|number| format!("'future/get_{number}'")).collect();
        Folder::with(&format!("{APP}reads = [{}]\n", names.join(", ")))
    };
    assert_eq!(with_reads(100).load(&[]).expect("good").apps[0].reads.iter().count(), 100);
    assert_eq!(with_reads(101).problems(&[]), ["config.toml:6: app[0].reads: must have 0 to 100 items"]);
}

#[test]
fn environment_overrides_the_file() {
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
fn problems_of_environment_variables_name_the_variable() {
    let folder = Folder::with(&format!("{APP}[server]\nlisten = 'x'\n"));
    let problems = folder.problems(&[
        ("CHATGATE__CACHE__TTL", "soon"),
        ("CHATGATE__SERVER__LISTNE", "127.0.0.1:1"),
        ("CHATGATE__APP__7__NAME", "main"),
    ]);
    assert_eq!(problems.len(), 4, "{problems:#?}");
    assert!(problems[0].starts_with("config.toml:7: server.listen: not an address"), "{problems:#?}");
    assert!(problems[1].starts_with("CHATGATE__APP__7__NAME: app.7.name: index out of range"), "{problems:#?}");
    assert!(problems[2].starts_with("CHATGATE__CACHE__TTL: cache.ttl: not a duration"), "{problems:#?}");
    assert!(problems[3].contains("SERVER__LISTNE: server.listne: unknown key; did you mean \"listen\"?"));
}

#[test]
fn suspicious_settings_are_warnings() {
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
        reads = ["future/get", "follow/follow_get"]
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
        "config.toml:3: server.unix_mode: every user",
        "config.toml:5: server.max_buffered: less than max_body",
        "config.toml:10: app[0].secret_key_file: the file is world-readable: \"readable\"; run chmod o-r on it",
        "config.toml:10: app[0].secret_key_file: the secret begins or ends with whitespace",
        "config.toml:11: app[0].reads: has no effect, because chatgate knows this read: \"",
        "config.toml:12: app[0].quota.per_command: exceeds Chat's limit of 200/s: \"201/s\"; lower",
        "config.toml:13: app[0].quota.commands.\"follow/folow_add\": unknown command: \"follow/folow_add\"; did you mean \"follow/follow_add\"?",
        "config.toml:13: app[0].quota.commands.\"im_open_login_svc/account_delete\": exceeds Chat's limit of 100/s: \"101/s\"",
        "config.toml:15: access.allow: unknown command: \"folow/*\"; did you mean \"follow/*\"?",
    ] {
        assert!(warnings.iter().any(|warning| warning.starts_with(expected)), "{expected}\n{warnings:#?}");
    }
    assert_eq!(warnings.len(), 9, "{warnings:#?}");
}

/// Files with a secret in every wrong place, and a correct file: no message and no `Debug` shows the secret.
#[test]
fn secrets_are_never_printed() {
    let config =
        config(&format!("{APP}[webhook]\nlisten = '127.0.0.1:0'\napp_tokens = {{ main = {{ file = 'chat-key' }} }}\n"));
    assert!(config.webhook.is_some());
    assert!(!format!("{config:?}").contains(MARKED) && !format!("{config:#?}").contains(MARKED));
    let mistakes = [
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
        format!("{APP}reads = ['{MARKED}']\n"),
        format!("{APP}[server]\nlisten = '{MARKED}'\nhosts = ['{MARKED} ']\nunix_mode = '{MARKED}'\n"),
        format!("{APP}[fleet]\nredis = 'redis://:{MARKED}@host'\n"),
        format!("{APP}[fleet]\nredis = ['redis://:{MARKED}@host']\npassword = '{MARKED}'\n"),
        format!("{APP}[fleet]\nsentinels = ['redis://:{MARKED}@host']\nsentinel_password = '{MARKED}'\n"),
        format!("{APP}[webhook]\napp_tokens = {{ main = '{MARKED}' }}\n"),
        format!("{APP}[upstream]\nproxy = 'http://me:{MARKED}@proxy:3128'\nproxy_auth = 'me:{MARKED}'\n"),
        format!(
            "{APP}[upstream]\nproxy = '{MARKED}'\nno_proxy = ['{MARKED} ', '{MARKED}/1']\nproxy_auth_file = '{MARKED}'\n"
        ),
        format!("{APP}[[caller]]\nname = 'a'\ntoken = '{MARKED}'\n"),
        format!("{APP}[log]\nlevel = '{MARKED}'\nformat = ['{MARKED}']\n"),
    ];
    for text in mistakes {
        let folder = Folder::with(&text);
        let problems = folder.load(&[]).map(|_| ()).expect_err(&text);
        let printed = format!("{problems} {problems:?}");
        assert!(!printed.contains(&MARKED[..16]), "{text}\n{printed}");
    }
    let env = [("CHATGATE__APP__0__SECRET_KEY", MARKED), ("CHATGATE__LOG__LEVEL", MARKED)];
    let problems = Folder::with(APP).problems(&env).join("\n");
    assert!(problems.contains("secrets are not allowed here") && !problems.contains(MARKED), "{problems}");
}

#[test]
fn relative_paths_start_at_the_folder_of_the_file() {
    let folder = Folder::with(APP);
    assert!(folder.load(&[]).is_ok());
    let absolute = folder.folder.path().join("chat-key").display().to_string();
    let elsewhere = Folder::with(&APP.replace("chat-key", &absolute));
    assert!(elsewhere.load(&[]).is_ok());
}

proptest! {
    #[test]
    fn arbitrary_text_does_not_panic(text in any::<String>(), value in "\\PC*") {
        let folder = Folder::with(&text);
        let _ = folder.load(&[]);
        let folder = Folder::with(APP);
        for key in ["SERVER__LISTEN", "SERVER__HOSTS", "APP__0__ENDPOINT", "CACHE__TTL", "UPSTREAM__PROXY", "APP"] {
            let value = value.replace('\0', "");
            let _ = folder.load(&[(format!("CHATGATE__{key}").as_str(), value.as_str())]);
        }
    }

    /// Almost valid text: the commented file with a part replaced.
    #[test]
    fn damaged_file_does_not_panic(start in 0usize..8000, len in 0usize..40, put in "[\\PC\n]{0,12}") {
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
