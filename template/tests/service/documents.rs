//! The documents are true: the OpenAPI document describes what is served, and the guides name files, tests, events,
//! metrics and settings that exist.

use std::fs;
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::{Value, json};

use crate::app::{Answer, TestApp, path_of};
use crate::contract::DOCUMENT;
use crate::process::Launch;

#[tokio::test]
async fn openapi_command_prints_what_is_served() {
    let app = TestApp::spawn(&[]).await;
    let served = app.get("/openapi.json").await;
    assert_eq!((served.status, served.header("content-type")), (200, "application/json"));
    let printed = Launch::new(&[]).run("openapi").await;
    assert_eq!((printed.code, printed.out.join("\n")), (Some(0), served.body));
}

#[tokio::test]
async fn openapi_document_lists_the_routes_that_are_there() {
    let app = TestApp::spawn(&[]).await;
    let document = app.get("/openapi.json").await.json();
    let mut listed = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for method in methods.as_object().expect("methods").keys() {
            listed.push(format!("{method} {path}"));
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
            let task = path_of(&app.create("a").await);
            let answer = Answer::to(app.request(method, &path.replace("/v1/tasks/{id}", &task))).await;
            assert!(!matches!(answer.status, 404 | 405), "{path} {answer:?}");
        }
    }
    listed.sort_unstable();
    let served = [
        "delete /v1/tasks/{id}",
        "get /v1/tasks",
        "get /v1/tasks/{id}",
        "patch /v1/tasks/{id}",
        "post /v1/tasks",
        "post /v1/tasks/{id}/complete",
    ];
    assert_eq!(listed, served);
}

#[tokio::test]
async fn answers_have_the_shape_that_the_openapi_document_gives_them() {
    let app = TestApp::spawn(&[]).await;
    let document = app.get("/openapi.json").await.json();
    let task = app.create("a").await;
    fits(&document, "Task", &task);
    fits(&document, "Task", &app.complete(&task).await.json());
    fits(&document, "TaskPage", &app.get("/v1/tasks").await.json());
    fits(&document, "Problem", &app.get("/nowhere").await.json());
    fits(&document, "Problem", &app.patch(&path_of(&task), &json!({ "title": "" })).await.json());
}

#[tokio::test]
async fn openapi_document_defines_all_that_it_refers_to() {
    let printed = Launch::new(&[]).run("openapi").await.out.join("\n");
    let document: Value = serde_json::from_str(&printed).expect("JSON");
    let references: Vec<&str> =
        printed.split("\"$ref\": \"#").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(references.len() > 10, "{references:?}");
    for reference in references {
        assert!(document.pointer(reference).is_some(), "{reference}");
    }
    for (path, methods) in document["paths"].as_object().expect("paths") {
        for (method, route) in methods.as_object().expect("methods") {
            for (status, answer) in route["responses"].as_object().expect("responses") {
                assert!(answer["description"].is_string(), "{method} {path} {status}: {answer}");
                if status.starts_with(['4', '5']) {
                    let schema = &answer["content"]["application/problem+json"]["schema"]["$ref"];
                    assert_eq!(schema, "#/components/schemas/Problem", "{method} {path} {status}");
                }
            }
        }
    }
}

/// Checks that `value` has all the required properties of a schema, and none that the schema doesn't define.
fn fits(document: &Value, schema: &str, value: &Value) {
    let schema = &document["components"]["schemas"][schema];
    let properties = schema["properties"].as_object().unwrap_or_else(|| panic!("no properties: {schema}"));
    let value = value.as_object().expect("an object");
    for name in value.keys() {
        assert!(properties.contains_key(name), "{name} is not in {schema:#}");
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        assert!(value.contains_key(name.as_str().expect("a name")), "{name} is missing in {value:?}");
    }
}

/// A function that is documented to run forever does so only if `app` starts it.
#[test]
fn what_is_to_run_for_ever_is_started() {
    let code = sources(&root().join("src"));
    let app = fs::read_to_string(root().join("src/app.rs")).expect("the wiring");
    let mut found = 0;
    for (before, after) in code.match_indices("pub async fn ").map(|(at, _)| code.split_at(at)) {
        let told = before.rsplit("\n\n").next().unwrap_or_default();
        let name = after["pub async fn ".len()..].split('(').next().unwrap_or_default();
        if told.contains("forever") {
            assert!(app.contains(&format!(".{name}(")), "{name}");
            found += 1;
        }
    }
    assert!(found >= 3, "{found}");
}

