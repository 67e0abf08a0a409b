//! Environment variables that override the file: `CHATGATE__SERVER__LISTEN` sets `server.listen`.
//!
//! After the prefix, each `__` descends into a table. A number selects an item of an existing list, so
//! `CHATGATE__APP__0__REGION` is the region of the first app. Values are written bare, or as TOML for a list or a
//! table. Values of variables are validated like values of the file; problems name the variable.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::rc::Rc;

use super::problem::NOT_UTF8;
use super::section::{KEY_SHOWN_MAX, LoadContext};
use super::tree::{ConfigValue, Location, Node, Table, parse_variable};
use crate::domain::quote::shown;

/// Prefix of the environment variables that override keys.
pub const PREFIX: &str = "CHATGATE__";

/// The prefix with one underscore less, which sets nothing.
const SINGLE_PREFIX: &str = "CHATGATE_";

/// Environment variables: overrides of keys, and secrets.
///
/// `Debug` shows only their number.
#[derive(Clone, Default)]
pub struct Env(BTreeMap<String, OsString>);

impl Env {
    /// Returns the environment of this process, without names that are not UTF-8.
    pub fn of_process() -> Self {
        let named = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Self(named.collect())
    }

    /// Returns the variables that begin with the name of a section but have a single underscore after `CHATGATE`, each with
    /// the name that sets a key. Kubernetes sets such variables for every Service; these are left out.
    pub(super) fn without_effect(&self, sections: &[&str]) -> impl Iterator<Item = (&str, String)> {
        let single = self.0.range(SINGLE_PREFIX.to_owned()..).map(|(name, _)| name.as_str());
        let single = single.take_while(|name| name.starts_with(SINGLE_PREFIX));
        single.filter(|name| !name.starts_with(PREFIX) && !is_set_by_kubernetes(name)).filter_map(|name| {
            let rest = &name[SINGLE_PREFIX.len()..];
            let key_in = |section: &&str| {
                let (start, key) = rest.split_at_checked(section.len())?;
                Some(key.strip_prefix('_')?).filter(|key| start.eq_ignore_ascii_case(section) && !key.is_empty())
            };
            let (section, key) = sections.iter().find_map(|section| Some((*section, key_in(section)?)))?;
            Some((name, shown(&format!("{PREFIX}{}__{key}", section.to_ascii_uppercase()))))
        })
    }

