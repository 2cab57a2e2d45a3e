//! `cargo weave`: turns the living service into a template for cargo-generate.
//!
//! Each file of `template/` that contains a fence or a name of the living service gets a sibling `<file>.liquid`,
//! which cargo-generate uses in its place; `cargo-generate.toml` lists them. Everything written here is committed,
//! and `cargo weave --check` (and the tests) fail when it doesn't match the living service.

pub mod config;
mod faults;
pub mod fence;
pub mod names;
pub mod tree;
mod updates;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::lock;
use crate::variant::TOGGLES;
use config::Config;
use tree::{LIQUID, Source, Tree};

/// What `run` did, or found to be up to date.
#[derive(Debug)]
pub struct Report {
    /// How many files are woven.
    pub woven: usize,
    /// The files that were written or removed, relative to the root; none with `check`.
    pub changed: Vec<PathBuf>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files woven, {} written or removed", self.woven, self.changed.len())?;
        self.changed.iter().try_for_each(|path| write!(f, "\n  {}", path.display()))
    }
}

/// Brings the woven files of the template in `root` up to date, or with `check` only compares them.
///
/// # Errors
/// When the living service has faults, each as `file:line: cause, cure`; with `check` also when a file is stale.
pub fn run(root: &Path, check: bool) -> Result<Report> {
    let config = Config::read(root)?;
    let tree = Tree::read(root)?;
    let faults = faults::find(root, &config, &tree);
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }

    let mut outputs = siblings(&tree);
    if tree.sources.iter().any(|source| source.path == lock::FILE) {
        let merged = match lock::current(root)? {
            Some(text) => text,
            // Merging takes seconds, and what is there is known to be stale.
            None if check => String::new(),
            None => lock::merged(&config, &tree)?,
        };
        outputs.insert(lock::FILE.into(), merged);
    }
    let targets: BTreeSet<&str> = tree
        .sources
        .iter()
        .filter(|source| outputs.contains_key(&source.path))
        .map(|source| &*source.target)
        .collect();
    let include = config.with_include(&targets);
    let mut outputs: BTreeMap<PathBuf, String> =
        outputs.into_iter().map(|(path, text)| (format!("template/{path}{LIQUID}").into(), text)).collect();
    let woven = outputs.len();
    outputs.insert(config::FILE.into(), include);
    outputs.insert("hooks/crates.rhai".into(), lock::crates(root)?);

    let changed = changed(root, &tree, &outputs);
    if check && !changed.is_empty() {
        let paths: Vec<_> = changed.iter().map(|path| path.display().to_string()).collect();
        bail!("{}: not what the living service calls for, run `cargo weave`", paths.join(", "));
    }
    for path in &changed {
        match outputs.get(path) {
            Some(text) => fs::write(root.join(path), text),
            None => fs::remove_file(root.join(path)),
        }
        .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(Report { woven, changed })
}

/// The outputs that differ from what is there, and the siblings that are no longer needed.
fn changed(root: &Path, tree: &Tree, outputs: &BTreeMap<PathBuf, String>) -> Vec<PathBuf> {
    let siblings = tree.siblings.iter().map(|path| Path::new("template").join(path));
    let orphans = siblings.filter(|path| !outputs.contains_key(path));
    let stale =
        outputs.iter().filter(|(path, text)| fs::read_to_string(root.join(path)).ok().as_ref() != Some(text));
    orphans.chain(stale.map(|(path, _)| path.clone())).collect()
}

/// The woven text of each file that has to vary, by its path.
fn siblings(tree: &Tree) -> BTreeMap<String, String> {
    let varies = |source: &&Source| {
        let named = source.text.as_deref().is_some_and(names::contains_name);
        source.path != lock::FILE && (named || fenced(source))
    };
    // A file and its overlays share one target path, and Liquid reads either all files of a path or none.
    let targets: BTreeSet<&str> =
        tree.sources.iter().filter(varies).map(|source| source.target.as_str()).collect();
    let woven = tree.sources.iter().filter(|source| targets.contains(source.target.as_str()));
    woven.map(|source| (source.path.clone(), liquid(source))).collect()
}

fn fenced(source: &Source) -> bool {
    source.pieces().is_ok_and(|pieces| pieces.iter().any(|piece| piece.condition.is_some()))
}

/// `source` as Liquid. Tags are put on the lines that they guard, since a tag on a line of its own would leave an
/// empty line.
fn liquid(source: &Source) -> String {
    let pieces = source.pieces().unwrap_or_default();
    let mut out: String = pieces
        .iter()
        .map(|piece| match &piece.condition {
            Some(condition) => format!("{{% if {condition} %}}{}{{% endif %}}", names::liquid(piece.text)),
            None => names::liquid(piece.text),
        })
        .collect();
    if source.target == tree::RECORD {
        for toggle in TOGGLES {
            out = out.replace(&format!("{toggle} = true"), &format!("{toggle} = {{{{{toggle}}}}}"));
        }
    }
    out
}
