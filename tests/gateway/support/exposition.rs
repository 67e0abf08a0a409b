//! A strict reader of Prometheus' text format: text that promtool rejects fails the test.

use std::collections::{BTreeMap, BTreeSet};

type Labels = BTreeMap<String, String>;

/// The parsed `/metrics`.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    /// The type of each metric.
    types: BTreeMap<String, String>,
    samples: Vec<(String, Labels, f64)>,
}

impl Exposition {
    /// Parses the text and asserts that names, types, order, labels and histograms are valid.
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Exposition {
        assert!(text.ends_with('\n'), "the last line has no line feed");
        let mut parsed = Exposition::default();
        let mut current = String::new();
        let mut seen = BTreeSet::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect(line);
                assert!(is_name(name) && !help.trim().is_empty() && !help.contains('\\'), "{line}");
                assert!(!parsed.types.contains_key(name), "repeated: {line}");
                current = name.to_owned();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect(line);
                assert_eq!(name, current, "TYPE does not follow its HELP");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                parsed.types.insert(name.to_owned(), kind.to_owned());
            } else {
                let (name, labels, value) = sample(line).unwrap_or_else(|| panic!("not a sample: {line}"));
                let histogram = parsed.types.get(&current).is_some_and(|kind| kind == "histogram");
                let parts = ["_bucket", "_sum", "_count"];
                let part = if histogram { name.strip_prefix(&current) } else { None };
                assert!(part.is_some_and(|part| parts.contains(&part)) || (!histogram && name == current), "{line}");
                assert_eq!(part == Some("_bucket"), labels.contains_key("le"), "{line}");
                assert!(seen.insert((name.clone(), labels.clone())), "repeated: {line}");
                parsed.samples.push((name, labels, value));
            }
        }
        parsed.check_histograms();
        parsed
    }

    /// Returns the metrics' names and types.
    pub(crate) fn types(&self) -> &BTreeMap<String, String> {
        &self.types
    }

    /// Returns the value of the sample with exactly these labels, or 0 if there is no such sample, as for a counter
    /// that was never incremented.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let labels: Labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let found = self.samples.iter().find(|(other, its, _)| other == name && *its == labels);
        found.map_or(0.0, |(_, _, value)| *value)
    }

    /// Returns the sum over all samples that have at least these labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |its: &Labels| labels.iter().all(|(name, value)| its.get(*name).is_some_and(|its| its == value));
        self.samples.iter().filter(|(other, its, _)| other == name && has(its)).map(|(_, _, value)| value).sum()
    }

    /// Returns all values of a label.
    pub(crate) fn label_values(&self, label: &str) -> BTreeSet<&str> {
        self.samples.iter().filter_map(|(_, labels, _)| labels.get(label)).map(String::as_str).collect()
    }

    fn check_histograms(&self) {
        for (name, kind) in &self.types {
            if kind != "histogram" {
                continue;
            }
            let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
            for (_, labels, value) in self.samples.iter().filter(|(other, ..)| *other == format!("{name}_bucket")) {
                let mut labels = labels.clone();
                let bound = labels.remove("le").expect("checked above");
                let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().expect("a bound") };
                buckets.entry(labels).or_default().push((bound, *value));
            }
            for (labels, buckets) in buckets {
                let rises = |pair: &[(f64, f64)]| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1;
                assert!(buckets.windows(2).all(rises), "{name}{labels:?}: {buckets:?}");
                let last = buckets.last().expect("not empty");
                let labels: Vec<(&str, &str)> = labels.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
                assert_eq!(*last, (f64::INFINITY, self.value(&format!("{name}_count"), &labels)), "{name}");
            }
        }
    }
}

fn is_name(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().all(inner) && text.bytes().next().is_some_and(|first| !first.is_ascii_digit())
}

/// Parses `name{label="value",...} value`.
fn sample(line: &str) -> Option<(String, Labels, f64)> {
    let (head, value) = line.rsplit_once(' ')?;
    let mut labels = Labels::new();
    let name = match head.split_once('{') {
        None => head,
        Some((name, rest)) => {
            let mut rest = rest.strip_suffix('}')?;
            loop {
                let (label, after) = rest.split_once("=\"")?;
                let mut value = String::new();
                let mut characters = after.char_indices();
                let end = loop {
                    match characters.next()? {
                        (at, '"') => break at,
                        (_, '\\') => value.push(match characters.next()?.1 {
                            'n' => '\n',
                            same @ ('\\' | '"') => same,
                            _ => return None,
                        }),
                        (_, other) => value.push(other),
                    }
                };
                if !is_name(label) || labels.insert(label.to_owned(), value).is_some() {
                    return None;
                }
                match after[end + 1..].strip_prefix(',') {
                    Some(more) => rest = more,
                    None if after[end + 1..].is_empty() => break name,
                    None => return None,
                }
            }
        }
    };
    let value: f64 = value.parse().ok().filter(|value: &f64| !value.is_nan())?;
    is_name(name).then(|| (name.to_owned(), labels, value))
}

#[test]
fn exposition_reader_rejects_malformed_text() {
    let good = "# HELP a_total A.\n# TYPE a_total counter\na_total{b=\"c\\\"d\"} 1\n";
    assert_eq!(Exposition::parse(good).value("a_total", &[("b", "c\"d")]), 1.0);
    let histogram =
        "# HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\n";
    for bad in [
        "a 1\n",
        "# HELP a A.\n# TYPE a counter\na 1\n",
        "# HELP a_total A.\n# TYPE a_total counter\na_total 1\na_total 2\n",
        "# HELP a_total A.\n# TYPE a_total counter\na_total{b=\"c} 1\n",
        "# HELP a A.\n# TYPE a gauge\na one\n",
        histogram,
    ] {
        assert!(std::panic::catch_unwind(|| Exposition::parse(bad)).is_err(), "{bad}");
    }
}
