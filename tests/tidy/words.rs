//! Words and phrases that the project no longer uses, and what to write instead.
//!
//! The rule reads comments, string literals and function names of Rust files, and the whole text of documents,
//! configurations and scripts. It cannot read itself: this file has to spell the words.

use std::fs;
use std::path::Path;

use crate::code::prose_of;
use crate::{none_of, read, root};

/// A word or phrase in lower case, and what to write instead.
const RETIRED: &[(&str, &str)] = &[
    ("who", "it, or the noun; a person may be allowed below"),
    ("whom", "it, or the noun"),
    ("whoever", "the noun: a caller, a client"),
    ("nobody", "no caller, no client, nothing"),
    ("somebody", "a caller, a client"),
    ("anybody", "any caller, any client"),
    ("everybody", "every caller, every client"),
    ("heed", "read, apply, follow"),
    ("heeds", "reads, applies, follows"),
    ("heeded", "read, applied, followed"),
    ("mend", "fix"),
    ("mends", "fixes"),
    ("mended", "fixed"),
    ("anew", "again"),
    ("beside", "next to, in addition to"),
    ("tell", "say, report, notify; distinguish"),
    ("tells", "says, reports, notifies; distinguishes"),
    ("told", "reported, notified; distinguished"),
    ("hears", "receives, learns"),
    ("heard", "received, learned"),
    ("stands", "is, is listed, is written"),
    ("stand-in", "simulator, fake, replacement"),
    ("go on", "continue"),
    ("goes on", "continues"),
    ("went on", "continued"),
    ("is over", "has ended; exceeds"),
    ("at rest", "idle"),
    ("in vain", "without success"),
    ("for good", "permanently"),
    ("as good as", "almost, equivalent to"),
    ("by itself", "automatically, alone"),
    ("so many", "the number, or its bound"),
    ("so long", "the duration, or its bound"),
    ("to be had", "available"),
    ("come to nothing", "fail"),
    ("comes to nothing", "fails"),
    ("came to nothing", "failed"),
];

/// Phrases with a retired word that are right where they are, mostly because they are about people: file and phrase.
const ALLOWED: &[(&str, &str)] = &[
    ("README.md", "who can"),
    ("config/chatgate.toml", "who can"),
    ("config/chatgate.toml", "who may"),
    ("docs/fleet.md", "who run"),
    ("docs/security.md", "who can"),
    ("docs/security.md", "who recorded"),
];

/// Names that the rule skips: build output, data of others, and the two files that list the retired words.
const SKIPPED: &[&str] = &[".git", "target", "data", "corpus", "words.rs", "CONTRIBUTING.md"];

/// Files that are read whole.
const PROSE: &[&str] = &["md", "toml", "yaml", "yml", "json", "sh", "html", "js", "py", "lua", "service", "socket"];

/// A word of a text.
struct Token<'a> {
    text: &'a str,
    /// Line, from 1.
    line: usize,
    /// Whether only blanks and comment marks separate it from the word before.
    continues: bool,
}

/// Places of retired words in a text: line and advice. A place inside one of the allowed phrases is none.
fn retired_words(prose: &str, allowed: &[&str]) -> Vec<(usize, String)> {
    let lower = prose.to_ascii_lowercase();
    let tokens = tokens(&lower);
    let is_at = |phrase: &str, at: usize| {
        let mut words = phrase.split(' ').enumerate();
        words.all(|(offset, word)| {
            tokens.get(at + offset).is_some_and(|token| token.text == word && (offset == 0 || token.continues))
        })
    };
    let is_allowed = |at: usize| {
        allowed.iter().any(|phrase| {
            let len = phrase.split(' ').count();
            (at.saturating_sub(len - 1)..=at).any(|start| is_at(&phrase.to_ascii_lowercase(), start))
        })
    };
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        for (word, instead) in RETIRED {
            if is_at(word, at) && !is_allowed(at) {
                found.push((token.line, format!("\"{word}\"; write: {instead}")));
            }
        }
    }
    found
}

