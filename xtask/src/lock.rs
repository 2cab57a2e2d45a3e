//! One `Cargo.lock.liquid` for all variants.
//!
//! `--locked` refuses a lockfile with a superfluous package, so each variant needs its own. Cargo derives them by
//! pruning the living one, and here they are merged: what all of them share is written as it is, the rest under the
//! letters of the variants that have it. The service's own package goes where its name sorts; the hooks say where.

mod merge;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::variant::{TOGGLES, Variant};
use crate::weave::config::Config;
use crate::weave::names::{self, Names};
use crate::weave::tree::Tree;

/// The lockfile's name in a service.
pub const FILE: &str = "Cargo.lock";

/// The committed merged lockfile in `root`, unless it was edited, or the toggles, manifest or lockfile changed since.
///
/// # Errors
/// When the living service's files can't be read.
pub fn current(root: &Path) -> Result<Option<String>> {
    let Ok(text) = fs::read_to_string(root.join("template/Cargo.lock.liquid")) else {
        return Ok(None);
    };
    let read =
        |name: &str| fs::read_to_string(root.join("template").join(name)).context(format!("reading {name}"));
    let (manifest, lock) = (read("Cargo.toml")?, read(FILE)?);
    let fits = text.split_once(SEAL_END).is_some_and(|(seal, body)| seal == sealed(&manifest, &lock, body));
    Ok(fits.then_some(text))
}

/// Merges the lockfiles of all variants.
///
/// # Errors
/// When cargo can't resolve a lockfile, or the living one is out of date.
pub fn merged(config: &Config, tree: &Tree) -> Result<String> {
    let living = |path: &str| {
        let source = tree.sources.iter().find(|source| source.path == path);
        source
            .and_then(|source| source.text.as_deref())
            .with_context(|| format!("template/{path} is missing"))
    };
    let (manifest, lock) = (living("Cargo.toml")?, living(FILE)?);
    let mut locks = Vec::new();
    for variant in Variant::all() {
        locks
            .push(resolved(config, tree, variant, lock).with_context(|| format!("the lock of `{variant}`"))?);
    }
    if locks.last().is_some_and(|full| full != lock) {
        bail!("template/{FILE} is out of date, run `cargo update --workspace` in template/");
    }
    let body = merge::merge(&locks)?.liquid();
    Ok(sealed(manifest, lock, &body) + SEAL_END + &body)
}

/// Resolves the lockfile of one variant: cargo keeps what is still needed as it is, and drops the rest.
fn resolved(config: &Config, tree: &Tree, variant: Variant, lock: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    for (path, text) in tree.expected(config, variant, &Names::living())? {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap_or(folder.path()))?;
        fs::write(path, text)?;
    }
    let file = folder.path().join(FILE);
    fs::write(&file, lock)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["update", "--workspace", "--offline"])
        .current_dir(folder.path())
        .output()?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{}\nif a crate isn't downloaded yet, run `cargo fetch` in template/", error.trim());
    }
    Ok(fs::read_to_string(file)?)
}

const SEAL_END: &str = "{% endcomment %}";

/// The opening of the merged lockfile: a comment with a digest of its inputs and of its body.
fn sealed(manifest: &str, lock: &str, body: &str) -> String {
    let mut hash = Sha256::new();
    // The toggles too: a new one adds variants, even though no lockfile has changed.
    for part in [manifest, lock, body, &TOGGLES.join(",")] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let digest: String = hash.finalize().iter().take(16).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    });
    format!("{{% comment %}}cargo weave {digest}")
}

/// The names of the crates in the living lockfile, as a module for the hooks.
///
/// # Errors
/// When the lockfile can't be parsed.
pub fn crates(root: &Path) -> Result<String> {
    let text = fs::read_to_string(root.join("template").join(FILE)).unwrap_or_default();
    let lock = merge::Lock::parse(&text)?;
    let mut names: Vec<&str> =
        lock.packages.iter().map(merge::Package::name).filter(|name| *name != names::NAME).collect();
    names.dedup();
    let mut out = String::from(
        "// Written by `cargo weave`: the crates in template/Cargo.lock, in the order in which cargo sorts them.\n\
         export const CRATES = [",
    );
    let mut width = usize::MAX;
    for name in names {
        if width.saturating_add(name.len() + 4) > 120 {
            out += "\n   ";
            width = 3;
        }
        let _ = write!(out, " \"{name}\",");
        width += name.len() + 4;
    }
    // Rhai takes no trailing comma here.
    Ok(out.trim_end_matches(',').to_owned() + "\n];\n")
}
