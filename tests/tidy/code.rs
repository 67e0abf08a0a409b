//! Rules about Rust code, and a scanner for comments and literals.

/// Returns the lines that name `name` as a whole path or word: `http` does not match `http_body` or `https`.
pub(crate) fn lines_naming(code: &str, name: &str) -> Vec<(usize, String)> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let whole = |line: &str| {
        line.match_indices(name).any(|(start, _)| {
            let before = line[..start].bytes().next_back();
            let after = line[start + name.len()..].bytes().next();
            let open_left = !is_word(name.as_bytes()[0]) || !before.is_some_and(is_word);
            open_left && (name.ends_with(')') || !after.is_some_and(is_word))
        })
    };
    code.lines().zip(1..).filter(|(line, _)| whole(line)).map(|(_, at)| (at, format!("names {name}"))).collect()
}

/// Returns the lines that contain one of these texts, in code, literals, or comments.
pub(crate) fn lines_containing(source: &str, texts: &[&str]) -> Vec<(usize, String)> {
    let found = |line: &str| texts.iter().find(|text| line.contains(**text)).map(|text| format!("contains {text}"));
    source.lines().zip(1..).filter_map(|(line, at)| Some((at, found(line)?))).collect()
}

/// Returns the lines of the core that name a module outside the core.
pub(crate) fn lines_naming_other_modules(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (line, at) in code.lines().zip(1..) {
        for (start, path) in line.match_indices("crate::") {
            let inside = line[start + path.len()..].starts_with("domain");
            // This also covers `$crate::` and `pub(in crate::domain)`.
            if !inside {
                found.push((at, "names a module outside src/domain".to_owned()));
            }
        }
    }
    found
}

/// Returns the lines that parse JSON and show the parser's own text, which repeats wrong values and unknown members.
pub(crate) fn lines_showing_json_errors(source: &str) -> Vec<(usize, String)> {
    const SHOWN: [&str; 4] = ["{error}", "%error", "error.to_string()", "display_chain("];
    let mut found = Vec::new();
    for (start, _) in source.match_indices("serde_json::from_") {
        let rest = &source[start..];
        let end = [";\n", "\n}\n"].iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
        let statement = &rest[..end];
        if SHOWN.iter().any(|shown| statement.contains(shown)) {
            let line = source[..start].matches('\n').count() + 1;
            found.push((line, "shows an error of the JSON parser; use domain::json::object::describe".to_owned()));
        }
    }
    found
}

/// Returns the source without comments and without the content of literals, with all line breaks, so that a match is a
/// use of a name and not a mention.
pub(crate) fn code_of(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let after_word = code.ends_with(|last: char| last.is_alphanumeric() || last == '_');
        let (len, kept) = match comment_len(rest) {
            Some(len) => (len, ""),
            None => match literal_len(rest, after_word) {
                Some(len) => (len, "\"\""),
                None => (first.len_utf8(), &rest[..first.len_utf8()]),
            },
        };
        code.push_str(kept);
        if len > first.len_utf8() {
            code.extend(rest[..len].chars().filter(|inner| *inner == '\n'));
        }
        rest = &rest[len..];
    }
    code
}

/// Returns the opposite of [`code_of`]: comments, literals and the words of function names, with all line breaks.
pub(crate) fn prose_of(source: &str) -> String {
    let mut prose = String::with_capacity(source.len());
    let (mut rest, mut last) = (source, ' ');
    while let Some(first) = rest.chars().next() {
        let is_word = |inner: char| inner.is_alphanumeric() || inner == '_';
        let after_word = is_word(last);
        let len = match comment_len(rest).or_else(|| literal_len(rest, after_word)) {
            Some(len) => {
                prose.push_str(&rest[..len].replace("\\n", "  "));
                len
            }
            None if !after_word && rest.starts_with("fn ") => {
                let name_len = rest["fn ".len()..].find(|inner| !is_word(inner)).unwrap_or(0);
                let len = "fn ".len() + name_len;
                prose.push_str(&rest["fn ".len()..len].replace('_', " "));
                len
            }
            None => {
                prose.push(if first == '\n' { '\n' } else { ' ' });
                first.len_utf8()
            }
        };
        last = rest[..len].chars().next_back().unwrap_or(' ');
        rest = &rest[len..];
    }
    prose
}

/// Returns the code before the test module, which always comes last.
pub(crate) fn outside_tests(code: &str) -> String {
    let tests = code.find("\n#[cfg(test)]\nmod tests");
    tests.map_or(code, |start| &code[..start]).to_owned()
}

