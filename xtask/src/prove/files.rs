//! The files of a service that no compiler reads, each checked with a linter or schema of its own.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::iter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize as _;
use serde_json::Value;
use walkdir::WalkDir;

use crate::children::Scratch;
use crate::tools::Linters;

use super::check::Work;

/// The oldest and the newest Kubernetes version whose schemas the manifests must match.
const KUBERNETES: [&str; 2] = ["1.33", "1.37"];
/// The API of the resources that belong to the Prometheus operator and not to Kubernetes.
const OPERATOR: &str = "monitoring.coreos.com/v1";

/// Checks all such files of a service.
pub fn check(work: &mut Work<'_>) -> Result<String> {
    let files = Files::of(work)?;
    files.dockerfile()?;
    files.schema("compose-spec", &files.named("compose.yaml")?)?;
    files.schema("dependabot", &files.named(".github/dependabot.yml")?)?;
    let workflows = files.workflows()?;
    let manifests = files.manifests()?;
    Ok(format!("{workflows} workflows, {manifests} manifests"))
}

/// Checks the workflows and scripts of this repository.
pub fn check_own(work: &mut Work<'_>) -> Result<String> {
    let files = Files::of(work)?;
    for script in [".ci/run", "xtask/clippy.sh", "xtask/generated.sh", "xtask/rustdoc.sh"] {
        files.shellcheck(&files.named(script)?)?;
    }
    let workflows = files.workflows()?;
    Ok(format!("{workflows} workflows"))
}

struct Files<'a> {
    work: &'a Work<'a>,
    linters: &'a Linters,
    dir: &'a Path,
    /// For files that are written only to be checked.
    scratch: Scratch,
}

impl<'a> Files<'a> {
    fn of(work: &'a Work<'a>) -> Result<Self> {
        let linters = work.context.tools.linters.as_ref().context("the linters were not set up")?;
        Ok(Self { work, linters, dir: &work.subject.dir, scratch: Scratch::new()? })
    }

    fn named(&self, name: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        ensure!(path.is_file(), "{name} is missing");
        Ok(path)
    }

    fn linter(&self, program: &str) -> Command {
        let mut command = Command::new(self.linters.bin.join(program));
        command.current_dir(self.dir);
        command
    }

    fn dockerfile(&self) -> Result<()> {
        if !self.work.is_new("hadolint", &fs::read_to_string(self.named("Dockerfile")?)?) {
            return Ok(());
        }
        self.work.run(self.linter("hadolint").args(["--no-color", "Dockerfile"]))?;
        Ok(())
    }

    fn schema(&self, name: &str, file: &Path) -> Result<()> {
        if !self.work.is_new(name, &fs::read_to_string(file)?) {
            return Ok(());
        }
        let schema = format!("vendor.{name}");
        let mut command = self.linter("check-jsonschema");
        self.work.run(command.args(["--color", "never", "--builtin-schema", &schema]).arg(file))?;
        Ok(())
    }

    /// Checks their syntax, expressions, schema and security, and the shell in their steps. Returns how many there are.
    fn workflows(&self) -> Result<usize> {
        let workflows = files_in(&self.dir.join(".github/workflows"), "yml")?;
        ensure!(!workflows.is_empty(), "no workflow");
        let dependabot = self.dir.join(".github/dependabot.yml");
        let all = workflows.iter().chain(Some(&dependabot).filter(|file| file.is_file()));
        let texts = all.map(fs::read_to_string).collect::<Result<Vec<_>, _>>()?;
        if !self.work.is_new("zizmor", &texts.concat()) {
            return Ok(workflows.len());
        }
        let mut zizmor = self.linter("zizmor");
        zizmor.args(["--offline", "--no-progress", "--color", "never", "--min-severity", "low", ".github"]);
        self.work.run(&mut zizmor)?;
        for workflow in &workflows {
            self.schema("github-workflows", workflow)?;
        }
        // actionlint passes the shell in the steps to shellcheck, which it looks for on the PATH.
        let mut actionlint = self.linter("actionlint");
        actionlint.arg("-no-color").args(&workflows).env("PATH", self.path()?);
        self.work.run(&mut actionlint)?;
        Ok(workflows.len())
    }

