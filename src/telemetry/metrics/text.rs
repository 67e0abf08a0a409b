//! The text format of Prometheus (version 0.0.4, prometheus.io/docs/instrumenting/exposition_formats).

use std::fmt::{Display, Write as _};

use super::histogram::HistogramSnapshot;

/// The media type of the format.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every second bound of a histogram is printed: 1, 2, and 5 of each decade.
const BOUND_STEP: usize = 2;

/// A writer of the text format. It escapes label values; names and help texts are constants that need no escaping.
#[derive(Debug, Default)]
pub(crate) struct Exposition(String);

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

impl Exposition {
    /// Begins a metric. Its samples must follow.
    pub(crate) fn begin(&mut self, name: &str, kind: MetricKind, help: &str) {
        let kind = match kind {
            MetricKind::Counter => "counter",
            MetricKind::Gauge => "gauge",
            MetricKind::Histogram => "histogram",
        };
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Writes a sample.
    pub(crate) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.name_and_labels(name, labels, None);
        let _ = writeln!(self.0, " {value}");
    }

    /// Writes a metric that has one sample without labels.
    pub(crate) fn single(&mut self, name: &str, kind: MetricKind, help: &str, value: impl Display) {
        self.begin(name, kind, help);
        self.sample(name, &[], value);
    }

    /// Writes the samples of a histogram, in seconds.
    pub(crate) fn histogram(&mut self, name: &str, labels: &[(&str, &str)], snapshot: &HistogramSnapshot) {
        let bucket = format!("{name}_bucket");
        for (micros, count) in snapshot.cumulative().step_by(BOUND_STEP) {
            let bound = (micros as f64 / 1e6).to_string();
            self.name_and_labels(&bucket, labels, Some(&bound));
            let _ = writeln!(self.0, " {count}");
        }
        self.name_and_labels(&bucket, labels, Some("+Inf"));
        let _ = writeln!(self.0, " {}", snapshot.count());
        self.sample(&format!("{name}_sum"), labels, snapshot.sum_secs());
        self.sample(&format!("{name}_count"), labels, snapshot.count());
    }

    /// Returns the text.
    pub(crate) fn finish(self) -> String {
        self.0
    }

    fn name_and_labels(&mut self, name: &str, labels: &[(&str, &str)], bound: Option<&str>) {
        self.0.push_str(name);
        let mut open = '{';
        for (label, value) in labels.iter().copied().chain(bound.map(|bound| ("le", bound))) {
            let _ = write!(self.0, "{open}{label}=\"");
            for character in value.chars() {
                match character {
                    '\\' => self.0.push_str("\\\\"),
                    '"' => self.0.push_str("\\\""),
                    '\n' => self.0.push_str("\\n"),
                    other => self.0.push(other),
                }
            }
            self.0.push('"');
            open = ',';
        }
        if open == ',' {
            self.0.push('}');
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::metrics::histogram::Histogram;

    #[test]
    fn samples_are_written_with_escaped_label_values() {
        let mut text = Exposition::default();
        text.begin("x_total", MetricKind::Counter, "Things.");
        text.sample("x_total", &[("a", "b"), ("c", "d\"e\\f\ng")], 7);
        text.single("y", MetricKind::Gauge, "One.", 0.5);
        let wanted = "# HELP x_total Things.\n# TYPE x_total counter\nx_total{a=\"b\",c=\"d\\\"e\\\\f\\ng\"} 7\n\
                      # HELP y One.\n# TYPE y gauge\ny 0.5\n";
        assert_eq!(text.finish(), wanted);
    }

    #[test]
    fn buckets_are_cumulative_and_the_last_counts_all() {
        let (histogram, mut snapshot) = (Histogram::default(), HistogramSnapshot::default());
        [15, 2000, 60_000_000].into_iter().for_each(|micros| histogram.add(Duration::from_micros(micros)));
        histogram.add_to(&mut snapshot);
        let mut text = Exposition::default();
        text.histogram("t", &[("a", "b")], &snapshot);
        let text = text.finish();
        for line in [
            "t_bucket{a=\"b\",le=\"0.00001\"} 0\n",
            "t_bucket{a=\"b\",le=\"0.00002\"} 1\n",
            "t_bucket{a=\"b\",le=\"0.001\"} 1\n",
            "t_bucket{a=\"b\",le=\"0.002\"} 2\n",
            "t_bucket{a=\"b\",le=\"10\"} 2\n",
            "t_bucket{a=\"b\",le=\"+Inf\"} 3\n",
            "t_sum{a=\"b\"} 60.002015\n",
            "t_count{a=\"b\"} 3\n",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
