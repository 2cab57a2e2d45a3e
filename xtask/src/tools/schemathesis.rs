//! schemathesis, in a Python environment of its own in the user's cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;

use crate::children::Child;
use crate::servers::tail;

use super::{INSTALL_BOUND, cache_folder, install, runs};

/// One version for all: a newer one may find what this one does not, on a day when nothing has changed here.
const VERSION: &str = "4.32.5";

/// Finds it, or installs it with pip.
pub(super) fn set_up(root: &Path, say: &(dyn Fn(&str) + Sync)) -> Result<PathBuf> {
    let home = cache_folder(root).join(format!("schemathesis-{VERSION}"));
    let program = home.join("bin/schemathesis");
    if works(&program) {
        return Ok(program);
    }
    if !has_venv() {
        say("installing python3-venv with apt-get");
        install(&["python3-venv"])?;
        ensure!(has_venv(), "no python3 that can make environments was found: install python3-venv");
    }
    say(&format!("installing schemathesis {VERSION}, once, into {}", home.display()));
    let mut environment = Command::new("python3");
    // Anew: a run that was broken off may have left half of one.
    environment.args(["-m", "venv", "--clear"]).arg(&home);
    let mut package = Command::new(home.join("bin/python"));
    package.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    package.arg(format!("schemathesis=={VERSION}"));
    for command in [&mut environment, &mut package] {
        finish(command)?;
    }
    ensure!(works(&program), "schemathesis {VERSION} was installed and does not run");
    Ok(program)
}

fn works(program: &Path) -> bool {
    let output = Command::new(program).arg("--version").output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(VERSION))
}

/// Debian leaves `ensurepip` out of python3, and venv then fails half-way.
fn has_venv() -> bool {
    runs("python3", &["-c", "import ensurepip, venv"])
}

fn finish(command: &mut Command) -> Result<()> {
    let log = tempfile::NamedTempFile::new()?;
    command.stdout(log.reopen()?).stderr(log.reopen()?);
    let status = Child::spawn(command, Signal::TERM)?.wait(INSTALL_BOUND)?;
    if status.is_some_and(|status| status.success()) {
        return Ok(());
    }
    let said = fs::read_to_string(log.path()).unwrap_or_default();
    bail!("schemathesis could not be installed; the end of what was said:\n{}", tail(&said, 8))
}
