//! Helpers shared by the update tests: a template with releases, and services that were generated from it.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;
use walkdir::WalkDir;
use xtask::{generate, tools};

pub const NAME: &str = "orders";

pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The cargo-generate to test with: the one in `CARGO_GENERATE`, else one that is installed, else one built now.
pub fn generator() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    let find = || match env::var_os("CARGO_GENERATE") {
        Some(named) => PathBuf::from(named),
        None => tools::cargo_generate(repository(), &|line| drop(writeln!(std::io::stderr(), "{line}")))
            .expect("cargo-generate is needed: install it, or name one in CARGO_GENERATE"),
    };
    FOUND.get_or_init(find).clone()
}

/// A repository with the template as it is in the work tree, released as the version that it records.
pub fn template() -> &'static Path {
    static REPOSITORY: OnceLock<TempDir> = OnceLock::new();
    let repository = REPOSITORY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        generate::snapshot(repository(), folder.path()).unwrap();
        git(folder.path(), &["init", "--quiet"]);
        release(folder.path(), &version());
        folder
    });
    repository.path()
}

/// The template's current version.
pub fn version() -> String {
    let record = fs::read_to_string(repository().join("template/slipway.toml")).unwrap();
    record.split_once("version = \"").unwrap().1.split_once('"').unwrap().0.to_owned()
}

/// Commits what is in `folder`, tags it, and packs the repository, as on a server: otherwise each fetch has to wait for
/// the packing.
pub fn release(folder: &Path, version: &str) {
    commit(folder, version);
    git(folder, &["tag", &format!("v{version}")]);
    git(folder, &["repack", "-a", "-d", "--quiet"]);
}

pub fn commit(folder: &Path, message: &str) {
    git(folder, &["add", "--all"]);
    git(folder, &["commit", "--quiet", "--allow-empty", "--message", message]);
}

/// Runs git without the user's settings; returns its standard output.
pub fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=owner", "-c", "user.email=owner@localhost"]).args(arguments);
    let output = command.current_dir(folder).env("GIT_CONFIG_GLOBAL", "/dev/null").output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", text_of(&output.stderr));
    text_of(&output.stdout).trim_end().to_owned()
}

pub fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Each file below `folder`, except those in `.git`, with its content and whether it is executable.
pub fn contents(folder: &Path) -> BTreeMap<String, (String, bool)> {
    let mut files = BTreeMap::new();
    for entry in WalkDir::new(folder).into_iter().filter_entry(|entry| entry.file_name() != ".git") {
        let entry = entry.unwrap();
        if entry.file_type().is_file() {
            let path = entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
            let executable = entry.metadata().unwrap().permissions().mode() & 0o111 != 0;
            files.insert(path, (text_of(&fs::read(entry.path()).unwrap()), executable));
        }
    }
    files
}

/// A service in a repository.
pub struct Service {
    pub parent: TempDir,
    pub folder: PathBuf,
    pub template: PathBuf,
}

impl Service {
    /// Generates a service with `answers` and commits it.
    pub fn generate(answers: &[&str]) -> Self {
        Self::of(template(), answers)
    }

    pub fn of(template: &Path, answers: &[&str]) -> Self {
        let parent = tempfile::tempdir().unwrap();
        let folder = generated(template, parent.path(), answers);
        git(&folder, &["init", "--quiet"]);
        commit(&folder, "generated");
        Self { folder, parent, template: template.to_owned() }
    }

    /// `slipway` in the service's folder.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = slipway();
        command.args(arguments).arg("--template").arg(&self.template).current_dir(&self.folder);
        command
    }

    /// Runs `slipway`, which must exit with `code`; returns its output.
    pub fn run(&self, arguments: &[&str], code: i32) -> String {
        said(&mut self.command(arguments), code)
    }

    /// Runs `slipway`, which must refuse with `wanted` in its message and leave everything as it was.
    pub fn refuses(&self, arguments: &[&str], wanted: &str) {
        self.refuses_as(&mut self.command(arguments), wanted);
    }

    pub fn refuses_as(&self, command: &mut Command, wanted: &str) {
        let before = self.state();
        let said = said(command, 2);
        assert!(said.contains(wanted), "no `{wanted}` in: {said}");
        assert!(said.starts_with("error: "), "{said}");
        assert_eq!(self.state(), before, "{command:?} left something behind");
    }

    /// Everything that a failed run must not change: files, index, refs, and the names of what is in git's folder.
    pub fn state(&self) -> (BTreeMap<String, (String, bool)>, String, Vec<String>) {
        let git_folder = git_folder(&self.folder);
        let known = git_folder.as_ref().map_or(String::new(), |_| {
            git(&self.folder, &["ls-files", "--stage"]) + &git(&self.folder, &["for-each-ref"])
        });
        let mut left: Vec<String> = git_folder.map_or(vec![], |folder| {
            fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect()
        });
        left.sort();
        (contents(self.parent.path()), known, left)
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.folder.join(path)).unwrap()
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Replaces the only occurrence of `from` in a file with `to`.
    pub fn replace(&self, path: &str, from: &str, to: &str) {
        replace(&self.folder.join(path), from, to);
    }

    /// Asserts that the service has exactly the files that are generated with `answers`, with every change staged.
    #[track_caller]
    pub fn is_generated(&self, answers: &[&str]) {
        let fresh = tempfile::tempdir().unwrap();
        let wanted = contents(&generated(&self.template, fresh.path(), answers));
        let found = contents(&self.folder);
        assert!(found.keys().eq(wanted.keys()), "{:?}\nis not\n{:?}", found.keys(), wanted.keys());
        for (path, content) in &wanted {
            assert_eq!(&found[path], content, "{path}");
        }
        assert_eq!(git(&self.folder, &["diff", "--name-only"]), "", "something is not staged");
    }
}

fn git_folder(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().map(|folder| folder.join(".git")).find(|folder| folder.is_dir())
}

pub fn replace(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).unwrap();
    assert_eq!(text.matches(from).count(), 1, "`{from}` in {}", file.display());
    fs::write(file, text.replace(from, to)).unwrap();
}

/// Generates a service in `parent` from the work tree of `template`; returns its folder.
pub fn generated(template: &Path, parent: &Path, answers: &[&str]) -> PathBuf {
    let mut command = generate::command(&generator());
    command.arg("--path").arg(template).arg("--destination").arg(parent);
    command.args(["--name", NAME, "--silent", "--vcs", "none", "--no-workspace"]);
    command.args(answers.iter().flat_map(|answer| ["-d", answer]));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}{}", text_of(&output.stdout), text_of(&output.stderr));
    parent.join(NAME)
}

/// `slipway`, without the user's git settings.
pub fn slipway() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slipway"));
    command.env("CARGO_GENERATE", generator()).env("GIT_CONFIG_GLOBAL", "/dev/null");
    command
}

/// Runs `command`, which must exit with `code`; returns its output.
#[track_caller]
pub fn said(command: &mut Command, code: i32) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = text_of(&stdout) + &text_of(&stderr);
    assert_eq!(status.code(), Some(code), "{command:?} said: {said}");
    said
}
