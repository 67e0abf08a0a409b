//! The command line: output on stdout and stderr, and exit codes.

use crate::support::app::{MAIN, ODD, OTHER, TestApp};
use crate::support::process::{Process, ProcessOutput};
use crate::support::setup::Setup;
use crate::support::{unix_now, usersig};

const REGION: &str = r#"region = "singapore""#;

async fn run(setup: &Setup, args: &[&str]) -> ProcessOutput {
    Process::run(args, setup.dir(), &[]).await
}

/// Runs `check` on a configuration file with this text.
async fn check(text: &str) -> ProcessOutput {
    let setup = Setup::without_apps().app(MAIN, REGION).app(OTHER, REGION);
    let file = setup.file("chatgate.toml", text);
    run(&setup, &["check", "--config", &file.to_string_lossy()]).await
}

#[tokio::test]
async fn check_prints_apps_hosts_and_quotas() {
    let setup = Setup::without_apps().app(MAIN, REGION).set("app.quota", r#"per_command = "150/s""#);
    let file = setup.write();
    let outcome = run(&setup, &["check", "--config", &file.to_string_lossy()]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    for expected in ["main", "1400000001", "adminapisgp.im.qcloud.com", "adminapisgp.my-imcloud.com", "150", "5s"] {
        assert!(outcome.stdout.contains(expected), "{expected} is not in:\n{}", outcome.stdout);
    }
}

#[tokio::test]
async fn config_path_is_read_from_the_environment() {
    let setup = Setup::without_apps().app(MAIN, REGION);
    let file = setup.write();
    let named = [("CHATGATE_CONFIG", &*file.to_string_lossy())];
    let outcome = Process::run(&["check"], setup.dir(), &named).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stdout.contains("1400000001"));
    let outcome = Process::run(&["check", "--config", "no-such-file.toml"], setup.dir(), &named).await;
    assert_eq!(outcome.code, 78, "--config takes precedence over the environment: {outcome:?}");
    assert!(outcome.stderr.contains("no-such-file.toml"), "{outcome:?}");
}

#[tokio::test]
async fn environment_variables_override_single_keys() {
    let setup = Setup::without_apps().app(MAIN, REGION);
    let file = setup.write();
    let args = ["check", "--config", &file.to_string_lossy()];
    let outcome = Process::run(&args, setup.dir(), &[("CHATGATE__UPSTREAM__TIMEOUT", "17s")]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert!(outcome.stdout.contains("17s"), "the timeout is missing in:\n{}", outcome.stdout);
    for (name, value) in
        [("CHATGATE__CACHE__TTL", "soon"), ("CHATGATE__CACHE__TTTL", "1s"), ("CHATGATE__SERVER__LISTEN", "[1]")]
    {
        let outcome = Process::run(&args, setup.dir(), &[(name, value)]).await;
        assert_eq!(outcome.code, 78, "{name}: {outcome:?}");
        assert!(outcome.stderr.contains(name), "the variable is not named: {}", outcome.stderr);
    }
}

#[tokio::test]
async fn check_reports_all_problems_with_file_line_and_key() {
    let text = "[server]\nlisten = \"nowhere\"\nmax_bodi = \"1MiB\"\n\n[cache]\nttl = \"soon\"\n\n[access]\nallow = [\"follow/fol*\"]\n\n\
         [[app]]\nname = \"Main\"\nsdkappid = 0\nidentifier = \"\"\nregion = \"saudi\"\nsecret_key_file = \"missing.key\"\n";
    let outcome = check(text).await;
    assert_eq!(outcome.code, 78, "{outcome:?}");
    for (line, key) in [
        (2, "listen"),
        (3, "max_bodi"),
        (6, "ttl"),
        (9, "allow"),
        (12, "name"),
        (13, "sdkappid"),
        (14, "identifier"),
        (15, "region"),
        (16, "secret_key_file"),
    ] {
        let place = format!("chatgate.toml:{line}");
        let is_reported = outcome.stderr.lines().any(|text| text.contains(&place) && text.contains(key));
        assert!(is_reported, "line {line}, {key} is not reported in:\n{}", outcome.stderr);
    }
}

#[tokio::test]
async fn check_rejects_invalid_configurations() {
    let base = Setup::without_apps().app(MAIN, REGION).text();
    assert_eq!(check(&with_relative_keys(&base)).await.code, 0, "the base configuration is valid");
    let second = |lines: &str| {
        format!(
            "{base}[[app]]\nidentifier = \"administrator\"\nregion = \"tokyo\"\nsecret_key_file = 'main.key'\n{lines}\n"
        )
    };
    let invalid = [
        second("name = \"main\"\nsdkappid = 5"),
        second("name = \"second\"\nsdkappid = 1400000001"),
        base.replace(REGION, &format!("{REGION}\ndefault = true"))
            + &second("name = \"second\"\nsdkappid = 5\ndefault = true")[base.len()..],
        base.replace(r#"per_command = "100000/s""#, r#"per_command = "0/s""#),
        base.replace(r#"per_command = "100000/s""#, "commands = { \"openim/*\" = \"1/s\" }"),
        base.replace(r#"allow = ["*"]"#, r#"allow = ["*/x"]"#),
        base.replace(r#"allow = ["*"]"#, "open = 1"),
        base.replace(r#"listen = "127.0.0.1:0""#, r#"listen = "0.0.0.0:8700""#),
        base.replace(r#"admin = "127.0.0.1:0""#, r#"admin = "[::]:8701""#),
        base.replace(REGION, r#"endpoint = "http://chat.example""#),
        base.replace(REGION, r#"endpoint = "https://chat.example/path""#),
        base.replace(REGION, r#"endpoint = "https://user:password@chat.example""#),
        base.replace(REGION, ""),
        base.replace(REGION, &format!("{REGION}\nusersig_lifetime = \"9s\"")),
        base.replace(REGION, &format!("{REGION}\nca_file = \"missing.pem\"")),
        base.replace(r#"identifier = 'administrator'"#, "identifier = \"a\\nb\""),
        String::new(),
        "[server".to_owned(),
    ];
    for text in invalid {
        let outcome = check(&with_relative_keys(&text)).await;
        assert_eq!(outcome.code, 78, "{outcome:?}\n{text}");
        assert!(!outcome.stderr.trim().is_empty(), "no reason is printed:\n{text}");
    }
    let open = base
        .replace(r#"allow = ["*"]"#, "open = true")
        .replace(r#"listen = "127.0.0.1:0""#, r#"listen = "0.0.0.0:8700""#);
    assert_eq!(check(&with_relative_keys(&open)).await.code, 0, "open = true permits a public address");
}

/// Makes the key paths relative to the directory in which `check` runs.
fn with_relative_keys(text: &str) -> String {
    let relative = |line: &str| match line.split_once("secret_key_file = '") {
        Some((before, path)) => {
            let name = path.rsplit_once('/').map_or(path, |(_, name)| name);
            format!("{before}secret_key_file = '{name}\n")
        }
        None => format!("{line}\n"),
    };
    text.lines().map(relative).collect()
}

#[tokio::test]
async fn secret_file_must_hold_exactly_one_line_of_text() {
    let setup = Setup::without_apps().app(MAIN, REGION);
    let file = setup.write();
    let args = ["check", "--config", &file.to_string_lossy()];
    for (text, code) in [
        (format!("{}\n", MAIN.key), 0),
        (format!("{}\r\n", MAIN.key), 0),
        (MAIN.key.to_owned(), 0),
        ("not hex at all, still a key: ü".to_owned(), 0),
        (String::new(), 78),
        ("\n".to_owned(), 78),
        (format!("{}\n\n", MAIN.key), 78),
        (format!("{}\n{}\n", MAIN.key, MAIN.key), 78),
        ("x".repeat(100_000), 78),
    ] {
        setup.file("main.key", &text);
        let outcome = run(&setup, &args).await;
        assert_eq!(outcome.code, code, "{outcome:?} for {} bytes", text.len());
    }
}

#[tokio::test]
async fn init_writes_a_starter_file_and_never_overwrites() {
    let setup = Setup::without_apps();
    let outcome = run(&setup, &["init", "new.toml"]).await;
    assert_eq!(outcome.code, 0, "{outcome:?}");
    let written = std::fs::read_to_string(setup.dir().join("new.toml")).expect("written");
    assert!(written.contains("[[app]]") && written.contains('#'), "{written}");
    std::fs::write(setup.dir().join("new.toml"), "mine").expect("a writable directory");
    let outcome = run(&setup, &["init", "new.toml"]).await;
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("already exists") && !outcome.stderr.contains("os error"), "{outcome:?}");
    assert_eq!(std::fs::read_to_string(setup.dir().join("new.toml")).expect("still there"), "mine");
    let outcome = run(&setup, &["init", "no/such/directory.toml"]).await;
    assert_eq!(outcome.code, 1, "{outcome:?}");
}

#[tokio::test]
async fn check_warns_of_a_file_in_place_of_a_socket() {
    let setup = Setup::without_apps().app(MAIN, REGION);
    let path = setup.file("taken.sock", "a file");
    let setup = setup.set("server", &format!("listen = \"unix:{}\"", path.display()));
    let config = setup.write();
    let args = ["check", "--config", &*config.to_string_lossy()];
    let outcome = run(&setup, &args).await;
    assert!(outcome.code == 0 && outcome.stderr.contains("taken.sock is a file, not a socket"), "{outcome:?}");
    std::fs::remove_file(path).expect("own file");
    let outcome = run(&setup, &args).await;
    assert!(outcome.code == 0 && !outcome.stderr.contains("not a socket"), "{outcome:?}");
}

#[tokio::test]
async fn wrong_usage_exits_2_and_help_exits_0() {
    let setup = Setup::without_apps();
    for args in [
        vec!["no-such-command"],
        vec!["serve", "--no-such-flag"],
        vec!["check", "--config"],
        vec!["usersig", "mint", "--sdkappid", "x"],
    ] {
        let outcome = run(&setup, &args).await;
        assert_eq!(outcome.code, 2, "{args:?}: {outcome:?}");
        assert!(outcome.stdout.is_empty(), "an error belongs on stderr: {outcome:?}");
    }
    for args in [&["serve", "gate.toml"][..], &["gate.toml"], &["serve", "-c", "gate.toml"]] {
        let outcome = run(&setup, args).await;
        assert!(outcome.code == 2 && outcome.stderr.contains("--config FILE"), "{outcome:?}");
    }
    for args in [vec!["--help"], vec!["serve", "--help"], vec!["--version"]] {
        let outcome = run(&setup, &args).await;
        assert_eq!(outcome.code, 0, "{args:?}: {outcome:?}");
        assert!(outcome.stdout.contains("chatgate"), "{outcome:?}");
    }
}

#[tokio::test]
async fn usersig_mint_prints_a_valid_signature_that_inspect_verifies() {
    for app in [MAIN, OTHER, ODD] {
        // Unique SDKAppIDs: a gateway in another test may sign for the same app in the same second and get the same
        // signature. That test fails if it finds a signature that was printed here.
        let app = TestApp { sdkappid: app.sdkappid - 1_000_000, ..app };
        let setup = Setup::without_apps().app(app, REGION);
        let (config, key) = (setup.write(), setup.file("key", app.key));
        let (config, key) = (config.to_string_lossy().into_owned(), key.to_string_lossy().into_owned());
        let number = app.sdkappid.to_string();
        let by_flags = ["--sdkappid", &number, "--identifier", app.identifier, "--key-file", &key];
        for source in [&["--config", &config] as &[&str], &by_flags] {
            let minted = run(&setup, &[&["usersig", "mint"], source].concat()).await;
            assert_eq!(minted.code, 0, "{minted:?}");
            let sig = minted.stdout.trim_end_matches('\n');
            assert_eq!(usersig::verify(sig, app, unix_now()), Ok(()), "the independent verifier of the tests");
            let inspect = |sig: String, source: Vec<String>| {
                let setup = &setup;
                async move {
                    let mut args = vec!["usersig".to_owned(), "inspect".to_owned(), sig];
                    args.extend(source);
                    run(setup, &args.iter().map(String::as_str).collect::<Vec<_>>()).await
                }
            };
            let owned = |source: &[&str]| source.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
            let good = inspect(sig.to_owned(), owned(source)).await;
            assert_eq!(good.code, 0, "{good:?}");
            assert!(good.stdout.contains(&number), "{good:?}");
            let altered = if sig.ends_with('_') { sig.replacen("eJ", "eN", 1) } else { format!("{sig}_") };
            for bad in [altered, "x".to_owned(), sig[..sig.len() - 4].to_owned()] {
                assert_eq!(inspect(bad, owned(source)).await.code, 1);
            }
            setup.file("other", "another key");
            let wrong = ["--sdkappid", &number, "--identifier", app.identifier, "--key-file", "other"];
            assert_eq!(inspect(sig.to_owned(), owned(&wrong)).await.code, 1, "another key");
        }
    }
}

#[tokio::test]
async fn usage_errors_repeat_at_most_1_kib() {
    let setup = Setup::without_apps();
    let long = "no-such ".repeat(500);
    for args in [&[&*long][..], &["serve", &long], &["serve", &format!("--{long}")], &["wait", "--timeout", &long]] {
        let outcome = run(&setup, args).await;
        assert_eq!(outcome.code, 2, "{outcome:?}");
        // With the line end.
        assert!(outcome.stderr.contains("no-such") && outcome.stderr.len() <= 1025, "{outcome:?}");
    }
    // Help repeats no argument.
    let help = run(&setup, &["sandbox", "--help"]).await;
    assert!(help.code == 0 && help.stdout.len() > 1025, "{help:?}");
    let missing = run(&setup, &[]).await;
    assert!(
        missing.code == 2 && missing.stderr.contains("healthcheck") && !missing.stderr.ends_with("...\n"),
        "{missing:?}"
    );
}
