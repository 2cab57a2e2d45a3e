//! Brings a merge into the index and the work tree of a service, whole or not at all.
//!
//! All that takes room or may fail is prepared aside first; then files change places by renames alone, with what
//! was there kept until the end. A run that is killed amid the renames is undone by the next one: git's own lock on
//! the index, which is held meanwhile, keeps everyone else from building on half of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::io::{FdFlags, fcntl_setfd};
use walkdir::WalkDir;

use crate::merge::Merged;
use crate::say::complain;
use crate::service::{self, Service};
use crate::signals;
use crate::tree::{self, Entry};

/// What the folder with a prepared change holds: the paths that it is about, each after a `+` when there is a new
/// version and a `-` when not, and ended by a zero.
const JOURNAL: &str = "journal";
/// The process that works. It holds this file locked, and so does each program that it starts, which may outlive it.
const OWNER: &str = "pid";
/// How long those may take to end after it.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// There once git's lock is held.
const LOCKED: &str = "locked";
/// The message of the commit to come, in git's own folder, where it goes.
const MESSAGE: &str = "slipway-message";
/// There once the files of the change lie in a folder of the work tree. A clone may bring one of its name along, but
/// nothing into git's own, which alone is believed.
const APART: &str = "apart";
/// The files to come, and those that were there.
const NEW: &str = "new";
const OLD: &str = "old";

/// What a file was and what it becomes.
type Change<'a> = (Option<&'a Entry>, Option<&'a Entry>);
type Changes<'a> = BTreeMap<PathBuf, Change<'a>>;

/// Puts `merged` into the service's index and work tree, with `message` ready for the commit.
pub fn apply(service: &Service, merged: &Merged, message: &str) -> Result<()> {
    let changes = changes(service, merged);
    let leaving: BTreeSet<&Path> =
        changes.iter().filter(|(_, (old, _))| old.is_some()).map(|(path, _)| path.as_path()).collect();
    no_repository_leaves(&service.top, &changes)?;
    let mut staging = Staging::new(service)?;
    share(service, merged, &changes)?;
    stage(service, merged, &changes, &staging)?;
    fs::write(service.git_folder.join(MESSAGE), message)?;
    fs::write(staging.folder.join(JOURNAL), journal(&changes))?;
    // The last to be asked, since people save while we work.
    unchanged(service, &leaving, &staging)?;
    for path in changes.keys().filter(|path| !leaving.contains(path.as_path())) {
        nothing_in_the_way(&service.top, path, &leaving)?;
    }
    signals::check()?;

    // From here on Ctrl-C comes too late; it takes milliseconds.
    let paths: Vec<(PathBuf, bool)> =
        changes.iter().map(|(path, (_, new))| (path.clone(), new.is_some())).collect();
    let swapped = swap(&service.top, &staging.files, &paths)
        .and_then(|()| Ok(fs::rename(&staging.lock, service.git_folder.join("index"))?));
    if let Err(error) = swapped {
        if let Err(stuck) = undo(&service.top, &staging.files, &paths) {
            let kept = staging.keep();
            bail!(
                "{error:#}; what was moved lies in {} ({stuck:#}): run slipway again to put it back",
                kept.display()
            );
        }
        return Err(error);
    }
    staging.done = true;
    fs::rename(service.git_folder.join(MESSAGE), service.git_folder.join("MERGE_MSG"))?;
    drop(staging);
    // Only spares git a look at each new file.
    let _ = service.git.shielded().output(&["update-index", "-q", "--refresh"], &[]);
    Ok(())
}

