//! The image: built from the emitted Dockerfile, and run as an orchestrator would run it, without any daemon.

mod container;
mod store;

use std::env;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::process::geteuid;
use serde_json::Value;
use walkdir::WalkDir;

use crate::variant::Variant;

use super::check::Work;

use container::Container;
use store::Store;

/// The largest size allowed, in bytes: of the base variant's image, and of any other.
const BOUNDS: [u64; 2] = [8_000_000, 20_000_000];
const FILES: [&str; 2] = ["etc/ssl/certs/ca-certificates.crt", "service"];
/// The section that cargo-auditable writes the dependencies into.
const AUDITABLE: &[u8] = b".dep-v0";
/// Set when the process already has a mount namespace of its own.
const IN_NAMESPACE: &str = "SLIPWAY_OWN_MOUNTS";

/// Restarts this program in a mount namespace of its own, whose mounts go away when it ends, however it ends.
/// buildah leaves a mount behind after each command, which would keep `target/` from being removed.
///
/// # Errors
/// When not run as root, or when there is no `unshare`.
pub fn enter_mount_namespace() -> Result<()> {
    ensure!(geteuid().is_root(), "images are built as root");
    if env::var_os(IN_NAMESPACE).is_some() {
        return Ok(());
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(env::current_exe()?);
    let error = command.args(env::args_os().skip(1)).env(IN_NAMESPACE, "1").exec();
    Err(error).context("no unshare was found: install util-linux")
}

/// Builds the image twice, the second time from changed source, inspects its contents, and runs it.
pub fn check(work: &mut Work<'_>) -> Result<String> {
    let store = Store::open(work)?;
    let first = store.build(work)?;
    let mut source = fs::OpenOptions::new().append(true).open(work.subject.dir.join("src/task.rs"))?;
    // Different each time, or the layers of an earlier run would be reused.
    writeln!(source, "// Another source: {}.", fastrand::u64(..))?;
    let second = store.build(work)?;
    let compiled: Vec<&str> =
        second.said.lines().filter(|line| line.trim().starts_with("Compiling ")).collect();
    ensure!(compiled.len() == 1, "a change of the source compiled {} crates: {compiled:?}", compiled.len());

    configuration(&store.inspect(work)?)?;
    let container = Container::of(work, store.contents(work)?)?;
    let size = contents(work, &container.root)?;
    let seen = container.run(work)?;
    let megabytes = f64::from(u32::try_from(size)?) / 1e6;
    work.subject.facts.insert("image_mb", megabytes);
    let (first, second) = (first.time.as_secs(), second.time.as_secs());
    Ok(format!("{megabytes:.1} MB, built in {first} s, after a change in {second} s; {seen}"))
}

/// Checks the image's configuration.
fn configuration(image: &Value) -> Result<()> {
    let config = &image["Docker"]["config"];
    ensure!(config["User"] == "65532:65532", "it runs as {}", config["User"]);
    ensure!(config["Entrypoint"] == serde_json::json!(["/service"]), "it starts {}", config["Entrypoint"]);
    let check = &config["Healthcheck"]["Test"];
    ensure!(*check == serde_json::json!(["CMD", "/service", "healthcheck"]), "its health check is {check}");
    for label in ["title", "description", "source", "revision"] {
        let value =
            config["Labels"][format!("org.opencontainers.image.{label}")].as_str().unwrap_or_default();
        ensure!(!value.is_empty() && value != "unknown", "no label `{label}`: {}", config["Labels"]);
    }
    let variables = config["Env"].as_array().context("no environment")?;
    let known = |one: &&Value| {
        one.as_str().is_some_and(|one| one == "APP_ENV=production" || one.starts_with("PATH="))
    };
    ensure!(variables.iter().all(|one| known(&one)), "its environment is {variables:?}");
    Ok(())
}

/// Checks for the binary with its dependency list, the root certificates, and nothing else. Returns the image's size.
fn contents(work: &Work<'_>, root: &Path) -> Result<u64> {
    let (mut found, mut size) = (Vec::new(), 0);
    for entry in WalkDir::new(root).sort_by_file_name() {
        let entry = entry?;
        if !entry.file_type().is_dir() {
            found.push(entry.path().strip_prefix(root)?.display().to_string());
            size += entry.metadata()?.len();
        }
    }
    ensure!(found == FILES, "the image holds {found:?}");
    let binary = fs::read(root.join("service"))?;
    ensure!(
        binary.windows(AUDITABLE.len()).any(|part| part == AUDITABLE),
        "no list of dependencies in the binary"
    );
    let base = work.subject.variant == Some(Variant::BASE);
    let most = BOUNDS[usize::from(!base)];
    ensure!(size <= most, "{size} bytes, {most} are allowed");
    Ok(size)
}
