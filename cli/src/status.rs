//! `slipway status`: what the service records, and what an update would change.

use anyhow::Result;

use crate::Exit;
use crate::change::{self, State};
use crate::say::say;
use crate::service::Service;
use crate::template::Template;

/// Prints both. Conflicts that an update would have don't make `status` fail.
pub fn run(template: Option<&str>) -> Result<Exit> {
    let service = Service::find()?;
    let record = &service.record;
    say!("{}: slipway {}", record.name, record.version);
    let width = record.answers.keys().map(String::len).max().unwrap_or_default();
    for (question, answer) in &record.answers {
        say!("  {question:width$}  {answer}");
    }
    // The record has been shown by now, even if the template can't be reached.
    let template = Template::open(template, record.template.as_deref())?;
    let newest = template.newest();
    let recorded = change::recorded(&service, &template, None)?;
    if *newest <= record.version {
        say!("{} is the newest version: nothing to update", record.version);
        return Ok(Exit::Done);
    }
    let wanted = State { template: template.checkout(newest)?, answers: record.answers.clone() };
    let merged = change::merged(&service, &recorded, &wanted, true)?;
    let changed =
        merged.scratch.git.line(&["diff", "--find-renames", "--name-status", &service.tree, &merged.tree])?;
    say!("{newest} is the newest version. An update would change:");
    for line in changed.lines() {
        say!("  {}", line.replace('\t', "  "));
    }
    for path in merged.conflicts.keys() {
        say!("  conflict in {}", path.display());
    }
    for question in
        wanted.template.questions()?.iter().filter(|question| !record.answers.contains_key(&question.name))
    {
        say!("  new question: {}", question.name);
    }
    say!("`slipway update --dry-run` shows the diff, `slipway update` applies it.");
    Ok(Exit::Done)
}
