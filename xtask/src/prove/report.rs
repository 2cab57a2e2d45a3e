//! The result of a run, compared with its plan: `report.json` and `report.html`, or `report-fuzz.json` and so on.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::check::{Check, Outcome, Subject};
use super::html;
use super::plan::{Kind, Plan};

pub struct Report<'a> {
    pub plan: &'a Plan,
    pub subjects: Vec<Subject>,
    pub set_up: Duration,
    pub total: Duration,
    /// What it ran on, without which the times mean nothing.
    pub machine: String,
}

impl Report<'_> {
    pub fn passed(&self) -> usize {
        self.checks().filter(|check| check.passed()).count()
    }

    /// How many planned checks did not pass, whether they failed or never ran.
    pub fn failed(&self) -> usize {
        self.plan.checks().saturating_sub(self.passed())
    }

    /// How many variants passed every step of the plan.
    pub fn variants_proven(&self) -> usize {
        self.subjects.iter().filter(|one| one.variant.is_some() && one.proven()).count()
    }

    pub fn proven(&self) -> bool {
        self.failed() == 0 && self.variants_proven() == self.plan.variants.len()
    }

    pub fn verdict(&self) -> String {
        if self.plan.variants.is_empty() {
            let word = if self.proven() { "proven" } else { "not proven" };
            return format!("the template itself is {word}, in {}", minutes(self.total));
        }
        format!(
            "{} of {} variants proven in {}",
            self.variants_proven(),
            self.plan.variants.len(),
            minutes(self.total)
        )
    }

    pub fn checks(&self) -> impl Iterator<Item = &Check> {
        self.subjects.iter().flat_map(|subject| &subject.checks)
    }

    /// Seconds spent in each step, summed over all subjects, in the order in which the steps first ran.
    pub fn time_by_step(&self) -> Vec<(&'static str, f64)> {
        let mut sums: Vec<(&'static str, f64)> = Vec::new();
        for check in self.checks() {
            let seconds = check.time.as_secs_f64();
            match sums.iter_mut().find(|(step, _)| *step == check.step) {
                Some((_, sum)) => *sum += seconds,
                None => sums.push((check.step, seconds)),
            }
        }
        sums
    }

    /// Writes both forms into `folder`. Returns the path of the HTML page.
    pub fn write(&self, folder: &Path) -> Result<PathBuf> {
        let [data, page] = names(self.plan.kind).map(|name| folder.join(name));
        fs::write(data, serde_json::to_string_pretty(&self.json())?)?;
        fs::write(&page, html::page(self))?;
        Ok(page)
    }

    fn json(&self) -> Value {
        let by_step: serde_json::Map<String, Value> =
            self.time_by_step().into_iter().map(|(step, sum)| (step.into(), sum.into())).collect();
        json!({
            "machine": self.machine,
            "proven": self.proven(),
            "passed": self.passed(),
            "failed": self.failed(),
            "variants": {"planned": self.plan.variants.len(), "proven": self.variants_proven()},
            "seconds": {
                "set_up": self.set_up.as_secs_f64(),
                "total": self.total.as_secs_f64(),
                "by_step": by_step,
            },
            "subjects": self.subjects.iter().map(subject).collect::<Vec<_>>(),
        })
    }
}

/// The names of the reports that a run of this kind writes.
pub fn names(kind: Kind) -> [String; 2] {
    ["json", "html"].map(|form| format!("{}.{form}", kind.named("report")))
}

fn subject(subject: &Subject) -> Value {
    json!({
        "name": subject.title,
        "service": subject.name,
        "proven": subject.proven(),
        "facts": subject.facts,
        "checks": subject.checks.iter().map(check).collect::<Vec<_>>(),
        "drills": subject.drills.iter().map(|drill| json!({
            "name": drill.name,
            "bound": drill.bound,
            "passed": drill.result.is_ok(),
            "seen": drill.seen(),
            "seconds": drill.time.as_secs_f64(),
        })).collect::<Vec<_>>(),
    })
}

fn check(check: &Check) -> Value {
    let (outcome, note) = match &check.outcome {
        Outcome::Passed(note) => ("passed", note.as_str()),
        Outcome::Failed { cause, .. } => ("failed", cause.as_str()),
        Outcome::Skipped => ("skipped", "an earlier step failed"),
    };
    json!({
        "step": check.step,
        "outcome": outcome,
        "note": note,
        "seconds": check.time.as_secs_f64(),
    })
}

/// `7 min 4 s`.
pub fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 {
        return format!("{seconds} s");
    }
    format!("{} min {} s", seconds / 60, seconds % 60)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use std::collections::BTreeSet;

    use super::{Plan, names};
    use crate::prove::Asked;

    /// CI runs several kinds one after the other, and collects all reports at the end.
    #[test]
    fn a_run_that_takes_other_steps_keeps_the_report_that_is_there() {
        let usual = Plan::new(Asked::default()).unwrap();
        assert_eq!(names(usual.kind), ["report.json", "report.html"], "as the README says");
        let others =
            [Plan::fuzz(&[]), Plan::images(&[]), Plan::features(&[]), Plan::files(&[]), Plan::transitions()];
        let files: BTreeSet<_> = others.iter().chain([&usual]).flat_map(|plan| names(plan.kind)).collect();
        assert_eq!(files.len(), 12, "{files:?}");
    }
}
