//! Reading a table key by key, noting every problem and going on.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::problem::Problem;
use super::secret::{Remark, SecretError, SecretText, one_line, read_regular_secret_file};
use super::suggest::closest;
use super::tree::{Node, Place, Table, Value, line_of};
use super::units::Reading;
use super::{Env, NamedFile};
use crate::domain::chat::command::CommandName;

/// Longest name of a key that a message repeats. A longer one is no slip of a key's name; it could
/// even be a secret that landed left of a `=`.
const KEY_SHOWN_MAX: usize = 24;

/// What a whole reading shares: where relative paths start, the environment, what was found.
pub(super) struct Reader<'a> {
    file: String,
    folder: PathBuf,
    env: &'a Env,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<Problem>>,
    files: RefCell<Vec<NamedFile>>,
}

/// What a whole reading has found.
pub(super) struct Findings {
    pub problems: Vec<Problem>,
    pub warnings: Vec<Problem>,
    /// The files that were named, as they were just before they were read.
    pub files: Vec<NamedFile>,
}

impl<'a> Reader<'a> {
    /// Relative paths in the configuration start at the folder of its file.
    pub(super) fn new(path: &Path, env: &'a Env) -> Self {
        Self {
            file: shown_path(path),
            folder: path.parent().map(Path::to_owned).unwrap_or_default(),
            env,
            problems: RefCell::default(),
            warnings: RefCell::default(),
            files: RefCell::default(),
        }
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    pub(super) fn problem(&self, place: &Place, key: &str, message: impl Display) {
        self.problems.borrow_mut().push(self.at(place, key, message));
    }

    pub(super) fn warning(&self, place: &Place, key: &str, message: impl Display) {
        self.warnings.borrow_mut().push(self.at(place, key, message));
    }

    /// A variable of the environment, if it is text.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.env.get(name).and_then(|value| value.to_str())
    }

    pub(super) fn into_findings(self) -> Findings {
        let (problems, warnings) = (self.problems.into_inner(), self.warnings.into_inner());
        Findings { problems, warnings, files: self.files.into_inner() }
    }

    fn at(&self, place: &Place, key: &str, message: impl Display) -> Problem {
        let file = match place {
            Place::Variable(name) => name.to_string(),
            Place::Line(_) | Place::File => self.file.clone(),
        };
        Problem { file, line: line_of(place), column: None, key: key.to_owned(), message: message.to_string() }
    }
}

/// A table that is being read. Each key asked for is struck off; [`Section::finish`] refuses the rest.
pub(super) struct Section<'a> {
    reader: &'a Reader<'a>,
    path: String,
    place: Place,
    table: Option<&'a Table>,
    asked: Vec<&'static str>,
    /// Keys that were refused with words of their own.
    refused: Vec<&'static str>,
}

impl<'a> Section<'a> {
    fn new(reader: &'a Reader<'a>, path: String, place: Place, table: Option<&'a Table>) -> Self {
        Self { reader, path, place, table, asked: Vec::new(), refused: Vec::new() }
    }

    pub(super) fn root(reader: &'a Reader<'a>, table: &'a Table) -> Self {
        Self::new(reader, String::new(), Place::File, Some(table))
    }

    /// A table that was reached by other means.
    pub(super) fn below(reader: &'a Reader<'a>, path: String, place: Place, table: &'a Table) -> Self {
        Self::new(reader, path, place, Some(table))
    }

    /// The place of a key's value; of the table if the key is not there.
    pub(super) fn place_of(&self, key: &str) -> &Place {
        self.entry(key).map_or(&self.place, |(_, node)| &node.place)
    }

