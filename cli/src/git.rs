//! Running git.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::signals;

/// What would point git somewhere else than at the folder it runs in: set when it is git that runs us, in a hook.
const FOREIGN: [&str; 9] = [
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
/// `merge-tree --write-tree` came with it.
const OLDEST: (u32, u32) = (2, 38);

/// git in a folder.
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

    /// git on the bare repository at `folder`. Named, since some have git refuse those that it only comes across.
    pub fn bare(folder: &Path) -> Self {
        Self { environment: vec![("GIT_DIR", folder.into())], ..Self::at(folder) }
    }

    /// The same with an index of its own.
    pub fn with_index(&self, index: &Path) -> Self {
        let mut git = self.clone();
        git.environment.push(("GIT_INDEX_FILE", index.into()));
        git
    }

    /// The same out of a Ctrl-C's reach, for what must not stop half-way.
    pub fn shielded(&self) -> Self {
        Self { shielded: true, ..self.clone() }
    }

    /// Its standard output.
    pub fn run(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        self.feed(arguments, &[])
    }

    /// Its standard output as one line.
    pub fn line(&self, arguments: &[&str]) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.run(arguments)?).trim_end().to_owned())
    }

    /// Its standard output when it is given `input`.
    pub fn feed(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
        let output = self.output(arguments, input)?;
        if !output.status.success() {
            let said = last_words(&output.stderr);
            // Of a full disk git often says no more than which file it could not write.
            let cause = if said.contains("write") {
                self.room().err().map(|error| format!(": {error}"))
            } else {
                None
            };
            bail!("git {} failed: {said}{}", verb(arguments), cause.unwrap_or_default());
        }
        Ok(output.stdout)
    }

    /// Whether there is room to write where it works.
    fn room(&self) -> std::io::Result<()> {
        tempfile::tempfile_in(&self.folder)?.write_all(&vec![1; 1 << 20])
    }

    /// Runs it to its end, whichever that is.
    pub fn output(&self, arguments: &[&str], input: &[u8]) -> Result<Output> {
        let mut command = Command::new("git");
        // What it prints is read by us, whatever someone likes to see on a terminal.
        command.args(["-c", "color.ui=false"]).args(arguments).current_dir(&self.folder);
        for name in FOREIGN {
            command.env_remove(name);
        }
        // Objects that nothing refers to are nobody's commits, but git wants a name on each.
        for role in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{role}_NAME"), "slipway")
                .env(format!("GIT_{role}_EMAIL"), "slipway@localhost");
        }
        // Reading must not take locks that a program next to us may want; what is said is shown, not translated.
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
            // When git ends early, its status says why.
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
    if found < OLDEST {
        bail!("git {number} can't merge trees: install git {}.{} or newer", OLDEST.0, OLDEST.1);
    }
    Ok(())
}

fn verb<'a>(arguments: &[&'a str]) -> &'a str {
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match *word {
            "-c" => drop(words.next()),
            word if word.starts_with('-') => {}
            word => return word,
        }
    }
    ""
}

/// What a program gave as its reasons, or said last, on one line.
pub fn last_words(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let reason =
        |line: &&str| line.strip_prefix("fatal: ").or(line.strip_prefix("error: ")).map(str::to_owned);
    let mut reasons: Vec<String> = lines.iter().filter_map(reason).collect();
    // One for each of a hundred files would hide the cause.
    reasons.truncate(2);
    match lines.last() {
        Some(last) if reasons.is_empty() => (*last).to_owned(),
        Some(_) => reasons.join("; "),
        None => "it said nothing".to_owned(),
    }
}
