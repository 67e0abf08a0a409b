//! The test suites of other projects; `tests/data/README.md` describes the files.

use serde_json::Value;

/// One input of a suite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

/// Returns the 318 parsing tests of JSONTestSuite. A name begins with `y_` (is JSON), `n_` (is not JSON), or `i_`
/// (parsers may differ).
pub(crate) fn json_texts() -> Vec<Case> {
    let cases = read(include_str!("../data/json-parsing.jsonl"));
    let count = |kind: &str| cases.iter().filter(|case| case.name.starts_with(kind)).count();
    assert_eq!((count("y_"), count("n_"), count("i_"), cases.len()), (95, 188, 35, 318));
    cases
}

/// Returns the requests that other projects test their HTTP/1 parsers with: complete and incomplete, valid and invalid.
#[allow(dead_code, reason = "not every test uses it")]
pub(crate) fn http_requests() -> Vec<Case> {
    let cases = read(include_str!("../data/http-requests.jsonl"));
    assert_eq!(cases.len(), 292);
    cases
}

fn read(lines: &str) -> Vec<Case> {
    lines.lines().map(|line| case(&serde_json::from_str(line).expect("one case per line"))).collect()
}

fn case(json: &Value) -> Case {
    let bytes = |text: &Value| -> Vec<u8> {
        let text = text.as_str().unwrap_or_default();
        text.chars().map(|character| u8::try_from(character).expect("a character for each byte")).collect()
    };
    let times = json["times"].as_u64().map_or(0, |times| usize::try_from(times).expect("small"));
    let (suite, name) = (json["suite"].as_str(), json["name"].as_str().expect("a name"));
    let name = suite.map_or_else(|| name.to_owned(), |suite| format!("{suite}: {name}"));
    Case { name, bytes: [bytes(&json["repeated"]).repeat(times), bytes(&json["bytes"])].concat() }
}
