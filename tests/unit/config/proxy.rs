//! `upstream.proxy` in the file and in the environment.

use super::*;

const ENV: &str = "[upstream]\nproxy = 'env'\n";

/// Loads a configuration with `proxy = "env"` under these variables.
fn load_env(more: &str, variables: &[(&str, &str)]) -> Config {
    let folder = Folder::with(&format!("{APP}{ENV}{more}"));
    folder.load(variables).unwrap_or_else(|problems| panic!("{problems}"))
}

fn shown(config: &Config) -> Option<(String, Option<&'static str>)> {
    config.upstream.proxy.as_ref().map(|proxy| (proxy.to_string(), proxy.variable))
}

#[test]
fn proxy_of_the_file_ignores_the_environment() {
    let variables = [("HTTPS_PROXY", "http://other:1"), ("NO_PROXY", "*")];
    for (url, shown) in [
        ("http://Proxy.Internal:3128", "http://proxy.internal:3128"),
        ("HTTP://10.0.0.1:80/", "http://10.0.0.1:80"),
        ("socks5h://[FD00::1]:1080", "socks5h://[fd00::1]:1080"),
    ] {
        let folder = Folder::with(&format!("{APP}[upstream]\nproxy = '{url}'\n"));
        let proxy = folder.load(&variables).expect("good").upstream.proxy.expect("a proxy");
        assert_eq!(proxy.to_string(), shown);
        assert!(proxy.bypass.is_empty() && proxy.auth.is_none() && proxy.variable.is_none());
        assert!(proxy.is_bypassed_for(&"http://127.0.0.1:9700".parse().expect("an endpoint")), "loopback");
        assert!(!proxy.is_bypassed_for(&"https://adminapisgp.im.qcloud.com".parse().expect("an endpoint")));
    }
    assert_eq!(Folder::with(APP).load(&variables).expect("good").upstream.proxy, None, "env must be asked for");
}

#[test]
fn lower_case_and_specific_variables_win() {
    let all = [
        ("https_proxy", "http://a:1"),
        ("HTTPS_PROXY", "http://b:2/"),
        ("all_proxy", "socks5h://c:3"),
        ("ALL_PROXY", "d:4"),
    ];
    for (first, expected) in [
        ("https_proxy", "http://a:1"),
        ("HTTPS_PROXY", "http://b:2"),
        ("all_proxy", "socks5h://c:3"),
        ("ALL_PROXY", "http://d:4"),
    ]
    .into_iter()
    .enumerate()
    {
        let (name, url) = expected;
        assert_eq!(shown(&load_env("", &all[first..])), Some((url.to_owned(), Some(name))));
    }
    let config = load_env("", &[("https_proxy", ""), ("HTTPS_PROXY", "http://b:2"), ("HTTP_PROXY", "http://x:9")]);
    assert_eq!(shown(&config), Some(("http://b:2".to_owned(), Some("HTTPS_PROXY"))), "an empty variable is not set");
    let config = load_env("", &[("HTTP_PROXY", "http://x:9"), ("http_proxy", "http://x:9")]);
    assert_eq!(shown(&config), None, "these variables are not for HTTPS");
    assert!(config.warnings.iter().any(|warning| warning.message.contains("no proxy variable is set")));
}

#[test]
fn exceptions_of_file_and_environment_add_up() {
    let variables =
        [("HTTPS_PROXY", "http://b:2"), ("NO_PROXY", "unused"), ("no_proxy", " .a, ,10.0.0.0/8 b.test:443,")];
    let config = load_env("no_proxy = ['c']\n", &variables);
    let proxy = config.upstream.proxy.expect("a proxy");
    let bypass: Vec<String> = proxy.bypass.iter().map(ToString::to_string).collect();
    assert_eq!(bypass, ["c", ".a", "10.0.0.0/8", "b.test:443"]);
    assert_eq!(config.warnings, []);
}

#[test]
fn invalid_exceptions_of_the_environment_are_ignored_with_a_warning() {
    let config = load_env("", &[("HTTPS_PROXY", "http://b:2"), ("NO_PROXY", "10.0.0.0/99,good.test,*.10.*")]);
    let bypass: Vec<String> = config.upstream.proxy.expect("a proxy").bypass.iter().map(ToString::to_string).collect();
    assert_eq!(bypass, ["good.test"]);
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].starts_with("NO_PROXY: upstream.proxy: ignoring an entry that is not a host"), "{warnings:?}");
    let listed = |count: usize| (0..count).map(|number| format!("h{number}.test,")).collect::<String>();
    let config = load_env("", &[("HTTPS_PROXY", "http://b:2"), ("NO_PROXY", &listed(256))]);
    assert_eq!(config.upstream.proxy.expect("a proxy").bypass.len(), 256);
    let problems =
        Folder::with(&format!("{APP}{ENV}")).problems(&[("HTTPS_PROXY", "http://b:2"), ("NO_PROXY", &listed(257))]);
    assert!(problems.len() == 1 && problems[0].contains("must have at most 256 entries"), "{problems:?}");
}

