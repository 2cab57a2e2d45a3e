//! The checks of the template itself: that the siblings are up to date, that the quick tests pass, that each
//! variant can be changed into every other, that the living service passes in place, and that `cargo demo` works.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::machine::COMPILER_ENV;
use crate::weave;

use super::check::Work;
use super::command::clean;
use super::files;
use super::steps::{self, Step};
use super::transitions;

pub const STEPS: &[Step] = &[
    Step::ahead("weave", siblings),
    Step::ahead("tooling", tooling),
    Step::ahead(steps::FILES, own_files),
    Step::ahead("in place: fmt", |work| in_place(work, steps::format)),
    Step::ahead("in place: clippy", |work| in_place(work, steps::lint)),
    Step::ahead("in place: build", |work| in_place(work, steps::build)),
    Step::ahead("transitions", transitions::untouched),
    Step::ahead("transitions: edited", transitions::edited),
    Step::alone("tests", quick_tests),
    Step::alone("in place: test", |work| in_place(work, steps::test)),
    Step::alone("demo", demo),
];

fn siblings(work: &mut Work<'_>) -> Result<String> {
    let report = weave::run(&work.context.root, true)?;
    Ok(format!("{} files woven", report.woven))
}

/// cargo on this repository.
fn cargo(work: &Work<'_>, arguments: &[&str]) -> Command {
    let mut command = Command::new("cargo");
    command.args(arguments).current_dir(&work.context.root);
    clean(&mut command);
    command.env(COMPILER_ENV.0, COMPILER_ENV.1);
    command
}

const TESTS: [&str; 3] = ["test", "--workspace", "--locked"];

/// The maintainers' tooling is held to the same rules as a service.
fn tooling(work: &mut Work<'_>) -> Result<String> {
    work.run(&mut cargo(work, &["fmt", "--check"]))?;
    let clippy = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    work.run(&mut cargo(work, &clippy))?;
    // Compiles the tests, so that the step that runs them doesn't have to.
    work.run(&mut cargo(work, &[&TESTS[..], &["--no-run"]].concat()))?;
    Ok(String::new())
}

/// Checks the workflows and scripts of this repository.
fn own_files(work: &mut Work<'_>) -> Result<String> {
    work.subject.dir.clone_from(&work.context.root);
    files::check_own(work)
}

fn quick_tests(work: &mut Work<'_>) -> Result<String> {
    let mut command = cargo(work, &TESTS);
    command.env("CARGO_GENERATE", &work.context.tools.cargo_generate);
    let total = steps::passed_tests(&work.run(&mut command)?)?;
    ensure!(total > 0, "no test ran");
    Ok(format!("{total} tests"))
}

/// The first command that the README names. It runs when nothing else does: a variant's program has the same name.
fn demo(work: &mut Work<'_>) -> Result<String> {
    let said = work.run(&mut cargo(work, &["demo", "--once", "--proof"]))?;
    let to_try = said.lines().filter(|line| line.starts_with("curl -s ")).count();
    ensure!(to_try == 3, "{to_try} lines to try, instead of 3: {said}");
    Ok(String::new())
}

fn in_place(work: &mut Work<'_>, step: fn(&mut Work<'_>) -> Result<String>) -> Result<String> {
    work.subject.dir = work.context.root.join("template");
    step(work)
}
