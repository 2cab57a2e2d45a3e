//! Which files belong to the service's owner from the first day: the template's `ownership.toml` lists them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use toml_edit::{Array, DocumentMut, Item};

const FILE: &str = "ownership.toml";

/// The files that belong to the service's owner.
#[derive(Debug, Default)]
pub struct Ownership {
    /// An update changes these only where their owner did not.
    pub seeds: Vec<PathBuf>,
    /// The same holds for the example domain; once all of these have been removed, an update adds no new ones.
    pub example: Vec<PathBuf>,
}

impl Ownership {
    /// Reads the `ownership.toml` of the template in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        if !path.exists() {
            return Ok(Self::default());
        }
        let document: DocumentMut = fs::read_to_string(path)?
            .parse()
            .with_context(|| format!("the template's {FILE} is not valid TOML"))?;
        let listed = |key: &str| -> Vec<PathBuf> {
            let paths = document.get(key).and_then(Item::as_array).into_iter().flat_map(Array::iter);
            paths.filter_map(|path| Some(path.as_str()?.into())).collect()
        };
        Ok(Self { seeds: listed("seeds"), example: listed("example") })
    }

    /// Whether `path` belongs to the service's owner.
    pub fn is_seed(&self, path: &Path) -> bool {
        self.seeds.iter().chain(&self.example).any(|seed| path.starts_with(seed))
    }

    /// Whether `path` belongs to the example domain.
    pub fn is_example(&self, path: &Path) -> bool {
        self.example.iter().any(|seed| path.starts_with(seed))
    }
}
