//! Line endings: generated files get those that the service's files were committed with. Otherwise every line would
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

/// Gives the files in `folders` the line endings of their counterparts in `service`; a file that has none gets those
/// of the record.
pub fn follow(git: &Git, service: &Service, folders: &[&Path]) -> Result<()> {
    let crlf_files = crlf_files(git, service)?;
    if crlf_files.is_empty() {
        return Ok(());
    }
    let new_ones = crlf_files.contains(Path::new(record::FILE));
    for folder in folders {
        for entry in WalkDir::new(folder) {
            let entry = entry?;
            let path = entry.path().strip_prefix(folder)?;
            let wanted = if service.files.contains_key(path) { crlf_files.contains(path) } else { new_ones };
            if !entry.file_type().is_file() || !wanted {
                continue;
            }
            // Only text: elsewhere a line feed doesn't end a line.
            if let Ok(text) = String::from_utf8(fs::read(entry.path())?) {
                fs::write(entry.path(), to_crlf(&text))?;
            }
        }
    }
    Ok(())
}

/// `text` with CRLF line endings.
pub fn to_crlf(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\n', "\r\n")
}

/// Whether all line endings of `content` are CRLF; false when it has none.
pub fn is_crlf(content: &[u8]) -> bool {
    let mut ends = content.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
    ends.next().is_some_and(|line| line.ends_with(b"\r\n")) && ends.all(|line| line.ends_with(b"\r\n"))
}

/// The files of `service` in which all line endings are CRLF.
fn crlf_files(git: &Git, service: &Service) -> Result<BTreeSet<PathBuf>> {
    // Independent of the user's settings for patterns and colours.
    let said =
        git.output(&["grep", "-G", "--no-color", "-l", "-I", "-z", "-e", "\r$", &service.tree, "--"], &[])?;
    if !matches!(said.status.code(), Some(0 | 1)) {
        bail!("git could not search for line endings: {}", git::error_summary(&said.stderr));
    }
    let mut found = BTreeSet::new();
    for name in said.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // `<tree>:<path>`
        let path = Path::new(OsStr::from_bytes(name.get(service.tree.len() + 1..).unwrap_or_default()));
        let Some(entry) = service.files.get(path) else { continue };
        if is_crlf(&tree::content(git, &entry.id)?) {
            found.insert(path.to_owned());
        }
    }
    Ok(found)
}
