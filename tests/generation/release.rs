//! The step of the emitted release workflow that asks whether a version is published. No proof can ask a registry or
//! GitHub, so a fake `docker` and a fake `gh` answer as they would.

use std::fs;
use std::process::Command;

use yaml_serde::Value;

use crate::support::{template, text_of};

const STEP: &str = "published";

fn script() -> String {
    let text = fs::read_to_string(template().join("template/.github/workflows/release.yml")).unwrap();
    let workflow: Value = yaml_serde::from_str(&text).unwrap();
    let steps = workflow["jobs"]["plan"]["steps"].as_sequence().unwrap();
    let step = steps.iter().find(|step| step["id"] == STEP).unwrap();
    step["run"].as_str().unwrap().to_owned()
}

const RELEASED: &str = "echo 'title: v1.0.0'";
const UNRELEASED: &str = "echo 'release not found' >&2; exit 1";

/// The output of the step when the shell code in `gh` and `docker` replaces those, or `None` if the step fails.
fn published(gh: &str, docker: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("output");
    // The options with which GitHub runs bash.
    let mut shell = Command::new("bash");
    shell.args([
        "--noprofile",
        "--norc",
        "-eo",
        "pipefail",
        "-c",
        &format!("gh() ( {gh} )\ndocker() ( {docker} )\n{}", script()),
    ]);
    shell.env("GITHUB_REF_NAME", "v1.0.0");
    shell.env("IMAGE", "ghcr.io/acme/orders").env("VERSION", "1.0.0").env("GITHUB_OUTPUT", &output);
    let ended = shell.output().unwrap();
    ended.status.success().then(|| text_of(&fs::read(output).unwrap()))
}

#[test]
fn a_version_is_new_only_where_the_registry_says_so_or_there_is_no_release() {
    for gh in [RELEASED, UNRELEASED] {
        let said = published(gh, "echo 'Name: ghcr.io/acme/orders:1.0.0'");
        assert_eq!(said.as_deref(), Some("published=true\n"), "{gh}");
    }
    for absent in ["ghcr.io/acme/orders:1.0.0: not found", "name unknown", "manifest unknown"] {
        let said = published(RELEASED, &format!("echo 'ERROR: {absent}' >&2; exit 1"));
        assert_eq!(said.as_deref(), Some("published=false\n"), "{absent}");
    }
    for fault in [
        "unexpected status from HEAD request to https://ghcr.io/v2/acme/orders/manifests/1.0.0: 503 Service Unavailable",
        "denied",
        "dial tcp: lookup ghcr.io: no such host",
        "docker: command not found",
        "",
    ] {
        let docker = format!("echo 'ERROR: {fault}' >&2; exit 1");
        for gh in [RELEASED, "echo 'HTTP 502: Bad Gateway' >&2; exit 1"] {
            assert_eq!(published(gh, &docker), None, "{fault}");
        }
        let first = published(UNRELEASED, &docker);
        assert_eq!(first.as_deref(), Some("published=false\n"), "{fault}");
    }
}