/// The words of a text. A hyphen or an underscore inside a word is a part of it.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut found = Vec::new();
    let (mut line, mut continues, mut rest) = (1, false, text);
    while let Some(first) = rest.chars().next() {
        let inside = |inner: char| inner.is_alphanumeric() || inner == '_' || inner == '-';
        let len = if first.is_alphanumeric() || first == '_' {
            let len = rest.find(|inner| !inside(inner)).unwrap_or(rest.len());
            let word = rest[..len].trim_end_matches('-');
            found.push(Token { text: word, line, continues });
            continues = word.len() == len;
            len
        } else {
            line += usize::from(first == '\n');
            continues &= first.is_whitespace() || matches!(first, '/' | '!' | '#' | '*' | '\\');
            first.len_utf8()
        };
        rest = &rest[len..];
    }
    found
}

/// The files that the rule reads, by path from the root.
fn files() -> Vec<String> {
    fn collect(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("an entry of a folder that was just opened").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
            if SKIPPED.contains(&name.as_str()) {
                continue;
            }
            if path.is_dir() {
                collect(&path, found);
            } else if extension == "rs" || PROSE.contains(&extension.as_str()) || is_script(&path) {
                let path = path.strip_prefix(root()).expect("below the root");
                found.push(path.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    let mut found = Vec::new();
    collect(root(), &mut found);
    found.sort();
    found
}

/// Whether a file without an extension is a script or a Dockerfile.
fn is_script(path: &Path) -> bool {
    path.ends_with("Dockerfile")
        || (path.extension().is_none() && fs::read(path).is_ok_and(|text| text.starts_with(b"#!")))
}

#[test]
fn retired_words_are_not_used() {
    none_of(files().iter().flat_map(|file| {
        let text = read(file);
        let prose = if file.ends_with(".rs") { prose_of(&text) } else { text };
        let allowed: Vec<&str> = ALLOWED.iter().filter(|(place, _)| place == file).map(|(_, phrase)| *phrase).collect();
        let found = retired_words(&prose, &allowed).into_iter();
        found.map(|(line, advice)| format!("{file}:{line}: {advice}")).collect::<Vec<_>>()
    }));
}

#[test]
fn every_allowed_phrase_is_in_use() {
    for (file, phrase) in ALLOWED {
        let text = read(file);
        let prose = if file.ends_with(".rs") { prose_of(&text) } else { text };
        let (without, with) = (retired_words(&prose, &[]).len(), retired_words(&prose, &[*phrase]).len());
        assert!(with < without, "{file} has no \"{phrase}\"; remove it from ALLOWED");
    }
}

#[test]
fn retired_words_are_found_whole_and_across_lines() {
    let lines = |text: &str| retired_words(text, &[]).into_iter().map(|(line, _)| line).collect::<Vec<_>>();
    assert_eq!(lines("Who asks?\nthe whole\nis told, and NOBODY-else"), [1, 3]);
    assert_eq!(lines("nothing besides, a bystander, unheard, as long as"), [0; 0]);
    assert_eq!(lines("/// it goes\n/// on for good\n"), [1, 2]);
    assert_eq!(lines("it goes. On Monday it is, over there"), [0; 0]);
    assert_eq!(lines("a stand-in"), [1]);
    assert_eq!(lines("chatgate_heard_total tell_me"), [0; 0]);
    assert_eq!(retired_words("those who may call, and who not", &["who may call"]).len(), 1);
}

#[test]
fn prose_of_rust_is_comments_literals_and_function_names() {
    let prose = |source: &str| prose_of(source).split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(prose("let who = told; // heard"), "// heard");
    assert_eq!(prose("fn who_asks() { tell(\"a\\nb\") }"), "who asks \"a b\"");
    assert_eq!(prose_of("a\n/* b\nc */ d\n\"e\nf\"").lines().count(), 5);
    assert_eq!(prose("r#\"who\"# 'k m"), "r#\"who\"#");
}
