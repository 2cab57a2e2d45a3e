//! The template: where it is, which versions it has, and one of them on disk.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use semver::Version;
use tempfile::TempDir;
use toml_edit::{DocumentMut, Item};

use crate::git::{self, Git};
use crate::ownership::Ownership;
use crate::record::Answers;

/// cargo-generate's configuration, which marks a folder as a template.
const CONFIG: &str = "cargo-generate.toml";
const RECORD: &str = "template/slipway.toml";

/// A template and its versions.
#[derive(Debug)]
pub struct Template {
    source: Source,
    /// The address, for messages.
    address: String,
}

#[derive(Debug)]
enum Source {
    /// Not a repository, or one without releases: the only version is the one that is there.
    Folder(Checkout),
    /// A repository with releases, each a tag `v<version>`.
    Repository { url: String, tags: BTreeMap<Version, String>, format: &'static str },
}

/// One version of the template, on disk.
#[derive(Debug)]
pub struct Checkout {
    pub version: Version,
    pub folder: PathBuf,
    /// Removes the folder when dropped, if we created it.
    _ours: Option<TempDir>,
}

/// A question that the template asks.
#[derive(Debug)]
pub struct Question {
    pub name: String,
    /// Whether the only valid answers are true and false.
    pub is_bool: bool,
}

impl Template {
    /// The one at `asked`, else the one that the service `recorded`, else the one that this program was installed from.
    pub fn open(asked: Option<&str>, recorded: Option<&str>) -> Result<Self> {
        let address = match asked.or(recorded) {
            Some(address) => address.to_owned(),
            None => origin().context(
                "the template is not known: name its repository with --template, or in slipway.toml with template = \"URL\"",
            )?,
        };
        let source = source(&address)?;
        Ok(Self { source, address })
    }

    /// Its versions, oldest first.
    pub fn versions(&self) -> Vec<&Version> {
        match &self.source {
            Source::Folder(checkout) => vec![&checkout.version],
            Source::Repository { tags, .. } => tags.keys().collect(),
        }
    }

    /// The newest release, or the newest preview if there is no release.
    pub fn newest(&self) -> &Version {
        let versions = self.versions();
        let release = versions.iter().rfind(|version| version.pre.is_empty());
        release.or(versions.last()).expect("a template has a version, or it is not opened")
    }

    /// Puts `version` on disk.
    pub fn checkout(&self, version: &Version) -> Result<Checkout> {
        match &self.source {
            Source::Folder(checkout) if checkout.version == *version => Ok(checkout.again()),
            Source::Repository { url, tags, format } if tags.contains_key(version) => {
                fetched(url, &tags[version], format)
            }
            _ => bail!(self.lacks(version)),
        }
    }

    /// Puts the `version` that a service records on disk.
    pub fn recorded(&self, version: &Version) -> Result<Checkout> {
        let cure = match self.source {
            Source::Folder(_) => "use --template to name a repository that has it",
            Source::Repository { .. } => {
                "name the branch or tag that the service was generated from: `slipway update --from NAME` (with \
                 --dry-run to see what would change) or `slipway set … --from NAME`"
            }
        };
        ensure!(self.versions().contains(&version), "{}; {cure}", self.lacks(version));
        self.checkout(version)
    }

    fn lacks(&self, version: &Version) -> String {
        let versions: Vec<String> = self.versions().iter().map(ToString::to_string).collect();
        let newer = if version > self.newest() { ", which is newer than all of its versions" } else { "" };
        format!(
            "the template at {} has no version {version}{newer}; it has {}",
            self.address,
            versions.join(", ")
        )
    }

    /// Puts a branch, tag or commit on disk, whatever version it records.
    pub fn checkout_revision(&self, revision: &str) -> Result<Checkout> {
        match &self.source {
            Source::Folder(_) => bail!("{} has no revisions to choose from: leave out --from", self.address),
            Source::Repository { url, format, .. } => fetched(url, revision, format),
        }
    }
}

impl Checkout {
    fn new(folder: PathBuf, ours: Option<TempDir>) -> Result<Self> {
        let text = fs::read_to_string(folder.join(RECORD)).with_context(|| format!("it has no {RECORD}"))?;
        let record: DocumentMut = text.parse().with_context(|| format!("its {RECORD} is not valid TOML"))?;
        let version = record.get("version").and_then(Item::as_str).unwrap_or_default();
        let version = Version::parse(version).with_context(|| format!("its {RECORD} has no version"))?;
        Ok(Self { version, folder, _ours: ours })
    }

    /// A second handle to the same files, valid for as long as this one is kept.
    pub fn again(&self) -> Self {
        Self { version: self.version.clone(), folder: self.folder.clone(), _ours: None }
    }

    /// The questions that it asks.
    pub fn questions(&self) -> Result<Vec<Question>> {
        let text = fs::read_to_string(self.folder.join(CONFIG))?;
        let config: DocumentMut =
            text.parse().with_context(|| format!("the template's {CONFIG} is not valid TOML"))?;
        let questions = config.get("placeholders").and_then(Item::as_table_like);
        let question = |(name, item): (&str, &Item)| {
            let is_bool = item.get("type").and_then(Item::as_str) == Some("bool");
            Question { name: name.to_owned(), is_bool }
        };
        Ok(questions.map(|all| all.iter().map(question).collect()).unwrap_or_default())
    }

    /// Fails when one of `answers` is to an unknown question, or is not allowed by its question.
    pub fn accepts(&self, answers: &Answers) -> Result<()> {
        let questions = self.questions()?;
        for (name, answer) in answers {
            let Some(question) = questions.iter().find(|question| question.name == *name) else {
                let names: Vec<&str> = questions.iter().map(|question| question.name.as_str()).collect();
                bail!("there is no question \"{name}\"; allowed are {}", names.join(", "));
            };
            ensure!(
                !question.is_bool || ["true", "false"].contains(&answer.as_str()),
                "{name} can't be \"{answer}\": allowed are true and false"
            );
        }
        Ok(())
    }