    /// Returns the value of a variable.
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

/// Returns whether Kubernetes sets a variable of this name for a Service: `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT`,
/// `NAME_SERVICE_PORT_HTTP`, `NAME_PORT`, `NAME_PORT_8700_TCP`, and `NAME_PORT_8700_TCP_ADDR` (its page "Service", section
/// "Environment variables").
fn is_set_by_kubernetes(name: &str) -> bool {
    let is_of_port = |rest: &str| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let protocol = rest[digits..].split('_').nth(1);
        digits > 0 && matches!(protocol, Some("TCP" | "UDP" | "SCTP"))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.match_indices("_PORT_").any(|(at, separator)| is_of_port(&name[at + separator.len()..]))
}

/// Applies the overrides of the environment to the table of the file. Shorter names come first, so that a variable for
/// a whole list does not undo a variable for a key in it.
pub(super) fn apply_overrides(table: &mut Table, env: &Env, context: &LoadContext<'_>) {
    let overrides = env.0.range(PREFIX.to_owned()..).take_while(|(name, _)| name.starts_with(PREFIX));
    for (name, value) in overrides {
        let variable: Rc<str> = name.as_str().into();
        let location = Location::Variable(Rc::clone(&variable));
        let path: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
        let Some(value) = value.to_str() else {
            context.problem(&location, "", NOT_UTF8);
            continue;
        };
        if path.iter().any(String::is_empty) {
            context.problem(&location, "", "names no key; write CHATGATE__SECTION__KEY");
            continue;
        }
        if let Err(message) = set(table, &path, parse_variable(&variable, value.to_owned()), &location) {
            let part = |part: &String| if part.len() <= KEY_SHOWN_MAX { part.clone() } else { "...".to_owned() };
            context.problem(&location, &path.iter().map(part).collect::<Vec<_>>().join("."), message);
        }
    }
}

/// Sets the value at a path. Creates missing tables; the sections reject unknown ones.
fn set(mut table: &mut Table, path: &[String], value: Node, location: &Location) -> Result<(), String> {
    let mut path = path.iter();
    let mut key = path.next().ok_or("names no key; write CHATGATE__SECTION__KEY")?;
    loop {
        let Some(mut next) = path.next() else {
            table.insert(key.clone(), (location.clone(), value));
            return Ok(());
        };
        let missing =
            || (location.clone(), Node { value: ConfigValue::Table(Table::new()), location: location.clone() });
        let mut node = &mut table.entry(key.clone()).or_insert_with(missing).1;
        // A number selects an item of a list.
        if let Some(len) = node.list().map(<[Node]>::len) {
            let index: usize = next.parse().map_err(|_| {
                format!("a list; write the number of an item, from 0, after CHATGATE__{}", key.to_ascii_uppercase())
            })?;
            let no_item = || match len {
                0 => "index out of range; the list is empty".to_owned(),
                _ => format!("index out of range; valid numbers: 0 to {}", len - 1),
            };
            next = path.next().ok_or("cannot replace a single item; write the whole list as TOML")?;
            node = match node.value_mut() {
                ConfigValue::List(items) => items.get_mut(index).ok_or_else(no_item)?,
                _ => return Err(no_item()),
            };
        }
        let ConfigValue::Table(inner) = node.value_mut() else {
            return Err("not a table; remove the rest of the name".to_owned());
        };
        (table, key) = (inner, next);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::tree::parse;

    /// Applies variables to a file; returns the problems, and the string at one path.
    fn apply(file: &str, variables: &[(&str, &str)], path: &[&str]) -> (Vec<String>, Option<String>) {
        let env: Env = variables.iter().copied().collect();
        let mut table = parse("x.toml", file).unwrap_or_else(|problem| panic!("{problem}"));
        let context = LoadContext::new(Path::new("x.toml"), &env);
        apply_overrides(&mut table, &env, &context);
        let mut found = None;
        let mut inside = Some(&table);
        for key in path {
            found = inside.and_then(|table| table.get(*key)).map(|(_, node)| node);
            let list = found.and_then(Node::list).and_then(|items| items.first());
            inside = list.or(found).and_then(Node::table);
        }
        let text = found.and_then(Node::text).map(str::to_owned);
        (context.into_findings().problems.iter().map(ToString::to_string).collect(), text)
    }

    #[test]
    fn variables_set_keys_and_create_sections() {
        let variables = [("CHATGATE__SERVER__LISTEN", "127.0.0.1:1"), ("CHATGATE_CONFIG", "x"), ("PATH", "y")];
        assert_eq!(
            apply("[server]\nlisten = 'z'", &variables, &["server", "listen"]).1.as_deref(),
            Some("127.0.0.1:1")
        );
        assert_eq!(apply("", &variables, &["server", "listen"]), (vec![], Some("127.0.0.1:1".to_owned())));
    }

    #[test]
    fn number_selects_an_item() {
        let region = ("CHATGATE__APP__0__REGION", "tokyo");
        let path = ["app", "region"];
        assert_eq!(apply("[[app]]", &[region], &path), (vec![], Some("tokyo".to_owned())));
        let whole = ("CHATGATE__APP", "[{ region = 'seoul' }]");
        assert_eq!(apply("", &[whole], &path), (vec![], Some("seoul".to_owned())));
    }

    #[test]
    fn variable_overrides_an_item_of_another_variables_list() {
        let variables = [("CHATGATE__APP", "[{ region = 'seoul' }]"), ("CHATGATE__APP__0__REGION", "tokyo")];
        assert_eq!(apply("", &variables, &["app", "region"]), (vec![], Some("tokyo".to_owned())));
    }

    #[test]
    fn variable_without_a_valid_path_is_a_problem() {
        for (file, name, message) in [
            ("", "CHATGATE__", "CHATGATE__: names no key; write CHATGATE__SECTION__KEY"),
            ("", "CHATGATE__SERVER__", "names no key"),
            ("[[app]]", "CHATGATE__APP__1__REGION", "app.1.region: index out of range; valid numbers: 0 to 0"),
            ("[[app]]", "CHATGATE__APP__REGION", "CHATGATE__APP__REGION: app.region: a list; write the number"),
            ("[[app]]", "CHATGATE__APP__0", "cannot replace a single item"),
            ("server = 1", "CHATGATE__SERVER__LISTEN", "not a table; remove the rest of the name"),
        ] {
            let (problems, _) = apply(file, &[(name, "v")], &[]);
            assert!(problems.len() == 1 && problems[0].contains(message), "{name}: {problems:?}");
        }
    }

    #[test]
    fn variables_with_one_underscore_have_no_effect_unless_kubernetes_sets_them() {
        let variables = [
            "CHATGATE",
            "CHATGATE_",
            "CHATGATE_SERVER_",
            "CHATGATE_CONFIG",
            "CHATGATE_SANDBOX_KEY",
            "CHATGATE__SERVER__LISTEN",
            "CHATGATE_SERVICE_HOST",
            "CHATGATE_SERVICE_PORT",
            "CHATGATE_SERVICE_PORT_HTTP",
            "CHATGATE_PORT",
            "CHATGATE_PORT_8700_TCP",
            "CHATGATE_PORT_8700_TCP_PROTO",
            "CHATGATE_PORT_8700_UDP_ADDR",
            "CHATGATE_SERVER_SERVICE_HOST",
            "CHATGATE_SERVER_PORT_8701_TCP_PORT",
            "OTHER_SERVER_LISTEN",
        ];
        let env: Env = variables.map(|name| (name, "x")).into_iter().collect();
        assert_eq!(env.without_effect(&["server", "app"]).count(), 0);
        let variables = ["CHATGATE_SERVER_LISTEN", "CHATGATE_APP_0_REGION", "CHATGATE_SERVER_PORTS_MAX"];
        let env: Env = variables.map(|name| (name, "x")).into_iter().collect();
        let found: Vec<_> = env.without_effect(&["server", "app"]).collect();
        let name = |text: &str| text.to_owned();
        assert_eq!(
            found,
            [
                ("CHATGATE_APP_0_REGION", name("CHATGATE__APP__0_REGION")),
                ("CHATGATE_SERVER_LISTEN", name("CHATGATE__SERVER__LISTEN")),
                ("CHATGATE_SERVER_PORTS_MAX", name("CHATGATE__SERVER__PORTS_MAX")),
            ]
        );
    }

    #[test]
    fn non_utf8_value_is_reported_by_variable_name() {
        use std::os::unix::ffi::OsStringExt;
        let env: Env = [("CHATGATE__LOG__LEVEL", OsString::from_vec(vec![0xff]))].into_iter().collect();
        let context = LoadContext::new(Path::new("x"), &env);
        apply_overrides(&mut Table::new(), &env, &context);
        assert_eq!(
            context.into_findings().problems[0].to_string(),
            "CHATGATE__LOG__LEVEL: not valid UTF-8; encode it as UTF-8"
        );
        assert_eq!(format!("{env:?}"), "Env(1 variables)");
    }
}
