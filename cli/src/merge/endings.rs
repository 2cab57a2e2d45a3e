//! Line endings: what is generated has those that the service's files were committed with, else every line would
//! differ.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use walkdir::WalkDir;

use crate::git::{self, Git};
use crate::record;
use crate::service::Service;
use crate::tree;

/// Gives the files in `folders` the line endings of their counterparts in `service`; one that has none follows the
/// record.
pub fn follow(git: &Git, service: &Service, folders: &[&Path]) -> Result<()> {
    let carried = carried(git, service)?;
    if carried.is_empty() {
        return Ok(());
    }
    let new_ones = carried.contains(Path::new(record::FILE));
    for folder in folders {
        for entry in WalkDir::new(folder) {
            let entry = entry?;
            let path = entry.path().strip_prefix(folder)?;
            let wanted = if service.files.contains_key(path) { carried.contains(path) } else { new_ones };
            if !entry.file_type().is_file() || !wanted {
                continue;
            }
            // Text alone: in anything else a line feed is no end of a line.
            if let Ok(text) = String::from_utf8(fs::read(entry.path())?) {
                fs::write(entry.path(), carry(&text))?;
            }
        }
    }
    Ok(())
}

/// `text` with a carriage return at each line's end.
pub fn carry(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\n', "\r\n")
}

/// Whether each line of `content` ends with a carriage return too.
pub fn are_carried(content: &[u8]) -> bool {
    let mut ends = content.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    ends.next().is_some_and(|line| line.ends_with(b"\r\n")) && ends.all(|line| line.ends_with(b"\r\n"))
}

/// The files of `service` in which each line ends with a carriage return too.
fn carried(git: &Git, service: &Service) -> Result<BTreeSet<PathBuf>> {
    // Whatever patterns and colours someone likes to search with.
    let said =
        git.output(&["grep", "-G", "--no-color", "-l", "-I", "-z", "-e", "\r$", &service.tree, "--"], &[])?;
    if !matches!(said.status.code(), Some(0 | 1)) {
        bail!("git could not search for line endings: {}", git::last_words(&said.stderr));
    }
    let mut found = BTreeSet::new();
    for name in said.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // `<tree>:<path>`
        let path = Path::new(OsStr::from_bytes(name.get(service.tree.len() + 1..).unwrap_or_default()));
        let Some(entry) = service.files.get(path) else { continue };
        if are_carried(&tree::content(git, &entry.id)?) {
            found.insert(path.to_owned());
        }
    }
    Ok(found)
}
