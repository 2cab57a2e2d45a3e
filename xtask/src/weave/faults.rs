//! Finds faults in the living service, each reported as `file:line: cause, cure`.

use std::fs;
use std::path::Path;

use toml_edit::{DocumentMut, Item};

use super::config::{self, Config};
use super::names;
use super::tree::{self, Source, Tree};
use super::updates;
use crate::lock;
use crate::variant::{TOGGLES, Variant};

/// Every fault of the template in `root`.
#[must_use]
pub fn find(root: &Path, config: &Config, tree: &Tree) -> Vec<String> {
    let mut faults = Vec::new();
    for source in &tree.sources {
        faults.extend(of_path(source));
        faults.extend(of_text(config, tree, source));
        if tree::is_overlay(&source.path) {
            faults.extend(of_overlay(config, tree, source));
        }
    }
    let targets: Vec<&str> = tree.sources.iter().map(|source| source.target.as_str()).collect();
    for path in config.unused(&targets) {
        faults.push(format!(
            "{}: ignores template/{path}, which isn't there, correct or delete it",
            config::FILE
        ));
    }
    faults.extend(of_hooks(root));
    faults.extend(of_record(root, config, tree));
    faults.extend(updates::find(root, tree));
    faults
}

fn of_path(source: &Source) -> Option<String> {
    let path = &source.path;
    if path.to_lowercase().contains(names::NAME) {
        return Some(format!(
            "template/{path}: `{}` in a path, which no answer changes, rename it",
            names::NAME
        ));
    }
    // The init hook moves everything in template/ next to these.
    let top = path.split('/').next()?;
    ["hooks", "template", config::FILE]
        .contains(&top)
        .then(|| format!("template/{path}: cargo-generate needs the name `{top}` itself, rename it"))
}

fn of_text(config: &Config, tree: &Tree, source: &Source) -> Vec<String> {
    let Some(text) = source.text.as_deref().filter(|_| source.path != lock::FILE) else {
        return vec![];
    };
    let mut faults = names::faults(&source.path, text);
    match source.pieces() {
        Err(more) => faults.extend(more),
        Ok(pieces) => {
            let present: Vec<Variant> =
                Variant::all().filter(|variant| tree.has(config, *variant, source)).collect();
            for piece in &pieces {
                let Some(condition) = &piece.condition else { continue };
                let on = present.iter().filter(|variant| condition.holds(**variant)).count();
                if on == 0 || on == present.len() {
                    let state = if on == 0 { "off" } else { "on" };
                    let what =
                        format!("`{condition}` is always {state} where this file is, delete the fence");
                    // The fence line itself is the one before.
                    faults.push(super::fence::Fault { line: piece.line - 1, what });
                }
            }
        }
    }
    faults
        .into_iter()
        .map(|fault| format!("template/{}:{}: {}", source.path, fault.line, fault.what))
        .collect()
}

fn of_overlay(config: &Config, tree: &Tree, source: &Source) -> Option<String> {
    let Source { path, target, .. } = source;
    let Some(toggle) = source.without else {
        return Some(format!(
            "template/{path}: an overlay lies in without/TOGGLE/, one of {}",
            TOGGLES.join(", ")
        ));
    };
    if let Some(other) =
        tree.sources.iter().find(|other| other.target == *target && other.without > source.without)
    {
        return Some(format!(
            "template/{path}: template/{} takes the same place, let one toggle decide it",
            other.path
        ));
    }
    if !tree.sources.iter().any(|other| other.path == *target) {
        return Some(format!(
            "template/{path}: takes the place of template/{target}, which isn't there, move or add it"
        ));
    }
    let comes_out = Variant::all().any(|variant| !variant.has(toggle) && !config.ignores(variant, target));
    (!comes_out)
        .then(|| format!("template/{path}: {} ignores it wherever it would lie, delete one", config::FILE))
}

/// The hooks have no way to read this list, so they repeat it.
fn of_hooks(root: &Path) -> Option<String> {
    const FILE: &str = "hooks/questions.rhai";
    let line = format!("export const TOGGLES = {TOGGLES:?};");
    let text = fs::read_to_string(root.join(FILE)).unwrap_or_default();
    (!text.lines().any(|other| other == line))
        .then(|| format!("{FILE}: lacks the toggles in order, write `{line}`"))
}

/// A service records the version of the template, which is this workspace's, and every answer.
fn of_record(root: &Path, config: &Config, tree: &Tree) -> Vec<String> {
    let record = tree.sources.iter().find(|source| source.path == tree::RECORD);
    let Some(text) = record.and_then(|source| source.text.as_deref()) else {
        return vec![format!("template/{}: is missing, add the version and the answers", tree::RECORD)];
    };
    let record: DocumentMut = text.parse().unwrap_or_default();
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap_or_default();
    let manifest: DocumentMut = manifest.parse().unwrap_or_default();
    let version = manifest.get("workspace").and_then(|table| table.get("package")?.get("version")?.as_str());
    let mut lacking = Vec::new();
    if let Some(version) =
        version.filter(|version| record.get("version").and_then(Item::as_str) != Some(version))
    {
        lacking.push(format!("version = \"{version}\""));
    }
    let values = record.get("values").and_then(Item::as_table_like);
    let unrecorded = |question: &&str| !values.is_some_and(|values| values.contains_key(question));
    let questions = config.questions().into_iter().filter(unrecorded);
    lacking.extend(questions.map(|question| format!("{question} = … under [values]")));
    lacking.into_iter().map(|line| format!("template/{}: lacks `{line}`, add it", tree::RECORD)).collect()
}
