//! Finds what must not be in a generated service: anything of the template or of a toggle that is off, and gaps where
//! a fence was.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context as _, Result};
use regex::Regex;
use walkdir::WalkDir;

use crate::lock;
use crate::variant::Variant;
use crate::weave::tree::RECORD;

/// What a search found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Each as `file:line: what: text`.
    pub leftovers: Vec<String>,
    /// The indices in `EXCEPTIONS` of those that were needed.
    exceptions: BTreeSet<usize>,
}

/// A word of an absent toggle that is allowed to stay.
struct Exception {
    toggle: &'static str,
    file: &'static str,
    /// A part of the line.
    text: &'static str,
    /// Why it stays.
    reason: &'static str,
}

const EXCEPTIONS: &[Exception] = &[
    Exception {
        toggle: "otlp",
        file: "src/telemetry/metrics.rs",
        text: "Collector",
        reason: "the type of metrics-process that reads the process's own metrics",
    },
    Exception {
        toggle: "rate_limit",
        file: "src/webhook.rs",
        text: "TOO_MANY_REQUESTS",
        reason: "what a receiver may answer, whose limits are its own",
    },
];

/// The words that belong to a toggle, in upper or lower case.
const WORDS: [(&str, &str); 4] = [
    ("postgres", r"(?i)postgres|sqlx|migrat|database|pgbouncer|psql|\bsql\b|\bpg_"),
    ("redis", r"(?i)redis|valkey"),
    ("rate_limit", r"(?i)governor|rate[ _-]?limit|\b429\b|too[ _-]?many[ _-]?requests"),
    ("otlp", r"(?i)otlp|opentelemetry|otel|collector"),
];

/// What belongs to the template alone.
const TEMPLATE: [(&str, &str); 7] = [
    ("a fence", r"(//|#|--)@"),
    ("a Liquid tag", r"\{%"),
    (
        "a variable of the template",
        r"\{\{-? *(project-name|crate_name|owner|description|variant|predecessor|postgres)",
    ),
    ("a file of the template", r"\bwithout/|\.liquid\b|\bhooks/|\.rhai\b|cargo[ -]generate"),
    ("a note to oneself", r"\b(TODO|FIXME|XXX)\b"),
    ("the living service", r"(?i)skiff"),
    ("the template's name", r"(?i)slipway"),
];

static WORDS_COMPILED: LazyLock<Vec<(&str, Regex)>> = LazyLock::new(|| compiled(&WORDS));
static TEMPLATE_COMPILED: LazyLock<Vec<(&str, Regex)>> = LazyLock::new(|| compiled(&TEMPLATE));

static TEMPLATE_NAME: LazyLock<&Regex> = LazyLock::new(|| &TEMPLATE_COMPILED[TEMPLATE.len() - 1].1);

