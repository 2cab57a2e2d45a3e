//! Migrations may have run: those that the service has are never edited, and are only removed when `postgres` is
//! switched off; a new one never takes a number that is in use.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::Merged;
use crate::service::Service;
use crate::tree::Files;

const FOLDER: &str = "migrations";

/// Gives the template's migrations the names that they have in the service, where some were renumbered. git would take
/// that for a rename by the owner, which conflicts once the template removes the file, and would add the same migration
/// a second time to a service that went back and comes forward again.
pub fn follow(ours: &Files, recorded: &mut Files, wanted: &mut Files) {
    let renumbered = |files: &Files| -> BTreeMap<PathBuf, PathBuf> {
        let same = |path: &Path, other: &Path| {
            let known = title(path).is_some_and(|known| title(other) == Some(known));
            known && files[path].id == ours[other].id
        };
        let found =
            |path: &Path| migrations(ours).find(|other| !files.contains_key(*other) && same(path, other));
        let absent = migrations(files).filter(|path| !ours.contains_key(*path));
        absent.filter_map(|path| Some((path.clone(), found(path)?.clone()))).collect()
    };
    let mut names = renumbered(wanted);
    names.extend(renumbered(recorded));
    for files in [recorded, wanted] {
        for (from, to) in names.iter().filter(|(_, to)| !files.contains_key(*to)).collect::<Vec<_>>() {
            if let Some(entry) = files.remove(from) {
                files.insert(to.clone(), entry);
            }
        }
    }
}

/// Renumbers the migrations that `wanted` adds, where the service has a migration of its own with the same number, or
/// where they would come before one that they have to follow.
pub fn renumber(ours: &Files, recorded: &Files, wanted: &mut Files) -> Vec<String> {
    let mut notes = Vec::new();
    let new: Vec<PathBuf> = migrations(wanted)
        .filter(|path| !recorded.contains_key(*path) && !ours.contains_key(*path))
        .cloned()
        .collect();
    // The highest number of those that came from the template, which may have been renumbered.
    let last = migrations(ours)
        .filter(|path| recorded.values().chain(wanted.values()).any(|entry| entry.id == ours[*path].id))
        .filter_map(|path| number(path))
        .max();
    let mut moved = false;
    for path in new {
        let taken: BTreeSet<u64> = migrations(ours)
            .chain(migrations(wanted).filter(|other| **other != path))
            .filter_map(|path| number(path))
            .collect();
        let Some(old) = number(&path) else { continue };
        let own = migrations(ours).any(|other| !recorded.contains_key(other) && number(other) == Some(old));
        if !own && !moved && last < Some(old) {
            continue;
        }
        moved = true;
        let free = taken.last().map_or(old, |last| last + 1);
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let digits = name.chars().take_while(char::is_ascii_digit).count();
        let to = path.with_file_name(format!("{free:0digits$}{}", &name[digits..]));
        let why = if own { "you have a migration with that number" } else { "it has to come last" };
        notes.push(format!("{} is added as {}: {why}", path.display(), to.display()));
        if let Some(entry) = wanted.remove(&path) {
            wanted.insert(to, entry);
        }
    }
    notes
}

/// Refuses a merge that edits a migration of the service, and keeps those that an older version doesn't have yet.
/// If `wanted` has no migrations at all (`postgres` is off), the merge may remove them.
pub fn keep(merged: &mut Merged, service: &Service, wanted: &Files) -> Result<()> {
    if migrations(wanted).next().is_none() {
        return Ok(());
    }
    for path in migrations(&service.files) {
        let ours = &service.files[path];
        match merged.files.get(path) {
            Some(entry) if entry == ours && !merged.conflicts.contains_key(path) => {}
            Some(_) => bail!(
                "the template edits {}, which may have run on a database: its maintainers have to add a migration \
                 instead",
                path.display()
            ),
            None => {
                merged.conflicts.remove(path);
                merged.files.insert(path.clone(), ours.clone());
                merged.notes.push(format!("{} stays, since it may have run", path.display()));
            }
        }
    }
    Ok(())
}

fn migrations(files: &Files) -> impl Iterator<Item = &PathBuf> {
    files.keys().filter(|path| path.starts_with(FOLDER))
}

