//! The alerting rules and the dashboard: Prometheus' own tool takes them, they fire when they should, and every series and label
//! that they name is one that pgweir exports.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use support::process::run;
use support::{Batch, Pooler, Postgres, Raw, until};

const RULES: &str = include_str!("../docs/prometheus-rules.yml");
const DASHBOARD: &str = include_str!("../docs/grafana-dashboard.json");
const MANUAL: &str = include_str!("../docs/metrics.md");

/// Words of PromQL that stand where a label or a series could.
const WORDS: [&str; 8] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
    "offset",
];

/// Labels that Prometheus itself adds.
const OF_PROMETHEUS: [&str; 3] = ["job", "instance", "le"];

fn in_repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn promtool(arguments: &[&str]) -> String {
    run(Command::new("promtool")
        .args(arguments)
        .current_dir(in_repository("")))
}

#[test]
fn promtool_takes_the_rules() {
    let said = promtool(&["check", "rules", "docs/prometheus-rules.yml"]);
    assert!(said.contains("SUCCESS"), "{said}");
}

#[test]
fn the_rules_fire_when_they_should_and_are_silent_otherwise() {
    let said = promtool(&["test", "rules", "tests/rules/prometheus-rules.test.yml"]);
    assert!(said.contains("SUCCESS"), "{said}");
    let tested = include_str!("rules/prometheus-rules.test.yml");
    for alert in alerts() {
        assert!(
            tested.contains(&format!("alertname: {alert}\n")),
            "{alert} is not tested"
        );
    }
}

#[test]
fn what_pgweir_exports_is_fit_for_prometheus() {
    let (_postgres, pooler) = busy();
    let file = pooler.directory().join("metrics");
    std::fs::write(&file, pooler.http("/metrics").1).expect("the directory is ours");
    run(Command::new("sh")
        .args(["-c", "promtool check metrics <\"$1\"", "check"])
        .arg(&file));
}

#[test]
fn every_series_and_label_that_they_name_is_exported() {
    let exported = exported();
    let mut expressions = dashboard_expressions();
    expressions.extend(rule_expressions());
    assert!(expressions.len() > 15, "{expressions:?}");
    for expression in expressions {
        let names = names(&expression);
        let series: Vec<_> = names.iter().filter(|name| is_series(name)).collect();
        let mut labels: BTreeSet<&str> = OF_PROMETHEUS.into();
        for name in &series {
            let known = exported.get(name.as_str());
            let known = known.unwrap_or_else(|| panic!("{name} of {expression} is not exported"));
            labels.extend(known.iter().map(String::as_str));
        }
        for label in names.iter().filter(|name| !series.contains(name)) {
            assert!(
                labels.contains(&**label),
                "{label} of {expression}, which has {labels:?}"
            );
        }
    }
}

#[test]
fn every_exported_series_is_in_the_manual() {
    let (_postgres, pooler) = busy();
    for name in scraped(&pooler.http("/metrics").1).keys() {
        assert!(
            ["", "_bucket", "_count", "_sum"].iter().any(|end| {
                let base = name.strip_suffix(end).unwrap_or(name);
                MANUAL.contains(&format!("`{base}`"))
            }),
            "{name}"
        );
    }
}

#[test]
fn the_dashboard_asks_for_its_data_source() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let variables = dashboard["templating"]["list"]
        .as_array()
        .expect("variables");
    assert!(
        variables
            .iter()
            .any(|one| one["type"] == "datasource" && one["query"] == "prometheus")
    );
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{panel}");
        let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
        for source in targets
            .iter()
            .chain([panel])
            .filter(|one| !one["datasource"].is_null())
        {
            assert_eq!(source["datasource"]["uid"], "${datasource}", "{panel}");
        }
        assert!(panel["type"] == "row" || !targets.is_empty(), "{panel}");
    }
}

/// A pgweir of which every family has a series.
fn busy() -> (Postgres, Pooler) {
    let postgres = Postgres::start();
    let pooler = Pooler::serve(&postgres, "[pool]\nsize = 1\n");
    let mut holder = Raw::login(pooler.port(), "postgres", "postgres");
    holder.value("select 1");
    holder.query("begin").expect("a transaction");
    let mut waiter = Raw::login(pooler.port(), "postgres", "postgres");
    waiter.send(&Batch::new().query("select 1"));
    assert!(Raw::try_login(pooler.port(), "nobody", "postgres", None).is_err());
    Raw::login(pooler.port(), "postgres", "postgres").goodbye();
    until(
        "one waits and one has left",
        support::wait::PATIENCE,
        || {
            let metrics = pooler.http("/metrics").1;
            let waits = metrics
                .lines()
                .any(|line| line.starts_with("pgweir_clients_waiting{") && line.ends_with(" 1"));
            (waits && metrics.contains("reason=\"goodbye\"")).then_some(())
        },
    );
    holder.query("commit").expect("its end");
    waiter.read_until('Z');
    (postgres, pooler)
}

