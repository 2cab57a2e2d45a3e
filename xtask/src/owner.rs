//! Changes that owners make to their service, to check that updates keep them: a domain of their own with a module, a
//! route, a test, a dependency and (with `postgres`) a table, different defaults, a renamed file, a step in CI, a
//! section in the README.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use walkdir::WalkDir;

use crate::variant::Variant;

const MODULE: &str = r"//! Berths: where a ship lies, and how long it may be.

/// The lengths of our berths, in metres.
const LENGTHS: [u32; 3] = [12, 18, 30];

/// What a skipper asks for.
pub fn list() -> Vec<String> {
    LENGTHS.iter().map(|length| itoa::Buffer::new().format(*length).to_owned()).collect()
}
";
const QUERY: &str = r#"
/// Those that are taken.
pub async fn taken(pool: &sqlx::PgPool) -> sqlx::Result<i64> {
    sqlx::query_scalar("SELECT count(*) FROM berths").fetch_one(pool).await
}
"#;
const ROUTE: &str = r#"//! The routes of berths.

use axum::Json;
use axum::routing::get;
use utoipa_axum::router::OpenApiRouter;

pub fn router() -> OpenApiRouter {
    OpenApiRouter::new().route("/v1/berths", get(async || Json(crate::berths::list())))
}
"#;
const TEST: &str = r#"//! Berths, over HTTP.

use serde_json::json;

use crate::app::TestApp;

#[tokio::test]
async fn berths_are_listed() {
    let app = TestApp::spawn(&[]).await;
    let answer = app.get("/v1/berths").await;
    assert_eq!((answer.status, answer.json()), (200, json!(["12", "18", "30"])));
}
"#;
const MIGRATION: &str = "CREATE TABLE berths (\n    number integer PRIMARY KEY\n);\n";
const STEP: &str = "      - name: Count our berths\n        run: grep -c berths src/berths.rs\n";
const SECTION: &str = "## Berths\n\nWhat is ours in here: ships ask for a berth at `/v1/berths`.\n\n";

/// The dependencies of toggles follow this one.
pub const LAST_DEPENDENCY: &str =
    "uuid = { version = \"1\", features = [\"fast-rng\", \"serde\", \"v4\", \"v7\"] }\n";
/// Files, a line of each, and what is added after that line. `itoa` goes where `cargo add` puts it, which is next to
/// lines that toggles own; nothing else does.
const ADDED: [(&str, &str, &str); 7] = [
    ("src/lib.rs", "pub mod app;\n", "pub mod berths;\n"),
    ("src/http.rs", "pub mod admin;\n", "pub mod berths;\n"),
    (
        "src/http.rs",
        "        .merge(tasks::router().with_state(Arc::new(tasks)))\n",
        "        .merge(berths::router())\n",
    ),
    ("tests/service/main.rs", "mod app;\n", "mod berths;\n"),
    ("README.md", "More in [docs/operations.md](docs/operations.md#configuration).\n\n", SECTION),
    (".github/workflows/ci.yml", "      - run: cargo fmt --check\n", STEP),
    ("Cargo.toml", LAST_DEPENDENCY, "itoa = \"1\"\n"),
];
const CHANGED: [(&str, &str, &str); 5] = [
    ("config/default.toml", "request_timeout = \"10s\"", "request_timeout = \"8s\""),
    ("config/default.toml", "max_in_flight = 1000", "max_in_flight = 800"),
    ("tests/service/main.rs", "mod process;", "#[path = \"binary.rs\"]\nmod process;"),
    ("Cargo.toml", "version = \"0.1.0\"", "version = \"1.4.2\""),
    ("deploy/kubernetes/version/kustomization.yaml", "newTag: \"0.1.0\"", "newTag: \"1.4.2\""),
];
/// Files that depend on the variant in which they were written; every edited service has the first.
pub const OWN: [&str; 2] = ["src/berths.rs", "migrations/20261121101500_berths.sql"];
const RENAMED: (&str, &str) = ("tests/service/process.rs", "tests/service/binary.rs");
/// The files of the example that owners delete who start with its routes.
const EXAMPLE: [&str; 5] =
    ["src/http/tasks.rs", "src/task.rs", "src/tasks.rs", "tests/service/api.rs", "tests/service/pages.rs"];

