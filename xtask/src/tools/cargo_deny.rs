//! cargo-deny, built in the user's cache where there is none.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::{cache_folder, finish, on_path};

/// One version for all, so that a new lint of its own fails nobody.
const VERSION: &str = "0.20.2";

/// Finds it, or builds it. Nothing is optimised: what takes the time is the build.
pub(super) fn set_up(root: &Path, say: &(dyn Fn(&str) + Sync)) -> Result<PathBuf> {
    let cache = cache_folder(root);
    let built = cache.join("bin/cargo-deny");
    if let Some(found) =
        [on_path("cargo-deny"), Some(built.clone())].into_iter().flatten().find(|it| it.is_file())
    {
        return Ok(found);
    }
    say(&format!("building cargo-deny {VERSION}, once, into {}", cache.display()));
    let mut command = Command::new("cargo");
    command.args(["install", "cargo-deny", "--version", VERSION, "--locked", "--root"]).arg(&cache);
    for setting in ["lto='off'", "codegen-units=16", "opt-level=0"] {
        command.args(["--config", &format!("profile.release.{setting}")]);
    }
    finish(command.env("CARGO_TARGET_DIR", root.join("target/tools/deny")))?;
    ensure!(built.is_file(), "cargo-deny {VERSION} was installed and is not there");
    let _ = std::fs::remove_dir_all(root.join("target/tools/deny"));
    Ok(built)
}
