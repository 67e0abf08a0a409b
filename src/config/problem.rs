//! What is wrong with a configuration, and where.

use std::fmt;

/// Most problems that are printed; a file with more is not the file that was meant.
const SHOWN_MAX: usize = 100;

/// One thing that is wrong, or doubtful if it stands among the warnings.
///
/// The message says what to write instead and never quotes a value: a value in the wrong place could
/// be a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as it was named, or the environment variable that set the value.
    pub file: String,
    /// Line in the file, from 1.
    pub line: Option<usize>,
    /// Column in characters, from 1. Only problems of syntax have one: elsewhere the key says more.
    pub column: Option<usize>,
    /// Path of the key, as in `app[0].quota.per_command`; empty if it is about the file itself.
    pub key: String,
    /// What is wrong and what to write instead.
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

/// Everything that is wrong with a configuration: one problem or more, in the order of the file.
///
/// Printed, each stands on a line of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The problems themselves, at least one.
    pub fn all(&self) -> &[Problem] {
        &self.0
    }

    pub(super) fn one(problem: Problem) -> Self {
        Self(vec![problem])
    }

    /// `None` if there is none.
    pub(super) fn of(mut problems: Vec<Problem>) -> Option<Self> {
        in_order(&mut problems);
        (!problems.is_empty()).then_some(Self(problems))
    }
}

/// By line; what has none, such as a variable of the environment, comes after.
pub(super) fn in_order(problems: &mut [Problem]) {
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
    fn each_stands_on_its_line_in_the_order_of_the_file() {
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
    fn what_is_printed_has_an_end() {
        let many = (0..SHOWN_MAX + 5).map(|line| problem("x", Some(line), "m")).collect();
        let text = Problems::of(many).expect("many").to_string();
        assert_eq!(text.lines().count(), SHOWN_MAX + 1);
        assert!(text.ends_with("and 5 more"), "{text}");
    }
}