/// Makes the owners' changes to the service in `folder`.
///
/// # Errors
/// When the service has changed since this was written: then update this to what owners would do now.
pub fn edit(folder: &Path, variant: Variant) -> Result<()> {
    let write = |path: &str, text: &str| fs::write(folder.join(path), text);
    for (path, behind, text) in ADDED {
        replace(folder, path, behind, &format!("{behind}{text}"))?;
    }
    for (path, from, to) in CHANGED {
        replace(folder, path, from, to)?;
    }
    fs::rename(folder.join(RENAMED.0), folder.join(RENAMED.1))?;
    write("src/http/berths.rs", ROUTE)?;
    write("tests/service/berths.rs", TEST)?;
    if variant.has("postgres") {
        write("src/berths.rs", &format!("{MODULE}{QUERY}"))?;
        write("migrations/20261121101500_berths.sql", MIGRATION)?;
    } else {
        write("src/berths.rs", MODULE)?;
    }
    // Like a build, adds the new dependency and the service's new version to the lock. Missing crates are fetched.
    let update = |more: &[&str]| {
        let mut cargo = Command::new("cargo");
        cargo.args(["update", "--workspace", "--quiet"]).args(more).current_dir(folder).output()
    };
    let mut output = update(&["--offline"])?;
    if !output.status.success() {
        output = update(&[])?;
    }
    ensure!(output.status.success(), "cargo update: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Removes the files of the example domain.
///
/// # Errors
/// When one isn't there.
pub fn remove_example(folder: &Path) -> Result<()> {
    for path in EXAMPLE {
        fs::remove_file(folder.join(path)).with_context(|| path.to_owned())?;
    }
    Ok(())
}

fn replace(folder: &Path, path: &str, from: &str, to: &str) -> Result<()> {
    let text = fs::read_to_string(folder.join(path)).with_context(|| path.to_owned())?;
    ensure!(text.matches(from).count() == 1, "{path} has not one `{}`", from.trim());
    fs::write(folder.join(path), text.replace(from, to))?;
    Ok(())
}

/// How often each line occurs in each file, by the file's path.
pub type Lines = BTreeMap<PathBuf, BTreeMap<String, usize>>;

/// Counts the lines of the service in `folder`.
///
/// # Errors
/// When a file can't be read.
pub fn lines(folder: &Path) -> Result<Lines> {
    let mut lines = Lines::new();
    let visible = |entry: &walkdir::DirEntry| entry.file_name() != ".git" && entry.file_name() != "target";
    for entry in WalkDir::new(folder).into_iter().filter_entry(visible) {
        let entry = entry?;
        if entry.file_type().is_file() {
            let file = lines.entry(entry.path().strip_prefix(folder)?.to_owned()).or_default();
            for line in String::from_utf8_lossy(&fs::read(entry.path())?).lines() {
                *file.entry(line.to_owned()).or_default() += 1;
            }
        }
    }
    Ok(lines)
}

/// The owners' lines: those that occur more often in `edited` than in `generated`.
#[must_use]
pub fn own(generated: &Lines, edited: &Lines) -> Lines {
    let mut own = Lines::new();
    for (path, lines) in edited {
        let before = if path == Path::new(RENAMED.1) { Path::new(RENAMED.0) } else { path };
        let before = generated.get(before);
        for (line, count) in lines {
            let known = before.and_then(|lines| lines.get(line)).copied().unwrap_or_default();
            if *count > known {
                own.entry(path.clone()).or_default().insert(line.clone(), count - known);
            }
        }
    }
    own
}

/// The lines in `own` that `merged` no longer has, each as `path: line`.
#[must_use]
pub fn lost(own: &Lines, merged: &Lines) -> Vec<String> {
    let mut lost = Vec::new();
    for (path, lines) in own {
        for (line, count) in lines {
            let left = merged.get(path).and_then(|lines| lines.get(line)).copied().unwrap_or_default();
            if left < *count {
                lost.push(format!("{}: {line}", path.display()));
            }
        }
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_gone_is_told() {
        let of = |lines: &[&str]| {
            let counted = lines.iter().map(|line| ((*line).to_owned(), 1)).collect();
            Lines::from([(PathBuf::from("a.rs"), counted)])
        };
        let own = own(&of(&["one", "two"]), &of(&["one", "mine", "yours"]));
        assert_eq!(lost(&own, &of(&["two", "mine", "yours"])), Vec::<String>::new());
        assert_eq!(lost(&own, &of(&["one", "two", "yours"])), ["a.rs: mine"]);
        assert_eq!(lost(&own, &Lines::new()).len(), 2);
    }
}
