//! Shell completions that parse, and manual pages that groff formats without warnings.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::process::Process;

async fn printed(args: &[&str]) -> String {
    let outcome = Process::run(args, Path::new("/"), &[]).await;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""), "{args:?}");
    outcome.stdout
}

/// Runs the program with the text on its stdin. Returns its stderr, which is empty on success.
fn errors_of(program: &str, args: &[&str], text: &str) -> String {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"));
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("the program reads its stdin");
    let output = child.wait_with_output().expect("own child");
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { stderr } else { format!("{} {stderr}", output.status) }
}

#[tokio::test]
async fn completions_list_every_command_and_parse_in_bash() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = printed(&["completions", shell]).await;
        for name in ["serve", "doctor", "usersig", "healthcheck", "--config"] {
            assert!(script.contains(name.trim_start_matches('-')), "{shell}: no {name}");
        }
        if shell == "bash" {
            assert_eq!(errors_of("bash", &["-n"], &script), "");
            assert_ne!(errors_of("bash", &["-n"], &format!("{script}\nif")), "", "bash reports syntax errors");
        }
    }
    assert_eq!(Process::run(&["completions", "tcsh"], Path::new("/"), &[]).await.code, 2);
}

#[tokio::test]
async fn manual_pages_have_no_groff_warnings() {
    let groff = ["-man", "-ww", "-z", "-Tutf8"];
    for args in [&["man"][..], &["man", "doctor"], &["man", "sandbox"], &["man", "usersig", "mint"]] {
        let page = printed(args).await;
        assert_eq!(errors_of("groff", &groff, &page), "", "{args:?}\n{page}");
    }
    assert_ne!(errors_of("groff", &groff, ".TH x 1\n.nonsense\n"), "", "groff reports unknown macros");
    assert_eq!(Process::run(&["man", "nonsense"], Path::new("/"), &[]).await.code, 2);
}