#[tokio::test]
async fn docs_page_needs_nothing_from_elsewhere() {
    let app = TestApp::spawn(&[]).await;
    let page = app.get("/docs").await;
    assert_eq!((page.status, page.header("content-type")), (200, "text/html; charset=utf-8"));
    let mut files = vec![page.body];
    for (name, kind, holds) in
        [("/docs.js", "text/javascript", "fetch(\"openapi.json\")"), ("/docs.css", "text/css", "{")]
    {
        assert!(files[0].contains(name.trim_start_matches('/')), "the page uses {name}");
        let file = app.get(name).await;
        assert_eq!((file.status, file.header("content-type").split(';').next()), (200, Some(kind)), "{name}");
        assert!(file.body.contains(holds), "{name}: {}", file.body);
        files.push(file.body);
    }
    for file in files {
        assert!(
            !file.contains("http://") && !file.contains("https://") && !file.contains("url(//"),
            "{file}"
        );
    }
}

/// The root folder of the service's sources.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn checklist_names_files_and_tests_that_are_there() {
    let checklist = fs::read_to_string(root().join("docs/production-checklist.md")).expect("the checklist");
    let code = sources(&root().join("src")) + &sources(&root().join("tests"));
    let rows: Vec<&str> = checklist.lines().filter(|line| line.starts_with("| ") && is_row(line)).collect();
    assert!(rows.len() > 20, "{} rows", rows.len());
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_, _, files, tests] = cells[..] else {
            panic!("a row is number, requirement, files, tests: {row}")
        };
        assert!(!quoted(files).is_empty(), "no file: {row}");
        for file in quoted(files) {
            assert!(root().join("docs").join(file).exists() || root().join(file).exists(), "{file}: {row}");
        }
        for test in quoted(tests) {
            let name = test.rsplit("::").next().unwrap_or(test);
            let there = code.contains(&format!("fn {name}(")) || root().join(test).exists();
            assert!(there, "{test}: {row}");
        }
    }
}

#[test]
fn runbook_names_what_is_there() {
    let read = |name: &str| fs::read_to_string(root().join(name)).expect("a document");
    let (events_and_metrics, settings) = (read("docs/observability.md"), read("config/default.toml"));
    let is_setting = |name: &str| {
        let (section, key) = name.split_once('.').unwrap_or_default();
        let keys = settings.split(&format!("\n[{section}]\n")).nth(1).unwrap_or_default();
        let keys = keys.split("\n[").next().unwrap_or_default();
        keys.lines().any(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(" =")))
    };
    let mut named = 0;
    for document in ["docs/runbook.md", "docs/operations.md", "docs/data.md"] {
        for name in quoted(&prose(&read(document))) {
            let is_part = |part: &str| {
                !part.is_empty() && part.bytes().all(|byte| byte == b'_' || byte.is_ascii_lowercase())
            };
            let is_name = name.split('.').all(is_part);
            let is_file = [".md", ".yaml", ".env"].iter().any(|ending| name.ends_with(ending));
            if is_name && name.matches('.').count() == 1 && !is_file {
                let is_event = events_and_metrics.contains(&format!("`{name}`"));
                assert!(is_event || is_setting(name), "{document}: {name} is no event and no setting");
                named += 1;
            }
            if is_name && document == "docs/runbook.md" && name.contains('_') && !name.contains('.') {
                assert!(events_and_metrics.contains(name) || settings.contains(name), "{document}: {name}");
                named += 1;
            }
        }
    }
    assert!(named > 50, "{named} names");
}

#[test]
fn links_within_the_documents_lead_somewhere() {
    let mut links = 0;
    for name in
        ["README.md", "docs/operations.md", "docs/data.md", "docs/runbook.md", "docs/observability.md"]
    {
        let text = fs::read_to_string(root().join(name)).expect("a document");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            if file.contains("://") {
                continue;
            }
            let here = root().join(name);
            let target = if file.is_empty() { here } else { here.with_file_name(file) };
            let target =
                fs::read_to_string(&target).unwrap_or_else(|error| panic!("{name}: {link}: {error}"));
            let there = target.lines().any(|line| line.starts_with('#') && anchor(line) == heading);
            assert!(heading.is_empty() || there, "{name}: {link}");
            links += 1;
        }
    }
    assert!(links > 20, "{links} links");
}

/// The text between `from` and `to`, or from `from` to the end.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let rest = text.split_once(from).map(|(_, rest)| rest).unwrap_or_default();
    rest.split(to).next().unwrap_or_default()
}

/// All files with the extension `kind` in a folder of `deploy/`, as one text.
fn deployed(folder: &str, kind: &str) -> String {
    let files = fs::read_dir(root().join("deploy").join(folder)).expect("a folder");
    let files = files.map(|file| file.expect("an entry").path());
    let files = files.filter(|file| file.extension().is_some_and(|extension| extension == kind));
    files.map(|file| fs::read_to_string(file).expect("a file of text")).collect()
}

