//! The commands in README.md and docs/ work, and print what the documents show.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

mod support;

use support::{Program, Stream, shell};

/// Addresses of the README's demo: data, then admin.
const ADDRESSES: [&str; 2] = ["127.0.0.1:8700", "127.0.0.1:8701"];

/// Headers with a value that varies. If the README shows one, the response must have it.
const VARYING: &[&str] = &["age", "date", "x-request-id", "content-length"];

#[test]
fn console_blocks_of_the_documents_match_the_demo() {
    assert!(steps(&readme()).len() > 3, "the README's console blocks were not found");
    for (name, text) in documents() {
        let steps = steps(&text);
        if steps.is_empty() {
            continue;
        }
        // Each document starts with a fresh demo.
        let mut demo = Demo::start();
        for step in steps {
            let printed = shell(&demo.readdress(&step.command));
            if let Some(difference) = difference(&step.shown, &printed) {
                panic!("{difference}\n{name} shows for `{}`:\n{}\nactual output:\n{printed}", step.command, step.shown);
            }
        }
        assert!(demo.program.stop().success(), "the demo exits with an error");
    }
}

#[test]
fn commands_printed_by_the_demo_work_in_a_shell() {
    let mut demo = Demo::start();
    let commands = demo.commands();
    let printed: Vec<String> = commands.iter().map(|command| shell(command)).collect();
    assert!(printed.iter().all(|response| !response.is_empty()), "{commands:#?}\n{printed:#?}");
    assert!(printed[0].contains("\"FollowType\":3"), "{}\n{}", commands[0], printed[0]);
    assert!(
        printed.iter().any(|response| response.contains("chatgate; hit")),
        "no response is a cache hit: {printed:#?}"
    );
    assert!(demo.program.stop().success(), "the demo exits with an error");
}

/// zsh, the usual shell of macOS, runs typed lines that begin with `#`: an apostrophe would take in the next commands.
#[test]
fn all_lines_printed_by_the_demo_can_be_pasted_into_a_shell() {
    let mut demo = Demo::start();
    demo.commands();
    assert!(demo.program.stop().success(), "the demo exits with an error");
    let (comments, commands): (Vec<&str>, Vec<&str>) =
        demo.program.lines_on(Stream::Stdout).filter(|line| !line.is_empty()).partition(|line| line.starts_with("# "));
    assert!(commands.len() > 3 && commands.iter().all(|line| line.starts_with("curl ")), "{commands:#?}");
    for comment in comments {
        assert!(
            !comment.contains(['\'', '"', '`', ';', '?', '*', '!', '&', '|', '<', '>', '(', ')', '$']),
            "{comment}"
        );
    }
}

#[test]
fn demo_prints_the_first_command_of_the_readme_first() {
    let mut demo = Demo::start();
    let first = demo.commands().remove(0);
    assert_eq!(first, demo.readdress(&steps(&readme())[0].command));
}

#[test]
fn check_accepts_the_configurations_of_the_documents() {
    assert!(readme().contains("\n[[app]]\n"), "the README's toml blocks were not found");
    for (name, text) in documents() {
        let config = blocks(&text, "toml").join("\n");
        if !config.is_empty() {
            check(&name, &config);
        }
    }
}

/// Asserts that `chatgate check` accepts a configuration.
fn check(document: &str, config: &str) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tls = rcgen::generate_simple_self_signed(["chatgate.internal".to_owned()]).expect("a certificate");
    let (certificate, key) = (tls.cert.pem(), tls.signing_key.serialize_pem());
    let secret = format!("{}\n", "5b".repeat(32));
    let other_secret = format!("{}\n", "6c".repeat(32));
    let credentials = "user:password\n".to_owned();
    let secrets = ["chat-key", "feed-token", "feed-sdk-key", "webhook-token"].map(|name| (name, &secret));
    let secrets = secrets.into_iter().chain([("backfill-token", &other_secret), ("proxy-auth", &credentials)]);
    let tls_files = [("server.pem", &certificate), ("server.key", &key), ("clients.pem", &certificate)];
    for (name, text) in secrets.chain(tls_files) {
        let file = folder.path().join(name);
        fs::write(&file, text).expect("a secret's file");
        fs::set_permissions(&file, Permissions::from_mode(0o600)).expect("own file");
    }
    fs::write(folder.path().join("chatgate.toml"), config).expect("a configuration");
    let output = Command::new(env!("CARGO_BIN_EXE_chatgate"))
        .args(["check", "--config", "chatgate.toml"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "{document}: {}\n{config}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1400000001"), "{document}: {output:?}");
}

