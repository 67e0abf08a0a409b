//! Reads a table key by key. Every problem is noted, and reading continues.

mod secrets;

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

pub(super) use self::secrets::{NamedSecret, SecretNames};
use super::overlay::Env;
use super::problem::Problem;
use super::source::NamedFile;
use super::suggest::closest;
use super::tree::{ConfigValue, Location, Node, Table, line_of};
use super::units::{ParseResult, text};
use crate::domain::chat::command::CommandName;
use crate::domain::quote::{looks_like_key, looks_like_secret, quoted, shown, with_value};

/// Maximum length in bytes of an unknown key that a message repeats. A longer one is not a typo of a key; it could be a
/// secret on the wrong side of the `=`.
pub(super) const KEY_SHOWN_MAX: usize = 24;

/// State shared by all sections of one load: the folder of relative paths, the environment, and the findings so far.
pub(super) struct LoadContext<'a> {
    file: String,
    folder: PathBuf,
    env: &'a Env,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    files: RefCell<Vec<NamedFile>>,
    /// Commands outside the built-in table that the operator has declared, so that they are no typing errors.
    declared: RefCell<Vec<String>>,
    /// Names of the environment variables that hold a secret.
    secret_variables: RefCell<Vec<String>>,
}

/// Results of one load, apart from the values.
pub(super) struct Findings {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// Named files, with their fingerprints from just before they were read.
    pub files: Vec<NamedFile>,
}

impl<'a> LoadContext<'a> {
    /// Creates the context of a file. Relative paths in the configuration start at the folder of that file.
    pub(super) fn new(path: &Path, env: &'a Env) -> Self {
        Self {
            file: shown_path(path),
            folder: path.parent().map(Path::to_owned).unwrap_or_default(),
            env,
            problems: RefCell::default(),
            warnings: RefCell::default(),
            files: RefCell::default(),
            declared: RefCell::default(),
            secret_variables: RefCell::default(),
        }
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    /// Notes a problem.
    pub(super) fn problem(&self, location: &Location, key: &str, message: impl Display) {
        self.problems.borrow_mut().push(self.at(location, key, message));
    }

    /// Notes a warning.
    pub(super) fn warning(&self, location: &Location, key: &str, message: impl Display) {
        self.warnings.borrow_mut().push(self.at(location, key, message));
    }

    /// Returns the path of a file that is loaded with the configuration and then watched, and takes its fingerprint.
    fn watched(&self, path: &str) -> PathBuf {
        let path = self.folder.join(path);
        self.files.borrow_mut().push(NamedFile::read(&path));
        path
    }

    /// Returns an environment variable that is UTF-8 text.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.env.get(name).and_then(|value| value.to_str())
    }

    /// Warns of environment variables that look as if they should set a key of one of these sections, but do not.
    pub(super) fn check_variables(&self, sections: &[&str]) {
        let secrets = self.secret_variables.borrow();
        for (name, example) in self.env.without_effect(sections) {
            if !secrets.iter().any(|secret| secret == name) {
                let location = Location::Variable(name.into());
                let message =
                    format!("has no effect; separate the parts of a key with two underscores, as in {example}");
                self.warning(&location, "", message);
            }
        }
    }

    pub(super) fn into_findings(self) -> Findings {
        let (problems, warnings) = (self.problems.into_inner(), self.warnings.into_inner());
        Findings { problems, warnings, files: self.files.into_inner() }
    }

    fn at(&self, location: &Location, key: &str, message: impl Display) -> Problem {
        let file = match location {
            Location::Variable(name) => shown(name),
            Location::Line(_) | Location::File => self.file.clone(),
        };
        Problem { file, line: line_of(location), column: None, key: key.to_owned(), message: message.to_string() }
    }
}

/// A table that is being read. It records the keys that were read; [`Section::finish`] rejects all others.
pub(super) struct Section<'a> {
    context: &'a LoadContext<'a>,
    path: String,
    location: Location,
    table: Option<&'a Table>,
    /// Keys that were read, present or not.
    known: Vec<&'static str>,
    /// Invalid keys that already have a problem of their own.
    reported: Vec<&'static str>,
}

impl<'a> Section<'a> {
    fn new(context: &'a LoadContext<'a>, path: String, location: Location, table: Option<&'a Table>) -> Self {
        Self { context, path, location, table, known: Vec::new(), reported: Vec::new() }
    }

    pub(super) fn root(context: &'a LoadContext<'a>, table: &'a Table) -> Self {
        Self::new(context, String::new(), Location::File, Some(table))
    }

    /// Creates a section for a table inside a key's value.
    pub(super) fn below(&self, path: String, location: Location, table: &'a Table) -> Self {
        Self::new(self.context, path, location, Some(table))
    }

