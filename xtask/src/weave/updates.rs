//! Finds faults that matter when services are updated: `ownership.toml` names what isn't there, or a migration differs
//! from the one that services have run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use toml_edit::{Array, DocumentMut, Item};

use super::tree::{Source, Tree};

const FILE: &str = "ownership.toml";
const MIGRATIONS: &str = "migrations/";

/// Every such fault of the template in `root`, each as `file: cause, cure`.
#[must_use]
pub fn find(root: &Path, tree: &Tree) -> Vec<String> {
    let document: DocumentMut = match fs::read_to_string(root.join(FILE)).unwrap_or_default().parse() {
        Ok(document) => document,
        Err(error) => return vec![format!("{FILE}: is not valid TOML, correct it: {error}")],
    };
    let mut faults = Vec::new();
    for key in ["seeds", "example"] {
        let listed = document.get(key).and_then(Item::as_array).into_iter().flat_map(Array::iter);
        for path in listed.filter_map(|path| path.as_str()) {
            if !tree.sources.iter().any(|source| Path::new(&source.path).starts_with(path)) {
                faults.push(format!("{FILE}: `{path}` isn't in template/, correct or delete it"));
            }
        }
    }
    let recorded = document.get("migrations").and_then(Item::as_table_like);
    let mut recorded: BTreeMap<&str, &str> = recorded
        .into_iter()
        .flat_map(|table| table.iter())
        .filter_map(|(name, hash)| Some((name, hash.as_str()?)))
        .collect();
    for source in tree.sources.iter().filter(|source| source.target.starts_with(MIGRATIONS)) {
        let name = &source.target[MIGRATIONS.len()..];
        faults.extend(of_migration(source, recorded.remove(name)));
    }
    for name in recorded.keys() {
        faults.push(format!("{FILE}: the migration {name} is gone, but services have run it: bring it back"));
    }
    faults
}

fn of_migration(source: &Source, recorded: Option<&str>) -> Option<String> {
    let path = &source.path;
    if source.without.is_some() || source.pieces().is_ok_and(|pieces| pieces.len() > 1) {
        return Some(format!(
            "template/{path}: varies with a toggle, which would edit it where it has run: make it two migrations"
        ));
    }
    let name = &source.target[MIGRATIONS.len()..];
    let hash = sha256(source.text.as_deref().unwrap_or_default());
    match recorded {
        Some(recorded) if recorded == hash => None,
        Some(_) => Some(format!(
            "template/{path}: was edited, but services have run it: put it back and add a migration, or, if it is in \
             no release, correct {FILE}: \"{name}\" = \"{hash}\""
        )),
        None => {
            Some(format!("{FILE}: lacks a migration, add it under [migrations]: \"{name}\" = \"{hash}\""))
        }
    }
}

fn sha256(text: &str) -> String {
    let mut hash = String::new();
    for byte in Sha256::digest(text) {
        let _ = write!(hash, "{byte:02x}");
    }
    hash
}