    fn shellcheck(&self, script: &Path) -> Result<()> {
        self.work.run(self.linter("shellcheck").arg("--color=never").arg(script))?;
        Ok(())
    }

    /// The PATH, with the linters first.
    fn path(&self) -> Result<OsString> {
        let own = env::var_os("PATH").unwrap_or_default();
        Ok(env::join_paths(iter::once(self.linters.bin.clone()).chain(env::split_paths(&own)))?)
    }

    /// Builds each kustomization as `kubectl apply -k` would, and validates the result against the API's schemas.
    fn manifests(&self) -> Result<usize> {
        let (mut count, mut own, mut operators, mut monitors) = (0, Vec::new(), Vec::new(), String::new());
        for entry in WalkDir::new(self.dir.join("deploy")).sort_by_file_name() {
            let entry = entry?;
            // A component is built only as part of a kustomization.
            if entry.file_name() != "kustomization.yaml"
                || fs::read_to_string(entry.path())?.contains("\nkind: Component\n")
            {
                continue;
            }
            let folder = entry.path().parent().unwrap_or(self.dir);
            let built = self.work.run(Command::new(&self.linters.kubectl).arg("kustomize").arg(folder))?;
            let images = built.lines().filter_map(|line| line.trim().strip_prefix("image: "));
            let untagged =
                images.filter(|image| !image.rsplit('/').next().is_some_and(|name| name.contains(':')));
            ensure!(untagged.count() == 0, "{}: an image without a tag", entry.path().display());
            for document in yaml_serde::Deserializer::from_str(&built) {
                let resource = Value::deserialize(document)?;
                count += 1;
                if resource["apiVersion"] == OPERATOR {
                    let file = self.scratch.path().join(format!("{count}.json"));
                    monitors += &resource.to_string();
                    fs::write(&file, resource.to_string())?;
                    operators.push(file);
                } else {
                    own.push(resource.to_string());
                }
            }
        }
        self.kubernetes(&own)?;
        ensure!(!operators.is_empty(), "no resource for the Prometheus operator");
        let (file, alerts) = (self.scratch.path().join("alerts.json"), self.alerts()?.to_string());
        fs::write(&file, &alerts)?;
        operators.push(file);
        if !self.work.is_new("operator", &(monitors + &alerts)) {
            return Ok(count + 1);
        }
        let mut command = Command::new(&self.linters.node);
        command.arg(self.work.context.root.join("xtask/operator.mjs")).arg(&self.linters.modules);
        self.work.run(command.args(&operators))?;
        Ok(count + 1)
    }

    /// The alerts in the form that the Prometheus operator takes: the same rules that Prometheus itself would read.
    fn alerts(&self) -> Result<Value> {
        let alerts: Value = yaml_serde::from_str(&self.work.run(self.linter("just").arg("alerts"))?)?;
        let mut groups = Vec::new();
        for file in files_in(&self.dir.join("deploy/prometheus/rules"), "yml")? {
            let rules: Value = yaml_serde::from_str(&fs::read_to_string(file)?)?;
            groups.extend(rules["groups"].as_array().context("a file without groups")?.clone());
        }
        ensure!(
            alerts["spec"]["groups"] == Value::Array(groups),
            "`just alerts` prints rules that differ from the files"
        );
        Ok(alerts)
    }

    fn kubernetes(&self, resources: &[String]) -> Result<()> {
        let (file, text) = (self.scratch.path().join("resources.yaml"), resources.join("\n---\n"));
        if !self.work.is_new("kubernetes", &text) {
            return Ok(());
        }
        fs::write(&file, text)?;
        for version in KUBERNETES {
            let mut command = self.linter("kubernetes-validate");
            let said =
                self.work.run(command.args(["--strict", "--kubernetes-version", version]).arg(&file))?;
            // If it has no schema for a resource, it only warns.
            let passed = said.matches(" passed for resource ").count();
            ensure!(
                passed == resources.len(),
                "{passed} of {} resources were validated:\n{said}",
                resources.len()
            );
        }
        Ok(())
    }
}

fn files_in(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        files.push(entry?.path());
    }
    files.retain(|file| file.extension().is_some_and(|found| found == extension));
    files.sort();
    Ok(files)
}