    /// Returns the environment.
    pub(super) fn env(&self) -> &'a Env {
        self.context.env
    }

    /// Returns the location of a key's value, or of the table if the key is missing.
    pub(super) fn location_of(&self, key: &str) -> &Location {
        self.entry(key).map_or(&self.location, |(_, node)| &node.location)
    }

    /// Returns whether the key is present.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// Returns whether the key is an empty list.
    pub(super) fn is_empty_list(&self, key: &str) -> bool {
        self.entry(key).and_then(|(_, node)| node.list()).is_some_and(<[_]>::is_empty)
    }

    /// Notes a problem of a key's value.
    pub(super) fn problem(&self, key: &str, message: impl Display) {
        self.context.problem(self.location_of(key), &self.path_of(key), message);
    }

    /// Notes a problem of a key's value, and quotes the value.
    pub(super) fn wrong_value(&self, key: &str, message: impl Display) {
        self.problem(key, self.with_value(key, message));
    }

    /// Adds the value of a key to a message, or the path that it was resolved to.
    pub(super) fn with_value(&self, key: &str, message: impl Display) -> String {
        let message = message.to_string();
        match self.shown_value(key) {
            Some(shown) => with_value(&message, &shown),
            None => message,
        }
    }

    /// Returns a key's value in quotes; `None` if it is missing, or a list or a table.
    fn shown_value(&self, key: &str) -> Option<String> {
        let (_, node) = self.entry(key)?;
        match node.text() {
            Some(written) if key.ends_with("file") || key.ends_with("env") => Some(self.shown_text(key, written)),
            _ => node.shown(),
        }
    }

    /// Returns the name of a file, as the path that it is resolved to, or of a variable, in quotes.
    fn shown_text(&self, key: &str, written: &str) -> String {
        match key.ends_with("file") {
            true => quoted_path(&self.context.folder, written),
            false if looks_like_secret(written) => quoted("..."),
            false => quoted(written),
        }
    }

    /// Notes a warning about a key's value.
    pub(super) fn warning(&self, key: &str, message: impl Display) {
        self.context.warning(self.location_of(key), &self.path_of(key), message);
    }

    /// Notes a problem of a part of a key's value.
    pub(super) fn problem_at(&self, location: &Location, path: &str, message: impl Display) {
        self.context.problem(location, path, message);
    }

    /// Notes a warning about a part of a key's value.
    pub(super) fn warning_at(&self, location: &Location, path: &str, message: impl Display) {
        self.context.warning(location, path, message);
    }

    /// Notes that the operator knows of a command outside the built-in table.
    pub(super) fn declare(&self, name: CommandName<'_>) {
        self.context.declared.borrow_mut().push(name.to_string());
    }

    /// Returns whether a declared command matches.
    pub(super) fn has_declared(&self, matches: impl Fn(CommandName<'_>) -> bool) -> bool {
        self.context.declared.borrow().iter().any(|name| CommandName::parse(name).is_ok_and(&matches))
    }

    /// Reads a key into a variable that holds its default.
    pub(super) fn read<T>(&mut self, key: &'static str, into: &mut T, parse: impl FnOnce(&Node) -> ParseResult<T>) {
        if let Some(value) = self.optional(key, parse) {
            *into = value;
        }
    }

    /// Returns whether the key has a list as its value.
    pub(super) fn is_list(&self, key: &str) -> bool {
        self.entry(key).is_some_and(|(_, node)| node.list().is_some())
    }

    /// Reads an optional key.
    pub(super) fn optional<T>(&mut self, key: &'static str, parse: impl FnOnce(&Node) -> ParseResult<T>) -> Option<T> {
        let node = self.node(key)?;
        self.context.note(node, &self.path_of(key), parse(node))
    }

    /// Reads a required key; `example` is shown if it is missing.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        example: &str,
        parse: impl FnOnce(&Node) -> ParseResult<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.problem(key, format_args!("missing; set {example}"));
        }
        self.optional(key, parse)
    }

    /// Reads a list with a bounded number of items, each with its own location. With `single`, brackets are optional
    /// for one item. Invalid items are noted and omitted.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        single: bool,
        len: RangeInclusive<usize>,
        parse: impl Fn(&Node) -> ParseResult<T>,
    ) -> Option<Vec<(T, Location)>> {
        let node = self.node(key)?;
        let path = self.path_of(key);
        let (items, is_list) = match node.list() {
            Some(items) => (items, true),
            None if single => (std::slice::from_ref(node), false),
            None => {
                return self.context.note(node, &path, Err("must be a list in square brackets".to_owned()));
            }
        };
        if !len.contains(&items.len()) {
            let message = format!("must have {} to {} items", len.start(), len.end());
            return self.context.note(node, &path, Err(message));
        }
        let items = items.iter().enumerate().filter_map(|(index, item)| {
            let path = if is_list { format!("{path}[{index}]") } else { path.clone() };
            let value = self.context.note(item, &path, parse(item))?;
            Some((value, item.location.clone()))
        });
        Some(items.collect())
    }

    /// Returns a table inside this one. A missing table is empty, so its keys get their defaults.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'a> {
        let path = self.path_of(key);
        let node = self.node(key);
        let table = node.and_then(Node::table);
        if let (Some(node), None) = (node, table) {
            let message = match node.value {
                ConfigValue::List(_) => format!("allowed only once; use [{key}] instead of [[{key}]]"),
                _ => format!("must be a table; write [{path}] with its keys on the lines below"),
            };
            self.context.problem(&node.location, &path, message);
        }
        let location = node.map_or(&self.location, |node| &node.location).clone();
        Section::new(self.context, path, location, table)
    }

    /// Returns the tables of an array of tables such as `[[app]]`.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let Some(node) = self.node(key) else { return Vec::new() };
        let path = self.path_of(key);
        let problem = |location: &Location| {
            self.context.problem(location, &path, format_args!("must be an array of tables; write [[{path}]]"));
        };
        let Some(items) = node.list() else {
            problem(&node.location);
            return Vec::new();
        };
        let sections = items.iter().enumerate().filter_map(|(index, item)| {
            let Some(table) = item.table() else {
                problem(&item.location);
                return None;
            };
            Some(Section::new(self.context, format!("{path}[{index}]"), item.location.clone(), Some(table)))
        });
        sections.collect()
    }

    /// Returns the entries of a table with keys that the operator chooses.
    pub(super) fn named_entries(&mut self, key: &'static str) -> Vec<NamedEntry<'a>> {
        let section = self.section(key);
        let entries = section.table.into_iter().flatten().map(|(name, (key_location, node))| {
            let is_command = CommandName::parse(name).is_ok() && !looks_like_key(name);
            let shown = if name.len() <= KEY_SHOWN_MAX || is_command { name } else { "..." };
            NamedEntry { name, path: format!("{}.{shown:?}", section.path), key_location, node }
        });
        entries.collect()
    }

    /// Reads the path of a file that is loaded with the configuration and then watched. A relative path starts at the
    /// folder of the configuration file. The file's fingerprint is taken before the caller reads it, so that a change in
    /// between is detected.
    pub(super) fn named_file(&mut self, key: &'static str) -> Option<PathBuf> {
        Some(self.context.watched(&self.optional(key, text)?))
    }

    /// Warns of environment variables that look as if they should set a key. All sections must have been read.
    pub(super) fn check_variables(&self) {
        self.context.check_variables(&self.known);
    }

    /// Rejects every key that has not been read.
    pub(super) fn finish(self) {
        for (name, (key_location, _)) in self.table.into_iter().flatten() {
            if self.known.iter().chain(&self.reported).any(|known| known == name) {
                continue;
            }
            let message = match closest(name, self.known.iter().copied()) {
                Some(meant) => format!("unknown key; did you mean \"{meant}\"?"),
                None => format!("unknown key; valid keys: {}", self.known.join(", ")),
            };
            let shown = if name.len() <= KEY_SHOWN_MAX { name } else { "..." };
            self.context.problem(key_location, &self.path_of(shown), message);
        }
    }

    fn node(&mut self, key: &'static str) -> Option<&'a Node> {
        self.known.push(key);
        self.entry(key).map(|(_, node)| node)
    }

    fn entry(&self, key: &str) -> Option<&'a (Location, Node)> {
        self.table?.get(key)
    }

    /// Returns the path of a key in this section, as messages show it.
    pub(super) fn path_of(&self, key: &str) -> String {
        let bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        let shown = if bare { key.to_owned() } else { format!("{key:?}") };
        if self.path.is_empty() { shown } else { format!("{}.{shown}", self.path) }
    }
}

