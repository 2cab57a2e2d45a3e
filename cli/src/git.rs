//! Running git.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::signals;

/// Variables that point git away from the folder it runs in. git sets them for hooks, which may run us.
const INHERITED_VARIABLES: [&str; 9] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_QUARANTINE_PATH",
    "GIT_WORK_TREE",
];
/// The first version with `merge-tree --write-tree`.
const MINIMUM_VERSION: (u32, u32) = (2, 38);

/// Runs git in a folder.
#[derive(Clone, Debug)]
pub struct Git {
    folder: PathBuf,
    environment: Vec<(&'static str, OsString)>,
    shielded: bool,
}

impl Git {
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), environment: Vec::new(), shielded: false }
    }

    /// git on the bare repository at `folder`. `GIT_DIR` names it, since git can be set to refuse those it discovers.
    pub fn bare(folder: &Path) -> Self {
        Self { environment: vec![("GIT_DIR", folder.into())], ..Self::at(folder) }
    }

    /// The same, but with its own index.
    pub fn with_index(&self, index: &Path) -> Self {
        let mut git = self.clone();
        git.environment.push(("GIT_INDEX_FILE", index.into()));
        git
    }

    /// The same, but out of Ctrl-C's reach, for work that must not stop half-way.
    pub fn shielded(&self) -> Self {
        Self { shielded: true, ..self.clone() }
    }

    /// Runs git and returns its standard output.
    pub fn run(&self, arguments: &[impl AsRef<OsStr>]) -> Result<Vec<u8>> {
        self.feed(arguments, &[])
    }

    /// Like [`Self::run`], for output of one line.
    pub fn line(&self, arguments: &[impl AsRef<OsStr>]) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.run(arguments)?).trim_end().to_owned())
    }

    /// Like [`Self::run`], with `input` on its standard input.
    pub fn feed(&self, arguments: &[impl AsRef<OsStr>], input: &[u8]) -> Result<Vec<u8>> {
        let output = self.output(arguments, input)?;
        if !output.status.success() {
            let said = error_summary(&output.stderr);
            // When the disk is full, git often names only the file that it could not write.
            let cause = if said.contains("write") {
                self.room().err().map(|error| format!(": {error}"))
            } else {
                None
            };
            bail!("git {} failed: {said}{}", verb(arguments), cause.unwrap_or_default());
        }
        Ok(output.stdout)
    }

    /// Fails when there is no room left to write in the folder.
    fn room(&self) -> std::io::Result<()> {
        tempfile::tempfile_in(&self.folder)?.write_all(&vec![1; 1 << 20])
    }

    /// Runs git and returns its output and status, whether it succeeded or not.
    pub fn output(&self, arguments: &[impl AsRef<OsStr>], input: &[u8]) -> Result<Output> {
        let mut command = Command::new("git");
        // We parse the output, so the user's colour settings must not apply.
        command.args(["-c", "color.ui=false"]).args(arguments).current_dir(&self.folder);
        for name in INHERITED_VARIABLES {
            command.env_remove(name);
        }
        // Our commits never leave the scratch repository, but git wants an author and a committer on each.
        for role in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{role}_NAME"), "slipway")
                .env(format!("GIT_{role}_EMAIL"), "slipway@localhost");
        }
        // Reads must not take locks that another program may want. Messages must be in English: we match and show them.
        command.env("GIT_OPTIONAL_LOCKS", "0").env("LC_ALL", "C");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if self.shielded {
            command.process_group(0);
        } else {
            signals::check()?;
        }
        let output = piped(&mut command, input)?;
        if !self.shielded {
            signals::check()?;
        }
        Ok(output)
    }
}

fn piped(command: &mut Command, input: &[u8]) -> Result<Output> {
    let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("git can't be run: install git 2.38 or newer")?;
    let stdin = child.stdin.take();
    thread::scope(|scope| {
        if let Some(mut stdin) = stdin {
            // When git exits before it has read everything, its status says why.
            scope.spawn(move || drop(stdin.write_all(input)));
        }
        Ok(child.wait_with_output()?)
    })
}

/// Fails when git is too old to merge trees.
pub fn new_enough() -> Result<()> {
    let said = Git::at(Path::new(".")).line(&["version"])?;
    let number = said.split(' ').nth(2).unwrap_or_default();
    let mut parts = number.split('.').map(|part| part.parse().unwrap_or_default());
    let found = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if found < MINIMUM_VERSION {
        bail!(
            "git {number} can't merge trees: install git {}.{} or newer",
            MINIMUM_VERSION.0,
            MINIMUM_VERSION.1
        );
    }
    Ok(())
}

fn verb(arguments: &[impl AsRef<OsStr>]) -> &str {
    let mut words = arguments.iter().filter_map(|word| word.as_ref().to_str());
    while let Some(word) = words.next() {
        match word {
            "-c" => drop(words.next()),
            word if word.starts_with('-') => {}
            word => return word,
        }
    }
    ""
}

/// The errors that a program printed, or else its last line, joined into one line.
pub fn error_summary(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let reason =
        |line: &&str| line.strip_prefix("fatal: ").or(line.strip_prefix("error: ")).map(str::to_owned);
    let mut reasons: Vec<String> = lines.iter().filter_map(reason).collect();
    // An error for each of a hundred files would hide the cause.
    reasons.truncate(2);
    match lines.last() {
        Some(last) if reasons.is_empty() => (*last).to_owned(),
        Some(_) => reasons.join("; "),
        None => "it printed nothing".to_owned(),
    }
}