    /// Whether the key was written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some()
    }

    /// Notes that a key's value cannot stand, though it could be read.
    pub(super) fn problem(&self, key: &str, message: impl Display) {
        self.reader.problem(self.place_of(key), &self.path_of(key), message);
    }

    /// Notes that a key's value is doubtful.
    pub(super) fn warning(&self, key: &str, message: impl Display) {
        self.reader.warning(self.place_of(key), &self.path_of(key), message);
    }

    /// Notes a problem of a part of a key's value.
    pub(super) fn problem_at(&self, place: &Place, path: &str, message: impl Display) {
        self.reader.problem(place, path, message);
    }

    /// Notes a doubt about a part of a key's value.
    pub(super) fn warning_at(&self, place: &Place, path: &str, message: impl Display) {
        self.reader.warning(place, path, message);
    }

    /// Reads a key into a place that holds its default.
    pub(super) fn read<T>(&mut self, key: &'static str, into: &mut T, reading: impl FnOnce(&Node) -> Reading<T>) {
        if let Some(value) = self.optional(key, reading) {
            *into = value;
        }
    }

    /// Reads a key that may be missing.
    pub(super) fn optional<T>(&mut self, key: &'static str, reading: impl FnOnce(&Node) -> Reading<T>) -> Option<T> {
        let node = self.node(key)?;
        self.reader.judge(&node.place, &self.path_of(key), reading(node))
    }

    /// Reads a key that must be there; `instead` says what to write.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        instead: &str,
        reading: impl FnOnce(&Node) -> Reading<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.problem(key, format_args!("is missing; write {instead}"));
        }
        self.optional(key, reading)
    }

    /// Reads a list of so many items, each with its own line. With `single`, one item may stand without
    /// brackets. Items that cannot be read are noted and left out.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        single: bool,
        len: RangeInclusive<usize>,
        reading: impl Fn(&Node) -> Reading<T>,
    ) -> Option<Vec<(T, Place)>> {
        let node = self.node(key)?;
        let path = self.path_of(key);
        let (items, is_list) = match node.list() {
            Some(items) => (items, true),
            None if single => (std::slice::from_ref(node), false),
            None => return self.reader.judge(&node.place, &path, Err("must be a list in brackets".to_owned())),
        };
        if !len.contains(&items.len()) {
            let message = format!("must have {} to {} items", len.start(), len.end());
            return self.reader.judge(&node.place, &path, Err(message));
        }
        let items = items.iter().enumerate().filter_map(|(index, item)| {
            let path = if is_list { format!("{path}[{index}]") } else { path.clone() };
            let value = self.reader.judge(&item.place, &path, reading(item))?;
            Some((value, item.place.clone()))
        });
        Some(items.collect())
    }

    /// A table below this one. One that is missing is empty, so its keys get their defaults.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'a> {
        let path = self.path_of(key);
        let node = self.node(key);
        let table = node.and_then(Node::table);
        if let (Some(node), None) = (node, table) {
            let message = match node.value {
                Value::List(_) => format!("stands only once; write [{key}]"),
                _ => format!("must be a table; write [{path}] and its keys below"),
            };
            self.reader.problem(&node.place, &path, message);
        }
        let place = node.map_or(&self.place, |node| &node.place).clone();
        Section::new(self.reader, path, place, table)
    }

    /// The tables of a list of tables such as `[[app]]`.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let Some(node) = self.node(key) else { return Vec::new() };
        let path = self.path_of(key);
        let problem = |place: &Place| {
            self.reader.problem(place, &path, format_args!("must be a list of tables; write [[{path}]]"));
        };
        let Some(items) = node.list() else {
            problem(&node.place);
            return Vec::new();
        };
        let sections = items.iter().enumerate().filter_map(|(index, item)| {
            let Some(table) = item.table() else {
                problem(&item.place);
                return None;
            };
            Some(Section::new(self.reader, format!("{path}[{index}]"), item.place.clone(), Some(table)))
        });
        sections.collect()
    }

    /// A table whose keys are the operator's: each with its path, the place of the key, and its value.
    pub(super) fn entries(&mut self, key: &'static str) -> Vec<Entry<'a>> {
        let section = self.section(key);
        let entries = section.table.into_iter().flatten().map(|(name, (key_place, node))| {
            let shown = if name.len() <= KEY_SHOWN_MAX || CommandName::parse(name).is_ok() { name } else { "..." };
            Entry { name, path: format!("{}.{shown:?}", section.path), key_place, node }
        });
        entries.collect()
    }

    /// A path, which starts at the folder of the configuration's file unless it is absolute.
    pub(super) fn path_value(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.optional(key, super::units::text)?;
        Some(self.reader.folder.join(path))
    }

    /// The path of a file that is read with the configuration and watched after it. It is looked at here,
    /// before it is read: a change in between is then seen as one.
    pub(super) fn named_file(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.path_value(key)?;
        self.reader.files.borrow_mut().push(NamedFile::fingerprint(&path));
        Some(path)
    }

    /// A secret that is named by `*_file` or `*_env`, just one of them. If it stands here itself, that
    /// is a problem of its own, whose message does not show it.
    pub(super) fn secret(&mut self, names: &SecretNames, required: bool) -> Option<SecretText> {
        let SecretNames { inline, file, env } = *names;
        let instead = format!("put it into a file of its own and name that with {file}, or name a variable with {env}");
        if self.has(inline) {
            self.refused.push(inline);
            self.problem(inline, format_args!("a secret must not stand in the configuration; {instead}"));
        }
        match (self.has(file), self.has(env)) {
            (true, true) => self.problem(env, format_args!("stands beside {file}; write only one of them")),
            (false, false) if required && !self.has(inline) => {
                self.problem(file, format_args!("is missing; write {file} = \"FILE\" or {env} = \"VARIABLE\""));
            }
            _ => {}
        }
        let from_env = self.optional(env, super::units::text).map(|name| (env, self.reader.secret_of_variable(&name)));
        let from_file = self.named_file(file).map(|path| (file, read_regular_secret_file(&path)));
        let (key, found) = from_file.or(from_env)?;
        match found {
            Ok((secret, remarks)) => {
                for remark in remarks {
                    self.warning(key, remark);
                }
                Some(secret)
            }
            Err(error) => {
                let hint =
                    if self.looks_like_a_key(key) { "; a file must be named here, not the key itself" } else { "" };
                self.problem(key, format_args!("{error}{hint}"));
                None
            }
        }
    }

    /// Refuses every key that nobody has asked for.
    pub(super) fn finish(self) {
        for (name, (key_place, _)) in self.table.into_iter().flatten() {
            if self.asked.iter().chain(&self.refused).any(|known| known == name) {
                continue;
            }
            let message = match closest(name, self.asked.iter().copied()) {
                Some(meant) => format!("there is no such key; did you mean \"{meant}\"?"),
                None => format!("there is no such key; there are {}", self.asked.join(", ")),
            };
            let shown = if name.len() <= KEY_SHOWN_MAX { name } else { "..." };
            self.reader.problem(key_place, &self.path_of(shown), message);
        }
    }

    fn node(&mut self, key: &'static str) -> Option<&'a Node> {
        self.asked.push(key);
        self.entry(key).map(|(_, node)| node)
    }

    fn entry(&self, key: &str) -> Option<&'a (Place, Node)> {
        self.table?.get(key)
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        let bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        let shown = if bare { key.to_owned() } else { format!("{key:?}") };
        if self.path.is_empty() { shown } else { format!("{}.{shown}", self.path) }
    }

    /// Whether the value has the form that the console shows keys in.
    fn looks_like_a_key(&self, key: &str) -> bool {
        let text = self.entry(key).and_then(|(_, node)| node.text()).unwrap_or_default();
        text.len() >= 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

/// A key of the operator's own and its value.
pub(super) struct Entry<'a> {
    pub(super) name: &'a str,
    pub(super) path: String,
    pub(super) key_place: &'a Place,
    pub(super) node: &'a Node,
}

/// The keys that name one secret, and the one that must not.
pub(super) struct SecretNames {
    pub(super) inline: &'static str,
    pub(super) file: &'static str,
    pub(super) env: &'static str,
}

impl Reader<'_> {
    /// The value, or its problem noted.
    fn judge<T>(&self, place: &Place, key: &str, result: Reading<T>) -> Option<T> {
        result.map_err(|message| self.problem(place, key, message)).ok()
    }

    fn secret_of_variable(&self, name: &str) -> Result<(SecretText, Vec<Remark>), SecretError> {
        let value = self.env.get(name).ok_or(SecretError::NoVariable)?;
        one_line(value.to_str().ok_or(SecretError::NotText)?)
    }
}

/// A path as messages show it: one line whatever its name holds.
pub(super) fn shown_path(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().any(char::is_control) { text.escape_debug().to_string() } else { text }
}
