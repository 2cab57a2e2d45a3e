//! Builds what is measured, as it is released.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::children::{Child, Scratch};
use crate::generate::{self, Request};
use crate::tools::Tools;
use crate::variant::Variant;

use super::site::WITHOUT_REDIS;

const BOUND: Duration = Duration::from_hours(1);

const SERVICES: [(Variant, &str); 3] =
    [(Variant::BASE, "bench-base"), (WITHOUT_REDIS, "bench-beside"), (Variant::FULL, "bench-full")];

/// The programs that are compared.
pub struct Programs {
    pub bare: PathBuf,
    pub rival: PathBuf,
    services: Vec<(Variant, PathBuf)>,
}

impl Programs {
    /// The programs that an earlier run built in `folder`.
    pub fn again(folder: &Path) -> Result<Self> {
        let built = |name: &str| {
            let program = folder.join("build/release").join(name);
            ensure!(program.is_file(), "{name} was not built before");
            Ok(program)
        };
        let services = SERVICES.iter().map(|(variant, name)| Ok((*variant, built(name)?)));
        Ok(Self { bare: built("bare")?, rival: built("rival")?, services: services.collect::<Result<_>>()? })
    }

    /// Generates the services and builds all programs in `folder`.
    pub fn build(root: &Path, folder: &Path, tools: &Tools, say: &dyn Fn(&str)) -> Result<Self> {
        let snapshot = Scratch::new()?;
        generate::snapshot(root, snapshot.path())?;
        let parent = folder.join("services");
        if parent.exists() {
            fs::remove_dir_all(&parent)?;
        }
        fs::create_dir_all(&parent)?;
        let mut services = Vec::new();
        for (variant, name) in SERVICES {
            let request = Request {
                cargo_generate: tools.cargo_generate.clone(),
                template: snapshot.path().to_path_buf(),
                variant,
                name: name.to_owned(),
                parent: parent.clone(),
            };
            let service = generate::generate(&request)?;
            say(&format!("building {variant} as it is released"));
            services.push((variant, built(&service, name, folder, true)?));
        }
        // Bare axum gets the full service's lockfile, so that both use the same versions of crates.
        let bare = parent.join("bare");
        let rival = parent.join("rival");
        copy(&snapshot.path().join("bench/bare"), &bare)?;
        copy(&snapshot.path().join("bench/loco"), &rival)?;
        fs::copy(parent.join("bench-full/Cargo.lock"), bare.join("Cargo.lock"))?;
        say("building bare axum");
        let bare = built(&bare, "bare", folder, false)?;
        say("building loco");
        let rival = built(&rival, "rival", folder, false)?;
        Ok(Self { bare, rival, services })
    }

    pub fn service(&self, variant: Variant) -> Result<&Path> {
        let found = self.services.iter().find(|(known, _)| *known == variant);
        found.map(|(_, program)| program.as_path()).with_context(|| format!("{variant} was not built"))
    }
}

/// Builds the crate in `dir`, and returns the program.
fn built(dir: &Path, name: &str, folder: &Path, locked: bool) -> Result<PathBuf> {
    let target = folder.join("build");
    let log = folder.join("build.log");
    let said = File::create(&log)?;
    let mut command = Command::new("cargo");
    command.args(["build", "--release"]).args(locked.then_some("--locked")).current_dir(dir);
    command.env("CARGO_TARGET_DIR", &target).stdout(said.try_clone()?).stderr(said);
    let status = Child::spawn(&mut command, Signal::TERM)?.wait(BOUND)?;
    let done = status.is_some_and(|status| status.success());
    ensure!(done, "{name} did not build: see {}", log.display());
    Ok(target.join("release").join(name))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}
