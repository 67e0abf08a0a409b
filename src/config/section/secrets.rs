//! Secrets that a section names: by a file or a variable, never inline.

use super::{LoadContext, Section};
use crate::config::secret::{SecretError, SecretText, SecretWarning, parse_secret, read_regular_secret_file};
use crate::config::tree::Location;
use crate::config::units::text;
use crate::domain::quote::{looks_like_secret, with_value};

/// Added to a problem of a file or a variable whose name could be a secret.
const NOT_THE_SECRET: &str = "; set the name of a file or of a variable, not the secret itself";

/// The keys of one secret: `inline` is always rejected, and exactly one of `file` and `env` names the secret.
pub(in crate::config) struct SecretNames {
    pub(in crate::config) inline: &'static str,
    pub(in crate::config) file: &'static str,
    pub(in crate::config) env: &'static str,
}

/// A secret that a list names.
pub(in crate::config) struct NamedSecret {
    pub(in crate::config) secret: SecretText,
    /// Its file or variable, as messages show it.
    pub(in crate::config) shown: String,
    pub(in crate::config) location: Location,
}

impl SecretNames {
    /// Returns the key that names the secret in a section.
    pub(in crate::config) fn present_in(&self, section: &Section<'_>) -> &'static str {
        if section.has(self.file) { self.file } else { self.env }
    }
}

impl Section<'_> {
    /// Reads a secret that is named by exactly one of `*_file` and `*_env`. A secret written inline is a problem of its
    /// own; the message does not show it.
    pub(in crate::config) fn secret(&mut self, names: &SecretNames, required: bool) -> Option<SecretText> {
        self.check_secret_keys(names, required);
        let from_env = self.optional(names.env, text).map(|name| (names.env, self.context.secret_of_variable(&name)));
        let from_file = self.named_file(names.file).map(|path| (names.file, read_regular_secret_file(&path)));
        let (key, found) = from_file.or(from_env)?;
        let written = self.entry(key).and_then(|(_, node)| node.text()).unwrap_or_default();
        self.note_secret(key, written, self.location_of(key), found)
    }

    /// Reads up to `max` secrets that are named by one of `*_file` and `*_env`. For one secret, brackets are optional.
    pub(in crate::config) fn secrets(&mut self, names: &SecretNames, max: usize) -> Vec<NamedSecret> {
        self.check_secret_keys(names, false);
        let mut found = Vec::new();
        for key in [names.env, names.file] {
            for (written, location) in self.list(key, true, 1..=max, text).unwrap_or_default() {
                let read = match key == names.env {
                    true => self.context.secret_of_variable(&written),
                    false => read_regular_secret_file(&self.context.watched(&written)),
                };
                let secret = self.note_secret(key, &written, &location, read);
                let shown = self.shown_text(key, &written);
                found.extend(secret.map(|secret| NamedSecret { secret, shown, location }));
            }
        }
        found
    }

    fn check_secret_keys(&mut self, names: &SecretNames, required: bool) {
        let SecretNames { inline, file, env } = *names;
        if self.has(inline) {
            self.reported.push(inline);
            self.problem(
                inline,
                format_args!(
                    "secrets are not allowed here; put the secret into a file and set {file}, or into a variable and \
                     set {env}"
                ),
            );
        }
        match (self.has(file), self.has(env)) {
            (true, true) => self.problem(env, format_args!("conflicts with {file}; set only one of them")),
            (false, false) if required && !self.has(inline) => {
                self.problem(file, format_args!("missing; set {file} = \"FILE\" or {env} = \"VARIABLE\""));
            }
            _ => {}
        }
    }

    /// Returns the secret that `written` names, or notes its problem.
    fn note_secret(
        &self,
        key: &str,
        written: &str,
        location: &Location,
        found: Result<(SecretText, Vec<SecretWarning>), SecretError>,
    ) -> Option<SecretText> {
        let (path, shown) = (self.path_of(key), self.shown_text(key, written));
        match found {
            Ok((secret, warnings)) => {
                for warning in warnings {
                    self.warning_at(location, &path, with_value(&warning.to_string(), &shown));
                }
                Some(secret)
            }
            Err(error) => {
                let hint = if looks_like_secret(written) { NOT_THE_SECRET } else { "" };
                self.problem_at(location, &path, format_args!("{}{hint}", with_value(&error.to_string(), &shown)));
                None
            }
        }
    }
}

impl LoadContext<'_> {
    fn secret_of_variable(&self, name: &str) -> Result<(SecretText, Vec<SecretWarning>), SecretError> {
        self.secret_variables.borrow_mut().push(name.to_owned());
        let value = self.env.get(name).ok_or(SecretError::NoVariable)?;
        parse_secret(value.to_str().ok_or(SecretError::NotText)?)
    }
}