/// The section of the runbook that `url` links to, with its heading.
fn section<'a>(runbook: &'a str, url: &str) -> &'a str {
    // HEAD: whatever the default branch is called.
    let there = url.split_once("/blob/HEAD/docs/runbook.md#");
    let (_, wanted) = there.unwrap_or_else(|| panic!("not the runbook: {url}"));
    let sections = || runbook.split("\n## ").skip(1);
    let found = sections().find(|section| anchor(section.lines().next().unwrap_or_default()) == wanted);
    found.unwrap_or_else(|| panic!("no such section: {url}"))
}

#[test]
fn alerts_have_their_section_in_the_runbook_and_their_tests() {
    let runbook = fs::read_to_string(root().join("docs/runbook.md")).expect("the runbook");
    let (rules, tests) = (deployed("prometheus/rules", "yml"), deployed("prometheus/tests", "yml"));
    let mut alerts = Vec::new();
    for rule in rules.split("- alert: ").skip(1) {
        let alert = rule.lines().next().unwrap_or_default();
        let section = section(&runbook, between(rule, "runbook_url: ", "\n"));
        for part in [format!("**Alert:** `{alert}`").as_str(), "**Means:**", "**Look:**", "**Do:**"] {
            assert!(section.contains(part), "{alert}: no {part} in its section:\n{section}");
        }
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(part), "{alert} has no {part}");
        }
        let severity = between(rule, "severity: ", "\n");
        let cases: Vec<_> =
            tests.split("- alertname: ").filter(|case| case.lines().next() == Some(alert)).collect();
        assert!(cases.iter().any(|case| case.contains("exp_alerts: []")), "{alert}: no test without it");
        let fires = |case: &&str| case.contains(&format!("severity: {severity}\n"));
        assert!(cases.iter().any(fires), "{alert}, {severity}: no test in which it fires");
        alerts.push(alert);
    }
    assert!(alerts.len() > 10, "{alerts:?}");
    for name in runbook.split("**Alert:** ").skip(1).filter_map(|rest| quoted(rest).first().copied()) {
        assert!(alerts.contains(&name), "the runbook has a section for {name}, which is no alert");
    }
}

/// Querying a metric that no longer exists is not an error: the panel stays empty and the alert never fires.
#[test]
fn dashboards_and_rules_ask_for_metrics_that_are_there() {
    let runbook = fs::read_to_string(root().join("docs/runbook.md")).expect("the runbook");
    assert!(runbook.contains("{job="), "what to ask in the first minutes");
    let queries =
        [deployed("grafana/dashboards", "json"), deployed("prometheus/rules", "yml"), runbook].concat();
    let mut asked = 0;
    // Queries select our own metrics by our `job` label; names that a rule records have colons.
    for before in queries.match_indices("{job=").map(|(at, _)| &queries[..at]) {
        let is_part = |char: char| char.is_ascii_alphanumeric() || char == '_' || char == ':';
        let name = before.rsplit(|char| !is_part(char)).next().unwrap_or_default();
        if name.is_empty() || ["up", "ALERTS"].contains(&name) || name.contains(':') {
            continue;
        }
        let of_histogram = ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
        let mut there = [Some(name), of_histogram].into_iter().flatten();
        let there = there.any(|name| DOCUMENT.contains(&format!("| `{name}` |")));
        assert!(there, "{name} is no metric of docs/observability.md");
        asked += 1;
    }
    assert!(asked > 10, "{asked}");
}

#[test]
fn dashboards_link_to_sections_that_are_there() {
    let runbook = fs::read_to_string(root().join("docs/runbook.md")).expect("the runbook");
    let dashboards = deployed("grafana/dashboards", "json");
    let links: Vec<_> = dashboards.split('"').filter(|text| text.contains("/docs/runbook.md#")).collect();
    assert!(links.len() > 5, "{links:?}");
    for link in links {
        section(&runbook, link);
    }
}

/// The text of a document without its code blocks.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The anchor by which links refer to a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches('#').trim().to_lowercase();
    kept.chars()
        .filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-'))
        .collect::<String>()
        .replace(' ', "-")
}

/// Whether a table row starts with a number, which header rows don't.
fn is_row(line: &str) -> bool {
    line.trim_start_matches(['|', ' ']).starts_with(|first: char| first.is_ascii_digit())
}

/// The texts between backticks.
pub fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// All Rust files in a folder and its subfolders, as one text.
pub fn sources(folder: &Path) -> String {
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    let mut text = String::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                text += &fs::read_to_string(&path).expect("a file of text");
            }
        }
    }
    text
}
