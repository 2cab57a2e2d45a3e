//! Generates services with cargo-generate itself, and searches them for what must not be in them.

mod leftovers;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

pub use leftovers::{Scan, leftovers, scan, unused_exceptions};

use crate::variant::{TOGGLES, Variant};
use crate::weave::tree;

/// What to generate.
#[derive(Clone, Debug)]
pub struct Request {
    /// The binary to run.
    pub cargo_generate: PathBuf,
    /// A checkout of this repository, preferably a [`snapshot`]: all of it is copied first, `target/` included.
    pub template: PathBuf,
    pub variant: Variant,
    /// The service's name, which is also its folder's.
    pub name: String,
    /// The folder in which the service's folder is created.
    pub parent: PathBuf,
}

/// Generates a service and returns its folder.
///
/// # Errors
/// When cargo-generate fails; the error contains its output.
pub fn generate(request: &Request) -> Result<PathBuf> {
    let mut command = command(&request.cargo_generate);
    command.arg("--path").arg(&request.template).arg("--destination").arg(&request.parent);
    command.args(["--name", &request.name, "--silent", "--vcs", "none", "--no-workspace"]);
    for toggle in TOGGLES {
        command.args(["-d", &format!("{toggle}={}", request.variant.has(toggle))]);
    }
    let output = command.output().with_context(|| format!("running {}", request.cargo_generate.display()))?;
    if !output.status.success() {
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("cargo-generate made no `{}` of `{}`:\n{stdout}{stderr}", request.variant, request.name);
    }
    Ok(request.parent.join(&request.name))
}

/// `cargo-generate generate` without the user's own configuration for it.
#[must_use]
pub fn command(cargo_generate: &Path) -> Command {
    let mut command = Command::new(cargo_generate);
    command.arg("generate");
    // The option requires a file; without it, the user's own could supply answers.
    command.args(["--config", "/dev/null"]);
    for (key, _) in std::env::vars_os() {
        if key.to_str().is_some_and(|key| key.starts_with("CARGO_GENERATE_")) {
            command.env_remove(key);
        }
    }
    // It refuses to run when it can't determine the author, as in a container without $USER.
    command.env("CARGO_NAME", "slipway").env("RUST_BACKTRACE", "0");
    command
}

/// The files that were edited, added or removed in `repo` since its [`snapshot`].
///
/// # Errors
/// When one of them can't be listed.
pub fn differing(repo: &Path, snapshot: &Path) -> Result<Vec<PathBuf>> {
    let all: BTreeSet<PathBuf> = tree::files(repo)?.into_iter().chain(tree::files(snapshot)?).collect();
    Ok(all
        .into_iter()
        .filter(|path| fs::read(repo.join(path)).ok() != fs::read(snapshot.join(path)).ok())
        .collect())
}

/// Copies the files in the work tree of `repo` that git doesn't ignore to the new folder `into`.
///
/// # Errors
/// When a file can't be copied.
pub fn snapshot(repo: &Path, into: &Path) -> Result<()> {
    for path in tree::files(repo)? {
        let to = into.join(&path);
        fs::create_dir_all(to.parent().unwrap_or(into))?;
        fs::copy(repo.join(&path), &to)
            .with_context(|| format!("copying {} to {}", path.display(), to.display()))?;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    #[test]
    fn an_edit_beside_a_snapshot_is_seen() {
        let (repo, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["edited", "gone", "same"] {
            fs::write(repo.path().join(name), "before").unwrap();
        }
        snapshot(repo.path(), copy.path()).unwrap();
        assert!(differing(repo.path(), copy.path()).unwrap().is_empty());
        fs::write(repo.path().join("edited"), "after!").unwrap();
        fs::write(repo.path().join("new"), "").unwrap();
        fs::remove_file(repo.path().join("gone")).unwrap();
        let seen = differing(repo.path(), copy.path()).unwrap();
        assert_eq!(seen, ["edited", "gone", "new"].map(PathBuf::from));
    }
}
