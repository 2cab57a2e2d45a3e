//! rotel, an OpenTelemetry collector whose program comes as a Python package.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{cache_folder, python, runs};

/// One version for all, as of the other tools. The program tells another one than its package.
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

/// Where it is in an environment: in a folder that Python's version names.
fn program(home: &Path) -> Option<PathBuf> {
    let mut folders = fs::read_dir(home.join("lib")).ok()?.flatten();
    let program = folders.find_map(|folder| {
        Some(folder.path().join("site-packages/rotel/rotel-agent")).filter(|file| file.is_file())
    })?;
    runs(program.to_str()?, &["version"]).then_some(program)
}