/// The number that a migration's name begins with.
fn number(path: &Path) -> Option<u64> {
    let (number, _) = path.file_name()?.to_str()?.split_once('_')?;
    number.parse().ok()
}

/// What a migration's name has after its number.
fn title(path: &Path) -> Option<&str> {
    let (number, title) = path.strip_prefix(FOLDER).ok()?.to_str()?.split_once('_')?;
    number.parse::<u64>().is_ok().then_some(title)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Entry;

    fn files(paths: &[&str]) -> Files {
        brought(&paths.iter().map(|path| (*path, *path)).collect::<Vec<_>>())
    }

    /// Each path with the one that its content was generated under.
    fn brought(paths: &[(&str, &str)]) -> Files {
        let entry = |(path, id): &(&str, &str)| {
            (PathBuf::from(path), Entry { mode: "100644".into(), id: (*id).to_owned() })
        };
        paths.iter().map(entry).collect()
    }

    #[test]
    fn only_what_was_renumbered_is_followed() {
        let (b, c, mine) = ("migrations/0002_b.sql", "migrations/0003_c.sql", "migrations/0002_mine.sql");
        let ours = [("migrations/0003_b.sql", b), (mine, mine), ("migrations/archive/0001_c.sql", c)];
        let followed = |there: &[(&str, &str)]| {
            let (mut recorded, mut wanted) = (Files::new(), brought(there));
            follow(&brought(&ours), &mut recorded, &mut wanted);
            wanted
        };
        assert_eq!(followed(&[(b, b)]), brought(&[("migrations/0003_b.sql", b)]));
        // Not one that is new and has the same content, nor one that its owner has put aside, nor into one that is there.
        for there in [
            &[("migrations/0004_again.sql", b)][..],
            &[(c, c)],
            &[(b, b), ("migrations/0003_b.sql", "other")],
        ] {
            assert_eq!(followed(there), brought(there));
        }
    }

    #[test]
    fn a_new_migration_takes_a_free_number() {
        let recorded = files(&["migrations/0001_a.sql"]);
        let ours = files(&["migrations/0001_a.sql", "migrations/0002_mine.sql", "migrations/0003_mine.sql"]);
        let mut wanted = files(&["migrations/0001_a.sql", "migrations/0002_theirs.sql"]);
        assert_eq!(renumber(&ours, &recorded, &mut wanted).len(), 1);
        let renumbered = brought(&[
            ("migrations/0001_a.sql", "migrations/0001_a.sql"),
            ("migrations/0004_theirs.sql", "migrations/0002_theirs.sql"),
        ]);
        assert_eq!(wanted, renumbered);
    }

    #[test]
    fn new_migrations_keep_their_order() {
        let (a, b, c, d) = (
            "migrations/0001_a.sql",
            "migrations/0002_b.sql",
            "migrations/0003_c.sql",
            "migrations/0004_d.sql",
        );
        let mine = ["migrations/0002_mine.sql", "migrations/0010_mine.sql"];
        let mut wanted = files(&[a, b, c]);
        assert_eq!(renumber(&files(&[a, mine[0], mine[1]]), &files(&[a]), &mut wanted).len(), 2);
        let renumbered = brought(&[(a, a), ("migrations/0011_b.sql", b), ("migrations/0012_c.sql", c)]);
        assert_eq!(wanted, renumbered);
        // A later one doesn't come before them, either.
        let (mut ours, mut wanted) = (renumbered, files(&[a, b, c, d]));
        ours.extend(files(&mine));
        assert_eq!(renumber(&ours, &files(&[a, b, c]), &mut wanted).len(), 1);
        assert_eq!(wanted, brought(&[(a, a), (b, b), (c, c), ("migrations/0013_d.sql", d)]));
    }

    #[test]
    fn a_number_that_is_free_stays() {
        let recorded = files(&["migrations/0001_a.sql"]);
        let ours = files(&["migrations/0001_a.sql", "migrations/20261121101500_mine.sql"]);
        let mut wanted = files(&["migrations/0001_a.sql", "migrations/0002_theirs.sql"]);
        let before = wanted.clone();
        assert_eq!(renumber(&ours, &recorded, &mut wanted), Vec::<String>::new());
        assert_eq!(wanted, before);
    }
}
