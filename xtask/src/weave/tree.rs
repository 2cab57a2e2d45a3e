//! The files of `template/` as they are in the repository, and as they come out in a variant.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use ignore::WalkBuilder;

use super::config::Config;
use super::fence::{self, Piece};
use super::names::{self, Names};
use crate::lock;
use crate::variant::{TOGGLES, Variant};

/// The extension of the files that cargo-generate uses in place of those of the same name without it.
pub const LIQUID: &str = ".liquid";
/// Where a service records what it was generated with. In the living service, every toggle is `true`.
pub const RECORD: &str = "slipway.toml";

/// A file of the living service, or an overlay that replaces one.
#[derive(Debug)]
pub struct Source {
    /// Where it is, relative to `template/`.
    pub path: String,
    /// Its path in a generated service: the same, or that of the file that it replaces.
    pub target: String,
    /// The toggle in whose absence it replaces that file.
    pub without: Option<&'static str>,
    /// None: it is not text, and is copied as it is.
    pub text: Option<String>,
}

impl Source {
    fn read(template: &Path, path: String) -> Result<Self> {
        let bytes = fs::read(template.join(&path)).with_context(|| format!("reading template/{path}"))?;
        let overlay = path.strip_prefix("without/").and_then(|rest| rest.split_once('/'));
        let overlay = overlay.and_then(|(folder, target)| {
            Some((*TOGGLES.iter().find(|toggle| **toggle == folder)?, target.to_owned()))
        });
        let (without, target) = match overlay {
            Some((toggle, target)) => (Some(toggle), target),
            None => (None, path.clone()),
        };
        Ok(Self { path, target, without, text: String::from_utf8(bytes).ok() })
    }

    /// Its text, split into pieces; it is one piece if it has no fence.
    ///
    /// # Errors
    /// The faults in its fences.
    pub fn pieces(&self) -> Result<Vec<Piece<'_>>, Vec<fence::Fault>> {
        fence::split(&self.path, self.text.as_deref().unwrap_or_default())
    }
}

/// All files of `template/`.
#[derive(Debug)]
pub struct Tree {
    pub sources: Vec<Source>,
    /// The `.liquid` files, relative to `template/`.
    pub siblings: Vec<String>,
}

impl Tree {
    /// Reads `template/` below `root`.
    ///
    /// # Errors
    /// When a file can't be read.
    pub fn read(root: &Path) -> Result<Self> {
        let template = root.join("template");
        let mut tree = Self { sources: vec![], siblings: vec![] };
        for path in files(&template)? {
            let path =
                path.to_str().with_context(|| format!("{} is no UTF-8 path", path.display()))?.to_owned();
            if path.ends_with(LIQUID) {
                tree.siblings.push(path);
            } else {
                tree.sources.push(Source::read(&template, path)?);
            }
        }
        Ok(tree)
    }

    /// The source of `target` in `variant`: an overlay, the living file, or nothing.
    fn source(&self, config: &Config, variant: Variant, target: &str) -> Option<&Source> {
        let mut candidates: Vec<_> = self.sources.iter().filter(|source| source.target == target).collect();
        candidates.sort_by_key(|source| source.without);
        let overlay =
            candidates.iter().find(|source| source.without.is_some_and(|toggle| !variant.has(toggle)));
        let chosen = overlay.or_else(|| candidates.iter().find(|source| source.without.is_none()))?;
        (!config.ignores(variant, target)).then_some(*chosen)
    }

    /// Whether `source` comes out in `variant`.
    #[must_use]
    pub fn has(&self, config: &Config, variant: Variant, source: &Source) -> bool {
        self.source(config, variant, &source.target).is_some_and(|chosen| chosen.path == source.path)
    }

    /// The text files that cargo-generate has to produce for `variant`, except for `Cargo.lock`.
    ///
    /// # Errors
    /// When a fence is faulty: `weave` says where.
    pub fn expected(
        &self,
        config: &Config,
        variant: Variant,
        names: &Names,
    ) -> Result<BTreeMap<String, String>> {
        let mut files = BTreeMap::new();
        for source in &self.sources {
            if source.path == lock::FILE || !self.has(config, variant, source) || source.text.is_none() {
                continue;
            }
            let pieces = source
                .pieces()
                .map_err(|_| anyhow::anyhow!("template/{}: run `cargo weave`", source.path))?;
            let stays = |piece: &&Piece<'_>| {
                piece.condition.as_ref().is_none_or(|condition| condition.holds(variant))
            };
            let text: String = pieces.iter().filter(stays).map(|piece| piece.text).collect();
            files.insert(
                source.target.clone(),
                answers(&source.target, &names::replace(&text, names), variant),
            );
        }
        Ok(files)
    }
}

/// Puts the answers in the service's record.
fn answers(target: &str, text: &str, variant: Variant) -> String {
    let mut text = text.to_owned();
    if target == RECORD {
        for toggle in TOGGLES {
            text = text.replace(&format!("{toggle} = true"), &format!("{toggle} = {}", variant.has(toggle)));
        }
    }
    text
}

/// Whether `path` lies among the overlays.
#[must_use]
pub fn is_overlay(path: &str) -> bool {
    path.starts_with("without/")
}

/// The files below `folder` that git doesn't ignore, relative to it and sorted.
///
/// # Errors
/// When a folder can't be read.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let walk = WalkBuilder::new(folder)
        .hidden(false)
        .parents(false)
        .ignore(false)
        .git_global(false)
        .git_exclude(false)
        .require_git(false)
        .filter_entry(|entry| entry.file_name() != ".git")
        .build();
    let mut files = Vec::new();
    for entry in walk {
        let entry = entry?;
        if entry.file_type().is_some_and(|kind| kind.is_file()) {
            files.push(entry.path().strip_prefix(folder)?.to_owned());
        }
    }
    files.sort();
    Ok(files)
}