/// Commands that install software or run until they are stopped are not executed. The test only checks their shell
/// syntax, and that chatgate has the subcommands and options.
#[test]
fn commands_in_the_documents_are_well_formed() {
    let mut seen = 0;
    for (name, text) in documents() {
        for block in blocks(&text, "sh") {
            let output = Command::new("sh").args(["-n", "-c", &block]).output().expect("sh runs");
            assert!(output.status.success(), "{name}: {}\n{block}", String::from_utf8_lossy(&output.stderr));
            for file in block.split_whitespace().filter(|word| word.starts_with("deploy/")) {
                assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(file).exists(), "{name}: {file}");
            }
            for line in block.lines().filter_map(|line| line.strip_prefix("chatgate ")) {
                let mut words = line.split_whitespace().take_while(|word| *word != "#");
                let command = words.next().expect("a command");
                let help = Command::new(env!("CARGO_BIN_EXE_chatgate")).args([command, "--help"]).output();
                let help = help.expect("the program starts");
                assert!(help.status.success(), "{name}: {line}");
                let help = String::from_utf8_lossy(&help.stdout).into_owned();
                for option in words.filter(|word| word.starts_with("--")) {
                    assert!(help.contains(option), "{name}: {line}: no {option}");
                }
                seen += 1;
            }
        }
    }
    assert!(seen > 3, "the commands were not found");
}

// --- The demo -----------------------------------------------------------------------------------

struct Demo {
    program: Program,
    /// In the order of [`ADDRESSES`].
    addresses: Vec<String>,
}

impl Demo {
    /// Starts a demo on free ports and waits until it listens.
    fn start() -> Self {
        let mut program = Program::start(&["demo", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        let addresses = program.wait_until(|program| {
            let address = |listener| program.lines_on(Stream::Stderr).find_map(|line| address_of(listener, line));
            Some(vec![address("data")?, address("admin")?])
        });
        Self { program, addresses }
    }

    /// Returns the commands that the demo prints. The expected number comes from another demo that has exited.
    fn commands(&mut self) -> Vec<String> {
        static COUNT: LazyLock<usize> = LazyLock::new(|| {
            let mut demo = Demo::start();
            demo.program.wait_until(|program| commands(program).next().map(drop));
            assert!(demo.program.stop().success(), "the demo exits with an error");
            commands(&demo.program).count()
        });
        self.program.wait_until(|program| {
            let printed: Vec<String> = commands(program).map(str::to_owned).collect();
            (printed.len() == *COUNT).then_some(printed)
        })
    }

    /// Replaces the README's addresses in a command with the addresses of this demo.
    fn readdress(&self, command: &str) -> String {
        ADDRESSES.iter().zip(&self.addresses).fold(command.to_owned(), |text, (from, to)| text.replace(from, to))
    }
}

/// Returns the commands on stdout, without indent or prompt.
fn commands(program: &Program) -> impl Iterator<Item = &str> {
    program
        .lines_on(Stream::Stdout)
        .map(|line| line.trim_start_matches(['$', ' ']))
        .filter(|line| line.starts_with("curl "))
}

/// Returns the address in the log line of this listener.
fn address_of(listener: &str, line: &str) -> Option<String> {
    let event: Value = serde_json::from_str(line).ok()?;
    if event["listener"] == listener { event["address"].as_str().map(str::to_owned) } else { None }
}

// --- The documents ------------------------------------------------------------------------------

fn readme() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("README.md")
}

/// Returns the name and text of the README and of each document in docs/.
fn documents() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .expect("docs/")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"))
        .filter(|name| name.ends_with(".md"))
        .collect();
    names.sort();
    let read = |name: &String| fs::read_to_string(folder.join(name)).expect("a document");
    let others = names.iter().map(|name| (format!("docs/{name}"), read(name)));
    std::iter::once(("README.md".to_owned(), readme())).chain(others).collect()
}

/// Returns the text inside the fenced blocks of one language.
fn blocks(document: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}");
    let mut blocks = Vec::new();
    let mut lines = document.lines();
    while lines.any(|line| line == fence) {
        blocks.push(lines.by_ref().take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect());
    }
    blocks
}

/// A command and the output that the document shows for it.
#[derive(Debug)]
struct Step {
    command: String,
    shown: String,
}

