//! The configuration as a tree of values, each with the place it came from.
//!
//! A mirror of the file in serde structures would stop at the first value of a wrong type, and
//! serde's `flatten` and enums lose the line. Walking a tree that keeps every place gives all problems
//! at once, and the environment can be laid over it without losing where a value is from.

use std::collections::BTreeMap;
use std::rc::Rc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Problem;

/// Deepest nesting that is read. The deepest key there is stands at 4.
const DEPTH_MAX: usize = 16;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// In the file, at a line from 1.
    Line(usize),
    /// In a variable of the environment.
    Variable(Rc<str>),
    /// Nowhere: it is about the file as a whole.
    File,
}

/// A value and its place. There is no `Debug`: a value in the wrong place could be a secret.
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// What TOML knows, and what the environment gives.
pub(super) enum Value {
    Text(String),
    /// `None` beyond 64 bits.
    Integer(Option<i64>),
    Float(f64),
    Boolean(bool),
    Date,
    List(Vec<Node>),
    Table(Table),
    /// From the environment. Whether it is a text or a list is up to the key: `[::1]:8700` is no list.
    Plain {
        raw: String,
        parsed: Option<Box<Node>>,
    },
}

/// Keys with the place of the key itself.
pub(super) type Table = BTreeMap<String, (Place, Node)>;

impl Node {
    /// A text; from the environment, with or without quotes.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            Value::Plain { raw, parsed } => Some(parsed.as_ref().and_then(|node| node.text()).unwrap_or(raw)),
            _ => None,
        }
    }

    pub(super) fn integer(&self) -> Option<i64> {
        match &self.value {
            Value::Integer(number) => *number,
            Value::Plain { parsed, .. } => parsed.as_ref()?.integer(),
            _ => None,
        }
    }

    /// A number with a fraction or without.
    pub(super) fn number(&self) -> Option<f64> {
        match &self.value {
            Value::Integer(number) => number.map(|number| number as f64),
            Value::Float(number) => Some(*number),
            Value::Plain { parsed, .. } => parsed.as_ref()?.number(),
            _ => None,
        }
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match &self.value {
            Value::Boolean(yes) => Some(*yes),
            Value::Plain { parsed, .. } => parsed.as_ref()?.boolean(),
            _ => None,
        }
    }

    pub(super) fn list(&self) -> Option<&[Node]> {
        match &self.value {
            Value::List(items) => Some(items),
            Value::Plain { parsed, .. } => parsed.as_ref()?.list(),
            _ => None,
        }
    }

    pub(super) fn table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            Value::Plain { parsed, .. } => parsed.as_ref()?.table(),
            _ => None,
        }
    }

    pub(super) fn value_mut(&mut self) -> &mut Value {
        match &mut self.value {
            Value::Plain { parsed: Some(node), .. } => &mut node.value,
            value => value,
        }
    }
}

/// Reads a file's text.
///
/// # Errors
/// Its first fault of syntax, with line and column. The parser's own rendering is not used, for it
/// shows the line, which could hold a secret; its message alone names only what TOML expects.
pub(super) fn parse(file: &str, text: &str) -> Result<Table, Problem> {
    let lines = Lines::of(text);
    let fault = |line, column, message| Problem { file: file.into(), line, column, key: String::new(), message };
    let (document, errors) = DeTable::parse_recoverable(text);
    if let Some(error) = errors.first() {
        let at = error.span().map(|span| lines.find(span.start));
        return Err(fault(
            at.map(|(line, _)| line),
            at.map(|(_, column)| column),
            format!("is not TOML: {}", error.message()),
        ));
    }
    let place = |start| Place::Line(lines.find(start).0);
    table(document.into_inner(), &place, 0)
        .map_err(|place| fault(line_of(&place), None, "is nested too deeply; no key stands so deep".to_owned()))
}

