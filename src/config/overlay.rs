//! The environment laid over the file: `CHATGATE__SERVER__LISTEN` sets `server.listen`.
//!
//! After the prefix each `__` goes one table deeper; a number picks an item of a list that is there,
//! so `CHATGATE__APP__0__REGION` is the region of the first app. Values are written bare, or as TOML
//! where a list or a table is wanted. What a variable sets is judged like the file, under the name of
//! the variable.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::rc::Rc;

use super::section::Reader;
use super::tree::{Node, Place, Table, Value, plain};

/// What names of variables that are meant for the configuration begin with.
pub const PREFIX: &str = "CHATGATE__";

/// Variables of an environment: those that override keys, and those that hold secrets.
///
/// `Debug` shows only how many there are.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, OsString>);

impl Env {
    /// The environment of this process. Names that are not UTF-8 name nothing here and are left out.
    pub fn of_process() -> Self {
        let named = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Self(named.collect())
    }

    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(name).map(OsString::as_os_str)
    }
}

impl<N: Into<String>, V: Into<OsString>> FromIterator<(N, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Env({} variables)", self.0.len())
    }
}

/// Sets what the environment overrides. The shorter name comes first, so a variable for a whole list
/// does not undo one for a key in it.
pub(super) fn lay_over(table: &mut Table, env: &Env, reader: &Reader<'_>) {
    let overrides = env.0.range(PREFIX.to_owned()..).take_while(|(name, _)| name.starts_with(PREFIX));
    for (name, value) in overrides {
        let variable: Rc<str> = name.as_str().into();
        let place = Place::Variable(Rc::clone(&variable));
        let path: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
        let Some(value) = value.to_str() else {
            reader.problem(&place, "", "is not UTF-8 text");
            continue;
        };
        if path.iter().any(String::is_empty) {
            reader.problem(&place, "", "names no key; write CHATGATE__SECTION__KEY");
            continue;
        }
        if let Err(message) = set(table, &path, plain(&variable, value.to_owned()), &place) {
            reader.problem(&place, &path.join("."), message);
        }
    }
}

/// Sets the value at a path. Tables that are missing are made; the sections refuse those that nobody
/// knows.
fn set(mut table: &mut Table, path: &[String], value: Node, place: &Place) -> Result<(), String> {
    let mut path = path.iter();
    let mut key = path.next().ok_or("names no key")?;
    loop {
        let Some(mut next) = path.next() else {
            table.insert(key.clone(), (place.clone(), value));
            return Ok(());
        };
        let missing = || (place.clone(), Node { value: Value::Table(Table::new()), place: place.clone() });
        let mut node = &mut table.entry(key.clone()).or_insert_with(missing).1;
        // A number picks an item of a list.
        if let Some(len) = node.list().map(<[Node]>::len) {
            let index: usize = next.parse().map_err(|_| {
                format!("is a list; write the number of an item, from 0, after CHATGATE__{}", key.to_ascii_uppercase())
            })?;
            let item = || format!("has {len} items, so there is none of that number (they count from 0)");
            next = path.next().ok_or("cannot replace one item of a list; write the whole list as TOML")?;
            node = match node.value_mut() {
                Value::List(items) => items.get_mut(index).ok_or_else(item)?,
                _ => return Err(item()),
            };
        }
        let Value::Table(inner) = node.value_mut() else {
            return Err("goes below a key that is no table".to_owned());
        };
        (table, key) = (inner, next);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::tree::parse;

    /// The problems of laying variables over a file, and the text at one path afterwards.
    fn laid(file: &str, variables: &[(&str, &str)], path: &[&str]) -> (Vec<String>, Option<String>) {
        let env: Env = variables.iter().copied().collect();
        let mut table = parse("x.toml", file).unwrap_or_else(|problem| panic!("{problem}"));
        let reader = Reader::new(Path::new("x.toml"), &env);
        lay_over(&mut table, &env, &reader);
        let mut found = None;
        let mut inside = Some(&table);
        for key in path {
            found = inside.and_then(|table| table.get(*key)).map(|(_, node)| node);
            let list = found.and_then(Node::list).and_then(|items| items.first());
            inside = list.or(found).and_then(Node::table);
        }
        let text = found.and_then(Node::text).map(str::to_owned);
        (reader.into_findings().problems.iter().map(ToString::to_string).collect(), text)
    }

    #[test]
    fn variables_set_keys_and_make_sections() {
        let variables = [("CHATGATE__SERVER__LISTEN", "127.0.0.1:1"), ("CHATGATE_CONFIG", "x"), ("PATH", "y")];
        assert_eq!(laid("[server]\nlisten = 'z'", &variables, &["server", "listen"]).1.as_deref(), Some("127.0.0.1:1"));
        assert_eq!(laid("", &variables, &["server", "listen"]), (vec![], Some("127.0.0.1:1".to_owned())));
    }

    #[test]
    fn a_number_picks_an_item() {
        let region = ("CHATGATE__APP__0__REGION", "tokyo");
        let path = ["app", "region"];
        assert_eq!(laid("[[app]]", &[region], &path), (vec![], Some("tokyo".to_owned())));
        let whole = ("CHATGATE__APP", "[{ region = 'seoul' }]");
        assert_eq!(laid("", &[whole], &path), (vec![], Some("seoul".to_owned())));
    }

    #[test]
    fn a_list_of_one_variable_can_be_corrected_by_another() {
        let variables = [("CHATGATE__APP", "[{ region = 'seoul' }]"), ("CHATGATE__APP__0__REGION", "tokyo")];
        assert_eq!(laid("", &variables, &["app", "region"]), (vec![], Some("tokyo".to_owned())));
    }

    #[test]
    fn what_names_no_key_is_a_problem() {
        for (file, name, message) in [
            ("", "CHATGATE__", "CHATGATE__: names no key; write CHATGATE__SECTION__KEY"),
            ("", "CHATGATE__SERVER__", "names no key"),
            ("[[app]]", "CHATGATE__APP__1__REGION", "app.1.region: has 1 items"),
            ("[[app]]", "CHATGATE__APP__REGION", "is a list; write the number"),
            ("[[app]]", "CHATGATE__APP__0", "cannot replace one item"),
            ("server = 1", "CHATGATE__SERVER__LISTEN", "goes below a key that is no table"),
        ] {
            let (problems, _) = laid(file, &[(name, "v")], &[]);
            assert!(problems.len() == 1 && problems[0].contains(message), "{name}: {problems:?}");
        }
    }

    #[test]
    fn values_that_are_no_text_are_reported_by_name() {
        use std::os::unix::ffi::OsStringExt;
        let env: Env = [("CHATGATE__LOG__LEVEL", OsString::from_vec(vec![0xff]))].into_iter().collect();
        let reader = Reader::new(Path::new("x"), &env);
        lay_over(&mut Table::new(), &env, &reader);
        assert_eq!(reader.into_findings().problems[0].to_string(), "CHATGATE__LOG__LEVEL: is not UTF-8 text");
        assert_eq!(format!("{env:?}"), "Env(1 variables)");
    }
}
