//! Merges what the template changed between two generated states into the service. git merges trees only, in a
//! scratch repository that borrows the service's objects, so the service itself is not touched.

mod endings;
mod lock;
mod migrations;
mod policy;
mod stages;
mod table;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tempfile::TempDir;

use crate::git::{self, Git};
use crate::ownership::Ownership;
use crate::service::Service;
use crate::tree::{self, Entry, Files};
use stages::Stages;

/// The label of the owner's side in conflict markers.
const OURS: &str = "yours";

/// What is to be merged.
pub struct Sides<'a> {
    /// The service as it was generated, and as it would be generated now.
    pub recorded: &'a Path,
    pub wanted: &'a Path,
    /// The label of the template's side in conflict markers; it also names a branch, so it must be valid as one.
    pub label: &'a str,
    pub ownership: &'a Ownership,
    /// Whether the owner's lines win in files that belong to the owner.
    pub update: bool,
}

/// The service as it would be.
pub struct Merged {
    pub scratch: Scratch,
    pub files: Files,
    pub tree: String,
    /// The files in which both sides changed the same lines, with the three versions of each.
    pub conflicts: BTreeMap<PathBuf, Stages>,
    /// What git says about them.
    pub messages: Vec<Message>,
    /// Decisions that were made without asking, for the user.
    pub notes: Vec<String>,
}

/// What git says about some files.
pub struct Message {
    paths: Vec<PathBuf>,
    pub text: String,
}

/// A bare repository that borrows the service's objects, and keeps new ones to itself.
pub struct Scratch {
    pub git: Git,
    folder: TempDir,
}

impl Scratch {
    fn new(service: &Service) -> Result<Self> {
        let folder = TempDir::with_prefix("slipway-")?;
        let format = format!("--object-format={}", service.format);
        Git::at(folder.path()).run(&["init", "--quiet", "--bare", &format, "git"])?;
        let repository = folder.path().join("git");
        let mut borrowed = service.objects.canonicalize()?.into_os_string().into_vec();
        borrowed.push(b'\n');
        fs::write(repository.join("objects/info/alternates"), borrowed)?;
        Ok(Self { git: Git::bare(&repository), folder })
    }

    /// The path of a file in its folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Merges into `service` what changed from `recorded` to `wanted`.
pub fn merge(service: &Service, sides: &Sides<'_>) -> Result<Merged> {
    git::new_enough()?;
    let scratch = Scratch::new(service)?;
    let git = &scratch.git;
    endings::follow(git, service, &[sides.recorded, sides.wanted])?;
    let (mut recorded, mut wanted) = (tree::import(git, sides.recorded)?, tree::import(git, sides.wanted)?);
    migrations::follow(&service.files, &mut recorded, &mut wanted);
    let mut notes = migrations::renumber(&service.files, &recorded, &mut wanted);
    notes.extend(policy::drop_removed_example(sides.ownership, &service.files, &recorded, &mut wanted));

    let index = scratch.file("index");
    let base = commit(git, &tree::write(git, &recorded, &index)?, None)?;
    for (branch, tree) in [(OURS, &service.tree), (sides.label, &tree::write(git, &wanted, &index)?)] {
        let commit = commit(git, tree, Some(&base))?;
        git.run(&["update-ref", &format!("refs/heads/{branch}"), &commit])?;
    }
    let Outcome { tree, conflicts, messages } = merge_tree(git, sides.label)?;
    let files = tree::read(git, &tree)?;
    let mut merged = Merged { scratch, files, tree, conflicts, messages, notes };
    policy::settle(&mut merged, sides, service, &recorded, &wanted)?;
    migrations::keep(&mut merged, service, &wanted)?;
    let uncertain_lock = policy::uncertain_lock(&merged, service, &recorded, &wanted)?;
    merged.notes.extend(uncertain_lock);
    let open = &merged.conflicts;
    merged.messages.retain(|message| message.paths.iter().any(|path| open.contains_key(path)));
    merged.tree = tree::write(&merged.scratch.git, &merged.files, &index)?;
    Ok(merged)
}

fn commit(git: &Git, tree: &str, parent: Option<&str>) -> Result<String> {
    let mut arguments = vec!["commit-tree", tree, "-m", "slipway"];
    arguments.extend(parent.into_iter().flat_map(|parent| ["-p", parent]));
    git.line(&arguments)
}

struct Outcome {
    tree: String,
    conflicts: BTreeMap<PathBuf, Stages>,
    messages: Vec<Message>,
}

/// The merge itself, whatever the user's settings: new files follow a folder that the service renamed, and
/// `merge.renormalize` is off, since git fails on it without a work tree.
fn merge_tree(git: &Git, label: &str) -> Result<Outcome> {
    let settings = ["merge.renames=true", "merge.directoryRenames=true", "merge.renormalize=false"];
    let settings = settings.map(|setting| ["-c", setting]).concat();
    let call = ["merge-tree", "--write-tree", "--messages", "-z", OURS, label];
    let said = git.output(&[&settings[..], &call[..]].concat(), &[])?;
    if !matches!(said.status.code(), Some(0 | 1)) {
        bail!("git could not merge: {}", git::error_summary(&said.stderr));
    }
    let mut fields = said.stdout.split(|byte| *byte == 0);
    let mut next = || fields.next().context("git's report on the merge ends early");
    let tree = String::from_utf8(next()?.to_vec())?;
    let mut conflicts = BTreeMap::<PathBuf, Stages>::new();
    loop {
        let line = next()?;
        if line.is_empty() {
            break;
        }
        let (path, mut words) = tree::described(line)?;
        let (Some(mode), Some(id), Some(stage)) = (words.next(), words.next(), words.next()) else {
            bail!("git listed a conflict without a stage");
        };
        let entry = Entry { mode: mode.to_owned(), id: id.to_owned() };
        conflicts.entry(path).or_default().set(stage, entry);
    }
    let mut messages = Vec::new();
    // Each message: the number of paths, the paths, the kind, the text. The last field is empty: each ends with a NUL.
    while let Ok(count) = std::str::from_utf8(next()?)?.parse::<usize>() {
        let paths = (0..count).map(|_| Ok(OsStr::from_bytes(next()?).into())).collect::<Result<_>>()?;
        let _kind = next()?;
        messages.push(Message { paths, text: String::from_utf8_lossy(next()?).trim().to_owned() });
    }
    Ok(Outcome { tree, conflicts, messages })
}