/// An entry with a key that the operator chooses.
pub(super) struct NamedEntry<'a> {
    pub(super) name: &'a str,
    pub(super) path: String,
    pub(super) key_location: &'a Location,
    pub(super) node: &'a Node,
}

impl LoadContext<'_> {
    /// Returns the value, or notes its problem and quotes the value.
    fn note<T>(&self, node: &Node, key: &str, result: ParseResult<T>) -> Option<T> {
        // In place of a name of a file or of a variable, anything but a string could be the secret.
        let name = key.trim_end_matches(|last: char| last.is_ascii_digit() || "[]".contains(last));
        let could_be_secret = node.text().is_none() && (name.ends_with("file") || name.ends_with("env"));
        let describe = |message| if could_be_secret { message } else { node.with_value(message) };
        result.map_err(|message| self.problem(&node.location, key, describe(message))).ok()
    }
}

/// Returns a path for messages, on one line and shortened, without parts that could be a key.
pub(super) fn shown_path(path: &Path) -> String {
    shown(&path.display().to_string())
}

/// Returns the absolute path of a file in quotes. `written` is its name in the configuration or on the command line, from
/// `folder` if it is relative; it could be a secret in the wrong place.
pub(crate) fn quoted_path(folder: &Path, written: &str) -> String {
    // `quoted` finds keys, but not base64.
    let name = if looks_like_secret(written) && !looks_like_key(written) { "..." } else { written };
    let path = folder.join(name);
    quoted(&std::path::absolute(&path).unwrap_or(path).display().to_string())
}
