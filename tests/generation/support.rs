//! Helpers shared by the generation tests.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;
use walkdir::WalkDir;
use xtask::generate;
use xtask::tools;
use xtask::variant::Variant;
use xtask::weave::config::Config;
use xtask::weave::names::Names;
use xtask::weave::tree::Tree;

pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The cargo-generate to test with: the one in `CARGO_GENERATE`, else one that is installed, else one built now.
pub fn generator() -> PathBuf {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    let find = || match std::env::var_os("CARGO_GENERATE") {
        Some(named) => PathBuf::from(named),
        // Not `eprintln!`: the test harness would capture it, and a build takes two minutes.
        None => tools::cargo_generate(repository(), &|line| drop(writeln!(std::io::stderr(), "{line}")))
            .expect("cargo-generate is needed: install it, or name one in CARGO_GENERATE"),
    };
    FOUND.get_or_init(find).clone()
}

/// A copy of this repository's work tree without the files that git ignores, such as build output.
pub fn template() -> &'static Path {
    static COPY: OnceLock<TempDir> = OnceLock::new();
    let copy = COPY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        generate::snapshot(repository(), folder.path()).unwrap();
        folder
    });
    copy.path()
}

/// A cargo-generate call that takes the defaults of questions without an answer.
pub fn silent(parent: &Path, name: &str) -> Command {
    let mut command = generate::command(&generator());
    command.arg("--path").arg(template()).arg("--destination").arg(parent);
    command.args(["--name", name, "--silent", "--vcs", "none"]);
    command
}

pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}\n{}{}", text_of(&output.stdout), text_of(&output.stderr));
    output
}

pub fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn paths<T>(files: &BTreeMap<String, T>) -> Vec<&String> {
    files.keys().collect()
}

/// The files below `folder`, and its empty folders.
pub fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in
        WalkDir::new(folder).min_depth(1).into_iter().filter_entry(|entry| entry.file_name() != ".git")
    {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
        if entry.file_type().is_file() {
            files.insert(path, fs::read(entry.path()).unwrap());
        } else if fs::read_dir(entry.path()).unwrap().next().is_none() {
            files.insert(path + "/", vec![]);
        }
    }
    files
}

/// The files of `variant` that the living service and `cargo-generate.toml` call for, except `Cargo.lock`.
pub fn expected(variant: Variant, names: &Names) -> BTreeMap<String, Vec<u8>> {
    let (config, tree) = (Config::read(template()).unwrap(), Tree::read(template()).unwrap());
    let texts = tree.expected(&config, variant, names).unwrap();
    let mut files: BTreeMap<String, Vec<u8>> =
        texts.into_iter().map(|(path, text)| (path, text.into())).collect();
    for source in
        tree.sources.iter().filter(|source| source.text.is_none() && tree.has(&config, variant, source))
    {
        files
            .insert(source.target.clone(), fs::read(template().join("template").join(&source.path)).unwrap());
    }
    files
}