/// Reads a value of the environment. Whatever it is, it is a text if a text is wanted.
pub(super) fn plain(variable: &Rc<str>, raw: String) -> Node {
    let place = Place::Variable(Rc::clone(variable));
    let (value, errors) = DeValue::parse_recoverable(&raw);
    let parsed = errors.is_empty().then(|| node(value, &|_| place.clone(), 0).ok()).flatten().map(Box::new);
    Node { value: Value::Plain { raw, parsed }, place }
}

/// The line, if it is one.
pub(super) fn line_of(place: &Place) -> Option<usize> {
    match place {
        Place::Line(line) => Some(*line),
        Place::Variable(_) | Place::File => None,
    }
}

/// The place of what is too deep is the error.
fn table(table: DeTable<'_>, place: &dyn Fn(usize) -> Place, depth: usize) -> Result<Table, Place> {
    table
        .into_iter()
        .map(|(key, value)| {
            let key_place = place(key.span().start);
            Ok((key.into_inner().into_owned(), (key_place, node(value, place, depth)?)))
        })
        .collect()
}

fn node(value: Spanned<DeValue<'_>>, place: &dyn Fn(usize) -> Place, depth: usize) -> Result<Node, Place> {
    let here = place(value.span().start);
    if depth > DEPTH_MAX {
        return Err(here);
    }
    let value = match value.into_inner() {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Integer(number) => Value::Integer(i64::from_str_radix(number.as_str(), number.radix()).ok()),
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(yes) => Value::Boolean(yes),
        DeValue::Datetime(_) => Value::Date,
        DeValue::Array(items) => {
            Value::List(items.into_iter().map(|item| node(item, place, depth + 1)).collect::<Result<_, _>>()?)
        }
        DeValue::Table(inner) => Value::Table(table(inner, place, depth + 1)?),
    };
    Ok(Node { value, place: here })
}

/// From a byte of the text to its line and column.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// Line and column (in characters), both from 1. A byte past the end counts as the end.
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

    fn fault(text: &str) -> Problem {
        match parse("x.toml", text) {
            Ok(_) => panic!("no fault in {text:?}"),
            Err(problem) => problem,
        }
    }

    #[test]
    fn every_value_knows_its_line() {
        let table =
            parse("x", "a = 1\n\n[b]\nc = [\n  'x',\n  'y',\n]\n[[d]]\n[[d]]\n").unwrap_or_else(|_| panic!("fine"));
        assert_eq!(table["a"].1.place, Place::Line(1));
        assert_eq!(table["b"].1.place, Place::Line(3));
        let (key, c) = &table["b"].1.table().expect("a table")["c"];
        assert_eq!(*key, Place::Line(4));
        assert_eq!(c.list().expect("a list")[1].place, Place::Line(6));
        assert_eq!(table["d"].1.list().expect("a list")[1].place, Place::Line(9));
    }

    #[test]
    fn a_fault_of_syntax_has_line_and_column_and_shows_nothing_of_the_line() {
        let problem = fault("a = 1\nsecret_key = MARKED-SECRET\n");
        assert_eq!((problem.line, problem.column), (Some(2), Some(14)));
        assert!(!problem.to_string().contains("MARKED"), "{problem}");
        assert_eq!(fault("ä = 'ö").line, Some(1));
        assert_eq!(fault("a = 1\na = 2").line, Some(2));
    }

    #[test]
    fn depth_has_an_end() {
        let deep = format!("a = {}1{}", "[".repeat(40), "]".repeat(40));
        assert!(fault(&deep).message.contains("nested"), "{}", fault(&deep));
        let dotted = format!("x = 1\n{}z = 1", "a.".repeat(40));
        assert_eq!(fault(&dotted).line, Some(2));
        assert!(fault(&format!("{}z = 1", "a.".repeat(100_000))).message.contains("recursion"));
        assert!(plain(&"V".into(), deep[4..].to_owned()).list().is_none());
    }

    #[test]
    fn the_environment_gives_texts_unless_more_is_wanted() {
        let node = |raw: &str| plain(&"V".into(), raw.to_owned());
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
