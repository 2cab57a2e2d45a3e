//! The alert rules and their unit tests, checked with promtool, and the dashboards.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::check::Work;

/// The files in a folder, sorted.
fn files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}

pub fn check(work: &mut Work<'_>) -> Result<String> {
    let promtool = &work.context.tools.promtool;
    let folder = work.subject.dir.join("deploy/prometheus");
    let mut config = Command::new(promtool);
    config.args(["check", "config", "--lint=all", "--lint-fatal", "prometheus.yml"]).current_dir(&folder);
    work.run(&mut config)?;
    let tests = files(&folder.join("tests"))?;
    let mut new = Vec::new();
    for test in &tests {
        let rules = folder.join("rules").join(test.file_name().context("a file")?);
        let both = fs::read_to_string(test)? + &fs::read_to_string(rules)?;
        if work.is_new("promtool", &both) {
            new.push(test);
        }
    }
    if !new.is_empty() {
        work.run(Command::new(promtool).args(["test", "rules"]).args(&new))?;
    }
    let queries = queries(&work.subject.dir)?;
    let (all, new) = (tests.len(), new.len());
    Ok(format!("{all} files of tests, {new} of them new, {} queries of dashboards", queries.len()))
}

/// A query of a dashboard.
pub struct Query {
    /// The dashboard's file, and the panel, variable or annotation.
    pub place: String,
    pub text: String,
}

/// The queries that belong to no panel: those of variables and annotations.
fn dashboard_queries(name: &str, dashboard: &Value) -> Result<Vec<Query>> {
    let all = |pointer: &str| dashboard.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let mut queries = Vec::new();
    for variable in all("/templating/list").filter(|variable| variable["type"] == "query") {
        let text = variable["query"]["query"].as_str().unwrap_or_default();
        let selector = text.strip_prefix("label_values(").and_then(|text| Some(text.rsplit_once(", ")?.0));
        let text = selector.with_context(|| format!("{name}: no values of a label: {text}"))?.to_owned();
        queries.push(Query { place: format!("{name}: {}", variable["name"]), text });
    }
    for mark in all("/annotations/list") {
        let text = mark["expr"].as_str().with_context(|| format!("{name}: {mark}"))?.to_owned();
        queries.push(Query { place: format!("{name}: {}", mark["name"]), text });
    }
    Ok(queries)
}

/// Checks that a query selects only the chosen environment, and that its panel's unit and legend fit what it asks for.
fn check_query(query: &str, unit: &str, legend: &str) -> Result<()> {
    let selected = query.matches("{job=").count();
    let of_one = query.matches(r#", namespace=~"$namespace""#).count();
    ensure!(selected > 0 && of_one == selected, "it mixes environments");
    let quantile = query.split("histogram_quantile(").nth(1).and_then(|rest| rest.split_once(','));
    if let Some((quantile, _)) = quantile {
        ensure!(unit == "s", "a duration in {unit}");
        let named = legend.strip_prefix('p').map_or(Ok(99.0), str::parse::<f64>)?;
        let asked = quantile.parse::<f64>()? * 100.0;
        ensure!((named - asked).abs() < 1e-6, "{legend} shows the {asked}th percentile");
    }
    let counted = ["rate(", "changes("].iter().any(|of| query.contains(of)) && quantile.is_none();
    let share = query.contains(" / ");
    ensure!(!share || unit == "percentunit", "a share in {unit}");
    ensure!(!counted || share || ["ops", "reqps", "short"].contains(&unit), "a rate in {unit}");
    for (measured_in, shown_in) in [("_seconds{", "s"), ("_bytes{", "bytes")] {
        let as_it_is = query.contains(measured_in) && !counted && !share;
        ensure!(!as_it_is || unit == shown_in, "{measured_in} in {unit}");
    }
    Ok(())
}

/// All queries of the dashboards of the service in `dir`.
///
/// # Errors
/// When a panel doesn't say what it shows and in which unit, or when one of its queries doesn't fit that.
pub fn queries(dir: &Path) -> Result<Vec<Query>> {
    let mut queries = Vec::new();
    for file in files(&dir.join("deploy/grafana/dashboards"))? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(&file)?).context(name.clone())?;
        queries.extend(dashboard_queries(&name, &dashboard)?);
        let panels = dashboard["panels"].as_array().with_context(|| format!("{name} has no panels"))?;
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            let place = format!("{name}: {}", panel["title"]);
            for said in ["/title", "/description", "/fieldConfig/defaults/unit"] {
                let said_so = panel.pointer(said).is_some_and(|text| text.as_str() > Some(""));
                ensure!(said_so, "{place} has no {said}");
            }
            let stat = panel["type"] == "stat";
            let steps = panel.pointer("/fieldConfig/defaults/thresholds/steps").and_then(Value::as_array);
            ensure!(!stat || steps.is_some(), "{place} has no thresholds");
            ensure!(
                panel.pointer("/datasource/uid") == Some(&"${datasource}".into()),
                "{place}: data source"
            );
            let unit =
                panel.pointer("/fieldConfig/defaults/unit").and_then(Value::as_str).unwrap_or_default();
            for target in panel["targets"].as_array().into_iter().flatten() {
                let text =
                    target["expr"].as_str().with_context(|| format!("{place} asks nothing"))?.to_owned();
                let legend = target["legendFormat"].as_str().unwrap_or_default();
                check_query(&text, unit, legend).with_context(|| format!("{place}: {text}"))?;
                queries.push(Query { place: place.clone(), text });
            }
        }
    }
    ensure!(!queries.is_empty(), "no dashboard asks anything");
    Ok(queries)
}
