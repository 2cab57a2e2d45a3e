//! The matrix on the terminal: each variant gets its row as soon as it is done.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::Mutex;

use crate::children::lock;

use super::check::{Check, Outcome, Subject};
use super::plan::Plan;
use super::report::Report;

const CELL: usize = 10;
const TITLE: usize = 32;

/// The terminal output, shared by the thread that compiles and the thread that measures.
pub struct Board {
    /// The step that each subject is at, shown on one line that overwrites itself, on a terminal only.
    busy: Mutex<BTreeMap<String, &'static str>>,
    terminal: bool,
}

impl Board {
    pub fn new(plan: &Plan) -> Self {
        let mut head = format!("{:TITLE$}", "seconds per step");
        for step in &plan.steps {
            let _ = write!(head, "{:>CELL$}", step.name);
        }
        println!("\n{head}\n{}", "-".repeat(head.len()));
        Self { busy: Mutex::default(), terminal: std::io::stdout().is_terminal() }
    }

    pub fn busy(&self, subject: &Subject, step: &'static str) {
        let mut busy = lock(&self.busy);
        busy.insert(subject.title.clone(), step);
        if self.terminal {
            let now: Vec<String> = busy.iter().map(|(who, what)| format!("{who}: {what}")).collect();
            print!("\r\x1b[2K… {}", now.join("  ·  "));
            let _ = std::io::stdout().flush();
        }
    }

    /// Shows a failure at once, so that nobody has to wait for the end of the run to see it.
    pub fn done(&self, subject: &Subject, check: &Check) {
        if let Outcome::Failed { cause, command, tail } = &check.outcome {
            let _hold = self.clear();
            println!("FAILED  {} · {}: {cause}", subject.title, check.step);
            for line in tail.lines() {
                println!("    | {line}");
            }
            if let Some(command) = command {
                println!("    ran:   {command}");
            }
            println!("    log:   {}", check.log.display());
            println!("    again: {}", again(subject));
        }
    }

    pub fn row(&self, subject: &Subject) {
        let mut busy = self.clear();
        busy.remove(&subject.title);
        if subject.variant.is_none() {
            let cells = subject.checks.iter().map(|check| format!("{} {}", check.step, cell(check)));
            println!("{}: {}", subject.title, cells.collect::<Vec<_>>().join(" · "));
            return;
        }
        let cells = subject.checks.iter().map(|check| format!("{:>CELL$}", cell(check)));
        println!("{:TITLE$}{}", subject.title, cells.collect::<String>());
    }

    /// Prints the verdict. The last line is the count, for machines to read.
    pub fn close(&self, report: &Report<'_>, page: &Path) {
        drop(self.clear());
        println!("\n{}", report.verdict());
        println!("report: {}", page.display());
        println!("{} passed, {} failed", report.passed(), report.failed());
    }

    fn clear(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, &'static str>> {
        let busy = lock(&self.busy);
        if self.terminal {
            print!("\r\x1b[2K");
        }
        busy
    }
}

fn again(subject: &Subject) -> String {
    match subject.variant {
        Some(_) if subject.from.is_some() => "cargo prove --transitions".into(),
        Some(variant) => format!("cargo prove --variant {variant}"),
        None => "cargo prove".into(),
    }
}

fn cell(check: &Check) -> String {
    match check.outcome {
        Outcome::Passed(_) => format!("{:.1}", check.time.as_secs_f64()),
        Outcome::Failed { .. } => "FAILED".into(),
        Outcome::Skipped => "-".into(),
    }
}