/// Undoes what a run left that was killed amid its renames.
pub fn recover(top: &Path, git_folder: &Path) -> Result<()> {
    let [staging, apart] = &service::stagings(top, git_folder);
    let _ = fs::remove_dir_all(gone(staging));
    // Its owner is the first in it: without one it is empty, or what a kill left of one that was on its way out.
    let ours = [JOURNAL, LOCKED].iter().any(|part| is_there(&staging.join(part)));
    if fs::remove_dir(staging).is_err() && ours && !is_there(&staging.join(OWNER)) {
        clear(staging, apart)?;
    }
    let Ok(owner) = File::open(staging.join(OWNER)) else { return Ok(()) };
    let deadline = Instant::now() + LAST_WRITES;
    while let Err(held) = owner.try_lock() {
        if Instant::now() > deadline {
            let owner = io::read_to_string(&owner)?;
            bail!(
                "another slipway is at work here (process {owner}, {held}): wait for it, then run this again"
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
    // It may have ended well meanwhile and taken its folder along; another one's may be there by now.
    let same = |there: Metadata| Ok::<_, io::Error>(there.ino() == owner.metadata()?.ino());
    if !fs::metadata(staging.join(OWNER)).and_then(same).unwrap_or(false) {
        return recover(top, git_folder);
    }
    let (lock, message) = (git_folder.join("index.lock"), git_folder.join(MESSAGE));
    let (locked, pending) = (staging.join(LOCKED).exists(), lock.exists());
    let let_go = locked && !pending;
    let journal = fs::read(staging.join(JOURNAL)).ok().map(|journal| read_journal(&journal));
    let files = if staging.join(APART).exists() { apart } else { staging };
    let waits = |(path, _): &(PathBuf, bool)| is_there(&files.join(NEW).join(path));
    match journal {
        // Git itself advises to take its lock away, and then to work on: only what is missing is put back.
        Some(paths) if let_go && paths.iter().any(waits) => {
            for (path, _) in paths.iter().filter(|(path, _)| !is_there(&top.join(path))) {
                relocate(&files.join(OLD).join(path), &top.join(path))?;
            }
            complain!(
                "slipway: an earlier run was killed half-way, and git's lock was removed since; what was missing is back: \
                 compare it with `git status`"
            );
        }
        // It was done but for this.
        _ if let_go => _ = fs::rename(&message, git_folder.join("MERGE_MSG")),
        Some(paths) => {
            undo(top, files, &paths)?;
            complain!("slipway: an earlier run was killed half-way; it is undone");
        }
        None => {}
    }
    let _ = fs::remove_file(message);
    if locked && pending {
        fs::remove_file(lock)?;
    }
    clear(staging, apart)?;
    Ok(())
}

/// Removes a staging folder, at one stroke for who comes after a kill: of half of one they would undo what is done.
fn clear(staging: &Path, apart: &Path) -> io::Result<()> {
    if staging.join(APART).exists() {
        // Without these nothing is undone, and no lock of git's is taken for ours.
        for part in [JOURNAL, LOCKED].map(|part| staging.join(part)) {
            if is_there(&part) {
                fs::remove_file(part)?;
            }
        }
        let _ = fs::remove_dir_all(apart);
    }
    let gone = gone(staging);
    match fs::rename(staging, &gone) {
        // Another one has come first.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed?,
    }
    let _ = fs::remove_dir_all(gone);
    Ok(())
}

/// Where it lies meanwhile.
fn gone(staging: &Path) -> PathBuf {
    staging.with_extension("gone")
}

/// The files that differ, or are in conflict, by their paths from the top of the work tree.
fn changes<'a>(service: &'a Service, merged: &'a Merged) -> Changes<'a> {
    let paths = service.files.keys().chain(merged.files.keys()).chain(merged.conflicts.keys());
    let change = |path: &'a PathBuf| (path, (service.files.get(path), merged.files.get(path)));
    paths
        .map(change)
        .filter(|(path, (old, new))| old != new || merged.conflicts.contains_key(*path))
        .map(|(path, change)| (service.prefix.join(path), change))
        .collect()
}

fn journal(changes: &Changes<'_>) -> Vec<u8> {
    let line = |(path, (_, new)): (&PathBuf, &Change<'_>)| {
        let mark: &[u8] = if new.is_some() { b"+" } else { b"-" };
        [mark, path.as_os_str().as_bytes(), b"\0"].concat()
    };
    changes.iter().flat_map(line).collect()
}

/// The paths of a change, and whether each has a new version.
fn read_journal(journal: &[u8]) -> Vec<(PathBuf, bool)> {
    let lines = journal.split(|byte| *byte == 0).filter_map(<[u8]>::split_first);
    lines.map(|(mark, path)| (OsStr::from_bytes(path).into(), *mark == b'+')).collect()
}

/// Fails when a new file would take the place of one that git doesn't know.
fn nothing_in_the_way(top: &Path, path: &Path, leaving: &BTreeSet<&Path>) -> Result<()> {
    let cure = "which is not in git: move it or commit it, then run this again";
    let above: Vec<&Path> = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()).collect();
    for above in above.into_iter().rev() {
        if fs::symlink_metadata(top.join(above)).is_ok_and(|there| !there.is_dir()) {
            // What a link leads to stays where it is when the link leaves.
            if leaving.contains(above) {
                return Ok(());
            }
            bail!("{} would go below {}, {cure}", path.display(), above.display());
        }
    }
    if !is_there(&top.join(path)) {
        return Ok(());
    }
    for entry in WalkDir::new(top.join(path)) {
        let entry = entry?;
        let there = entry.path().strip_prefix(top)?;
        if !entry.file_type().is_dir() && !leaving.contains(there) {
            bail!("{} would take the place of {}, {cure}", path.display(), there.display());
        }
    }
    Ok(())
}

/// Fails when a submodule would leave: what is not committed or pushed in it is nowhere else.
fn no_repository_leaves(top: &Path, changes: &Changes<'_>) -> Result<()> {
    for (path, _) in changes.iter().filter(|(_, (old, _))| old.is_some_and(|old| !old.is_file())) {
        // Nothing is in it before `git submodule update --init`.
        if fs::read_dir(top.join(path)).is_ok_and(|mut inside| inside.next().is_some()) {
            bail!(
                "{} is a repository of its own, which would make way with all that only it has: `git mv` it elsewhere, \
                 commit that, then run this again",
                path.display()
            );
        }
    }
    Ok(())
}

/// The folder in which a change is prepared, and git's lock. Both go when it is dropped, which before the swap leaves
/// everything as it was.
struct Staging {
    folder: PathBuf,
    /// Where the files are: the same, or the one in the work tree.
    files: PathBuf,
    lock: PathBuf,
    /// Whether the lock has become the index.
    done: bool,
    /// Open, so that it stays locked.
    _owner: File,
}

impl Staging {
    fn new(service: &Service) -> Result<Self> {
        let files = service.staging()?;
        let [folder, apart] = service::stagings(&service.top, &service.git_folder);
        service::make(&folder)?;
        let owner = own(&folder).inspect_err(|_| drop(fs::remove_dir_all(&folder)))?;
        // Not held yet, so not to be removed either.
        let lock = service.git_folder.join("index.lock");
        let mut staging = Self { folder, files, lock, done: true, _owner: owner };
        if staging.files == apart {
            // Empty where a kill came amid these lines.
            let _ = fs::remove_dir(&apart);
            service::make(&apart)?;
            fs::write(staging.folder.join(APART), "")?;
        }
        match File::create_new(&staging.lock) {
            Ok(_) => staging.done = false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(
                "another git is at work here ({} exists): wait for it, then run this again",
                staging.lock.display()
            ),
            Err(error) => return Err(error).context("git's index can't be locked"),
        }
        fs::write(staging.folder.join(LOCKED), "")?;
        Ok(staging)
    }

    /// Leaves everything as it is, for the next run.
    fn keep(self) -> PathBuf {
        std::mem::ManuallyDrop::new(self).files.clone()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.done {
            // First, or who comes after a kill takes a lock that is gone for a change that is done.
            let _ = fs::remove_file(self.lock.with_file_name(MESSAGE));
            let _ = fs::remove_file(&self.lock);
        }
        let _ = clear(&self.folder, &self.files);
    }
}

/// Makes the staging folder this process's own, and that of the programs that it will start: they inherit the lock.
fn own(folder: &Path) -> Result<File> {
    let mut owner = File::create_new(folder.join(OWNER))?;
    owner.try_lock()?;
    fcntl_setfd(&owner, FdFlags::empty())?;
    owner.write_all(std::process::id().to_string().as_bytes())?;
    Ok(owner)
}

/// Gives the service the objects that only the scratch repository has.
fn share(service: &Service, merged: &Merged, changes: &Changes<'_>) -> Result<()> {
    let stages = merged.conflicts.values().flat_map(|stages| stages.numbered().map(|(_, entry)| entry));
    let new = changes.values().filter_map(|(_, new)| *new).chain(stages);
    let ids: BTreeSet<&str> = new.filter(|entry| entry.is_file()).map(|entry| entry.id.as_str()).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let ids: String = ids.into_iter().flat_map(|id| [id, "\n"]).collect();
    // Nothing is sent anywhere: to look for what is alike takes longer than all else that git does here.
    let pack = merged.scratch.git.feed(&["pack-objects", "--stdout", "-q", "--window=0"], ids.as_bytes())?;
    service.git.feed(&["unpack-objects", "-q"], &pack)?;
    Ok(())
}

/// Writes the new files and the new index aside.
fn stage(service: &Service, merged: &Merged, changes: &Changes<'_>, staging: &Staging) -> Result<()> {
    let (new, old) = (staging.files.join(NEW), staging.files.join(OLD));
    fs::create_dir(&new)?;
    fs::create_dir(&old)?;
    let there = || changes.iter().filter_map(|(path, (_, new))| Some((path, (*new)?)));
    if there().next().is_some() {
        // By way of git, so that files get the line endings and filters that its attributes call for.
        let git = service.git.with_index(&staging.folder.join("index"));
        let lines: Vec<u8> = there().flat_map(|(path, entry)| tree::index_line(path, entry, 0)).collect();
        git.feed(&["update-index", "-z", "--index-info"], &lines)?;
        git.run(&["checkout-index", "--all", "--quiet", &format!("--prefix={}/", new.display())])?;
        for (path, _) in there() {
            fs::symlink_metadata(new.join(path))
                .with_context(|| format!("{} was not written", path.display()))?;
        }
    }
    fs::copy(service.git_folder.join("index"), &staging.lock).context("git's index can't be copied")?;
    let nothing = Entry { mode: "0".into(), id: "0".repeat(service.tree.len()) };
    let mut lines = Vec::new();
    for (path, (_, new)) in changes {
        let conflict = merged.conflicts.get(path.strip_prefix(&service.prefix)?);
        let entry = new.filter(|_| conflict.is_none()).unwrap_or(&nothing);
        lines.extend(tree::index_line(path, entry, 0));
        for (stage, entry) in conflict.iter().flat_map(|stages| stages.numbered()) {
            lines.extend(tree::index_line(path, entry, stage));
        }
    }
    let git = service.git.with_index(&staging.lock);
    git.feed(&["update-index", "-z", "--index-info"], &lines)?;
    Ok(())
}

/// Fails when one of the files that are to go is not as it is committed, or anything is staged: someone saved, staged or
/// committed it while we worked, or git was told not to look at it.
fn unchanged(service: &Service, leaving: &BTreeSet<&Path>, staging: &Staging) -> Result<()> {
    let head = format!("HEAD:{}", service.prefix.display());
    if service.git.line(&["rev-parse", &head])? != service.tree {
        bail!("something was committed or checked out meanwhile: run this again");
    }
    let staged = service.git.run(&["diff-index", "--cached", "--name-only", "-z", "HEAD"])?;
    if let Some(path) = named(&staged).next() {
        bail!("{} was staged meanwhile: `git commit` or `git stash` it, then run this again", path.display());
    }
    // What isn't there was left out of a sparse checkout.
    let there = leaving.iter().filter(|path| fs::symlink_metadata(service.top.join(path)).is_ok());
    let paths: Vec<u8> = there.flat_map(|path| [path.as_os_str().as_bytes(), b"\0"].concat()).collect();
    if paths.is_empty() {
        return Ok(());
    }
    let index = staging.folder.join("seen");
    fs::copy(service.git_folder.join("index"), &index)?;
    let git = service.git.with_index(&index);
    for flag in ["--no-assume-unchanged", "--no-skip-worktree"] {
        git.feed(&["update-index", flag, "-z", "--stdin"], &paths)?;
    }
    git.run(&["update-index", "-q", "--refresh"])?;
    let changed = git.run(&["diff-files", "--name-only", "-z"])?;
    if let Some(path) = named(&changed).find(|path| leaving.contains(path)) {
        bail!(
            "{} differs from what is committed, and git was told not to look at it, or it was saved meanwhile: `git \
             commit` it (after `git update-index --no-assume-unchanged --no-skip-worktree`), then run this again",
            path.display()
        );
    }
    Ok(())
}

/// The paths of a list as git writes it with `-z`.
fn named(list: &[u8]) -> impl Iterator<Item = &Path> {
    let paths = list.split(|byte| *byte == 0).filter(|path| !path.is_empty());
    paths.map(|path| Path::new(OsStr::from_bytes(path)))
}

/// Moves what was there out of the way and what is new into its place.
fn swap(top: &Path, files: &Path, paths: &[(PathBuf, bool)]) -> Result<()> {
    for (path, _) in paths {
        relocate(&top.join(path), &files.join(OLD).join(path))?;
        remove_empty_folders(top, path);
    }
    for (path, _) in paths {
        relocate(&files.join(NEW).join(path), &top.join(path))?;
    }
    Ok(())
}

/// Undoes what [`swap`] did, however far it came.
fn undo(top: &Path, files: &Path, paths: &[(PathBuf, bool)]) -> Result<()> {
    for (path, has_new) in paths {
        let new = files.join(NEW).join(path);
        if *has_new && !is_there(&new) {
            relocate(&top.join(path), &new)?;
            remove_empty_folders(top, path);
        }
    }
    for (path, _) in paths {
        relocate(&files.join(OLD).join(path), &top.join(path))?;
    }
    Ok(())
}

/// Also where it is a link that leads nowhere.
fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// Moves `from`, if it is there, to `to`.
fn relocate(from: &Path, to: &Path) -> Result<()> {
    if !is_there(from) {
        return Ok(());
    }
    let moved = fs::create_dir_all(to.parent().unwrap_or(to)).and_then(|()| fs::rename(from, to));
    moved.with_context(|| format!("{} can't be moved to {}", from.display(), to.display()))
}

/// Removes the folders above `path` that hold nothing any more.
fn remove_empty_folders(top: &Path, path: &Path) {
    let above = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
    for folder in above {
        if fs::remove_dir(top.join(folder)).is_err() {
            break;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    fn paths() -> Vec<(PathBuf, bool)> {
        [("a/changed", true), ("b/gone", false), ("c/d/new", true), ("turned", false), ("turned/into", true)]
            .map(|(path, new)| (path.into(), new))
            .to_vec()
    }

    fn contents(folder: &Path) -> Vec<(PathBuf, String)> {
        let files = WalkDir::new(folder).sort_by_file_name().into_iter().map(Result::unwrap);
        files
            .filter(|entry| entry.file_type().is_file())
            .map(|entry| {
                (
                    entry.path().strip_prefix(folder).unwrap().to_owned(),
                    fs::read_to_string(entry.path()).unwrap(),
                )
            })
            .collect()
    }

    fn write(folder: &Path, files: &[(&str, &str)]) {
        for (path, text) in files {
            fs::create_dir_all(folder.join(path).parent().unwrap()).unwrap();
            fs::write(folder.join(path), text).unwrap();
        }
    }

    #[test]
    fn what_is_missing_comes_back_where_gits_lock_was_removed() {
        let folder = tempfile::tempdir().unwrap();
        let (top, git) = (folder.path().join("top"), folder.path().join("git"));
        write(&git, &[("slipway/pid", "1"), ("slipway/locked", ""), ("slipway-message", "")]);
        write(&git, &[("slipway/journal", "+a/changed\0-b/gone\0+c/new\0"), ("slipway/new/c/new", "new")]);
        write(&git, &[("slipway/old/a/changed", "old"), ("slipway/old/b/gone", "old")]);
        // Restored and worked on since.
        write(&top, &[("b/gone", "mine")]);
        recover(&top, &git).unwrap();
        let back =
            [("a/changed", "old"), ("b/gone", "mine")].map(|(path, text)| (path.into(), text.to_owned()));
        assert_eq!(contents(&top), back);
        assert!(contents(&git).is_empty(), "neither a message nor what was prepared is left");
    }

    #[test]
    fn what_lies_in_the_work_tree_is_undone_where_gits_folder_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let (top, git) = (folder.path().join("top"), folder.path().join("git"));
        let prepared =
            [("a/changed", "new"), (".slipway/old/a/changed", "old"), (".slipway/old/b/gone", "old")];
        write(
            &git,
            &[("slipway/pid", "1"), ("slipway/locked", ""), ("slipway/apart", ""), ("index.lock", "")],
        );
        write(&git, &[("slipway/journal", "+a/changed\0-b/gone\0"), ("slipway-message", "")]);
        write(&top, &prepared);
        recover(&top, &git).unwrap();
        let back = ["a/changed", "b/gone"].map(|path| (path.into(), "old".to_owned()));
        assert_eq!(contents(&top), back);
        assert!(contents(&git).is_empty(), "neither a message nor git's lock is left");
        // A kill amid the end of one that was done, next to another git.
        write(&git, &[("slipway/pid", "1"), ("slipway/apart", ""), ("index.lock", "")]);
        write(&top, &prepared);
        recover(&top, &git).unwrap();
        let done =
            [("a/changed", "new"), ("b/gone", "old")].map(|(path, text)| (path.into(), text.to_owned()));
        assert_eq!(contents(&top), done);
        assert_eq!(contents(&git), [("index.lock".into(), String::new())]);
    }

    /// Stops a swap after each of its moves, as a kill would, and undoes it from what is on disk.
    #[test]
    fn a_swap_is_undone_from_wherever_it_stopped() {
        for stop in 0..=2 * paths().len() {
            let (top, staging) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (top, staging) = (top.path(), staging.path());
            write(top, &[("a/changed", "old"), ("b/gone", "old"), ("turned", "old"), ("untouched", "old")]);
            write(&staging.join(NEW), &[("a/changed", "new"), ("c/d/new", "new"), ("turned/into", "new")]);
            let before = contents(top);
            let out = stop.min(paths().len());
            for (path, _) in &paths()[..out] {
                relocate(&top.join(path), &staging.join(OLD).join(path)).unwrap();
                remove_empty_folders(top, path);
            }
            for (path, _) in &paths()[..stop - out] {
                relocate(&staging.join(NEW).join(path), &top.join(path)).unwrap();
            }
            if stop == 2 * paths().len() {
                let now: Vec<PathBuf> = contents(top).into_iter().map(|(path, _)| path).collect();
                assert_eq!(now, ["a/changed", "c/d/new", "turned/into", "untouched"].map(PathBuf::from));
            }
            undo(top, staging, &read_journal(b"+a/changed\0-b/gone\0+c/d/new\0-turned\0+turned/into\0"))
                .unwrap();
            assert_eq!(contents(top), before, "stopped after {stop} moves");
            undo(top, staging, &paths()).unwrap();
            assert_eq!(contents(top), before, "undone twice");
        }
    }
}
