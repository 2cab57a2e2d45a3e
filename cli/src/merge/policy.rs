//! Conflicts that nobody has to decide: in TOML tables and lockfiles, which are merged by their entries rather than
//! their lines, and in files that belong to the service's owner.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use toml_edit::DocumentMut;

use super::stages::Stages;
use super::{Merged, Message, Sides, endings, lock, table};
use crate::git::Git;
use crate::ownership::Ownership;
use crate::record::{self, Record};
use crate::service::Service;
use crate::tree::{self, Entry, Files};

const LOCK: &str = "Cargo.lock";
const MANIFEST: &str = "Cargo.toml";

/// Drops what `wanted` adds to the example domain if the service has removed the example.
pub fn drop_removed_example(
    ownership: &Ownership,
    ours: &Files,
    recorded: &Files,
    wanted: &mut Files,
) -> Vec<String> {
    let mut example = recorded.keys().filter(|path| ownership.is_example(path)).peekable();
    if example.peek().is_none() || example.any(|path| ours.contains_key(path)) {
        return Vec::new();
    }
    let new = |path: &PathBuf| ownership.is_example(path) && !recorded.contains_key(path);
    let left: Vec<PathBuf> = wanted.keys().filter(|path| new(path)).cloned().collect();
    wanted.retain(|path, _| !left.contains(path));
    left.iter().map(|path| format!("{} is not added: you removed the example", path.display())).collect()
}

/// Resolves those conflicts in `merged` that nobody has to decide.
pub fn settle(
    merged: &mut Merged,
    sides: &Sides<'_>,
    service: &Service,
    recorded: &Files,
    wanted: &Files,
) -> Result<()> {
    let git = merged.scratch.git.clone();
    let found: BTreeSet<PathBuf> = merged.conflicts.keys().cloned().collect();
    let manifest_parse_error = manifest_parse_error(&git, merged)?;
    add_structured_files(merged, service, recorded, wanted, manifest_parse_error.is_some());
    for (path, stages) in merged.conflicts.clone() {
        // The path that it was generated under, if its owner renamed it.
        let renamed = stages.base.as_ref().filter(|_| !recorded.contains_key(&path));
        let mut generated: Vec<_> =
            recorded.iter().filter(|(_, entry)| renamed == Some(entry)).map(|(path, _)| path).collect();
        if generated.is_empty() {
            generated.push(&path);
        }
        let seed = generated.into_iter().all(|path| sides.ownership.is_seed(path));
        match &stages {
            Stages { base: Some(base), ours: Some(ours), theirs: Some(theirs) } => {
                let by_lines = if found.contains(&path) { None } else { merged.files.get(&path).cloned() };
                match merge_file(
                    &git,
                    sides.update && seed,
                    &path,
                    [base, ours, theirs],
                    by_lines.as_ref(),
                    merged,
                )? {
                    Some(text) => {
                        let entry = Entry { mode: ours.mode.clone(), id: tree::store(&git, &text)? };
                        merged.files.insert(path.clone(), entry);
                    }
                    None if found.contains(&path) => continue,
                    None if path == Path::new(MANIFEST) => {
                        merged.messages.extend(manifest_parse_error.as_deref().map(unparsable_manifest));
                        continue;
                    }
                    // Then git's merge stands.
                    None => {}
                }
            }
            // What its owner removed stays removed.
            Stages { ours: None, theirs: Some(_), .. } if seed || path.ends_with(LOCK) => {
                merged.notes.push(format!("{} stays removed", path.display()));
                merged.files.remove(&path);
            }
            Stages { ours: Some(ours), theirs: None, .. } if sides.update && seed => {
                merged
                    .notes
                    .push(format!("{} stays: the template removed it, but you changed it", path.display()));
                merged.files.insert(path.clone(), ours.clone());
            }
            _ => continue,
        }
        merged.conflicts.remove(&path);
    }
    Ok(())
}

/// A note where only cargo can tell what the merged lockfile needs.
pub fn uncertain_lock(
    merged: &Merged,
    service: &Service,
    recorded: &Files,
    wanted: &Files,
) -> Result<Option<String>> {
    let text = |entry: &Entry| text_of(&merged.scratch.git, entry);
    // An owner who only releases new versions of the service shares nothing more with the template than before.
    let without_versions = |entry: &Entry| -> Result<Vec<String>> {
        let text = text(entry)?;
        Ok(text.lines().filter(|line| !line.starts_with("version = ")).map(str::to_owned).collect())
    };
    let is_edited = |path: &str| match [recorded, &service.files].map(|files| files.get(Path::new(path))) {
        [Some(before), Some(now)] if before != now => Ok(without_versions(before)? != without_versions(now)?),
        [before, now] => Ok::<_, anyhow::Error>(before != now),
    };
    let locks = [recorded, &service.files, wanted, &merged.files].map(|files| files.get(Path::new(LOCK)));
    let [Some(base), Some(ours), Some(theirs), Some(result)] = locks else { return Ok(None) };
    if ours == result || !(is_edited(LOCK)? || is_edited(MANIFEST)?) {
        return Ok(None);
    }
    let uncertain = lock::is_uncertain(&text(base)?, &text(ours)?, &text(theirs)?, &text(result)?);
    Ok(uncertain.then(|| {
        format!(
            "{LOCK}: run `cargo check`, which brings it up to date where your dependencies share features with the \
             template's"
        )
    }))
}

