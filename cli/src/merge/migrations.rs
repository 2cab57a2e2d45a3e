//! Migrations may have run: one that the service has is never edited and never goes alone, and a new one takes no
//! number that is taken.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::Merged;
use crate::service::Service;
use crate::tree::Files;

const FOLDER: &str = "migrations";

/// Gives the migrations that `wanted` adds another number where the service has one of its own under theirs.
pub fn renumber(ours: &Files, recorded: &Files, wanted: &mut Files) -> Vec<String> {
    let mut notes = Vec::new();
    let new: Vec<PathBuf> = migrations(wanted)
        .filter(|path| !recorded.contains_key(*path) && !ours.contains_key(*path))
        .cloned()
        .collect();
    for path in new {
        let taken: BTreeSet<u64> = migrations(ours)
            .chain(migrations(wanted).filter(|other| **other != path))
            .filter_map(|path| number(path))
            .collect();
        let own =
            migrations(ours).any(|other| !recorded.contains_key(other) && number(other) == number(&path));
        let (Some(old), true) = (number(&path), own) else { continue };
        let free = taken.last().map_or(old, |last| last + 1);
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let digits = name.chars().take_while(char::is_ascii_digit).count();
        let to = path.with_file_name(format!("{free:0digits$}{}", &name[digits..]));
        notes.push(format!(
            "{} comes as {}: you have a migration of that number",
            path.display(),
            to.display()
        ));
        if let Some(entry) = wanted.remove(&path) {
            wanted.insert(to, entry);
        }
    }
    notes
}

/// Refuses a merge that edits a migration of the service, and keeps those that an older version didn't have yet.
/// Without a database they all go.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Entry;

    fn files(paths: &[&str]) -> Files {
        let entry =
            |path: &&str| (PathBuf::from(path), Entry { mode: "100644".into(), id: (*path).to_owned() });
        paths.iter().map(entry).collect()
    }

    #[test]
    fn a_new_migration_takes_a_free_number() {
        let recorded = files(&["migrations/0001_a.sql"]);
        let ours = files(&["migrations/0001_a.sql", "migrations/0002_mine.sql", "migrations/0003_mine.sql"]);
        let mut wanted = files(&["migrations/0001_a.sql", "migrations/0002_theirs.sql"]);
        assert_eq!(renumber(&ours, &recorded, &mut wanted).len(), 1);
        assert_eq!(wanted, {
            let mut files = files(&["migrations/0001_a.sql"]);
            let theirs = Entry { mode: "100644".into(), id: "migrations/0002_theirs.sql".into() };
            files.insert("migrations/0004_theirs.sql".into(), theirs);
            files
        });
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
