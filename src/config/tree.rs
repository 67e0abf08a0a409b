//! The configuration as a tree of values, each with its location.
//!
//! Deserializing into serde structures would stop at the first value of a wrong type, and serde's `flatten` and enums
//! lose the line. A tree that keeps every location allows chatgate to report all problems at once. Environment
//! variables can override values without losing the origin of a value.

use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problem;
use crate::domain::quote::{quoted, shown, with_value};

/// Maximum nesting. The deepest valid key is at level 4.
const DEPTH_MAX: usize = 16;

/// The location where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Location {
    /// In the file, at a line from 1.
    Line(usize),
    /// In an environment variable.
    Variable(Rc<str>),
    /// The file as a whole.
    File,
}

/// Shows a location in parentheses, to follow a clause: ` (line 3)`, ` (VARIABLE)`, or nothing for the file.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Line(line) => write!(f, " (line {line})"),
            Location::Variable(name) => write!(f, " ({})", shown(name)),
            Location::File => Ok(()),
        }
    }
}

/// A value and its location. It has no `Debug`, because a value in the wrong location could be a secret.
pub(super) struct Node {
    pub(super) value: ConfigValue,
    pub(super) location: Location,
}

/// A value of TOML or of an environment variable.
pub(super) enum ConfigValue {
    Text(String),
    /// `None` beyond 64 bits.
    Integer(Option<i64>),
    Float(f64),
    Boolean(bool),
    Date,
    List(Vec<Node>),
    Table(Table),
    /// From an environment variable. The key decides whether it is a string or a list: `[::1]:8700` is not a list.
    Plain {
        raw: String,
        parsed: Option<Box<Node>>,
    },
}

/// Keys, each with the location of the key itself.
pub(super) type Table = BTreeMap<String, (Location, Node)>;

impl Node {
    /// Returns a string. In an environment variable the quotes are optional.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            ConfigValue::Text(text) => Some(text),
            ConfigValue::Plain { raw, parsed } => Some(parsed.as_ref().and_then(|node| node.text()).unwrap_or(raw)),
            _ => None,
        }
    }

    pub(super) fn integer(&self) -> Option<i64> {
        match &self.value {
            ConfigValue::Integer(number) => *number,
            ConfigValue::Plain { parsed, .. } => parsed.as_ref()?.integer(),
            _ => None,
        }
    }

    /// Returns an integer or a float.
    pub(super) fn number(&self) -> Option<f64> {
        match &self.value {
            ConfigValue::Integer(number) => number.map(|number| number as f64),
            ConfigValue::Float(number) => Some(*number),
            ConfigValue::Plain { parsed, .. } => parsed.as_ref()?.number(),
            _ => None,
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match &self.value {
            ConfigValue::Boolean(yes) => Some(*yes),
            ConfigValue::Plain { parsed, .. } => parsed.as_ref()?.boolean(),
            _ => None,
        }
    }

    pub(super) fn list(&self) -> Option<&[Node]> {
        match &self.value {
            ConfigValue::List(items) => Some(items),
            ConfigValue::Plain { parsed, .. } => parsed.as_ref()?.list(),
            _ => None,
        }
    }

    pub(super) fn table(&self) -> Option<&Table> {
        match &self.value {
            ConfigValue::Table(table) => Some(table),
            ConfigValue::Plain { parsed, .. } => parsed.as_ref()?.table(),
            _ => None,
        }
    }

    /// Returns a value for messages: a string in quotes, a number, or a boolean. Returns `None` for values that no message
    /// repeats: empty strings, lists, and tables.
    pub(super) fn shown(&self) -> Option<String> {
        match &self.value {
            ConfigValue::Text(text) => Some(quoted(text)).filter(|_| !text.is_empty()),
            ConfigValue::Integer(number) => number.map(|number| number.to_string()),
            ConfigValue::Float(number) => Some(number.to_string()),
            ConfigValue::Boolean(yes) => Some(yes.to_string()),
            ConfigValue::Plain { .. } if self.list().is_some() || self.table().is_some() => None,
            ConfigValue::Plain { raw, .. } => Some(quoted(raw)).filter(|_| !raw.is_empty()),
            ConfigValue::Date | ConfigValue::List(_) | ConfigValue::Table(_) => None,
        }
    }

    /// Adds the value to a message, if it can be shown.
    pub(super) fn with_value(&self, message: String) -> String {
        self.shown().map_or(message.clone(), |shown| with_value(&message, &shown))
    }

    pub(super) fn value_mut(&mut self) -> &mut ConfigValue {
        match &mut self.value {
            ConfigValue::Plain { parsed: Some(node), .. } => &mut node.value,
            value => value,
        }
    }
}

/// Parses the text of a file.
///
/// # Errors
/// The first syntax error, with line and column. The parser's own rendering is not used, because it shows the line,
/// which could contain a secret. The parser's message only names what TOML expects.
pub(super) fn parse(file: &str, text: &str) -> Result<Table, Problem> {
    let lines = LineIndex::of(text);
    let problem = |line, column, message| Problem { file: file.into(), line, column, key: String::new(), message };
    let (document, errors) = DeTable::parse_recoverable(text);
    if let Some(error) = errors.first() {
        let at = error.span().map(|span| lines.find(span.start));
        return Err(problem(
            at.map(|(line, _)| line),
            at.map(|(_, column)| column),
            format!("not valid TOML: {}", error.message()),
        ));
    }
    let location = |start| Location::Line(lines.find(start).0);
    to_table(document.into_inner(), &location, 0).map_err(|location| {
        problem(line_of(&location), None, "nested too deeply; no key is deeper than 4 levels".to_owned())
    })
}

