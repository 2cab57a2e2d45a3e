//! The three versions of a file in conflict.

use crate::tree::Entry;

/// A version is missing where the file isn't there.
#[derive(Clone, Debug, Default)]
pub struct Stages {
    pub base: Option<Entry>,
    pub ours: Option<Entry>,
    pub theirs: Option<Entry>,
}

impl Stages {
    /// By the number that git gives it.
    pub fn set(&mut self, stage: &str, entry: Entry) {
        match stage {
            "1" => self.base = Some(entry),
            "2" => self.ours = Some(entry),
            _ => self.theirs = Some(entry),
        }
    }

    /// Those that are there, each with its number.
    pub fn numbered(&self) -> impl Iterator<Item = (u8, &Entry)> {
        let all = [(1, &self.base), (2, &self.ours), (3, &self.theirs)];
        all.into_iter().filter_map(|(number, entry)| Some((number, entry.as_ref()?)))
    }
}
