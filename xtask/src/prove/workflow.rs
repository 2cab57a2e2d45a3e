//! The shell in the emitted workflows, run here step by step as CI's runners would.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value};

use crate::children::Scratch;

use super::check::Work;
use super::command::clean;

const WORKFLOWS: [&str; 2] = ["ci.yml", "release.yml"];
/// If fewer steps than this ran, the workflows can't have been read.
const FEWEST: u32 = 4;

/// A word that a script contains, why such a script can't run here, and whether later steps of its job build on it.
const NOT_RUNNABLE: [(&str, &str, bool); 3] = [
    ("docker ", "needs Docker", true),
    ("gh ", "needs GitHub", true),
    ("rustup toolchain", "would fetch the toolchain that is here already", false),
];

/// Runs every `run:` step of the workflows, in order, and reports each that can't run here.
pub fn run(work: &mut Work<'_>) -> Result<String> {
    let mut runner = Runner { scratch: Scratch::new()?, ran: 0, skipped: String::new(), work };
    for name in WORKFLOWS {
        let text = fs::read_to_string(runner.work.subject.dir.join(".github/workflows").join(name))?;
        let workflow: Value = yaml_serde::from_str(&text)?;
        // Read again with a type that keeps the jobs in the order of the file.
        let ordered: yaml_serde::Value = yaml_serde::from_str(&text)?;
        let jobs = ordered["jobs"].as_mapping().context("a workflow without jobs")?;
        for id in jobs.keys().filter_map(yaml_serde::Value::as_str) {
            runner.job(&format!("{name}: {id}"), &workflow, &workflow["jobs"][id])?;
        }
    }
    let Runner { ran, skipped, .. } = runner;
    ensure!(ran >= FEWEST, "no more than {ran} steps ran:\n{skipped}");
    print!("{skipped}");
    Ok(format!("{ran} steps, {} not", skipped.lines().count()))
}

struct Runner<'a, 'w> {
    scratch: Scratch,
    ran: u32,
    skipped: String,
    work: &'a mut Work<'w>,
}

impl Runner<'_, '_> {
    fn job(&mut self, title: &str, workflow: &Value, job: &Value) -> Result<()> {
        let mut blocked = None;
        let steps = job["steps"].as_array().context("a job without steps")?;
        for (at, step) in steps.iter().enumerate() {
            let shown = step["name"].as_str().or(step["run"].as_str());
            let title = format!("{title}: {}", shown.unwrap_or_default());
            let Some(script) = step["run"].as_str() else { continue };
            let elsewhere = NOT_RUNNABLE.iter().find(|(word, _, _)| script.contains(word));
            if let Some(reason) = elsewhere.map(|(_, reason, _)| *reason).or(blocked) {
                self.skip(&title, reason);
                blocked = blocked
                    .or(elsewhere.filter(|known| known.2).map(|_| "builds on a step that was not run"));
                continue;
            }
            let variables = self.variables(&[workflow, job, step], job)?;
            self.step(&title, script, &variables, at)?;
        }
        Ok(())
    }

    fn skip(&mut self, title: &str, reason: &str) {
        let _ = writeln!(self.skipped, "not run: {}: {title} ({reason})", self.work.subject.title);
    }

    /// What the workflow, the job and the step set. The proof's servers stand in for those that the job declares.
    fn variables(&self, levels: &[&Value], job: &Value) -> Result<BTreeMap<String, String>> {
        let nothing = Map::new();
        let mut variables = BTreeMap::new();
        for (name, value) in levels.iter().flat_map(|level| level["env"].as_object().unwrap_or(&nothing)) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            ensure!(!value.contains("${{"), "{name} of a step that could run here is {value}");
            variables.insert(name.clone(), value);
        }
        let servers = &self.work.context.servers;
        for (service, name) in [("postgres", "DATABASE_URL"), ("redis", "REDIS_URL")] {
            let declared = job["services"][service].is_object();
            ensure!(declared == variables.contains_key(name), "{name} and the service {service} go together");
            if declared {
                let url = match service {
                    "postgres" => servers.database_url("postgres"),
                    _ => servers.redis_url(self.work.subject.place),
                };
                variables.insert(name.to_owned(), url);
            }
        }
        Ok(variables)
    }

    fn step(
        &mut self,
        title: &str,
        script: &str,
        variables: &BTreeMap<String, String>,
        at: usize,
    ) -> Result<()> {
        let file = self.scratch.path().join(format!("{at}.sh"));
        fs::write(&file, script)?;
        let mut command = Command::new("bash");
        command.arg("-e").arg(&file).current_dir(&self.work.subject.dir);
        clean(&mut command);
        command.env("CARGO_TARGET_DIR", self.work.context.folder.join("build"));
        command.env("GITHUB_OUTPUT", self.scratch.path().join("output"));
        command.env("GITHUB_REF_NAME", format!("v{}", version(&self.work.subject.dir)?)).envs(variables);
        self.work.run(&mut command).with_context(|| title.to_owned())?;
        self.ran += 1;
        Ok(())
    }
}

/// The version in the service's manifest.
fn version(dir: &Path) -> Result<String> {
    let manifest: toml_edit::DocumentMut = fs::read_to_string(dir.join("Cargo.toml"))?.parse()?;
    Ok(manifest["package"]["version"].as_str().context("a package without a version")?.to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    #[test]
    fn no_workflow_depends_on_what_the_branch_is_called() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../template/.github/workflows");
        // A new service's branch has either name, depending on how git is configured on that machine.
        let both = "    branches: [main, master]\n  pull_request:\n";
        let texts = WORKFLOWS.map(|name| fs::read_to_string(folder.join(name)).unwrap());
        assert!(texts[0].contains(both));
        let text = texts.concat().replace(both, "");
        let mut words = text.split(|char: char| !char.is_ascii_alphabetic());
        assert_eq!(words.find(|word| ["main", "master"].contains(word)), None);
    }

    #[test]
    fn releases_are_made_only_of_what_ci_has_passed() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        for folder in [root.to_owned(), root.join("template")] {
            let text = fs::read_to_string(folder.join(".github/workflows/release.yml")).unwrap();
            let place =
                |part: &str| text.find(part).unwrap_or_else(|| panic!("{}: no {part}", folder.display()));
            assert!(text.contains("BRANCH: ${{ github.event.repository.default_branch }}"));
            assert!(place("gh run list --workflow ci.yml --branch \"$BRANCH\"") < place("gh release create"));
        }
    }
}
