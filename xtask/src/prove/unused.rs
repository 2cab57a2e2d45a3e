//! Unused dependencies, as the compiler sees them.
//!
//! rustc's `unused_crate_dependencies` reports once per target (library, program, each test program); a dependency
//! is unused when every target that could use it says so. A tool that searches the text for names is fooled by
//! comments and macros; the compiler is not.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::check::Work;

/// Where the lint step writes clippy's messages on the service's own targets …
pub const SERVICE: &str = "clippy-service.json";
/// … and on all targets.
pub const ALL: &str = "clippy-all.json";

pub fn check(work: &mut Work<'_>) -> Result<String> {
    let read = |name: &str| -> Result<Findings> {
        let path = work.log.with_file_name(name);
        Ok(Findings::of(&fs::read_to_string(path).context("clippy failed, so there is nothing to evaluate")?))
    };
    let (service, all) = (read(SERVICE)?, read(ALL)?);
    ensure!(service.targets > 0 && all.tests > 0, "clippy's messages name no target");
    let unused = unused_dependencies(&service, &all);
    fs::write(&work.log, unused.join("\n"))?;
    ensure!(unused.is_empty(), "unused dependencies in Cargo.toml: {}", unused.join(", "));
    Ok(String::new())
}

/// The findings of one run of clippy.
#[derive(Default)]
struct Findings {
    /// How many targets were compiled, and how many of them as tests.
    targets: usize,
    tests: usize,
    /// By dependency, how many targets don't use it.
    unused: BTreeMap<String, usize>,
    /// The dependencies that the build script doesn't use.
    by_build_script: Vec<String>,
}

impl Findings {
    fn of(messages: &str) -> Self {
        let mut findings = Self::default();
        for message in messages.lines().filter_map(|line| serde_json::from_str(line).ok()) {
            findings.take(&message);
        }
        findings
    }

    fn take(&mut self, message: &Value) {
        let build_script = message["target"]["kind"][0] == "custom-build";
        let own = message["package_id"].as_str().is_some_and(|id| id.starts_with("path+"));
        if own && message["reason"] == "compiler-artifact" && !build_script {
            self.targets += 1;
            self.tests += usize::from(message["profile"]["test"] == true);
        }
        if message["message"]["code"]["code"] != "unused_crate_dependencies" {
            return;
        }
        let text = message["message"]["message"].as_str().unwrap_or_default();
        match text.split('`').nth(1) {
            Some(name) if build_script => self.by_build_script.push(name.into()),
            Some(name) => *self.unused.entry(name.into()).or_default() += 1,
            None => {}
        }
    }

    fn count(&self, name: &str) -> usize {
        self.unused.get(name).copied().unwrap_or_default()
    }
}

/// A dependency that neither the library nor the program uses is unused, even if tests use it: then it belongs
/// under `[dev-dependencies]`. One that only tests can see is unused when all of them say so.
fn unused_dependencies(service: &Findings, all: &Findings) -> Vec<String> {
    let everywhere = service.unused.iter().filter(|(_, count)| **count == service.targets);
    let mut unused: Vec<String> = everywhere.map(|(name, _)| name.clone()).collect();
    let in_tests = |name: &str| all.count(name).saturating_sub(service.count(name));
    let mut by_tests: Vec<String> = all.unused.keys().cloned().collect();
    by_tests.retain(|name| in_tests(name) == all.tests && !unused.contains(name));
    unused.extend(by_tests);
    unused.extend(all.by_build_script.iter().cloned());
    unused
}

#[cfg(test)]
mod tests {
    use super::{Findings, unused_dependencies};

    fn findings(targets: &[(&str, bool)], unused: &[(&str, &str)]) -> Findings {
        let mut findings = Findings::default();
        for (kind, test) in targets {
            findings.take(&serde_json::json!({
                "reason": "compiler-artifact", "package_id": "path+file:///x#x@0.1.0",
                "target": {"kind": [kind]}, "profile": {"test": test},
            }));
        }
        for (kind, name) in unused {
            findings.take(&serde_json::json!({
                "reason": "compiler-message", "target": {"kind": [kind]},
                "message": {
                    "code": {"code": "unused_crate_dependencies"},
                    "message": format!("extern crate `{name}` is unused in crate `x`"),
                },
            }));
        }
        findings
    }

    #[test]
    fn unused_is_what_every_target_leaves_unused() {
        let service = findings(
            &[("lib", false), ("bin", false)],
            &[("bin", "serde"), ("lib", "idle"), ("bin", "idle"), ("lib", "rand"), ("bin", "rand")],
        );
        let all = findings(
            &[("lib", false), ("bin", false), ("lib", true), ("bin", true), ("test", true)],
            &[
                ("bin", "serde"),
                ("lib", "idle"),
                ("bin", "idle"),
                ("lib", "rand"),
                ("bin", "rand"),
                ("bin", "serde"),
                ("lib", "idle"),
                ("bin", "idle"),
                ("lib", "rand"),
                ("bin", "rand"),
                ("test", "serde"),
                ("test", "idle"),
                ("lib", "ureq"),
                ("bin", "ureq"),
                ("lib", "dead"),
                ("bin", "dead"),
                ("test", "dead"),
                ("custom-build", "cc"),
            ],
        );
        // Only a test uses `rand`; `ureq` is a dev-dependency that is in use.
        assert_eq!(unused_dependencies(&service, &all), ["idle", "rand", "dead", "cc"]);
    }
}