/// Returns the length of the comment at the start of the text. Block comments nest.
fn comment_len(text: &str) -> Option<usize> {
    if text.starts_with("//") {
        return Some(text.find('\n').unwrap_or(text.len()));
    }
    if !text.starts_with("/*") {
        return None;
    }
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += 1;
        }
    }
    Some(text.len())
}

/// Returns the length of the string or character literal at the start of the text, including its prefix. Lifetimes do
/// not count, and neither does the end of a word that looks like a prefix.
fn literal_len(text: &str, after_word: bool) -> Option<usize> {
    let unprefixed = text.trim_start_matches(['b', 'c', 'r']);
    let prefix = text.len() - unprefixed.len();
    if prefix > 2 || (prefix > 0 && after_word) {
        return None;
    }
    let hashes = unprefixed.len() - unprefixed.trim_start_matches('#').len();
    if text[..prefix].ends_with('r') && unprefixed[hashes..].starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        let opening = prefix + hashes + 1;
        return Some(text[opening..].find(&end).map_or(text.len(), |at| opening + at + end.len()));
    }
    let quote = unprefixed.chars().next().filter(|first| matches!(first, '"' | '\''))?;
    if quote == '\'' {
        let mut inside = unprefixed.chars().skip(1);
        let escaped = inside.next()? == '\\';
        if !escaped && inside.next() != Some('\'') {
            return None;
        }
    }
    let mut escaped = false;
    for (at, inner) in unprefixed.char_indices().skip(1) {
        if inner == quote && !escaped {
            return Some(prefix + at + 1);
        }
        escaped = inner == '\\' && !escaped;
    }
    Some(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_json_errors_are_found() {
        let shown = "let a = serde_json::from_slice(b)\n.map_err(|error| format!(\"bad: {error}\"))?;\n";
        let described = "let a = serde_json::from_slice(b).map_err(|error| describe(&error))?;\nlog(%error);\n";
        assert_eq!(
            lines_showing_json_errors(&format!("{described}{shown}"))
                .into_iter()
                .map(|(line, _)| line)
                .collect::<Vec<_>>(),
            [3]
        );
    }

    #[test]
    fn code_of_removes_comments_and_literals() {
        assert_eq!(code_of("a // b\n/* c /* d\n */ e */ f"), "a \n\n f");
        assert_eq!(code_of(r#"a "b \" // c" d"#), r#"a "" d"#);
        assert_eq!(code_of("a \"b\nc\" d"), "a \"\"\n d");
        assert_eq!(code_of(r"'j' '\'' 'é' 'k l: &'static str"), r#""" "" "" 'k l: &'static str"#);
        assert_eq!(code_of(r###"br#"m " n"# c"o" for"p" b'q' r"s\" t"###), r#""" "" for"" "" "" t"#);
        assert_eq!(code_of("r#type br"), "r#type br");
        assert_eq!(code_of("/// tokio\nuse x; // tokio\n"), "\nuse x; \n");
    }

    #[test]
    fn outside_tests_removes_the_test_module() {
        assert_eq!(outside_tests("fn a() {}\n\n#[cfg(test)]\nmod tests {\n    x.unwrap();\n}\n"), "fn a() {}\n");
        let helper = "#[cfg(test)]\nfn only_for_tests() {}\nfn a() {}\n";
        assert_eq!(outside_tests(helper), helper);
    }

    #[test]
    fn lines_containing_reads_literals() {
        let found = lines_containing("let a = 1;\nread(\"/proc/self\");\n", &["\"/sys/", "\"/proc"]);
        assert_eq!(found, [(2, "contains \"/proc".to_owned())]);
    }

    #[test]
    fn lines_naming_matches_whole_words() {
        let found = |code, name| lines_naming(code, name).into_iter().map(|(line, _)| line).collect::<Vec<_>>();
        assert_eq!(found("use http::Uri;\nuse http_body::Body;\nlet https = 1;\nuse x::http;", "http"), [1, 4]);
        assert_eq!(found("a.elapsed();\nb.elapsed_ms();", ".elapsed()"), [1]);
        assert_eq!(found("let x = std::time::Instant::now();\nInstant::nowhere()", "Instant::now"), [1]);
        assert_eq!(found("y.unwrap();\ny.unwrap_or(1);", ".unwrap()"), [1]);
        assert_eq!(lines_naming_other_modules("use crate::domain::app;\nuse crate::clock;").len(), 1);
    }
}
