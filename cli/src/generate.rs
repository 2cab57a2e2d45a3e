//! Generates a service with the installed cargo-generate, so that the result is what cargo-generate itself makes.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{self, Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::record::{Answers, FILE};
use crate::say::complain;
use crate::signals;
use crate::template::Checkout;

const INSTALL_HINT: &str = "cargo-generate can't be run: install it with `cargo install cargo-generate --version \
                            0.23.14 --locked` (which needs pkg-config and libssl-dev on Linux, or --features \
                            vendored-openssl), or name the program in CARGO_GENERATE";

/// Generates `name` from `template` below `parent`, with defaults for missing answers; returns its folder.
pub fn generate(template: &Checkout, name: &str, answers: &Answers, parent: &Path) -> Result<PathBuf> {
    let mut command = command(template, name)?;
    // Not in the service: versions 0.23.10 and 0.23.11 remove the files there that are called like the template's hooks.
    command.current_dir(parent);
    // The user's own configuration could add answers. The option needs a file, so it gets an empty one.
    command
        .args(["--config", "/dev/null", "--silent", "--vcs", "none", "--no-workspace", "--destination"])
        .arg(parent);
    let asked = template.questions()?;
    // An older version doesn't know the questions that a newer one added.
    for (question, answer) in
        answers.iter().filter(|(question, _)| asked.iter().any(|it| it.name == **question))
    {
        command.args(["--define", &format!("{question}={answer}")]);
    }
    signals::check()?;
    let output = command.stdin(Stdio::null()).output().context(INSTALL_HINT)?;
    signals::check()?;
    if !output.status.success() {
        bail!("cargo-generate failed for version {}: {}", template.version, reason(&output));
    }
    let folder = parent.join(name);
    // cargo-generate turns any name into one that it allows, so a path would lead to a folder that it did not make.
    ensure!(
        folder.file_name() == Some(name.as_ref()) && folder.is_dir(),
        "{FILE}: \"{name}\" can't be the name of a service: restore the one that it was generated with (`git log -p \
         {FILE}` shows it)"
    );
    Ok(folder)
}

/// Runs cargo-generate, which asks for missing answers unless `silent`. Returns whether it succeeded.
pub fn interactive(template: &Checkout, name: &str, answers: &Answers, silent: bool) -> Result<bool> {
    let mut command = command(template, name)?;
    for (question, answer) in answers {
        command.args(["--define", &format!("{question}={answer}")]);
    }
    if silent {
        command.arg("--silent");
    }
    let before = namesakes(name);
    let done = command.status().context(INSTALL_HINT)?.success();
    if !done {
        // cargo-generate makes the folder before it asks, and would refuse it the next time. This only removes an empty
        // one.
        for made in namesakes(name).difference(&before) {
            if fs::remove_dir(made).is_ok() {
                complain!("slipway: the empty folder {} is removed again", made.display());
            }
        }
        signals::check()?;
    }
    Ok(done)
}

/// What is in the current folder under `name`, in any case and with any separators: cargo-generate changes both.
fn namesakes(name: &str) -> BTreeSet<OsString> {
    let letters = |name: &str| name.replace(|letter: char| !letter.is_alphanumeric(), "").to_lowercase();
    let entries = fs::read_dir(".").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name());
    names.filter(|other| other.to_str().map(letters) == Some(letters(name))).collect()
}

fn command(template: &Checkout, name: &str) -> Result<Command> {
    let program = PathBuf::from(env::var_os("CARGO_GENERATE").unwrap_or_else(|| "cargo-generate".into()));
    // A path is relative to the current folder, and a mere name is looked up in the PATH.
    let is_path = program.components().count() > 1;
    let mut command = Command::new(if is_path { path::absolute(program)? } else { program });
    for (key, _) in env::vars_os() {
        if key.to_str().is_some_and(|key| key.starts_with("CARGO_GENERATE_")) {
            command.env_remove(key);
        }
    }
    command.arg("generate").arg("--path").arg(&template.folder).arg(format!("--name={name}"));
    // cargo-generate refuses to run when it can't determine an author, as in a container without $USER.
    command.env("CARGO_NAME", "slipway").env("RUST_BACKTRACE", "0").env("NO_COLOR", "1");
    Ok(command)
}

/// Why cargo-generate refused, without its colours and emoji, the line number in a hook, and the advice to remove the
/// empty folder, which doesn't apply here.
fn reason(output: &Output) -> String {
    let lines = |said: &[u8]| -> Vec<String> {
        String::from_utf8_lossy(said).lines().map(plain).filter(|line| !line.is_empty()).collect()
    };
    let error = |lines: &[String]| {
        let from = lines.iter().rposition(|line| line.contains("rror:"))?;
        Some(lines[from..].join(" "))
    };
    let (failed, told) = (lines(&output.stderr), lines(&output.stdout));
    let said = error(&failed).or_else(|| error(&told)).unwrap_or_else(|| [failed, told].concat().join(" "));
    let said = said.rsplit_once(" (line ").map_or(&*said, |(said, _)| said);
    said.strip_suffix(" (remove the empty folder before the next try)").unwrap_or(said).to_owned()
}

fn plain(line: &str) -> String {
    let mut kept = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        kept += before;
        rest = after.split_once('m').map_or("", |(_, text)| text);
    }
    kept += rest;
    kept.chars()
        .filter(|character| character.is_ascii() || character.is_alphabetic())
        .collect::<String>()
        .trim()
        .to_owned()
}