    /// Which of its files belong to the service's owner.
    pub fn ownership(&self) -> Result<Ownership> {
        Ownership::read(&self.folder)
    }
}

fn source(address: &str) -> Result<Source> {
    let path = Path::new(address);
    let url = if path.is_dir() {
        let path = path.canonicalize()?;
        let is_repository = path.join(".git").exists() || path.join("objects").is_dir();
        if !is_repository {
            let checkout = Checkout::new(path, None);
            return Ok(Source::Folder(checkout.with_context(|| format!("{address} holds no template"))?));
        }
        path.display().to_string()
    } else if address.contains(':') {
        address.to_owned()
    } else {
        bail!("there is no template at {address}: it is neither a folder nor a URL");
    };
    let (tags, format) = tags(&url)?;
    if tags.is_empty() {
        return Ok(Source::Folder(fetched(&url, "HEAD", format)?));
    }
    Ok(Source::Repository { url, tags, format })
}

/// The tags that are versions, and the repository's object format.
fn tags(url: &str) -> Result<(BTreeMap<Version, String>, &'static str)> {
    let said = Git::at(Path::new("/")).output(&["ls-remote", "--", url, "HEAD", "refs/tags/v*"], &[])?;
    if !said.status.success() {
        let reason = String::from_utf8_lossy(&said.stderr);
        // A repository that belongs to another user comes with git's own advice: the address is right.
        if reason.contains("safe.directory") {
            // After it, git goes on about access rights.
            let advice = reason.split("\nfatal: Could not read").next().unwrap_or_default();
            bail!("git can't use the template at {url}: {}", advice.trim());
        }
        bail!(
            "the template at {url} can't be reached: {}; check the address and the network, or name a clone with \
             --template PATH",
            git::error_summary(&said.stderr)
        );
    }
    let listed = String::from_utf8_lossy(&said.stdout);
    let refs = || listed.lines().filter_map(|line| line.split_once('\t'));
    // The length of an id tells the format; `init.defaultObjectFormat` on this machine may differ.
    let format = if refs().any(|(id, _)| id.len() == 64) { "sha256" } else { "sha1" };
    let tags = refs()
        .filter_map(|(_, name)| {
            Some((Version::parse(name.strip_prefix("refs/tags/v")?).ok()?, name.to_owned()))
        })
        .collect();
    Ok((tags, format))
}

/// Fetches `revision` of the template at `url`, without its history.
fn fetched(url: &str, revision: &str, format: &str) -> Result<Checkout> {
    let ours = TempDir::with_prefix("slipway-")?;
    let (repository, folder) = (ours.path().join("git"), ours.path().join("template"));
    Git::at(ours.path()).run(&["init", "--quiet", "--bare", &format!("--object-format={format}"), "git"])?;
    fs::create_dir(&folder)?;
    let git = Git::bare(&repository).with_index(&ours.path().join("index"));
    git.run(&["fetch", "--quiet", "--depth=1", "--no-tags", "--", url, revision])
        .with_context(|| format!("{revision} could not be fetched from the template at {url}"))?;
    git.run(&["read-tree", "FETCH_HEAD"])?;
    // Files come out as committed, whatever line endings this machine or its user prefers.
    let prefix = format!("--prefix={}/", folder.display());
    git.run(&[
        "-c",
        "core.autocrlf=false",
        "-c",
        "core.eol=lf",
        "-c",
        "core.attributesFile=/dev/null",
        "-c",
        "core.bare=false",
        "--work-tree=.",
        "checkout-index",
        "--all",
        &prefix,
    ])?;
    Checkout::new(folder, Some(ours)).with_context(|| format!("{url} holds no template at {revision}"))
}

/// The repository or folder that cargo installed this program from.
fn origin() -> Option<String> {
    let program = env::current_exe().ok()?;
    let root = program.parent()?.parent()?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // Not in the service: what a clone brings along there may name another toolchain, which rustup would run or install.
    let said = command.args(["install", "--list", "--root"]).arg(root).current_dir("/").output().ok()?;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let source = installed_from(&said)?;
    if Path::new(&source).is_dir() {
        // This is the crate's folder: the template is the repository around it.
        let repository = Path::new(&source).ancestors().find(|folder| folder.join(CONFIG).is_file())?;
        return Some(repository.display().to_string());
    }
    Some(source)
}

/// The source in `slipway v0.1.0 (https://example.com/slipway#0123abcd):`.
fn installed_from(listed: &str) -> Option<String> {
    let line = listed.lines().find(|line| line.starts_with("slipway v"))?;
    let source = line.split_once(" (")?.1.strip_suffix("):")?;
    let source = source.split('#').next()?;
    // cargo appends the requested branch or tag to the address.
    Some(source.split('?').next()?.trim_start_matches("git+").to_owned())
}

#[cfg(test)]
mod tests {
    use super::installed_from;

    #[test]
    fn cargo_says_where_it_was_installed_from() {
        let listed = "ripgrep v14.1.0:\n    rg\nslipway v0.1.0 (https://example.com/a/slipway?tag=v0.1.0#0123abcd):\n    slipway\n";
        assert_eq!(installed_from(listed).as_deref(), Some("https://example.com/a/slipway"));
        assert_eq!(
            installed_from("slipway v0.1.0 (/home/me/slipway/cli):\n    slipway\n").as_deref(),
            Some("/home/me/slipway/cli")
        );
        assert_eq!(installed_from("slipway v0.1.0:\n    slipway\n"), None);
    }
}
