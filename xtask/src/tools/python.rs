//! Programs that `PyPI` has, each in a Python environment of its own in the user's cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;

use crate::children::Child;
use crate::servers::tail;

use super::{INSTALL_BOUND, cache_folder, install, runs};

/// One version for all: a newer one may find what this one does not, on a day when nothing has changed here.
pub(super) struct Package {
    name: &'static str,
    version: &'static str,
    /// Where the program is in the environment; a `*` stands for a folder that Python's version names.
    program: &'static str,
}

pub(super) const SCHEMATHESIS: Package =
    Package { name: "schemathesis", version: "4.32.5", program: "bin/schemathesis" };

/// An OpenTelemetry collector. Its program tells another version than its package.
pub(super) const ROTEL: Package =
    Package { name: "rotel", version: "0.0.1a15", program: "lib/*/site-packages/rotel/rotel-agent" };

impl Package {
    /// Finds it, or installs it with pip.
    pub(super) fn set_up(&self, root: &Path, say: &(dyn Fn(&str) + Sync)) -> Result<PathBuf> {
        let (name, version) = (self.name, self.version);
        let home = cache_folder(root).join(format!("{name}-{version}"));
        if let Some(program) = self.found(&home) {
            return Ok(program);
        }
        if !has_venv() {
            say("installing python3-venv with apt-get");
            install(&["python3-venv"])?;
            ensure!(has_venv(), "no python3 that can make environments was found: install python3-venv");
        }
        say(&format!("installing {name} {version}, once, into {}", home.display()));
        let mut environment = Command::new("python3");
        // Anew: a run that was broken off may have left half of one.
        environment.args(["-m", "venv", "--clear"]).arg(&home);
        let mut package = Command::new(home.join("bin/python"));
        package.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        package.arg(format!("{name}=={version}"));
        for command in [&mut environment, &mut package] {
            finish(command).with_context(|| format!("{name} could not be installed"))?;
        }
        self.found(&home).with_context(|| format!("{name} {version} was installed and does not run"))
    }

    /// The program, if it runs.
    fn found(&self, home: &Path) -> Option<PathBuf> {
        let program = match self.program.split_once('*') {
            None => home.join(self.program),
            Some((before, after)) => {
                let mut folders = fs::read_dir(home.join(before)).ok()?.flatten();
                let within = |folder: fs::DirEntry| folder.path().join(after.trim_start_matches('/'));
                folders.find_map(|folder| Some(within(folder)).filter(|file| file.is_file()))?
            }
        };
        Command::new(&program)
            .arg("--version")
            .output()
            .is_ok_and(|it| it.status.success())
            .then_some(program)
    }
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
    bail!("the end of what was said:\n{}", tail(&said, 8))
}
