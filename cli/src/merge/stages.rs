//! The three versions of a file in conflict.

use crate::tree::Entry;

/// A version is `None` if the file doesn't exist in it.
#[derive(Clone, Debug, Default)]
pub struct Stages {
    pub base: Option<Entry>,
    pub ours: Option<Entry>,
    pub theirs: Option<Entry>,
}

impl Stages {
    /// Sets the version with git's stage number.
    pub fn set(&mut self, stage: &str, entry: Entry) {
        match stage {
            "1" => self.base = Some(entry),
            "2" => self.ours = Some(entry),
            _ => self.theirs = Some(entry),
        }
    }

    /// The versions that exist, each with its stage number.
    pub fn numbered(&self) -> impl Iterator<Item = (u8, &Entry)> {
        let all = [(1, &self.base), (2, &self.ours), (3, &self.theirs)];
        all.into_iter().filter_map(|(number, entry)| Some((number, entry.as_ref()?)))
    }
}
