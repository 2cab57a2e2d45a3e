//! The commands that steps run: with a deadline, logged in full, and shown in a form that can be typed.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::Signal;
use serde_json::Value;

use crate::children::Child;
use crate::machine::COMPILER_ENV;
use crate::servers::tail;

use super::check::Work;

/// Nothing that a step starts takes this long unless it hangs.
const BOUND: Duration = Duration::from_mins(20);
const TAIL: usize = 25;

/// A command that failed, with what a reader needs to investigate it.
#[derive(Debug)]
pub struct Failed {
    pub cause: String,
    pub command: String,
    pub tail: String,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

impl std::error::Error for Failed {}

/// Environment variables that would leak from whoever runs the proof into a service under test.
const LEAKING_VARIABLES: [&str; 10] = [
    "DATABASE_URL",
    "REDIS_URL",
    "PORT",
    "APP_ENV",
    "APP_CONFIG_FILE",
    "RUST_LOG",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_SERVICE_NAME",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
];

impl Work<'_> {
    /// cargo in the subject's folder, with the target folder and the profile that all subjects share.
    pub fn cargo(&self, subcommand: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("cargo");
        command.arg(subcommand);
        command.arg("--config").arg(self.context.root.join("xtask/prove.toml"));
        command.args(["--profile", "prove", "--locked"]).args(arguments);
        command.current_dir(&self.subject.dir);
        clean(&mut command);
        command.env("CARGO_TARGET_DIR", self.context.folder.join("build"));
        command.env(COMPILER_ENV.0, COMPILER_ENV.1);
        command
    }

    /// Runs a command to completion and returns its standard output.
    ///
    /// # Errors
    /// [`Failed`] when it exits with a non-zero status, or misses the deadline.
    pub fn run(&self, command: &mut Command) -> Result<String> {
        self.run_within(command, BOUND)
    }

    /// [`Self::run`] with a deadline of its own, for a command that takes longer than any other.
    pub fn run_within(&self, command: &mut Command, bound: Duration) -> Result<String> {
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let shown = shown(command);
        writeln!(log, "$ {shown}")?;
        let start = log.metadata()?.len();
        let mut stdout = tempfile::tempfile()?;
        command.stdout(Stdio::from(stdout.try_clone()?)).stderr(Stdio::from(log.try_clone()?));
        let mut child = Child::spawn(command, Signal::TERM)?;
        let status = child.wait(bound)?;
        drop(child);
        let mut said = String::new();
        stdout.seek(SeekFrom::Start(0))?;
        stdout.read_to_string(&mut said).context("the output is not UTF-8")?;
        writeln!(log, "{}", readable(&said))?;
        let cause = match status {
            Some(status) if status.success() => return Ok(said),
            Some(status) => format!("{} of `{}`", status, brief(command)),
            None => format!("`{}` ran for {} s and was ended", brief(command), bound.as_secs()),
        };
        Err(Failed { cause, command: shown, tail: tail(&since(&self.log, start)?, TAIL) }.into())
    }
}

/// Removes the foreign settings from a command's environment, and turns off backtraces: only the tail of the output
/// is kept, and the message of a failed test has to be in it.
pub fn clean(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("APP__") || LEAKING_VARIABLES.contains(&name)) {
            command.env_remove(name);
        }
    }
    command.env("CARGO_TERM_COLOR", "never").env("RUST_BACKTRACE", "0");
}

fn since(log: &Path, start: u64) -> Result<String> {
    let mut file = File::open(log)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// cargo's JSON messages as the text that cargo would have shown; other output as it is.
fn readable(said: &str) -> String {
    let mut text = String::new();
    for line in said.lines() {
        match serde_json::from_str::<Value>(line) {
            Ok(message) if message["reason"].is_string() => {
                // `unused_crate_dependencies` reports once per target, as input for the step that evaluates it: in
                // a log these findings would only hide the real ones.
                if message["message"]["code"]["code"] != "unused_crate_dependencies" {
                    text += message["message"]["rendered"].as_str().unwrap_or_default();
                }
            }
            _ => text = text + line + "\n",
        }
    }
    text
}

fn brief(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let mut words = vec![program.to_string_lossy()];
    words.extend(command.get_args().take(1).map(|argument| argument.to_string_lossy()));
    words.join(" ")
}

/// The command as a person would type it.
pub fn shown(command: &Command) -> String {
    let mut text = String::new();
    if let Some(dir) = command.get_current_dir() {
        let _ = write!(text, "cd {} && ", quoted(&dir.to_string_lossy()));
    }
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let _ = write!(text, "{}={} ", name.display(), quoted(&value.to_string_lossy()));
        }
    }
    text += &quoted(&command.get_program().to_string_lossy());
    for argument in command.get_args() {
        text = text + " " + &quoted(&argument.to_string_lossy());
    }
    text
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@+,%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    #[test]
    fn where_the_user_has_programs_built_does_not_leak() {
        let name = "CARGO_BUILD_TARGET";
        if std::env::var_os(name).is_none() {
            // A test can't set a variable for itself, so it runs once more with it.
            let test = "prove::command::tests::where_the_user_has_programs_built_does_not_leak";
            let mut again = Command::new(std::env::current_exe().unwrap());
            let output = again.args(["--exact", test]).env(name, "elsewhere").output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
            return;
        }
        let mut command = Command::new("env");
        clean(&mut command);
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert!(!said.contains(name), "{said}");
    }
}