/// Returns the `$ ` lines of the console blocks, each with the lines up to the next command.
fn steps(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for block in blocks(document, "console") {
        assert!(block.starts_with("$ "), "a console block begins with a command: {block}");
        for line in block.lines() {
            match (line.strip_prefix("$ "), steps.last_mut()) {
                (Some(command), _) => steps.push(Step { command: command.to_owned(), shown: String::new() }),
                (None, Some(step)) => step.shown += &format!("{line}\n"),
                (None, None) => unreachable!("the first line of a block is a command"),
            }
        }
    }
    steps
}

/// Returns the first difference between the shown and the printed output, if any. If the document shows headers, the
/// status, every shown header and the body must match, and all headers added by chatgate must be shown.
fn difference(shown: &str, printed: &str) -> Option<String> {
    if !shown.starts_with("HTTP/") {
        return (!fits(shown, printed)).then(|| "different output".to_owned());
    }
    let Some((shown, response)) = Response::parse(shown).zip(Response::parse(printed)) else {
        return Some("no response with headers and body".to_owned());
    };
    if shown.status_line != response.status_line {
        return Some("different status".to_owned());
    }
    for (name, value) in &shown.headers {
        let same = |actual: &&str| VARYING.contains(&name.as_str()) || actual == value;
        if response.header(name).filter(same).is_none() {
            return Some(format!("different {name}"));
        }
    }
    let own = response.headers.iter().map(|(name, _)| name.as_str()).filter(|name| is_own(name));
    if let Some(name) = own.into_iter().find(|name| shown.header(name).is_none()) {
        return Some(format!("{name} is not shown"));
    }
    (!fits(&shown.body, &response.body)).then(|| "different body".to_owned())
}

fn is_own(header: &str) -> bool {
    header == "cache-status" || header.starts_with("chatgate-")
}

/// Returns whether the texts are equal; one `...` matches any text within a line.
fn fits(shown: &str, printed: &str) -> bool {
    let (shown, printed) = (shown.trim_end(), printed.trim_end());
    let Some((start, end)) = shown.split_once("...") else { return shown == printed };
    printed.len() >= start.len() + end.len()
        && printed.starts_with(start)
        && printed.ends_with(end)
        && !printed[start.len()..printed.len() - end.len()].contains('\n')
}

/// A response as printed by `curl -i` or `curl -D-`.
#[derive(Debug)]
struct Response {
    status_line: String,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    body: String,
}

impl Response {
    /// Parses headers, an empty line, and a body; header lines may end in LF or CRLF.
    fn parse(text: &str) -> Option<Self> {
        let text = text.replace("\r\n", "\n");
        let (head, body) = text.split_once("\n\n")?;
        let mut lines = head.lines();
        let status_line = lines.next().filter(|line| line.starts_with("HTTP/"))?.trim_end().to_owned();
        let headers = lines
            .map(|line| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())))
            .collect::<Option<_>>()?;
        Some(Self { status_line, headers, body: body.to_owned() })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

#[test]
fn comparison_finds_every_difference() {
    let shown = "HTTP/1.1 200 OK\ncache-status: chatgate; hit\nage: 4\n\n{\"a\":1,\"b\":\"...\"}\n";
    let with = |from: &str, to: &str| {
        let printed =
            "HTTP/1.1 200 OK\r\ndate: now\r\nage: 0\r\nCache-Status: chatgate; hit\r\n\r\n{\"a\":1,\"b\":\"x\"}";
        assert!(printed.contains(from), "{from}");
        difference(shown, &printed.replace(from, to))
    };
    assert_eq!(with("now", "then"), None);
    assert_eq!(with("age: 0", "age: 7"), None);
    for (from, to) in [
        ("200 OK", "201 Created"),
        ("hit", "fwd=miss"),
        ("age: 0\r\n", ""),
        ("date: now", "chatgate-error: x"),
        ("\"a\":1", "\"a\":2"),
        ("x", "x\ny"),
        ("\"x\"}", "\"x\"}}"),
        ("\r\n\r\n", ""),
    ] {
        assert!(with(from, to).is_some(), "{from:?} to {to:?}");
    }
    assert_eq!(difference("200\n", "200\n"), None);
    assert!(difference("200\n", "503\n").is_some());
}

#[test]
fn document_parser_returns_blocks_and_steps() {
    let document = "a\n```console\n$ one\nx\n\ny\n$ two\n```\n```sh\nno\n```\n```console\n$ three\nz\n```\n";
    assert_eq!(blocks(document, "sh"), ["no\n"]);
    let steps: Vec<_> = steps(document).into_iter().map(|step| (step.command, step.shown)).collect();
    let expected = [("one", "x\n\ny\n"), ("two", ""), ("three", "z\n")];
    assert_eq!(steps, expected.map(|(command, shown)| (command.to_owned(), shown.to_owned())));
}
