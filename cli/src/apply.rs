//! Applies a merge to the index and the work tree of a service, completely or not at all.
//!
//! Everything that takes disk space or may fail is prepared in a staging folder first. Then files are only renamed,
//! and the old ones are kept until the end. If a run is killed during the renames, the next run undoes it: git's own
//! lock on the index, which is held all the while, keeps everyone else from building on half a change.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
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

/// A file in the staging folder: the paths of the change, each preceded by a `+` if there is a new version and a `-`
/// if not, and terminated by a NUL.
const JOURNAL: &str = "journal";
/// The id of the process at work. It keeps this file locked, as does each program it starts, which may outlive it.
const PID_FILE: &str = "pid";
/// How long these programs may take to exit after it.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// Exists once we hold git's lock.
const LOCKED: &str = "locked";
/// The message for the commit, in git's own folder, where a rename makes it `MERGE_MSG`.
const MESSAGE: &str = "slipway-message";
/// Exists if the files of the change are in a folder of the work tree. A clone may contain a folder of that name, but
/// can't put anything into git's own folder, so only this file is trusted.
const FILES_IN_WORK_TREE: &str = "apart";
/// The new versions of the files, and the old ones.
const NEW: &str = "new";
const OLD: &str = "old";

/// The old and the new version of a file.
type Change<'a> = (Option<&'a Entry>, Option<&'a Entry>);
type Changes<'a> = BTreeMap<PathBuf, Change<'a>>;

/// Puts `merged` into the service's index and work tree, with `message` ready for the commit.
pub fn apply(service: &Service, merged: &Merged, message: &str) -> Result<()> {
    let changes = changes(service, merged);
    let leaving: BTreeSet<&Path> =
        changes.iter().filter(|(_, (old, _))| old.is_some()).map(|(path, _)| path.as_path()).collect();
    no_submodule_removed(&service.top, &changes)?;
    let mut staging = Staging::new(service)?;
    copy_objects(service, merged, &changes)?;
    stage(service, merged, &changes, &staging)?;
    fs::write(service.git_folder.join(MESSAGE), message)?;
    fs::write(staging.folder.join(JOURNAL), journal(&changes))?;
    // Checked last, since people save files while we work.
    unchanged(service, &leaving, &staging)?;
    for path in changes.keys().filter(|path| !leaving.contains(path.as_path())) {
        refuse_to_overwrite_untracked(&service.top, path, &leaving)?;
    }
    signals::check()?;

    // From here on Ctrl-C comes too late; the rest takes milliseconds.
    let paths: Vec<(PathBuf, bool)> =
        changes.iter().map(|(path, (_, new))| (path.clone(), new.is_some())).collect();
    let swapped = swap(&service.top, &staging.files, &paths)
        .and_then(|()| Ok(fs::rename(&staging.lock, service.git_folder.join("index"))?));
    if let Err(error) = swapped {
        if let Err(stuck) = undo(&service.top, &staging.files, &paths) {
            let kept = staging.keep();
            bail!(
                "{error:#}; undoing the change failed, too ({stuck:#}): run slipway again to restore the files from {}",
                kept.display()
            );
        }
        return Err(error);
    }
    staging.done = true;
    fs::rename(service.git_folder.join(MESSAGE), service.git_folder.join("MERGE_MSG"))?;
    drop(staging);
    // Only saves git from reading each new file again.
    let _ = service.git.shielded().output(&["update-index", "-q", "--refresh"], &[]);
    Ok(())
}

