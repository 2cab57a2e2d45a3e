//! Which files are the service's own from its first day on: the template's `ownership.toml` says it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use toml_edit::{Array, DocumentMut, Item};

const FILE: &str = "ownership.toml";

/// The files that are given away.
#[derive(Debug, Default)]
pub struct Ownership {
    /// An update changes them only where their owner did not.
    pub seeds: Vec<PathBuf>,
    /// Those of them that make up the example domain: once they are gone, no other is brought.
    pub example: Vec<PathBuf>,
}

impl Ownership {
    /// What the template in `folder` says.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        let document: DocumentMut =
            fs::read_to_string(path)?.parse().with_context(|| format!("the template's {FILE} is no TOML"))?;
        let listed = |key: &str| -> Vec<PathBuf> {
            let paths = document.get(key).and_then(Item::as_array).into_iter().flat_map(Array::iter);
            paths.filter_map(|path| Some(path.as_str()?.into())).collect()
        };
        Ok(Self { seeds: listed("seeds"), example: listed("example") })
    }

    /// Whether `path` is the service's own.
    pub fn is_seed(&self, path: &Path) -> bool {
        self.seeds.iter().chain(&self.example).any(|seed| path.starts_with(seed))
    }

    /// Whether `path` belongs to the example domain.
    pub fn is_example(&self, path: &Path) -> bool {
        self.example.iter().any(|seed| path.starts_with(seed))
    }
}
