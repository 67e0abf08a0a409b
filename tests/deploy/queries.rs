//! Every metric, label and closed label value that alerts and dashboard ask for is one that a running gateway has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::Value;

use crate::support::{Program, shell};
use crate::{read, said, tool, yaml};

/// What Prometheus adds to each series, and what it makes itself.
const OF_PROMETHEUS: [&str; 3] = ["instance", "job", "le"];

/// Names and labels of the samples in an exposition.
fn samples(exposition: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut samples: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in exposition.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_once(['{', ' ']).expect("name and value");
        let labels = rest.split_once('}').map_or("", |(labels, _)| labels);
        let names = labels.split('"').step_by(2).filter_map(|text| text.trim_matches(',').strip_suffix('='));
        samples.entry(name).or_default().extend(names);
    }
    samples
}

/// A gateway that has answered, waited, asked and refused, so that each of its metrics has a sample.
fn exposition() -> String {
    let (mut demo, data, admin) = Program::demo();
    let body = r#"{"From_Account":"alice","To_Account":["bob"]}"#;
    shell(&format!("curl -s http://{data}/v4/follow/follow_check -d '{body}'; curl -s http://{data}/v4/a/b -d '{{}}'"));
    let exposition = shell(&format!("curl -s http://{admin}/metrics"));
    assert!(demo.stop().success(), "the demo ends in good order");
    exposition
}

/// Queries of the dashboard, and of its variables and annotations.
fn of_the_dashboard() -> Vec<String> {
    fn collect(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                let texts = members.iter().filter(|(key, _)| *key == "expr" || *key == "definition");
                found.extend(texts.filter_map(|(_, text)| text.as_str()).map(str::to_owned));
                members.values().for_each(|value| collect(value, found));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(&serde_json::from_str(&read("deploy/grafana/chatgate.json")).expect("JSON"), &mut found);
    assert!(found.len() > 20, "the dashboard was not understood: {found:?}");
    found
}

fn of_the_alerts() -> Vec<String> {
    let rules = yaml(&read("deploy/prometheus/alerts.yml")).remove(0);
    let rules = rules["groups"][0]["rules"].as_array().expect("rules").clone();
    rules.iter().map(|rule| rule["expr"].as_str().expect("an expr").to_owned()).collect()
}

/// The metrics that a query names, each with the labels it selects by.
fn metrics(query: &str) -> Vec<(String, Vec<String>)> {
    let is_name = |byte: char| byte.is_ascii_alphanumeric() || byte == '_';
    let mut found = Vec::new();
    let mut rest = query;
    while let Some(start) = rest.find(|byte: char| byte.is_ascii_alphabetic() || byte == '"') {
        rest = &rest[start..];
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted.split_once('"').expect("an end of the quote").1;
            continue;
        }
        let (name, after) = rest.split_at(rest.find(|byte| !is_name(byte)).unwrap_or(rest.len()));
        rest = after;
        if name.starts_with("chatgate_") || name.starts_with("process_") {
            let selector = after.strip_prefix('{').and_then(|text| text.split_once('}')).map_or("", |(text, _)| text);
            let labels = selector.split('"').step_by(2).map(|text| text.trim_matches([',', ' ', '=', '~', '!']));
            found.push((name.to_owned(), labels.filter(|label| !label.is_empty()).map(str::to_owned).collect()));
        }
    }
    found
}

#[test]
fn what_is_asked_for_is_there() {
    let exposition = exposition();
    let there = samples(&exposition);
    let code = read("src/admin/metrics.rs");
    let mut asked = BTreeSet::new();
    for query in of_the_dashboard().into_iter().chain(of_the_alerts()) {
        for (metric, labels) in metrics(&query) {
            let Some(own) = there.get(metric.as_str()) else {
                // Some are there only where a feature is configured, which a demo has not.
                assert!(code.contains(&format!("\"{metric}\"")), "no metric {metric}, in {query}");
                asked.insert(metric);
                continue;
            };
            for label in labels {
                assert!(
                    own.contains(label.as_str()) || OF_PROMETHEUS.contains(&label.as_str()),
                    "{metric} has no {label}: {query}"
                );
            }
            asked.insert(metric);
        }
    }
    // And what is there is looked at, by one or the other.
    let base = |name: &str| {
        ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name).to_owned()
    };
    let asked: BTreeSet<String> = asked.iter().map(|name| base(name)).collect();
    let left: Vec<&str> =
        there.keys().copied().filter(|name| name.starts_with("chatgate_") && !asked.contains(&base(name))).collect();
    assert!(left.is_empty(), "neither dashboard nor alerts ask for {left:?}");
    // Also what only a feature brings.
    let in_code: BTreeSet<&str> = code.split('"').filter(|text| text.starts_with("chatgate_")).collect();
    assert!(in_code.len() > 20, "the code was not understood: {in_code:?}");
    let left: Vec<&&str> = in_code.iter().filter(|name| !asked.contains(**name)).collect();
    assert!(left.is_empty(), "neither dashboard nor alerts ask for {left:?}");
}

#[test]
fn outcomes_and_sources_that_are_selected_by_exist() {
    let (labels, sources) = (read("src/metrics/labels.rs"), read("src/metrics/mod.rs"));
    for query in of_the_dashboard().into_iter().chain(of_the_alerts()) {
        for (label, code) in [("outcome", &labels), ("source", &sources)] {
            for selected in
                query.split(label).skip(1).filter_map(|rest| rest.trim_start_matches(['=', '~', '!']).strip_prefix('"'))
            {
                for value in selected.split('"').next().expect("a value").split('|') {
                    assert!(code.contains(&format!("\"{value}\"")), "no {label} {value}: {query}");
                }
            }
        }
    }
}

/// Grafana puts values in the place of its variables, so they are put here too.
#[test]
fn prometheus_understands_the_dashboard_s_queries() {
    let queries = of_the_dashboard().into_iter().filter(|query| !query.starts_with("label_values("));
    let rules: String = queries
        .map(|query| query.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$app", ".*"))
        .enumerate()
        .map(|(number, query)| format!("      - record: query:{number}\n        expr: '{query}'\n"))
        .collect();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("rules.yml");
    fs::write(&file, format!("groups:\n  - name: dashboard\n    rules:\n{rules}")).expect("own folder");
    let output = tool("promtool", "prometheus").args(["check", "rules"]).arg(&file).output().expect("it starts");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn queries_are_read_as_meant() {
    let query = r#"sum by (app) (rate(chatgate_x_total{a="process_y", b=~"1|2"}[5m])) > 0.5 * process_z"#;
    let expected = [("chatgate_x_total", vec!["a", "b"]), ("process_z", vec![])];
    let found = metrics(query);
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((metric, labels), (name, names)) in found.iter().zip(expected) {
        assert_eq!((metric.as_str(), labels), (name, &names.into_iter().map(str::to_owned).collect()));
    }
    let text = "# HELP a x\na{b=\"c\",d=\"e\"} 1\nf 2\n";
    assert_eq!(samples(text), BTreeMap::from([("a", BTreeSet::from(["b", "d"])), ("f", BTreeSet::new())]));
}
