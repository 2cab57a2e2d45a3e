//! What `cargo-generate.toml` says: the questions, and which files are left out of which variant.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use toml_edit::{Array, DocumentMut, Item, Value};

use crate::variant::{TOGGLES, Variant};

/// The name of the file at the root of the repository.
pub const FILE: &str = "cargo-generate.toml";

/// `cargo-generate.toml`.
#[derive(Debug)]
pub struct Config {
    document: DocumentMut,
    rules: Vec<Rule>,
}

/// Paths that are left out where an expression of toggles is true.
#[derive(Debug)]
struct Rule {
    /// Terms such as `!redis`: the toggle, and whether it has to be on.
    terms: Vec<(&'static str, bool)>,
    any: bool,
    paths: Vec<String>,
}

impl Rule {
    fn holds(&self, variant: Variant) -> bool {
        let mut terms = self.terms.iter();
        let mut holds = |(toggle, on): &(&str, bool)| variant.has(toggle) == *on;
        if self.any { terms.any(&mut holds) } else { terms.all(&mut holds) }
    }

    /// Whether it leaves out `target` or a folder that contains it.
    fn covers(&self, target: &str) -> bool {
        self.paths.iter().any(|path| {
            target.strip_prefix(path.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }
}

impl Config {
    /// Reads and checks the file in `root`.
    ///
    /// # Errors
    /// When it can't be read, or contains something that cargo-generate would silently ignore.
    pub fn read(root: &Path) -> Result<Self> {
        let text = fs::read_to_string(root.join(FILE)).with_context(|| format!("reading {FILE}"))?;
        let document: DocumentMut = text.parse().with_context(|| format!("{FILE} is not valid TOML"))?;
        let mut rules = Vec::new();
        if let Some(conditional) = document.get("conditional").and_then(Item::as_table_like) {
            for (expression, table) in conditional.iter() {
                rules.push(rule(expression, table)?);
            }
        }
        let questions = document.get("placeholders");
        for toggle in TOGGLES {
            let kind = questions.and_then(|all| all.get(toggle)?.get("type")?.as_str());
            if kind != Some("bool") {
                bail!(
                    "{FILE}: `{toggle}` is a toggle without a question, add `{toggle} = {{ type = \"bool\", … }}`"
                );
            }
        }
        Ok(Self { document, rules })
    }

    /// The names of the questions.
    #[must_use]
    pub fn questions(&self) -> Vec<&str> {
        let table = self.document.get("placeholders").and_then(Item::as_table_like);
        table.map(|table| table.iter().map(|(name, _)| name).collect()).unwrap_or_default()
    }

    /// Whether `target` is left out of `variant`.
    #[must_use]
    pub fn ignores(&self, variant: Variant, target: &str) -> bool {
        self.rules.iter().any(|rule| rule.holds(variant) && rule.covers(target))
    }

    /// The ignored paths that are neither a file in `targets` nor a folder of one.
    #[must_use]
    pub fn unused(&self, targets: &[&str]) -> Vec<&str> {
        let paths = self.rules.iter().flat_map(|rule| &rule.paths);
        paths
            .filter(|path| {
                let inside = format!("{path}/");
                !targets.iter().any(|target| target == path || target.starts_with(&inside))
            })
            .map(String::as_str)
            .collect()
    }

    /// The file's text with `include` listing `targets`.
    #[must_use]
    pub fn with_include(&self, targets: &BTreeSet<&str>) -> String {
        let mut document = self.document.clone();
        let mut include = Array::new();
        for target in targets {
            // The leading slash restricts it to this path: without it, it matches any file of that name.
            let mut value = Value::from(format!("/{target}"));
            value.decor_mut().set_prefix("\n    ");
            include.push_formatted(value);
        }
        include.set_trailing("\n");
        include.set_trailing_comma(true);
        let decor =
            document["template"].get("include").and_then(Item::as_value).map(|value| value.decor().clone());
        let mut include = Value::from(include);
        if let Some(decor) = decor {
            *include.decor_mut() = decor;
        }
        document["template"]["include"] = Item::Value(include);
        document.to_string()
    }
}

fn rule(expression: &str, table: &Item) -> Result<Rule> {
    let place = format!("{FILE}: [conditional.'{expression}']");
    let any = expression.contains("||");
    let mut terms = Vec::new();
    for term in expression.split(if any { "||" } else { "&&" }).map(str::trim) {
        let name = term.strip_prefix('!').unwrap_or(term);
        let Some(toggle) = TOGGLES.iter().find(|toggle| **toggle == name) else {
            bail!(
                "{place}: `{term}` is not a toggle, write {} or `!` and one, joined by && or by ||",
                TOGGLES.join(", ")
            );
        };
        terms.push((*toggle, name == term));
    }
    let Some(table) = table.as_table_like().filter(|table| table.len() == 1 && table.contains_key("ignore"))
    else {
        bail!("{place} holds `ignore = [\"path\", …]` and nothing else");
    };
    let mut paths = Vec::new();
    for path in table.get("ignore").and_then(Item::as_array).into_iter().flatten() {
        match path.as_str() {
            // cargo-generate joins paths without checking: an absolute one would delete that file on the user's disk.
            Some(path)
                if !path.starts_with('/') && !path.ends_with('/') && !path.contains(['*', '?', '\\']) =>
            {
                if path.split('/').any(|part| part == ".." || part == ".") {
                    bail!("{place}: `{path}` leaves the template, write it without dots");
                }
                paths.push(path.to_owned());
            }
            _ => bail!(
                "{place}: {path} is not a plain path below template/, write it without patterns and outer slashes"
            ),
        }
    }
    Ok(Rule { terms, any, paths })
}
