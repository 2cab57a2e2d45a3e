//! The service that we run in, and whether it is in a state to be changed.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use crate::apply;
use crate::git::Git;
use crate::record::{self, Record};
use crate::tree::{self, Files};

/// What git leaves in its folder while it waits for someone to finish, and what ends it.
const UNFINISHED: [(&str, &str); 6] = [
    ("MERGE_HEAD", "a merge"),
    ("CHERRY_PICK_HEAD", "a cherry-pick"),
    ("REVERT_HEAD", "a revert"),
    ("rebase-merge", "a rebase"),
    ("rebase-apply", "a rebase"),
    ("BISECT_LOG", "a bisection"),
];

/// A service in a work tree of git.
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
    /// Where the service is below `top`; empty when it is all that is there.
    pub prefix: PathBuf,
    /// The service's files as they are committed, and their tree.
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
            bail!(
                "{} is in no git work tree, and slipway merges through git: run it inside a service, after `git \
                 init`, `git add .` and `git commit` if there is no repository yet ({})",
                here.display(),
                crate::git::last_words(&said.stderr)
            );
        }
        let top = PathBuf::from(String::from_utf8_lossy(&said.stdout).trim_end());
        let git = Git::at(&top);
        let paths =
            git.line(&["rev-parse", "--absolute-git-dir", "--git-path", "objects", "--show-object-format"])?;
        let mut paths = paths.lines();
        let git_folder = PathBuf::from(paths.next().context("git's folder")?);
        let objects = top.join(paths.next().context("git's objects")?);
        let format = paths.next().context("git's object format")?.to_owned();
        apply::recover(&top, &git_folder)?;

        let folder = recorded(&here, &top)?;
        let prefix = folder.strip_prefix(top.canonicalize()?)?.to_owned();
        let head = format!("HEAD:{}", prefix.display());
        let committed = git.output(&["rev-parse", "--verify", "--quiet", &head], &[])?;
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

    /// Fails when there is something that a merge could be mixed up with.
    pub fn ready_to_change(&self) -> Result<()> {
        for (name, what) in UNFINISHED {
            if self.git_folder.join(name).exists() {
                bail!("{what} is in progress here: finish it or abort it, then run this again");
            }
        }
        let status = self.git.run(&["status", "--porcelain", "-z", "--untracked-files=no"])?;
        let changed: Vec<_> = status.split(|byte| *byte == 0).filter(|line| line.len() > 3).collect();
        let Some(first) = changed.first() else { return Ok(()) };
        let first = String::from_utf8_lossy(&first[3..]).into_owned();
        let more = if changed.len() > 1 { format!(" and {} more", changed.len() - 1) } else { String::new() };
        bail!(
            "{first}{more} changed since the last commit: `git commit` or `git stash` first, so that the way back is clear"
        )
    }

    /// Where the files of a change are prepared: where they need only be moved from. A trial tells, since two mounts of
    /// one file system are apart too.
    pub fn staging(&self) -> Result<PathBuf> {
        let [near, far] = stagings(&self.top, &self.git_folder);
        make(&near)?;
        let moved = fs::rename(&near, &far);
        fs::remove_dir(if moved.is_ok() { &far } else { &near })?;
        let apart = moved.is_err_and(|error| error.kind() == ErrorKind::CrossesDevices);
        Ok(if apart { far } else { near })
    }
}

/// The folder that changes to `top` are prepared in, and the one for their files where that lies on another mount.
pub fn stagings(top: &Path, git_folder: &Path) -> [PathBuf; 2] {
    [git_folder.join("slipway"), top.join(".slipway")]
}

/// Makes a folder that is not there yet.
pub fn make(folder: &Path) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("{} can't be made", folder.display()))
}

/// The template's address; a path counts from the folder with the record, wherever below it this was called.
fn seen_from(folder: &Path, address: String) -> String {
    let path = folder.join(&address);
    // A colon tells a URL, if no folder has it in its name.
    if address.contains(':') && !path.is_dir() { address } else { path.display().to_string() }
}

/// The folder with the record: this one, or the nearest above.
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