/// The labels of every series that pgweir exports: of a scrape, and of the manual for what has none yet.
fn exported() -> BTreeMap<String, BTreeSet<String>> {
    let (_postgres, pooler) = busy();
    let mut known = scraped(&pooler.http("/metrics").1);
    let rows = MANUAL.lines().filter_map(|line| line.strip_prefix("| `"));
    for line in rows.filter(|line| is_series(line)) {
        let columns: Vec<_> = line.split(" | ").collect();
        let name = columns[0].trim_end_matches('`').to_owned();
        let labels: BTreeSet<_> = columns[2]
            .split(", ")
            .map(|label| label.trim_matches(['`', ' ', '|']).to_owned())
            .collect();
        known.entry(name).or_default().extend(labels);
    }
    known
}

/// Whether something is, or begins with, the name of one of our series.
fn is_series(text: &str) -> bool {
    ["pgweir_", "process_"]
        .iter()
        .any(|prefix| text.starts_with(prefix))
}

/// The labels of each series of a scrape.
fn scraped(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut known: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().filter(|line| is_series(line)) {
        let series = line.rsplit_once(' ').expect("a value").0;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let labels = labels
            .split("\",")
            .filter_map(|label| label.split_once('='));
        known
            .entry(name.to_owned())
            .or_default()
            .extend(labels.map(|(name, _)| name.to_owned()));
    }
    known
}

/// The names of series and labels in an expression, without functions and texts.
fn names(expression: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let bare: String = expression
        .split('"')
        .step_by(2)
        .collect::<Vec<_>>()
        .join("\"\"");
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':' || c == '$';
    let mut rest = bare.as_str();
    while let Some(begin) = rest.find(is_name) {
        rest = &rest[begin..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        rest = behind;
        let behind = behind.trim_start();
        let is_function =
            behind.starts_with('(') || behind.starts_with("by ") || behind.starts_with("by(");
        let is_number = name.starts_with(|c: char| c.is_ascii_digit());
        let is_word = WORDS.contains(&name) || ["and", "or", "unless", "up"].contains(&name);
        if !is_function && !is_number && !is_word && !name.starts_with('$') {
            names.insert(name.to_owned());
        }
    }
    names
}

/// The names of all alerts.
fn alerts() -> Vec<&'static str> {
    RULES
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect()
}

/// The expressions of the rules: what stands behind `expr:`, on one line or on the indented ones below.
fn rule_expressions() -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut indent = None;
    for line in RULES.lines() {
        let depth = line.len() - line.trim_start().len();
        if let Some(expression) = line.trim().strip_prefix("expr: ") {
            indent = expression.starts_with(['|', '>']).then_some(depth);
            found.push(if indent.is_some() {
                String::new()
            } else {
                expression.trim_matches('\'').to_owned()
            });
        } else if let Some(outside) = indent
            && depth > outside
        {
            let last = found.last_mut().expect("an expression has begun");
            last.push_str(line.trim());
            last.push(' ');
        } else {
            indent = None;
        }
    }
    found
}

/// The queries of all panels and variables.
fn dashboard_expressions() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut found = Vec::new();
    collect(&dashboard["panels"], &mut found);
    for variable in dashboard["templating"]["list"]
        .as_array()
        .into_iter()
        .flatten()
    {
        if let Some(definition) = variable["definition"].as_str() {
            let inside = definition
                .strip_prefix("label_values(")
                .and_then(|rest| rest.strip_suffix(')'));
            let (series, label) = inside
                .and_then(|inside| inside.rsplit_once(", "))
                .expect("label_values(series, label)");
            found.push(format!("sum by ({label}) ({series})"));
        }
    }
    found
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            found.extend(
                object
                    .get("expr")
                    .and_then(Value::as_str)
                    .map(str::to_owned),
            );
            object.values().for_each(|inside| collect(inside, found));
        }
        Value::Array(list) => list.iter().for_each(|inside| collect(inside, found)),
        _ => {}
    }
}
