//! Virtual environments in the user's cache, for tools that are Python packages.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{finish, install, runs};

/// Creates a virtual environment in `home` with `packages`, each given with its version.
pub(super) fn environment(home: &Path, packages: &[&str], say: &(dyn Fn(&str) + Sync)) -> Result<()> {
    if !has_venv() {
        say("installing python3-venv with apt-get");
        install(&["python3-venv"])?;
        ensure!(has_venv(), "no python3 that can make environments was found: install python3-venv");
    }
    let mut environment = Command::new("python3");
    // From scratch: an interrupted run may have left half of one.
    environment.args(["-m", "venv", "--clear"]).arg(home);
    finish(&mut environment)?;
    let mut pip = Command::new(home.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(packages);
    finish(&mut pip)
}

/// Debian leaves `ensurepip` out of python3, and venv then fails half-way.
fn has_venv() -> bool {
    runs("python3", &["-c", "import ensurepip, venv"])
}
