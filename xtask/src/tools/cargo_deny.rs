//! cargo-deny, built in the user's cache if it isn't installed.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::{cache_folder, cargo_install, on_path};

/// Pinned, so that a new lint in a later version fails nobody.
const VERSION: &str = "0.20.2";

/// Finds it, or builds it.
pub(super) fn set_up(root: &Path, say: &(dyn Fn(&str) + Sync)) -> Result<PathBuf> {
    let places = [on_path("cargo-deny"), Some(cache_folder(root).join("bin/cargo-deny"))];
    if let Some(found) = places.into_iter().flatten().find(|place| place.is_file()) {
        return Ok(found);
    }
    let built = cargo_install(root, ("cargo-deny", VERSION), &[], say)?;
    ensure!(built.is_file(), "cargo-deny {VERSION} was installed and is not there");
    Ok(built)
}