fn compiled(table: &[(&'static str, &str)]) -> Vec<(&'static str, Regex)> {
    table
        .iter()
        .map(|(name, pattern)| (*name, Regex::new(pattern).expect("a pattern that a test compiles")))
        .collect()
}

/// The leftovers in the service in `dir`, each as `file:line: what: text`.
///
/// # Errors
/// When a file can't be read.
pub fn leftovers(dir: &Path, variant: Variant) -> Result<Vec<String>> {
    Ok(scan(dir, variant)?.leftovers)
}

/// Like [`leftovers`], and also records which exceptions were needed.
///
/// # Errors
/// When a file can't be read.
pub fn scan(dir: &Path, variant: Variant) -> Result<Scan> {
    let mut scan = Scan::default();
    let not_built = |name: &std::ffi::OsStr| name != ".git" && name != "target";
    for entry in
        WalkDir::new(dir).sort_by_file_name().into_iter().filter_entry(|entry| not_built(entry.file_name()))
    {
        let entry = entry?;
        let path = entry.path().strip_prefix(dir)?.to_string_lossy().into_owned();
        if entry.file_type().is_dir() {
            if fs::read_dir(entry.path())?.next().is_none() {
                scan.add(&path, 0, "an empty folder", "");
            }
        } else {
            scan.search_line(variant, &path, 0, &path);
            scan.search_orphan(dir, &path);
            let bytes = fs::read(entry.path()).with_context(|| path.clone())?;
            if let Ok(text) = String::from_utf8(bytes) {
                scan.search(variant, &path, &text);
            }
        }
    }
    Ok(scan)
}

/// The exceptions that none of `scans` needed, given the scans of all variants.
#[must_use]
pub fn unused_exceptions(scans: &[Scan]) -> Vec<String> {
    let unused = EXCEPTIONS
        .iter()
        .enumerate()
        .filter(|(at, _)| !scans.iter().any(|scan| scan.exceptions.contains(at)));
    unused.map(|(_, it)| format!("{}: `{}` ({})", it.file, it.text, it.reason)).collect()
}

impl Scan {
    fn add(&mut self, path: &str, line: usize, what: &str, text: &str) {
        self.leftovers.push(format!("{path}:{line}: {what}: {}", text.trim()));
    }

    fn search(&mut self, variant: Variant, path: &str, text: &str) {
        if path == lock::FILE {
            // The rest is checksums and details of other crates.
            for (at, line) in text.lines().enumerate().filter(|(_, line)| line.starts_with("name = ")) {
                self.search_line(variant, path, at + 1, line);
            }
            return;
        }
        // A README may say once where the service comes from.
        let origin = text.lines().position(|line| path == "README.md" && TEMPLATE_NAME.is_match(line));
        for (at, line) in text.lines().enumerate().filter(|(at, _)| origin != Some(*at)) {
            self.search_line(variant, path, at + 1, line);
        }
        self.search_gaps(path, text);
    }

    fn search_line(&mut self, variant: Variant, path: &str, number: usize, line: &str) {
        // The record names every toggle and the template: that is what it is for.
        if path == RECORD {
            return;
        }
        for (what, pattern) in TEMPLATE_COMPILED.iter() {
            if pattern.is_match(line) {
                self.add(path, number, what, line);
            }
        }
        for (toggle, pattern) in WORDS_COMPILED.iter().filter(|(toggle, _)| !variant.has(toggle)) {
            if pattern.is_match(line) {
                let fits = |e: &Exception| e.toggle == *toggle && e.file == path && line.contains(e.text);
                match EXCEPTIONS.iter().position(fits) {
                    Some(at) => drop(self.exceptions.insert(at)),
                    None => self.add(path, number, &format!("{toggle} is off"), line),
                }
            }
        }
    }

    /// A file that no `mod` names is compiled into neither program nor tests, and the compiler doesn't report it.
    fn search_orphan(&mut self, dir: &Path, path: &str) {
        let file = Path::new(path);
        let (Some(name), Some(folder)) = (path.strip_suffix(".rs"), file.parent()) else { return };
        let name = name.rsplit('/').next().unwrap_or(name);
        let target = ["lib", "main", "mod"].contains(&name) || folder == Path::new("tests");
        if target || !["src", "tests"].iter().any(|top| file.starts_with(top)) {
            return;
        }
        let above = ["lib.rs", "main.rs", "mod.rs"].map(|other| folder.join(other));
        let named = |other: &PathBuf| {
            let text = fs::read_to_string(dir.join(other)).unwrap_or_default();
            text.lines().any(|line| {
                line.split_whitespace()
                    .skip_while(|word| word.starts_with("pub"))
                    .eq(["mod", &format!("{name};")])
            })
        };
        if !above.iter().chain([&folder.with_extension("rs")]).any(named) {
            self.add(path, 0, "a file that no `mod` names", "");
        }
    }

    /// Empty lines left by a fence that stood between two of them, or at the edge of a block or a file.
    fn search_gaps(&mut self, path: &str, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        let rust = Path::new(path).extension().is_some_and(|extension| extension == "rs");
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.trim().is_empty()) {
            let before = at.checked_sub(1).map(|before| lines[before].trim_end());
            let after = lines.get(at + 1).map(|after| after.trim_start());
            let what = match (before, after) {
                (None, _) => "an empty line begins the file",
                (_, None) => "an empty line ends the file",
                (_, Some("")) => "two empty lines",
                (Some(before), _) if rust && before.ends_with('{') => "an empty line after `{`",
                (_, Some(after)) if rust && after.starts_with('}') => "an empty line before `}`",
                _ => continue,
            };
            self.add(path, at + 1, what, line);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    /// What is found in a service that consists of one file.
    fn found(variant: Variant, path: &str, text: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        leftovers(folder.path(), variant).unwrap()
    }

    #[test]
    fn finds_what_is_of_the_template() {
        for text in [
            "//@ if redis",
            "  #@ end",
            "<!--@ if otlp -->",
            "{% if redis %}",
            "{{project-name}}",
            "{{ owner }}",
            "see without/redis/src",
            "a.toml.liquid",
            "hooks/check.rhai",
            "cargo generate",
            "// TODO",
            "skiff",
            "Slipway",
        ] {
            assert!(!found(Variant::FULL, "a.md", text).is_empty(), "{text}");
        }
        for text in
            ["${{ github.repository_owner }}", "{{ $labels.route }}", "webhooks/", "mastodon", "{{name}}"]
        {
            assert_eq!(found(Variant::FULL, "a.md", text), Vec::<String>::new());
        }
    }

    #[test]
    fn lets_the_record_and_one_line_name_the_template() {
        assert_eq!(
            found(Variant::BASE, "slipway.toml", "template = \"slipway\"\nredis = false\n"),
            Vec::<String>::new()
        );
        assert_eq!(found(Variant::FULL, "README.md", "Made with slipway.\n"), Vec::<String>::new());
        assert_eq!(
            found(Variant::FULL, "README.md", "slipway\nslipway\n"),
            ["README.md:2: the template's name: slipway"]
        );
    }

    #[test]
    fn finds_words_of_absent_toggles_alone() {
        let words = [
            "A database",
            "sqlx::query",
            "Migration",
            "REDIS_URL",
            "tower_governor",
            "rate limits",
            "429",
            "OTel",
        ];
        for text in words {
            assert!(!found(Variant::BASE, "a.md", text).is_empty(), "{text}");
            assert_eq!(found(Variant::FULL, "a.md", text), Vec::<String>::new());
        }
        assert!(found(Variant::BASE, "src/redis.rs", "")[0].starts_with("src/redis.rs:0: redis is off: "));
        assert_eq!(found("otlp".parse().unwrap(), "a.md", "otlp\nredis\n"), ["a.md:2: redis is off: redis"]);
    }

    #[test]
    fn finds_code_that_no_module_names() {
        let orphan = ["src/a/b.rs:0: a file that no `mod` names: "];
        assert_eq!(found(Variant::FULL, "src/a/b.rs", ""), orphan);
        assert_eq!(found(Variant::FULL, "src/main.rs", ""), Vec::<String>::new());
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("src/a")).unwrap();
        fs::write(folder.path().join("src/main.rs"), "mod a;\n").unwrap();
        fs::write(folder.path().join("src/a.rs"), "pub(super) mod b;\n").unwrap();
        fs::write(folder.path().join("src/a/b.rs"), "").unwrap();
        assert_eq!(leftovers(folder.path(), Variant::FULL).unwrap(), Vec::<String>::new());
        fs::write(folder.path().join("src/a.rs"), "mod bc;\n// mod b;\n").unwrap();
        assert_eq!(leftovers(folder.path(), Variant::FULL).unwrap(), orphan);
    }

    #[test]
    fn reads_nothing_but_names_in_a_lock() {
        let lock = "name = \"redis\"\nsource = \"otlp\"\n";
        assert_eq!(
            found(Variant::BASE, "Cargo.lock", lock),
            ["Cargo.lock:1: redis is off: name = \"redis\""]
        );
    }

    #[test]
    fn finds_gaps() {
        for text in ["\na\n", "a\n\n", "a\n\n\nb\n", "fn a() {\n\n    b();\n}\n", "fn a() {\n    b();\n\n}\n"]
        {
            assert_eq!(found(Variant::FULL, "a.rs", text).len(), 1, "{text:?}");
        }
        assert_eq!(found(Variant::FULL, "a.rs", "a();\n\nb();\n"), Vec::<String>::new());
    }

    #[test]
    fn finds_empty_folders() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("src")).unwrap();
        assert_eq!(leftovers(folder.path(), Variant::FULL).unwrap(), ["src:0: an empty folder: "]);
    }

    #[test]
    fn an_exception_that_nothing_needs_is_told() {
        assert_eq!(unused_exceptions(&[]).len(), EXCEPTIONS.len());
    }
}
