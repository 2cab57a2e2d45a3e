//! Unused features, as the compiler sees them: each feature that `Cargo.toml` asks for is left out in turn. If
//! everything still compiles, tests included, it was not needed.
//!
//! A feature that another dependency turns on as well is not reported: asking for it changes nothing and costs nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use toml_edit::{DocumentMut, Item};

use crate::children::Scratch;

use super::check::Work;
use super::command::Failed;

/// Features that the code compiles without, and what each is there for.
const KEPT: [(&str, &str); 10] = [
    // What the program prints for people shows only when it runs.
    ("clap", "error-context"),
    ("clap", "help"),
    ("clap", "suggestions"),
    ("clap", "usage"),
    // Only faster: maps with sharded locks, and random bytes without a system call for each.
    ("governor", "dashmap"),
    ("uuid", "fast-rng"),
    // Documented as required by `conn::auto`, though this release works without it.
    ("hyper-util", "server-auto"),
    // The webhook's `https`, the runtime that sqlx looks for when it runs, and TLS for the database.
    ("reqwest", "rustls-no-provider"),
    ("sqlx", "runtime-tokio"),
    ("sqlx", "tls-rustls-ring-webpki"),
];

pub fn check(work: &mut Work<'_>) -> Result<String> {
    let folder = Scratch::new()?;
    let mut copy = Command::new("cp");
    work.run(copy.arg("-a").arg(work.subject.dir.join(".")).arg(folder.path()))?;
    let trial = Trial { folder: folder.path(), lock: read(folder.path(), "Cargo.lock")? };
    let manifest: DocumentMut = read(folder.path(), "Cargo.toml")?.parse().context("Cargo.toml")?;
    let whole = trial.tree(work)?;
    ensure!(trial.compiles(work)?, "the service does not compile with all its features");
    let (mut asked, mut unused) = (0, Vec::new());
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (name, feature) in features(&manifest, section) {
            asked += 1;
            trial.leave_out(&manifest, section, &name, &feature)?;
            let needless = trial.tree(work)? != whole && trial.compiles(work)?;
            if needless && !KEPT.contains(&(name.as_str(), feature.as_str())) {
                unused.push(format!("{name}/{feature}"));
            }
        }
    }
    ensure!(asked > 0, "no feature was found in Cargo.toml");
    ensure!(unused.is_empty(), "it compiles without {}", unused.join(", "));
    Ok(format!("{asked} features"))
}

fn read(folder: &Path, name: &str) -> Result<String> {
    fs::read_to_string(folder.join(name)).with_context(|| name.to_owned())
}

/// Every dependency of a section, paired with each feature that is requested of it.
fn features(manifest: &DocumentMut, section: &str) -> Vec<(String, String)> {
    let dependencies = manifest.get(section).and_then(Item::as_table_like);
    let pairs = dependencies.into_iter().flat_map(toml_edit::TableLike::iter).flat_map(|(name, item)| {
        let asked = item.get("features").and_then(Item::as_array);
        let texts = asked.into_iter().flatten().filter_map(toml_edit::Value::as_str);
        texts.map(|feature| (name.to_owned(), feature.to_owned())).collect::<Vec<_>>()
    });
    pairs.collect()
}

/// A copy of the service to leave features out of.
struct Trial<'a> {
    folder: &'a Path,
    lock: String,
}

impl Trial<'_> {
    fn leave_out(&self, manifest: &DocumentMut, section: &str, name: &str, feature: &str) -> Result<()> {
        let mut manifest = manifest.clone();
        let asked = manifest[section][name]["features"].as_array_mut().context("features are a list")?;
        asked.retain(|value| value.as_str() != Some(feature));
        fs::write(self.folder.join("Cargo.toml"), manifest.to_string())?;
        // With fewer features cargo writes a smaller lock, so the original is put back each time.
        Ok(fs::write(self.folder.join("Cargo.lock"), &self.lock)?)
    }

    /// Each crate except the service itself, with the features that it is built with.
    fn tree(&self, work: &mut Work<'_>) -> Result<BTreeSet<String>> {
        let mut tree = self.cargo(work, "tree");
        tree.args(["--edges", "normal,build,dev", "--format", "{p} {f}", "--prefix", "none", "--no-dedupe"]);
        let said = work.run(&mut tree)?;
        Ok(said.lines().filter(|line| !line.contains("(/")).map(str::to_owned).collect())
    }

    fn compiles(&self, work: &mut Work<'_>) -> Result<bool> {
        let mut check = self.cargo(work, "check");
        match work.run(check.args(["--all-targets", "--quiet"])) {
            Ok(_) => Ok(true),
            Err(error) if error.is::<Failed>() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn cargo(&self, work: &Work<'_>, subcommand: &str) -> Command {
        let mut command = Command::new("cargo");
        super::command::clean(&mut command);
        command.arg(subcommand).arg("--offline").current_dir(self.folder);
        command.env("CARGO_TARGET_DIR", work.context.folder.join("features"));
        command
    }
}
