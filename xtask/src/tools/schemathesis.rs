//! schemathesis, in a Python environment of its own in the user's cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use super::{cache_folder, python};

/// Pinned: a newer version may find something new on a day when nothing has changed here.
const VERSION: &str = "4.32.5";

/// Finds it, or installs it with pip.
pub(super) fn set_up(root: &Path, say: &(dyn Fn(&str) + Sync)) -> Result<PathBuf> {
    let home = cache_folder(root).join(format!("schemathesis-{VERSION}"));
    let program = home.join("bin/schemathesis");
    if works(&program) {
        return Ok(program);
    }
    say(&format!("installing schemathesis {VERSION}, once, into {}", home.display()));
    python::environment(&home, &[&format!("schemathesis=={VERSION}")], say)?;
    ensure!(works(&program), "schemathesis {VERSION} was installed and does not run");
    Ok(program)
}

fn works(program: &Path) -> bool {
    let output = Command::new(program).arg("--version").output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(VERSION))
}
