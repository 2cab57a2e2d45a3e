//! Images without a daemon: buildah, in a store of its own, on a stand-in for the official base image, which is made of
//! Debian's packages and this machine's toolchain.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::children::Scratch;
use crate::prove::check::Work;

/// The Debian packages of the official image that a build needs.
const PACKAGES: &str = "ca-certificates,gcc,libc6-dev";
/// Builds all dependencies with link-time optimisation: minutes on a dedicated machine, many more on a shared one.
const BOUND: Duration = Duration::from_hours(1);
const ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";

pub struct Store {
    folder: PathBuf,
    /// How layers are stored: with overlayfs, or as copies where the system doesn't allow overlayfs mounts.
    driver: &'static str,
    /// The name of the image that is built.
    tag: String,
}

/// A build that is done.
pub struct Built {
    pub time: Duration,
    pub said: String,
}

impl Store {
    /// Makes the stand-in, unless a run before this one did.
    pub fn open(work: &mut Work<'_>) -> Result<Self> {
        let folder = work.context.folder.join("images");
        fs::create_dir_all(&folder)?;
        let mut store = Self { folder, driver: "overlay", tag: format!("localhost/{}", work.subject.name) };
        if work.run(store.buildah().arg("images")).is_err() {
            store.driver = "vfs";
        }
        let dockerfile = fs::read_to_string(work.subject.dir.join("Dockerfile"))?;
        let base = dockerfile.lines().find_map(|line| line.strip_prefix("FROM ")).context("no FROM")?;
        let base = base.split(' ').next().unwrap_or(base);
        let name = format!("docker.io/library/{base}");
        if work.run(store.buildah().args(["inspect", "--type", "image", &name])).is_err() {
            store.stand_in(work, base, &name)?;
        }
        Ok(store)
    }

    fn buildah(&self) -> Command {
        let mut command = Command::new("buildah");
        command.args(["--storage-driver", self.driver, "--root"]).arg(self.folder.join(self.driver));
        command.arg("--runroot").arg(self.folder.join("run"));
        command
    }

    fn stand_in(&self, work: &Work<'_>, base: &str, name: &str) -> Result<()> {
        let rustc = work.run(Command::new("rustc").arg("--version"))?;
        let version = base.split([':', '-']).nth(1).unwrap_or_default();
        ensure!(
            rustc.starts_with(&format!("rustc {version}.")),
            "{base} has another Rust than this machine: {rustc}"
        );
        let suite = base.rsplit('-').next().unwrap_or_default();
        let scratch = Scratch::new()?;
        let root = scratch.path().join("root");
        let mut bootstrap = Command::new("mmdebstrap");
        bootstrap.args(["--quiet", "--variant=minbase", &format!("--include={PACKAGES}"), suite]);
        work.run(bootstrap.arg(&root))?;
        let toolchain =
            fs::canonicalize(work.run(Command::new("rustc").args(["--print", "sysroot"]))?.trim())?;
        for part in ["bin", "lib"] {
            work.run(&mut copy(&toolchain.join(part), &root.join("usr/local")))?;
        }
        // Behind a proxy, only this machine's root certificates can verify the registry.
        work.run(&mut copy(&Path::new("/").join(ROOTS), &root.join(ROOTS)))?;
        let container = work.run(self.buildah().args(["from", "scratch"]))?;
        let container = container.trim();
        let mounted = work.run(self.buildah().args(["mount", container]))?;
        work.run(&mut copy(&root.join("."), Path::new(mounted.trim())))?;
        let path = "PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let home = "CARGO_HOME=/usr/local/cargo";
        work.run(self.buildah().args(["config", "--env", path, "--env", home, container]))?;
        work.run(self.buildah().args(["commit", "--quiet", "--rm", container, name]))?;
        Ok(())
    }

    /// Builds the subject's Dockerfile.
    pub fn build(&self, work: &mut Work<'_>) -> Result<Built> {
        let mut command = self.buildah();
        command.args(["build", "--isolation", "chroot", "--layers", "--pull-never", "--format", "docker"]);
        command.args(["--build-arg", "GIT_COMMIT=0123456789abcdef", "--tag", &self.tag, "."]);
        command.current_dir(&work.subject.dir);
        let before = fs::read_to_string(&work.log).unwrap_or_default().len();
        let started = Instant::now();
        work.run_within(&mut command, BOUND)?;
        let time = started.elapsed();
        Ok(Built { time, said: fs::read_to_string(&work.log)?.split_off(before) })
    }

    pub fn inspect(&self, work: &Work<'_>) -> Result<Value> {
        Ok(serde_json::from_str(&work.run(self.buildah().args(["inspect", "--type", "image", &self.tag]))?)?)
    }

    /// A copy of the image's files.
    pub fn contents(&self, work: &Work<'_>) -> Result<Scratch> {
        let scratch = Scratch::new()?;
        let container = work.run(self.buildah().args(["from", "--pull-never", &self.tag]))?;
        let mounted = work.run(self.buildah().args(["mount", container.trim()]))?;
        work.run(&mut copy(&Path::new(mounted.trim()).join("."), scratch.path()))?;
        work.run(self.buildah().args(["rm", container.trim()]))?;
        Ok(scratch)
    }
}

fn copy(from: &Path, to: &Path) -> Command {
    let mut command = Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    command
}