/// Adds the files that are merged by their entries even where git saw no conflict: the lines of a lockfile may merge
/// cleanly and still be wrong together, and so may a manifest's, with two for one dependency.
fn add_structured_files(
    merged: &mut Merged,
    service: &Service,
    recorded: &Files,
    wanted: &Files,
    manifest: bool,
) {
    let manifest = manifest.then_some(MANIFEST);
    for path in [LOCK, record::FILE].into_iter().chain(manifest).map(Path::new) {
        let stages = Stages {
            base: recorded.get(path).cloned(),
            ours: service.files.get(path).cloned(),
            theirs: wanted.get(path).cloned(),
        };
        if stages.ours != stages.base && stages.theirs != stages.base && stages.ours != stages.theirs {
            merged.conflicts.entry(path.to_owned()).or_insert(stages);
        }
    }
}

fn text_of(git: &Git, entry: &Entry) -> Result<String> {
    Ok(String::from_utf8_lossy(&tree::content(git, &entry.id)?).into_owned())
}

/// Why the manifest, as git merged it, can't be parsed.
fn manifest_parse_error(git: &Git, merged: &Merged) -> Result<Option<String>> {
    let Some(entry) = merged.files.get(Path::new(MANIFEST)) else { return Ok(None) };
    let text = text_of(git, entry)?;
    let Err(error) = text.parse::<DocumentMut>() else { return Ok(None) };
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    Ok(Some(format!("line {}: {}", before.matches('\n').count() + 1, error.message())))
}

/// The message for a manifest that can't be parsed although its lines merged cleanly.
fn unparsable_manifest(cause: &str) -> Message {
    let text = format!(
        "CONFLICT (content): {MANIFEST} has lines from both sides and can't be parsed ({cause}): keep only one side's"
    );
    Message { paths: vec![MANIFEST.into()], text }
}

/// Merges three versions into one; `None` when someone has to decide. `by_lines` is the file as git merged it.
fn merge_file(
    git: &Git,
    ours_win: bool,
    path: &Path,
    stages: [&Entry; 3],
    by_lines: Option<&Entry>,
    merged: &mut Merged,
) -> Result<Option<Vec<u8>>> {
    let [base, ours, theirs] = stages.map(|entry| tree::content(git, &entry.id));
    let bytes = [base?, ours?, theirs?];
    // The merges by entries only know LF; the owner's line endings are restored at the end.
    let texts = bytes.each_ref().map(|bytes| String::from_utf8_lossy(bytes).replace("\r\n", "\n"));
    let [base, ours, theirs] = texts.each_ref().map(String::as_str);
    let text = if path.ends_with(LOCK) {
        lock::merge(base, ours, theirs)
    } else if path == Path::new(record::FILE) {
        // It must record what was asked for; everything else in it is the owner's.
        let by_lines = by_lines.map(|entry| tree::content(git, &entry.id)).transpose()?;
        let by_lines = by_lines.and_then(|text| String::from_utf8(text).ok());
        table::merge(base, ours, theirs)
            .or_else(|| by_lines.filter(|text| record_alike(text, theirs)))
            .or_else(|| table::merge(base, theirs, ours))
            .or_else(|| {
                merged.notes.push(format!(
                    "{} was replaced by the template's: check what you had in it",
                    path.display()
                ));
                Some(theirs.to_owned())
            })
    } else if path.ends_with(MANIFEST) {
        table::merge(base, ours, theirs)
    } else {
        None
    };
    if text.is_none() && ours_win {
        merged.notes.push(format!("{}: where the template changed your lines, yours stay", path.display()));
        return favouring_ours(merged, bytes.each_ref()).map(Some);
    }
    let crlf = endings::is_crlf(&bytes[1]);
    Ok(text.map(|text| if crlf { endings::to_crlf(&text) } else { text }.into_bytes()))
}

/// Whether both record the same version and answers.
fn record_alike(one: &str, other: &str) -> bool {
    let read = |text| Record::parse(text).map(|record| (record.version, record.answers)).ok();
    read(one).is_some_and(|one| read(other) == Some(one))
}

/// Merges by lines, as git does, with the owner's wherever both sides changed the same ones.
fn favouring_ours(merged: &Merged, [base, ours, theirs]: [&Vec<u8>; 3]) -> Result<Vec<u8>> {
    let files = [("base", base), ("ours", ours), ("theirs", theirs)];
    // How git recognises binary files, which include UTF-16; it doesn't merge them.
    if files.iter().any(|(_, content)| content.iter().take(8000).any(|byte| *byte == 0)) {
        return Ok(ours.clone());
    }
    for (name, content) in files {
        fs::write(merged.scratch.file(name), content)?;
    }
    let [base, ours, theirs] = files.map(|(name, _)| merged.scratch.file(name).display().to_string());
    merged.scratch.git.run(&["merge-file", "--ours", "-p", &ours, &base, &theirs])
}
