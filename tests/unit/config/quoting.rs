//! Values in messages: which ones a message quotes, and which ones it never repeats.

use super::*;

/// Text after a valid app, and parts of the message, which quotes the wrong value.
#[rustfmt::skip]
const QUOTED: &[(&str, &[&str])] = &[
    ("[server]\nlisten = 'localhost:8700'", &["host names are not supported: \"localhost:8700\"; use an IP address"]),
    ("[server]\nlisten = 'http://127.0.0.1:8700'", &["\"http://127.0.0.1:8700\"; leave the scheme out, as in \"127.0.0.1:8700\""]),
    ("[server]\nlisten = ['127.0.0.1:1', '127.0.0.1:1']", &["duplicate address: \"127.0.0.1:1\""]),
    ("[server]\nlisten = '0.0.0.0:1'", &["without authentication: \"0.0.0.0:1\"; listen on"]),
    ("[server]\nadmin = '127.0.0.1:8700'", &["the same address: \"127.0.0.1:8700\"; give admin"]),
    ("[server]\nmax_requests = 0", &["must be a whole number from 1 to 1000000, without quotes: 0"]),
    ("[server]\nexplain = 'yes'", &["must be true or false, without quotes: \"yes\""]),
    ("[log]\nlevel = 3", &["\"trace\": 3"]),
    ("[fleet]\nredis = 'redis://x'\nshare = 1.5", &["must be a number from 0.01 to 1, without quotes: 1.5"]),
    ("[fleet]\nredis = 'redis://me:hunter2@host'", &["must not contain a password: \"redis://...@host\"; put"]),
    ("[fleet]\nredis = ':hunter2@host'", &["must not contain a password: \"...@host\"; put"]),
    ("[trace]\notlp = 'http://me:hunter2@x:1'", &["\"http://...@x:1\"; put credentials"]),
    ("[trace]\notlp = 'http://x:1/?token=hunter2'", &["\"http://x:1/?...\""]),
    ("[cache]\nttl = \"1s\\n2\"", &["not a duration: \"1s\\n2\"; use"]),
    ("[webhook]\nlisten = '0.0.0.0:1'\napp_tokens = { other = { file = 'chat-key' } }", &["unknown app: \"other\"; use the name"]),
    ("[[caller]]\nname = 'a'\ntoken_env = 'TOKEN'", &["the environment variable is not set: \"TOKEN\"; set it"]),
    ("[[caller]]\nname = 'a'\ntoken_file = 'chat-key'\napps = ['main', 'other']", &["unknown app: \"other\"; use the name"]),
    ("[server]\nadmin_token_file = 'none'", &["cannot read the file (no such file): \"none\"; check its path"]),
    ("[server]\ntls = { cert_file = 'chat-key', key_file = 'chat-key' }", &["no certificate in the file: \"chat-key\"; it is not PEM"]),
    ("[[app]]\nname = 'b'\nsdkappid = 7\nregion = 'mars'\nsecret_key_file = 'chat-key'", &["unknown region: \"mars\"; valid regions: china"]),
    ("[[app]]\nname = 'main'\nsdkappid = 7\nregion = 'china'\nsecret_key_file = 'chat-key'", &["has this name (line 2): \"main\"; each app"]),
    ("[[app]]\nname = 'b'\nsdkappid = 1400000001\nregion = 'china'\nsecret_key_file = 'chat-key'", &["has this sdkappid (line 3): 1400000001; each app"]),
];

#[test]
fn problems_quote_the_wrong_value() {
    for (text, parts) in QUOTED {
        let problems = Folder::with(&format!("{APP}{text}\n")).problems(&[]).join("\n");
        assert!(parts.iter().all(|part| problems.contains(part)), "{parts:?}\n{problems}");
        assert!(!problems.contains("hunter2"), "{problems}");
    }
    // Paths are shown as they were resolved, also those of variables.
    let folder = Folder::with(APP);
    let expected = format!("(no such file): \"{}/none\"; check", folder.folder.path().display());
    let problems = folder.load(&[("CHATGATE__APP__0__SECRET_KEY_FILE", "none")]).expect_err("no such file").to_string();
    assert!(problems.contains(&expected), "{problems}");
}

#[test]
fn secret_in_place_of_a_name_is_not_quoted() {
    let base64 = "kq3/Xw9+Zt1/Ab2+Qe8/Rr5+Mm0/Pp7+Ss4=";
    for secret in [MARKED, &MARKED[..32], base64] {
        for key in ["secret_key_file", "secret_key_env"] {
            let app = APP.replace("secret_key_file = 'chat-key'", &format!("{key} = '{secret}'"));
            let problems = Folder::with(&app).problems(&[]);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains("...\"; ") && problems[0].ends_with("not the secret itself"), "{problems:?}");
            assert!(!problems[0].contains(&secret[..4]), "{problems:?}");
        }
    }
}

