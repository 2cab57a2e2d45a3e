//! rotel, an OpenTelemetry collector whose program is distributed as a Python package.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{cache_folder, python, runs};

/// Pinned, like the other tools. The program reports a different version from that of its package.
const VERSION: &str = "0.0.1a15";

/// Finds it, or installs it with pip.
pub(super) fn set_up(root: &Path, say: &(dyn Fn(&str) + Sync)) -> Result<PathBuf> {
    let home = cache_folder(root).join(format!("rotel-{VERSION}"));
    if let Some(program) = program(&home) {
        return Ok(program);
    }
    say(&format!("installing rotel {VERSION}, once, into {}", home.display()));
    python::environment(&home, &[&format!("rotel=={VERSION}")], say)?;
    program(&home).with_context(|| format!("rotel {VERSION} was installed and does not run"))
}

/// Finds the program in an environment, where the name of a folder contains Python's version.
fn program(home: &Path) -> Option<PathBuf> {
    let mut folders = fs::read_dir(home.join("lib")).ok()?.flatten();
    let program = folders.find_map(|folder| {
        Some(folder.path().join("site-packages/rotel/rotel-agent")).filter(|file| file.is_file())
    })?;
    runs(program.to_str()?, &["version"]).then_some(program)
}
