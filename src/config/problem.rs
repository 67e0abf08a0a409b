//! Problems of a configuration, each with its place.

use std::fmt;

/// Maximum number of problems that are printed. A file with more is probably not a chatgate configuration.
const SHOWN_MAX: usize = 100;

/// Message for a file or variable that is not UTF-8 text.
pub(super) const NOT_UTF8: &str = "not valid UTF-8; encode it as UTF-8";

/// One problem, or one warning.
///
/// The message names the remedy, and quotes the value that is wrong only as [`quoted`](crate::domain::quote::quoted) shows
/// it: a value in the wrong place could be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// File as named by the operator, or the environment variable that set the value.
    pub file: String,
    /// Line in the file, from 1.
    pub line: Option<usize>,
    /// Column in characters, from 1. Only syntax errors have one; elsewhere the key is more precise.
    pub column: Option<usize>,
    /// Path of the key, as in `app[0].quota.per_command`; empty if the problem concerns the whole file.
    pub key: String,
    /// Cause and remedy.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// All problems of a configuration, at least one, in the order of the file.
///
/// `Display` prints one problem per line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Returns the problems, at least one.
    pub fn all(&self) -> &[Problem] {
        &self.0
    }

    pub(super) fn one(problem: Problem) -> Self {
        Self(vec![problem])
    }

    /// Returns `None` if the list is empty.
    pub(super) fn of(mut problems: Vec<Problem>) -> Option<Self> {
        sort_by_place(&mut problems);
        (!problems.is_empty()).then_some(Self(problems))
    }
}

/// Sorts by line. Problems without a line, such as problems of environment variables, come last.
pub(super) fn sort_by_place(problems: &mut [Problem]) {
    problems.sort_by(|a, b| {
        let place = |problem: &Problem| (problem.line.unwrap_or(usize::MAX), problem.column);
        place(a).cmp(&place(b)).then_with(|| a.file.cmp(&b.file))
    });
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, problem) in self.0.iter().take(SHOWN_MAX).enumerate() {
            if count > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        match self.0.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(file: &str, line: Option<usize>, message: &str) -> Problem {
        Problem { file: file.into(), line, column: None, key: "a.b".into(), message: message.into() }
    }

    #[test]
    fn problems_are_printed_one_per_line_in_file_order() {
        let problems = vec![
            problem("VARIABLE", None, "three"),
            problem("x.toml", Some(12), "two"),
            Problem { column: Some(7), key: String::new(), ..problem("x.toml", Some(2), "one") },
        ];
        let text = Problems::of(problems).expect("three").to_string();
        assert_eq!(text, "x.toml:2:7: one\nx.toml:12: a.b: two\nVARIABLE: a.b: three");
        assert_eq!(Problems::of(Vec::new()), None);
    }

    #[test]
    fn output_is_limited_to_a_hundred_problems() {
        let many = (0..SHOWN_MAX + 5).map(|line| problem("x", Some(line), "m")).collect();
        let text = Problems::of(many).expect("many").to_string();
        assert_eq!(text.lines().count(), SHOWN_MAX + 1);
        assert!(text.ends_with("and 5 more"), "{text}");
    }
}
