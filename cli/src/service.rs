//! The service that we run in, and whether it is ready to be changed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::apply;
use crate::git::Git;
use crate::record::{self, Record};
use crate::tree::{self, Files};

/// What git keeps in its folder during an unfinished operation, and the name of that operation.
const UNFINISHED: [(&str, &str); 6] = [
    ("MERGE_HEAD", "a merge"),
    ("CHERRY_PICK_HEAD", "a cherry-pick"),
    ("REVERT_HEAD", "a revert"),
    ("rebase-merge", "a rebase"),
    ("rebase-apply", "a rebase"),
    ("BISECT_LOG", "a bisection"),
];

/// A service in a git work tree.
#[derive(Debug)]
pub struct Service {
    /// git at the top of the work tree.
    pub git: Git,
    pub top: PathBuf,
    /// git's own folder for this work tree.
    pub git_folder: PathBuf,
    /// Where git keeps its objects.
    pub objects: PathBuf,
    /// `sha1` or `sha256`.
    pub format: String,
    /// The service's path below `top`; empty when the service is at the top.
    pub prefix: PathBuf,
    /// The service's files as committed, and their tree.
    pub files: Files,
    pub tree: String,
    pub record: Record,
}

impl Service {
    /// The service that the current folder is in.
    pub fn find() -> Result<Self> {
        let here = env::current_dir().context("the current folder is gone")?;
        let git = Git::at(&here);
        let said = git.output(&["rev-parse", "--show-toplevel"], &[])?;
        if !said.status.success() {
            bail!(no_work_tree(&here, &said.stderr));
        }
        let top = lines(&said.stdout).next().context("git reported no work tree")?;
        let git = Git::at(top);
        let said =
            git.run(&["rev-parse", "--absolute-git-dir", "--git-path", "objects", "--show-object-format"])?;
        let mut paths = lines(&said);
        let git_folder = paths.next().context("git reported no folder")?.to_owned();
        let objects = top.join(paths.next().context("git reported no object folder")?);
        let format = paths.next().context("git reported no object format")?.display().to_string();
        let top = top.to_owned();
        apply::recover(&top, &git_folder)?;

        let folder = recorded(&here, &top)?;
        let prefix = folder.strip_prefix(top.canonicalize()?)?.to_owned();
        let head = head(&prefix);
        let committed =
            git.output(&["rev-parse".as_ref(), "--verify".as_ref(), "--quiet".as_ref(), &*head], &[])?;
        if !committed.status.success() {
            bail!(
                "nothing is committed yet: `git add .` and `git commit` the service as it is, then run this again"
            );
        }
        let tree = String::from_utf8_lossy(&committed.stdout).trim_end().to_owned();
        let files = tree::read(&git, &tree)?;
        let Some(entry) = files.get(Path::new(record::FILE)) else {
            bail!("{} is not committed: `git add` and `git commit` it, then run this again", record::FILE);
        };
        let mut record = Record::parse(&String::from_utf8_lossy(&tree::content(&git, &entry.id)?))?;
        record.template = record.template.map(|address| seen_from(&folder, address));
        Ok(Self { git, top, git_folder, objects, format, prefix, files, tree, record })
    }

    /// Fails when something is unfinished or uncommitted that the merge would get mixed up with.
    pub fn ready_to_change(&self) -> Result<()> {
        for (name, what) in UNFINISHED {
            if self.git_folder.join(name).exists() || name.ends_with("_HEAD") && self.has_ref(name)? {
                bail!("{what} is in progress here: finish it or abort it, then run this again");
            }
        }
        let status = self.git.run(&["status", "--porcelain", "-z", "--untracked-files=no"])?;
        let changed: Vec<_> = status.split(|byte| *byte == 0).filter(|line| line.len() > 3).collect();
        let Some(first) = changed.first() else { return Ok(()) };
        let first = String::from_utf8_lossy(&first[3..]).into_owned();
        let more = if changed.len() > 1 { format!(" and {} more", changed.len() - 1) } else { String::new() };
        bail!(
            "{first}{more} changed since the last commit: `git commit` or `git stash` first, so that the merge can be undone"
        )
    }

    /// Whether there is such a ref. With `reftable` as the format of refs, it isn't a file.
    fn has_ref(&self, name: &str) -> Result<bool> {
        let said = self.git.output(&["rev-parse", "--verify", "--quiet", name], &[])?;
        match said.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => bail!("git rev-parse failed: {}", crate::git::error_summary(&said.stderr)),
        }
    }

    /// The folder to prepare a change's files in: one from which a rename can move them into the work tree. Only trying
    /// tells, since a rename also fails between two mounts of one file system.
    pub fn staging(&self) -> Result<PathBuf> {
        let [near, far] = stagings(&self.top, &self.git_folder);
        make(&near)?;
        let moved = fs::rename(&near, &far);
        fs::remove_dir(if moved.is_ok() { &far } else { &near })?;
        let apart = moved.is_err_and(|error| error.kind() == ErrorKind::CrossesDevices);
        Ok(if apart { far } else { near })
    }
}

/// Why there is no work tree at `here`, from what git said about it.
fn no_work_tree(here: &Path, said: &[u8]) -> String {
    let reason = String::from_utf8_lossy(said);
    // Another reason, such as a repository that belongs to another user, comes with git's own advice: a second
    // repository is no cure.
    if !reason.contains("not a git repository") {
        return format!("git can't be used in {}: {}", here.display(), reason.trim());
    }
    format!(
        "{} is not in a git work tree, and slipway merges with git: run it inside a service; if there is no repository \
         yet, first run `git init`, `git add .` and `git commit` ({})",
        here.display(),
        crate::git::error_summary(said)
    )
}

/// The lines that git printed, each a path, which may end in a space and need not be UTF-8.
fn lines(said: &[u8]) -> impl Iterator<Item = &Path> {
    let line = |line| Path::new(OsStr::from_bytes(line));
    said.strip_suffix(b"\n").unwrap_or(said).split(|byte| *byte == b'\n').map(line)
}

/// What git calls the tree of the folder `prefix` in the last commit.
pub fn head(prefix: &Path) -> OsString {
    let mut name = OsString::from("HEAD:");
    name.push(prefix);
    name
}

/// The folder in which changes to `top` are prepared, and the one for their files if the first is on another mount.
pub fn stagings(top: &Path, git_folder: &Path) -> [PathBuf; 2] {
    [git_folder.join("slipway"), top.join(".slipway")]
}

/// Creates a folder, which must not exist yet.
pub fn make(folder: &Path) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("{} can't be created", folder.display()))
}

/// The template's address. A path is relative to the folder with the record, wherever below it we were called.
fn seen_from(folder: &Path, address: String) -> String {
    let path = folder.join(&address);
    // A colon marks a URL, unless there is a folder of that name.
    if address.contains(':') && !path.is_dir() { address } else { path.display().to_string() }
}

/// The folder with the record: `here`, or the nearest one above it.
fn recorded(here: &Path, top: &Path) -> Result<PathBuf> {
    let (here, top) = (here.canonicalize()?, top.canonicalize()?);
    let mut folders = here.ancestors().take_while(|folder| folder.starts_with(&top));
    let found = folders.find(|folder| folder.join(record::FILE).is_file());
    ensure!(
        found.is_some(),
        "no {} in {} or above it: run this inside a service that slipway generated",
        record::FILE,
        here.display()
    );
    Ok(found.unwrap_or(&here).to_owned())
}