#[test]
fn number_in_place_of_a_name_is_not_quoted() {
    for key in ["secret_key_file", "secret_key_env"] {
        let app = APP.replace("secret_key_file = 'chat-key'", &format!("{key} = 1234567890"));
        assert_eq!(
            Folder::with(&app).problems(&[]),
            [format!("config.toml:5: app[0].{key}: must be a string in quotes")]
        );
    }
}

#[test]
fn every_problem_has_at_most_a_kibibyte() {
    let long = "long-name/".repeat(3000);
    for text in [
        format!("{APP}[server]\nlisten = '{long}'\nadmin_token_file = '{long}'\n"),
        format!("{APP}{} = 1\n", "k".repeat(5000)),
        format!("{APP}[app.quota.commands]\n'{long}' = '{long}'\n"),
        format!("{APP}[access]\nallow = ['{long}']\n"),
        format!("{APP}[[caller]]\nname = 'a'\ntoken_env = '{long}'\napps = ['{long}']\n"),
    ] {
        let problems = Folder::with(&text).problems(&[(&format!("CHATGATE__APP__{}", "x".repeat(5000)), "1")]);
        assert!(problems.len() >= 2 && problems.iter().all(|problem| problem.len() <= 1024), "{problems:?}");
    }
}

#[test]
fn variables_that_set_nothing_are_warned_of() {
    let folder = Folder::with(&APP.replace("_file = 'chat-key'", "_env = 'CHATGATE_APP_KEY'"));
    let config = folder.load(&[
        ("CHATGATE_APP_KEY", MARKED),
        ("CHATGATE_SERVER_LISTEN", "127.0.0.1:hunter2"),
        ("CHATGATE_PORT", "tcp://10.0.0.1:8700"),
        ("CHATGATE_SERVICE_HOST", "10.0.0.1"),
        ("CHATGATE_PORT_8700_TCP_ADDR", "10.0.0.1"),
        ("CHATGATE_CONFIG", "x"),
    ]);
    let warnings: Vec<String> = config.expect("good").warnings.iter().map(ToString::to_string).collect();
    let expected = "CHATGATE_SERVER_LISTEN: has no effect; separate the parts of a key with two underscores, as in \
                    CHATGATE__SERVER__LISTEN";
    assert_eq!(warnings, [expected]);
}

#[test]
fn secret_key_in_the_format_of_a_mistake_is_warned_of() {
    let folder = Folder::with(APP);
    for (key, part) in [
        (format!("'{MARKED}'"), "in quotes"),
        (format!("CHAT_KEY={MARKED}"), "NAME=VALUE"),
        ("${CHAT_KEY}".to_owned(), "${NAME}"),
        ("MGJhZGMwZGU1ZWMyZTcwYmFkYzBkZTVlYzJlNzA=".to_owned(), "base64"),
    ] {
        folder.secret("chat-key", &key);
        let warnings = folder.warnings();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let starts = warnings[0].starts_with("config.toml:5: app[0].secret_key_file: looks like ");
        assert!(starts && warnings[0].contains(part) && warnings[0].contains(": \"chat-key\"; write"), "{warnings:?}");
        assert!(!warnings[0].contains(&MARKED[..8]) && !warnings[0].contains("CHAT_KEY"), "{warnings:?}");
    }
    folder.secret("chat-key", "any other text");
    assert_eq!(folder.warnings(), [""; 0]);
}

/// Syntax errors around a secret: the parser's messages contain nothing of the file.
#[test]
fn syntax_errors_repeat_nothing_of_the_file() {
    let secret = "hunter2";
    let texts = [
        "a = hunter2",
        "a = 'hunter2",
        "a = \"hunter2",
        "a = \"\\hunter2\"",
        "hunter2",
        "hunter2 hunter2 = 1",
        "[hunter2",
        "[hunter2]]",
        "[[hunter2]",
        "a = [hunter2]",
        "a = {hunter2}",
        "a = {hunter2 = hunter2}",
        "a = 1 hunter2",
        "a = 1e",
        "hunter2 = 1\nhunter2 = 2",
        "[hunter2]\n[hunter2]",
        "hunter2 = 1\nhunter2.b = 2",
        "hunter2 = 1\n[hunter2.b]",
        "a = 2024-13-45hunter2",
        "a = 0xhunter2",
        "a = 1_hunter2",
        "a = truehunter2",
        "a = '''hunter2",
        "a.hunter2. = 1",
        "\"hunter2 = 1",
        "= hunter2",
        "a == hunter2",
        "a = hunter2 # hunter2",
        "a = @hunter2",
        "a = \u{7f}hunter2",
    ];
    for text in texts {
        let problems = Folder::with(text).problems(&[]);
        assert_eq!(problems.len(), 1, "{text}: {problems:?}");
        let message = problems[0].split_once("not valid TOML: ").unwrap_or_else(|| panic!("{text}: {problems:?}")).1;
        assert!(!message.contains(secret) && !message.is_empty(), "{text}: {message}");
    }
}
