//! One subject of the proof (a variant, or the template itself) on its way through its steps.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::children::lock;
use crate::variant::Variant;

use super::Context;
use super::board::Board;
use super::command::Failed;
use super::drills::Drilled;
use super::steps::Step;
use super::transitions;

/// How a check ended.
pub enum Outcome {
    /// With a note on what was seen, such as how many tests ran.
    Passed(String),
    /// With the cause, and the end of the failing command's output if there was one.
    Failed { cause: String, command: Option<String>, tail: String },
    /// Not run, because an earlier step left nothing to run it on: that proves nothing, so it counts as failed.
    Skipped,
}

/// The result of one step.
pub struct Check {
    pub step: &'static str,
    pub outcome: Outcome,
    pub time: Duration,
    pub log: PathBuf,
}

impl Check {
    pub fn passed(&self) -> bool {
        matches!(self.outcome, Outcome::Passed(_))
    }
}

/// A subject with what is known about it so far.
pub struct Subject {
    /// Its row in the report.
    pub place: usize,
    pub title: String,
    pub variant: Option<Variant>,
    /// The variant that it was generated as, if it was changed into this one afterwards.
    pub from: Option<Variant>,
    /// The service's name.
    pub name: String,
    pub steps: Vec<Step>,
    pub checks: Vec<Check>,
    /// Numbers for the report: lines, crates, tests, milliseconds to ready …
    pub facts: BTreeMap<&'static str, f64>,
    pub drills: Vec<Drilled>,
    /// Where its code is, once generated.
    pub dir: PathBuf,
    /// The program of the service, once built.
    pub program: PathBuf,
    /// The optimised service, where its instructions are counted.
    pub optimised: Option<PathBuf>,
    /// The programs that test it.
    pub tests: Vec<PathBuf>,
}

impl Subject {
    pub fn variant(place: usize, variant: Variant, name: &str, steps: &[Step]) -> Self {
        Self::new(place, variant.to_string(), Some(variant), name, steps)
    }

    pub fn transition(place: usize, from: Variant, to: Variant, steps: &[Step]) -> Self {
        let title = format!("{from} to {to}");
        Self { from: Some(from), ..Self::new(place, title, Some(to), transitions::NAME, steps) }
    }

    pub fn template(place: usize, steps: &[Step]) -> Self {
        Self::new(place, "the template itself".into(), None, "template", steps)
    }

    fn new(place: usize, title: String, variant: Option<Variant>, name: &str, steps: &[Step]) -> Self {
        Self {
            place,
            title,
            variant,
            from: None,
            name: name.into(),
            steps: steps.to_vec(),
            checks: Vec::new(),
            facts: BTreeMap::new(),
            drills: Vec::new(),
            dir: PathBuf::new(),
            program: PathBuf::new(),
            optimised: None,
            tests: Vec::new(),
        }
    }

    /// Whether `toggle` is on; the template itself has them all.
    pub fn has(&self, toggle: &str) -> bool {
        self.variant.unwrap_or(Variant::FULL).has(toggle)
    }

    pub fn proven(&self) -> bool {
        self.checks.len() == self.steps.len() && self.checks.iter().all(Check::passed)
    }

    /// Runs the next steps, up to the first that is not wanted. After a failure the later steps still run and
    /// report what they see, unless generation failed: then they are skipped.
    pub fn run(&mut self, wanted: impl Fn(&Step) -> bool, context: &Context, board: &Board) {
        let next = self.steps.iter().copied().skip(self.checks.len());
        for step in next.take_while(wanted).collect::<Vec<_>>() {
            let log = self.log_of(context, step.name);
            if self.variant.is_some() && self.checks.first().is_some_and(|first| !first.passed()) {
                let outcome = Outcome::Skipped;
                self.checks.push(Check { step: step.name, outcome, time: Duration::ZERO, log });
                continue;
            }
            board.busy(self, step.name);
            let mut work = Work { context, subject: self, log: log.clone() };
            let started = Instant::now();
            let outcome = outcome_of(|| (step.run)(&mut work));
            let time = started.elapsed();
            let check = Check { step: step.name, outcome, time, log };
            board.done(self, &check);
            self.checks.push(check);
        }
    }

    fn log_of(&self, context: &Context, step: &str) -> PathBuf {
        let folder = if self.variant.is_some() { self.title.replace(' ', "-") } else { "template".into() };
        let folder = context.logs.join(folder);
        // If this fails, the first command reports that it can't write its log.
        let _ = fs::create_dir_all(&folder);
        folder.join(format!("{}.log", step.replace(": ", "-")))
    }
}

fn outcome_of(step: impl FnOnce() -> Result<String>) -> Outcome {
    let error = match catch_panic(step) {
        Ok(note) => return Outcome::Passed(note),
        Err(error) => error,
    };
    let failed = error.downcast_ref::<Failed>();
    Outcome::Failed {
        command: failed.map(|failed| failed.command.clone()),
        tail: failed.map(|failed| failed.tail.clone()).unwrap_or_default(),
        cause: format!("{error:#}"),
    }
}

/// The result of `run`, with a panic turned into an error like any other, so that the other checks still count.
///
/// A panic may leave its own subject half-done; the later steps of that subject report what they see.
pub fn catch_panic<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
        Err(anyhow!("it panicked: {}", text.unwrap_or("(no message)")))
    })
}

/// What a step works with.
pub struct Work<'a> {
    pub context: &'a Context,
    pub subject: &'a mut Subject,
    pub log: PathBuf,
}

impl Work<'_> {
    /// Whether no earlier subject had the same text for this linter, apart from the name of the service. The same
    /// text is not linted twice.
    pub fn is_new(&self, linter: &str, text: &str) -> bool {
        lock(&self.context.linted).insert(linter.to_owned() + &text.replace(&self.subject.name, "service"))
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::{Outcome, outcome_of};

    #[test]
    fn a_step_that_panics_has_failed() {
        for (step, wanted) in [
            ((|| panic!("at {}", "last")) as fn() -> Result<String>, "it panicked: at last"),
            (|| panic!("at once"), "it panicked: at once"),
            (|| std::panic::panic_any(7), "it panicked: (no message)"),
        ] {
            let Outcome::Failed { cause, .. } = outcome_of(step) else { panic!("it did not fail") };
            assert_eq!(cause, wanted);
        }
    }
}
