//! File trees, as git stores them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use walkdir::WalkDir;

use crate::git::Git;

const FILE: &str = "100644";
const EXECUTABLE: &str = "100755";
const LINK: &str = "120000";
const SUBMODULE: &str = "160000";

/// A file's mode, and the object with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub mode: String,
    pub id: String,
}

impl Entry {
    /// A submodule has an entry, but its object is in another repository.
    pub fn is_file(&self) -> bool {
        self.mode != SUBMODULE
    }
}

/// All files of a tree by their path in it.
pub type Files = BTreeMap<PathBuf, Entry>;

/// The files of `tree`.
pub fn read(git: &Git, tree: &str) -> Result<Files> {
    let listed = git.run(&["ls-tree", "-r", "-z", "--full-tree", tree])?;
    let mut files = Files::new();
    for line in listed.split(|byte| *byte == 0).filter(|line| !line.is_empty()) {
        let (path, mut words) = described(line)?;
        let (mode, _kind, id) = (words.next(), words.next(), words.next());
        let (mode, id) = (mode.context("git listed no mode")?, id.context("git listed no object")?);
        files.insert(path, Entry { mode: mode.to_owned(), id: id.to_owned() });
    }
    Ok(files)
}

/// Splits a line of git's file listings: the path after the tab, and the words before it.
pub fn described(line: &[u8]) -> Result<(PathBuf, std::str::Split<'_, char>)> {
    let tab = line.iter().position(|byte| *byte == b'\t').context("git listed no path")?;
    let words = std::str::from_utf8(&line[..tab])?.split(' ');
    Ok((OsStr::from_bytes(&line[tab + 1..]).into(), words))
}

/// Writes a tree of `files`, using a temporary index at `index`, which must not exist yet.
pub fn write(git: &Git, files: &Files, index: &Path) -> Result<String> {
    let git = git.with_index(index);
    let lines: Vec<u8> = files.iter().flat_map(|(path, entry)| index_line(path, entry, 0)).collect();
    git.feed(&["update-index", "-z", "--index-info"], &lines)?;
    let tree = git.line(&["write-tree"])?;
    fs::remove_file(index)?;
    Ok(tree)
}

/// A line for `update-index --index-info`: the entry of `path` at `stage`.
pub fn index_line(path: &Path, entry: &Entry, stage: u8) -> Vec<u8> {
    let head = format!("{} {} {stage}\t", entry.mode, entry.id);
    [head.as_bytes(), path.as_os_str().as_bytes(), b"\0"].concat()
}

/// Stores the files below `folder` as they are, and lists them.
pub fn import(git: &Git, folder: &Path) -> Result<Files> {
    let mut files = Files::new();
    let mut paths = Vec::new();
    for entry in WalkDir::new(folder).min_depth(1) {
        let entry = entry?;
        let path = entry.path().strip_prefix(folder)?.to_owned();
        if entry.file_type().is_symlink() {
            let id = store(git, fs::read_link(entry.path())?.as_os_str().as_bytes())?;
            files.insert(path, Entry { mode: LINK.into(), id });
        } else if entry.file_type().is_file() {
            let executable = entry.metadata()?.permissions().mode() & 0o111 != 0;
            paths.push((path, if executable { EXECUTABLE } else { FILE }));
        }
    }
    let named = |(path, _): &(PathBuf, _)| [folder.join(path).as_os_str().as_bytes(), b"\n"].concat();
    let input: Vec<u8> = paths.iter().flat_map(named).collect();
    // Without filters: the service decides on line endings, not this machine's settings.
    let ids = git.feed(&["hash-object", "-w", "--no-filters", "--stdin-paths"], &input)?;
    let ids: Vec<&str> = std::str::from_utf8(&ids)?.lines().collect();
    ensure!(ids.len() == paths.len(), "git stored {} of {} files", ids.len(), paths.len());
    for ((path, mode), id) in paths.into_iter().zip(ids) {
        files.insert(path, Entry { mode: mode.into(), id: id.into() });
    }
    Ok(files)
}

/// Stores `content`.
pub fn store(git: &Git, content: &[u8]) -> Result<String> {
    let id = git.feed(&["hash-object", "-w", "--no-filters", "--stdin"], content)?;
    Ok(String::from_utf8_lossy(&id).trim_end().to_owned())
}

/// The content of an object.
pub fn content(git: &Git, id: &str) -> Result<Vec<u8>> {
    git.run(&["cat-file", "blob", id])
}
