//! Generating a service: by the installed cargo-generate, so that what comes out is what it makes.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::record::Answers;
use crate::signals;
use crate::template::Checkout;

const CURE: &str = "cargo-generate can't be run: `cargo install cargo-generate --version 0.23.14 --locked` (which needs \
                    pkg-config and libssl-dev on Linux, or --features vendored-openssl), or name the program in \
                    CARGO_GENERATE";

/// Generates `name` of `template` below `parent`, with its defaults for what isn't answered; gives back its folder.
pub fn generate(template: &Checkout, name: &str, answers: &Answers, parent: &Path) -> Result<PathBuf> {
    let mut command = command(template, name);
    // A user's configuration would add answers of theirs. It wants a file here.
    command
        .args(["--config", "/dev/null", "--silent", "--vcs", "none", "--no-workspace", "--destination"])
        .arg(parent);
    let asked = template.questions()?;
    // An older version has no place for a newer one's answers.
    for (question, answer) in
        answers.iter().filter(|(question, _)| asked.iter().any(|it| it.name == **question))
    {
        command.args(["--define", &format!("{question}={answer}")]);
    }
    signals::check()?;
    let output = command.stdin(Stdio::null()).output().context(CURE)?;
    signals::check()?;
    if !output.status.success() {
        bail!("cargo-generate made nothing of version {}: {}", template.version, reason(&output));
    }
    Ok(parent.join(name))
}

/// Runs cargo-generate for a person, who is asked what isn't answered. Whether it succeeded.
pub fn interactive(template: &Checkout, name: &str, answers: &Answers, silent: bool) -> Result<bool> {
    let mut command = command(template, name);
    for (question, answer) in answers {
        command.args(["--define", &format!("{question}={answer}")]);
    }
    if silent {
        command.arg("--silent");
    }
    let done = command.status().context(CURE)?.success();
    if !done {
        signals::check()?;
    }
    Ok(done)
}

fn command(template: &Checkout, name: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO_GENERATE").unwrap_or_else(|| "cargo-generate".into()));
    for (key, _) in env::vars_os() {
        if key.to_str().is_some_and(|key| key.starts_with("CARGO_GENERATE_")) {
            command.env_remove(key);
        }
    }
    command.arg("generate").arg("--path").arg(&template.folder).args(["--name", name]);
    // It refuses to run when it can't tell who the author is, as in a container without $USER.
    command.env("CARGO_NAME", "slipway").env("RUST_BACKTRACE", "0").env("NO_COLOR", "1");
    command
}

/// Why cargo-generate refused, without its colours and pictures, the place in a hook and the cure of a folder that it
/// leaves, which is none of the caller's here.
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