#[test]
fn credentials_come_from_a_file_or_a_url_of_the_environment() {
    let auth = |config: &Config| {
        let auth = config.upstream.proxy.as_ref().expect("a proxy").auth.clone().expect("credentials");
        (auth.user().to_owned(), auth.password().to_owned())
    };
    let config = load_env("", &[("HTTPS_PROXY", &format!("http://me%40corp:{MARKED}%2f%3A@b:2"))]);
    assert_eq!(auth(&config), ("me@corp".to_owned(), format!("{MARKED}/:")));
    let printed = format!("{config:?} {}", config.upstream.proxy.as_ref().expect("a proxy"));
    assert!(!printed.contains(MARKED) && !printed.contains("me@corp"), "{printed}");
    assert_eq!(auth(&load_env("", &[("HTTPS_PROXY", "http://token@b:2")])), ("token".to_owned(), String::new()));
    let config = load_env("proxy_auth_env = 'AUTH'\n", &[("HTTPS_PROXY", "b:2"), ("AUTH", "me:a:b%20")]);
    assert_eq!(auth(&config), ("me".to_owned(), "a:b%20".to_owned()), "a file or variable is not encoded");

    let folder = Folder::with(&format!("{APP}{ENV}proxy_auth_file = 'auth'\n"));
    let longest = format!("{}:{}", "u".repeat(255), "p".repeat(255));
    folder.secret("auth", &longest);
    folder.load(&[("HTTPS_PROXY", "http://b:2")]).expect("the longest credentials");
    for (text, message) in [
        ("me", "not credentials: \"auth\"; write one line USER:PASSWORD"),
        (":password", "not credentials"),
        ("me:pass\u{7}word", "the secret contains a control character"),
        (&format!("{longest}x"), "user or password is longer than 255 bytes"),
        (&format!("u{longest}"), "user or password is longer than 255 bytes"),
    ] {
        folder.secret("auth", text);
        let problems = folder.problems(&[("HTTPS_PROXY", "http://b:2")]);
        let expected = format!("config.toml:8: upstream.proxy_auth_file: {message}");
        assert!(problems.len() == 1 && problems[0].starts_with(&expected), "{expected}\n{problems:?}");
    }
    folder.secret("auth", "me:secret");
    let problems = folder.problems(&[("HTTPS_PROXY", &format!("http://me:{MARKED}@b:2"))]);
    assert!(
        problems.len() == 1 && problems[0].contains("conflicts with the credentials in HTTPS_PROXY"),
        "{problems:?}"
    );
    assert!(!problems[0].contains(MARKED));
}

#[test]
fn problems_of_the_environment_name_the_variable_and_no_value() {
    let folder = Folder::with(&format!("{APP}{ENV}"));
    for (value, message) in [
        (format!("https://me:{MARKED}@b:2"), "TLS to the proxy is not supported"),
        (format!("socks5://me:{MARKED}@b:2"), "not supported; use \"socks5h://HOST:PORT\""),
        (format!("http://me:{MARKED}@b"), "must have a port"),
        (format!("http://me:{MARKED}@b:2/x"), "must have only scheme, host, and port"),
        (format!("http://:{MARKED}@b:2"), "not credentials"),
        (format!("http://me%ff:{MARKED}@b:2"), "not valid UTF-8"),
        (format!("http://me%0a:{MARKED}@b:2"), "contains a control character"),
        (MARKED.to_owned(), "not a proxy"),
        (MARKED[..40].to_owned(), "must have a port"),
        (format!("{MARKED}://b:2"), "not a proxy"),
    ] {
        let problems = folder.problems(&[("ALL_PROXY", &value)]);
        let expected = format!("ALL_PROXY: upstream.proxy: {message}");
        assert!(problems.len() == 1 && problems[0].starts_with(&expected), "{expected}\n{problems:?}");
        assert!(!problems[0].contains(&MARKED[..16]), "{problems:?}");
    }
}