/// Parses the value of an environment variable. It also counts as a string, if the key expects a string.
pub(super) fn parse_variable(variable: &Rc<str>, raw: String) -> Node {
    let location = Location::Variable(Rc::clone(variable));
    let (value, errors) = DeValue::parse_recoverable(&raw);
    let parsed = errors.is_empty().then(|| to_node(value, &|_| location.clone(), 0).ok()).flatten().map(Box::new);
    Node { value: ConfigValue::Plain { raw, parsed }, location }
}

/// Returns the line of a location in the file.
pub(super) fn line_of(location: &Location) -> Option<usize> {
    match location {
        Location::Line(line) => Some(*line),
        Location::Variable(_) | Location::File => None,
    }
}

/// Converts a table of the parser. The error is the location of a value that is nested too deeply.
fn to_table(table: DeTable<'_>, location: &dyn Fn(usize) -> Location, depth: usize) -> Result<Table, Location> {
    table
        .into_iter()
        .map(|(key, value)| {
            let key_location = location(key.span().start);
            Ok((key.into_inner().into_owned(), (key_location, to_node(value, location, depth)?)))
        })
        .collect()
}

fn to_node(value: Spanned<DeValue<'_>>, location: &dyn Fn(usize) -> Location, depth: usize) -> Result<Node, Location> {
    let here = location(value.span().start);
    if depth > DEPTH_MAX {
        return Err(here);
    }
    let value = match value.into_inner() {
        DeValue::String(text) => ConfigValue::Text(text.into_owned()),
        DeValue::Integer(number) => ConfigValue::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()),
        DeValue::Float(number) => ConfigValue::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(yes) => ConfigValue::Boolean(yes),
        DeValue::Datetime(_) => ConfigValue::Date,
        DeValue::Array(items) => ConfigValue::List(
            items.into_iter().map(|item| to_node(item, location, depth + 1)).collect::<Result<_, _>>()?,
        ),
        DeValue::Table(inner) => ConfigValue::Table(to_table(inner, location, depth + 1)?),
    };
    Ok(Node { value, location: here })
}

/// Maps a byte offset of the text to line and column.
struct LineIndex<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> LineIndex<'a> {
    fn of(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// Returns line and column (in characters), both from 1. An offset past the end counts as the end.
    fn find(&self, byte: usize) -> (usize, usize) {
        let byte = byte.min(self.text.len());
        let line = self.starts.partition_point(|start| *start <= byte);
        let start = self.starts[line - 1];
        let before = self.text.as_bytes()[start..byte].iter().filter(|byte| (**byte as i8) >= -0x40);
        (line, before.count() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syntax_error(text: &str) -> Problem {
        match parse("x.toml", text) {
            Ok(_) => panic!("no error in {text:?}"),
            Err(problem) => problem,
        }
    }

    #[test]
    fn every_value_has_its_line() {
        let table =
            parse("x", "a = 1\n\n[b]\nc = [\n  'x',\n  'y',\n]\n[[d]]\n[[d]]\n").unwrap_or_else(|_| panic!("fine"));
        assert_eq!(table["a"].1.location, Location::Line(1));
        assert_eq!(table["b"].1.location, Location::Line(3));
        let (key, c) = &table["b"].1.table().expect("a table")["c"];
        assert_eq!(*key, Location::Line(4));
        assert_eq!(c.list().expect("a list")[1].location, Location::Line(6));
        assert_eq!(table["d"].1.list().expect("a list")[1].location, Location::Line(9));
    }

    #[test]
    fn syntax_error_has_line_and_column_but_no_content() {
        let problem = syntax_error("a = 1\nsecret_key = MARKED-SECRET\n");
        assert_eq!((problem.line, problem.column), (Some(2), Some(14)));
        assert!(!problem.to_string().contains("MARKED"), "{problem}");
        assert_eq!(syntax_error("ä = 'ö").line, Some(1));
        assert_eq!(syntax_error("a = 1\na = 2").line, Some(2));
    }

    #[test]
    fn nesting_is_limited() {
        let deep = format!("a = {}1{}", "[".repeat(40), "]".repeat(40));
        assert!(syntax_error(&deep).message.contains("nested"), "{}", syntax_error(&deep));
        let dotted = format!("x = 1\n{}z = 1", "a.".repeat(40));
        assert_eq!(syntax_error(&dotted).line, Some(2));
        assert!(syntax_error(&format!("{}z = 1", "a.".repeat(100_000))).message.contains("recursion"));
        assert!(parse_variable(&"V".into(), deep[4..].to_owned()).list().is_none());
    }

    #[test]
    fn environment_values_are_strings_unless_the_key_expects_more() {
        let node = |raw: &str| parse_variable(&"V".into(), raw.to_owned());
        assert_eq!(node("[::1]:8700").text(), Some("[::1]:8700"));
        assert!(node("[::1]:8700").list().is_none());
        assert_eq!(node("['a', 'b']").list().map(<[Node]>::len), Some(2));
        assert_eq!(node("\"quoted\"").text(), Some("quoted"));
        assert_eq!(node("17").text(), Some("17"));
        assert_eq!(node("17").integer(), Some(17));
        assert_eq!(node("true").boolean(), Some(true));
        assert_eq!(node("0.5").number(), Some(0.5));
        assert_eq!(node("").text(), Some(""));
    }
}