/// Undoes what a run left behind that was killed during its renames.
pub fn recover(top: &Path, git_folder: &Path) -> Result<()> {
    let [staging, apart] = &service::stagings(top, git_folder);
    let _ = fs::remove_dir_all(gone(staging));
    // The pid file is written first: a folder without it is empty, or its run was killed while removing the folder.
    let ours = [JOURNAL, LOCKED].iter().any(|part| is_there(&staging.join(part)));
    if fs::remove_dir(staging).is_err() && ours && !is_there(&staging.join(PID_FILE)) {
        clear(staging, apart)?;
    }
    let Ok(owner) = File::open(staging.join(PID_FILE)) else { return Ok(()) };
    let deadline = Instant::now() + LAST_WRITES;
    while let Err(held) = owner.try_lock() {
        if Instant::now() > deadline {
            let owner = io::read_to_string(&owner)?;
            bail!(
                "another slipway is running here (process {owner}, {held}): wait for it, then run this again"
            );
        }
        thread::sleep(Duration::from_millis(20));
    }
    // That run may have finished meanwhile and removed its folder; another run's may be there by now.
    let same = |there: Metadata| Ok::<_, io::Error>(there.ino() == owner.metadata()?.ino());
    if !fs::metadata(staging.join(PID_FILE)).and_then(same).unwrap_or(false) {
        return recover(top, git_folder);
    }
    let (lock, message) = (git_folder.join("index.lock"), git_folder.join(MESSAGE));
    let (locked, pending) = (staging.join(LOCKED).exists(), lock.exists());
    let lock_gone = locked && !pending;
    let journal = fs::read(staging.join(JOURNAL)).ok().map(|journal| read_journal(&journal));
    let files = if staging.join(FILES_IN_WORK_TREE).exists() { apart } else { staging };
    let waits = |(path, _): &(PathBuf, bool)| is_there(&files.join(NEW).join(path));
    match journal {
        // git advises people to remove a stale lock and carry on; to keep their work, only missing files are restored.
        Some(paths) if lock_gone && paths.iter().any(waits) => {
            for (path, _) in paths.iter().filter(|(path, _)| !is_there(&top.join(path))) {
                relocate(&files.join(OLD).join(path), &top.join(path))?;
            }
            complain!(
                "slipway: an earlier run was killed half-way, and git's lock has been removed since; the missing files \
                 are restored: check them with `git status`"
            );
        }
        // Only this was left to do.
        _ if lock_gone => _ = fs::rename(&message, git_folder.join("MERGE_MSG")),
        Some(paths) => {
            undo(top, files, &paths)?;
            complain!("slipway: an earlier run was killed half-way and has been undone");
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

/// Removes a staging folder in one step: the run after a kill must not find half of it and undo what is done.
fn clear(staging: &Path, apart: &Path) -> io::Result<()> {
    if staging.join(FILES_IN_WORK_TREE).exists() {
        // Without these files, no run undoes anything or takes another git's lock for ours.
        for part in [JOURNAL, LOCKED].map(|part| staging.join(part)) {
            if is_there(&part) {
                fs::remove_file(part)?;
            }
        }
        let _ = fs::remove_dir_all(apart);
    }
    let gone = gone(staging);
    match fs::rename(staging, &gone) {
        // Another run has removed it already.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed?,
    }
    let _ = fs::remove_dir_all(gone);
    Ok(())
}

/// Where a staging folder is while it is being removed.
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

/// Fails when a new file would take the place of one that git doesn't track.
fn refuse_to_overwrite_untracked(top: &Path, path: &Path, leaving: &BTreeSet<&Path>) -> Result<()> {
    let cure = "which is not in git: move it or commit it, then run this again";
    let above: Vec<&Path> = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()).collect();
    for above in above.into_iter().rev() {
        if fs::symlink_metadata(top.join(above)).is_ok_and(|there| !there.is_dir()) {
            // Removing a link leaves its target alone.
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

/// Fails when a submodule would be removed: what is not committed or pushed in it exists nowhere else.
fn no_submodule_removed(top: &Path, changes: &Changes<'_>) -> Result<()> {
    for (path, _) in changes.iter().filter(|(_, (old, _))| old.is_some_and(|old| !old.is_file())) {
        // It is empty before `git submodule update --init`.
        if fs::read_dir(top.join(path)).is_ok_and(|mut inside| inside.next().is_some()) {
            bail!(
                "{} is a repository of its own, which would be removed with all that only it has: `git mv` it \
                 elsewhere, commit that, then run this again",
                path.display()
            );
        }
    }
    Ok(())
}

/// The folder in which a change is prepared, and git's lock. Dropping it removes both, which before the swap leaves
/// everything as it was.
struct Staging {
    folder: PathBuf,
    /// Where the files are: in `folder`, or in the one in the work tree.
    files: PathBuf,
    lock: PathBuf,
    /// Whether the lock is not ours to remove: not taken yet, or already renamed to the index.
    done: bool,
    /// Open, so that it stays locked.
    _owner: File,
}

impl Staging {
    fn new(service: &Service) -> Result<Self> {
        let files = service.staging()?;
        let [folder, apart] = service::stagings(&service.top, &service.git_folder);
        service::make(&folder)?;
        let owner = claim(&folder).inspect_err(|_| drop(fs::remove_dir_all(&folder)))?;
        // The lock is not held yet, so it must not be removed, either.
        let lock = service.git_folder.join("index.lock");
        let mut staging = Self { folder, files, lock, done: true, _owner: owner };
        if staging.files == apart {
            // It is empty if a run was killed between these lines.
            let _ = fs::remove_dir(&apart);
            service::make(&apart)?;
            fs::write(staging.folder.join(FILES_IN_WORK_TREE), "")?;
        }
        match File::create_new(&staging.lock) {
            Ok(_) => staging.done = false,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(
                "another git is running here ({} exists): wait for it, then run this again",
                staging.lock.display()
            ),
            Err(error) => return Err(error).context("git's index can't be locked"),
        }
        fs::write(staging.folder.join(LOCKED), "")?;
        Ok(staging)
    }

    /// Leaves everything as it is, for the next run to undo.
    fn keep(self) -> PathBuf {
        std::mem::ManuallyDrop::new(self).files.clone()
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if !self.done {
            // The message goes first: the run after a kill takes a missing lock to mean that the change is done.
            let _ = fs::remove_file(self.lock.with_file_name(MESSAGE));
            let _ = fs::remove_file(&self.lock);
        }
        let _ = clear(&self.folder, &self.files);
    }
}

/// Claims the staging folder for this process and the programs that it will start, which inherit the lock.
fn claim(folder: &Path) -> Result<File> {
    let mut owner = File::create_new(folder.join(PID_FILE))?;
    owner.try_lock()?;
    fcntl_setfd(&owner, FdFlags::empty())?;
    owner.write_all(std::process::id().to_string().as_bytes())?;
    Ok(owner)
}

/// Gives the service the objects that only the scratch repository has.
fn copy_objects(service: &Service, merged: &Merged, changes: &Changes<'_>) -> Result<()> {
    let stages = merged.conflicts.values().flat_map(|stages| stages.numbered().map(|(_, entry)| entry));
    let new = changes.values().filter_map(|(_, new)| *new).chain(stages);
    let ids: BTreeSet<&str> = new.filter(|entry| entry.is_file()).map(|entry| entry.id.as_str()).collect();
    if ids.is_empty() {
        return Ok(());
    }
    let ids: String = ids.into_iter().flat_map(|id| [id, "\n"]).collect();
    // No search for deltas: nothing is sent anywhere, and it takes longer than all else that git does here.
    let pack = merged.scratch.git.feed(&["pack-objects", "--stdout", "-q", "--window=0"], ids.as_bytes())?;
    service.git.feed(&["unpack-objects", "-q"], &pack)?;
    Ok(())
}

/// Writes the new files to the staging folder, and the new index to git's lock file.
fn stage(service: &Service, merged: &Merged, changes: &Changes<'_>, staging: &Staging) -> Result<()> {
    let (new, old) = (staging.files.join(NEW), staging.files.join(OLD));
    fs::create_dir(&new)?;
    fs::create_dir(&old)?;
    let there = || changes.iter().filter_map(|(path, (_, new))| Some((path, (*new)?)));
    if there().next().is_some() {
        // git writes them, so that they get the line endings and filters that its attributes call for.
        let git = service.git.with_index(&staging.folder.join("index"));
        let lines: Vec<u8> = there().flat_map(|(path, entry)| tree::index_line(path, entry, 0)).collect();
        git.feed(&["update-index", "-z", "--index-info"], &lines)?;
        let mut prefix = OsString::from("--prefix=");
        // With a slash at the end: otherwise git takes it for the beginning of the files' names.
        prefix.push(new.join(""));
        git.run(&["checkout-index".as_ref(), "--all".as_ref(), "--quiet".as_ref(), &*prefix])?;
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

/// Fails when a file that is to be replaced or removed is not as committed, or anything is staged: someone saved,
/// staged or committed it while we worked, or git was told to ignore changes to it.
fn unchanged(service: &Service, leaving: &BTreeSet<&Path>, staging: &Staging) -> Result<()> {
    let head = service::head(&service.prefix);
    if service.git.line(&["rev-parse".as_ref(), &*head])? != service.tree {
        bail!("something was committed or checked out meanwhile: run this again");
    }
    let staged = service.git.run(&["diff-index", "--cached", "--name-only", "-z", "HEAD"])?;
    if let Some(path) = named(&staged).next() {
        bail!("{} was staged meanwhile: `git commit` or `git stash` it, then run this again", path.display());
    }
    // A file that isn't there was left out of a sparse checkout.
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
            "{} differs from what is committed: it was saved meanwhile, or git was told to ignore changes to it. `git \
             commit` it (after `git update-index --no-assume-unchanged --no-skip-worktree`), then run this again",
            path.display()
        );
    }
    Ok(())
}

/// The paths in a list that git wrote with `-z`.
fn named(list: &[u8]) -> impl Iterator<Item = &Path> {
    let paths = list.split(|byte| *byte == 0).filter(|path| !path.is_empty());
    paths.map(|path| Path::new(OsStr::from_bytes(path)))
}

/// Moves the old files out of the way and the new ones into their place.
fn swap(top: &Path, files: &Path, paths: &[(PathBuf, bool)]) -> Result<()> {
    let kept = folders(paths.iter().filter(|(_, has_new)| *has_new));
    for (path, _) in paths {
        relocate(&top.join(path), &files.join(OLD).join(path))?;
        remove_empty_folders(top, path, &kept);
    }
    for (path, _) in paths {
        relocate(&files.join(NEW).join(path), &top.join(path))?;
    }
    Ok(())
}

/// Undoes what [`swap`] did, however far it got.
fn undo(top: &Path, files: &Path, paths: &[(PathBuf, bool)]) -> Result<()> {
    let kept = folders(paths.iter().filter(|(path, _)| is_there(&files.join(OLD).join(path))));
    for (path, has_new) in paths {
        let new = files.join(NEW).join(path);
        if *has_new && !is_there(&new) {
            relocate(&top.join(path), &new)?;
            remove_empty_folders(top, path, &kept);
        }
    }
    for (path, _) in paths {
        relocate(&files.join(OLD).join(path), &top.join(path))?;
    }
    Ok(())
}

/// The folders in which `paths` are to be. If one were removed and made again, a container or a shell that is in it would
/// be left in the old one, and its mode would be lost.
fn folders<'a>(paths: impl Iterator<Item = &'a (PathBuf, bool)>) -> BTreeSet<&'a Path> {
    paths.flat_map(|(path, _)| path.ancestors().skip(1)).collect()
}

/// Whether `path` exists, be it as a dangling link.
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

/// Removes the folders above `path` that hold nothing any more, except those that are `kept`.
fn remove_empty_folders(top: &Path, path: &Path, kept: &BTreeSet<&Path>) {
    let above = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty());
    for folder in above {
        if kept.contains(folder) || fs::remove_dir(top.join(folder)).is_err() {
            break;
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    /// After it, a file is a folder, a folder is a file, and a file is in a folder further down.
    const CHANGE: &[u8] =
        b"+a/changed\0-b/gone\0+c/d/new\0+e/f/moved\0-e/moved\0+into\0-into/one\0-into/two\0-turned\0\
                            +turned/into\0";

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
        // Restored by the user and edited since.
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
        // A run that was killed while cleaning up after its change was done; the lock is another git's.
        write(&git, &[("slipway/pid", "1"), ("slipway/apart", ""), ("index.lock", "")]);
        write(&top, &prepared);
        recover(&top, &git).unwrap();
        let done =
            [("a/changed", "new"), ("b/gone", "old")].map(|(path, text)| (path.into(), text.to_owned()));
        assert_eq!(contents(&top), done);
        assert_eq!(contents(&git), [("index.lock".into(), String::new())]);
    }

    /// Puts the old versions of the files in [`CHANGE`] into `top`, and the new ones into `staging`.
    fn prepare(top: &Path, staging: &Path) {
        for path in ["a/changed", "b/gone", "e/moved", "into/one", "into/two", "turned", "untouched"] {
            write(top, &[(path, "old")]);
        }
        for path in ["a/changed", "c/d/new", "e/f/moved", "into", "turned/into"] {
            write(&staging.join(NEW), &[(path, "new")]);
        }
    }

    /// Folders that have files before [`CHANGE`] and after it, open, so that no new folder gets the number of one.
    fn open(top: &Path) -> [(PathBuf, File); 2] {
        ["a", "e"].map(|folder| (top.join(folder), File::open(top.join(folder)).unwrap()))
    }

    fn assert_same(folders: &[(PathBuf, File)]) {
        for (path, folder) in folders {
            let (now, before) = (fs::metadata(path).unwrap(), folder.metadata().unwrap());
            assert_eq!(now.ino(), before.ino(), "{} is another folder", path.display());
        }
    }

    /// Stops a swap after each of its moves, as a kill would, and undoes it from what is on disk.
    #[test]
    fn a_swap_is_undone_from_wherever_it_stopped() {
        let paths = read_journal(CHANGE);
        let kept = folders(paths.iter().filter(|(_, has_new)| *has_new));
        for stop in 0..=2 * paths.len() {
            let (top, staging) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (top, staging) = (top.path(), staging.path());
            prepare(top, staging);
            let (before, open) = (contents(top), open(top));
            let out = stop.min(paths.len());
            for (path, _) in &paths[..out] {
                relocate(&top.join(path), &staging.join(OLD).join(path)).unwrap();
                remove_empty_folders(top, path, &kept);
            }
            for (path, _) in &paths[..stop - out] {
                relocate(&staging.join(NEW).join(path), &top.join(path)).unwrap();
            }
            undo(top, staging, &paths).unwrap();
            assert_eq!(contents(top), before, "stopped after {stop} moves");
            assert_same(&open);
            undo(top, staging, &paths).unwrap();
            assert_eq!(contents(top), before, "undone twice");
        }
    }

    #[test]
    fn a_folder_stays_though_all_files_in_it_change() {
        let (top, staging) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (top, staging, paths) = (top.path(), staging.path(), read_journal(CHANGE));
        prepare(top, staging);
        let open = open(top);
        swap(top, staging, &paths).unwrap();
        assert_same(&open);
        let now: Vec<PathBuf> = contents(top).into_iter().map(|(path, _)| path).collect();
        let wanted = ["a/changed", "c/d/new", "e/f/moved", "into", "turned/into", "untouched"];
        assert_eq!(now, wanted.map(PathBuf::from));
        assert!(!top.join("b").exists(), "an empty folder is left");
        undo(top, staging, &paths).unwrap();
        assert_same(&open);
        assert!(!top.join("c").exists() && !top.join("e/f").exists(), "a new folder is left");
    }
}
