//! `slipway update` and `slipway set`: generate the recorded and the wanted state, and merge their difference.

use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use semver::Version;
use tempfile::TempDir;

use crate::Exit;
use crate::apply;
use crate::args::Common;
use crate::generate::generate;
use crate::merge::{self, Merged, Sides};
use crate::record::{Answers, FILE};
use crate::say::{coloured, say};
use crate::service::Service;
use crate::template::{Checkout, Template};

/// A state of the service that can be generated.
pub struct State {
    pub template: Checkout,
    pub answers: Answers,
}

/// `slipway update`.
pub fn update(to: Option<&Version>, from: Option<&str>, common: &Common) -> Result<Exit> {
    let service = Service::find()?;
    let template = open(&service, common)?;
    let record = &service.record;
    let newest = template.newest();
    // A known version above the newest release is a preview: there is no newer release to update to.
    let known = template.versions().contains(&&record.version);
    let already = to.map_or(known && *newest <= record.version, |to| *to == record.version);
    if already && from.is_none() {
        say!("{} is already at version {}", record.name, record.version);
        return Ok(Exit::Done);
    }
    let recorded = recorded(&service, &template, from)?;
    // Between two releases, a branch is ahead of the release whose version it has.
    if to.is_none() && *newest <= record.version {
        say!(
            "{} is at version {}, and no release is newer: nothing to update. For the state of a release, even if that \
             leads back, name it: --to {newest}",
            record.name,
            record.version
        );
        return Ok(Exit::Done);
    }
    let to = to.unwrap_or(newest);
    let wanted = State { template: template.checkout(to)?, answers: record.answers.clone() };
    let title = format!("Update to slipway {to}");
    let exit = change(&service, &recorded, &wanted, &title, true, common.dry_run)?;
    for question in
        wanted.template.questions()?.iter().filter(|question| !record.answers.contains_key(&question.name))
    {
        say!("new question `{0}`: its default is used; `slipway set {0}=…` changes it", question.name);
    }
    Ok(exit)
}

/// `slipway set`.
pub fn set(asked: &[(String, String)], from: Option<&str>, common: &Common) -> Result<Exit> {
    let service = Service::find()?;
    let template = open(&service, common)?;
    let recorded = recorded(&service, &template, from)?;
    let asked: Answers = asked.iter().cloned().collect();
    recorded.template.accepts(&asked)?;
    let mut answers = recorded.answers.clone();
    answers.extend(asked);
    if answers == service.record.answers {
        say!(
            "{} already has these answers. If you changed one in {FILE} by hand, the other files don't match it: \
             restore the old answer, commit it, then run this again",
            service.record.name
        );
        return Ok(Exit::Done);
    }
    let changed: Vec<String> = answers
        .iter()
        .filter(|(question, answer)| service.record.answers.get(*question) != Some(answer))
        .map(|(question, answer)| format!("{question} = {answer}"))
        .collect();
    let title = format!("Set {}", changed.join(", "));
    let wanted = State { template: recorded.template.again(), answers };
    change(&service, &recorded, &wanted, &title, false, common.dry_run)
}

fn open(service: &Service, common: &Common) -> Result<Template> {
    if !common.dry_run {
        service.ready_to_change()?;
    }
    Template::open(common.template.template.as_deref(), service.record.template.as_deref())
}

/// The state that the service records. Fails when its owners wrote invalid answers there, or `from` is another version.
pub fn recorded(service: &Service, template: &Template, from: Option<&str>) -> Result<State> {
    let version = &service.record.version;
    let template = match from {
        Some(revision) => {
            let checkout = template.checkout_revision(revision)?;
            let cure = if template.versions().contains(&version) {
                "leave out --from if the service comes from that release, or name its commit: --from COMMIT"
            } else {
                "name the commit that the service was generated from: --from COMMIT, with its full id"
            };
            // The branch may have gone on, and what it changed since then would be missing from the merge.
            ensure!(
                checkout.version == *version,
                "{revision} is version {} of the template, but {FILE} records {version}: {cure}",
                checkout.version
            );
            checkout
        }
        None => template.recorded(version)?,
    };
    let answers = service.record.answers.clone();
    template.accepts(&answers).context(FILE)?;
    Ok(State { template, answers })
}

/// What `service` would be after a change from `recorded` to `wanted`.
pub fn merged(service: &Service, recorded: &State, wanted: &State, update: bool) -> Result<Merged> {
    let folder = TempDir::with_prefix("slipway-")?;
    let generated = |state: &State, place: &str| -> Result<PathBuf> {
        let parent = folder.path().join(place);
        fs::create_dir(&parent)?;
        generate(&state.template, &service.record.name, &state.answers, &parent)
    };
    let (from, to) = (generated(recorded, "recorded")?, generated(wanted, "wanted")?);
    let label = format!("slipway-{}", wanted.template.version);
    let ownership = wanted.template.ownership()?;
    let sides = Sides { recorded: &from, wanted: &to, label: &label, ownership: &ownership, update };
    merge::merge(service, &sides)
}

fn change(
    service: &Service,
    recorded: &State,
    wanted: &State,
    title: &str,
    update: bool,
    dry_run: bool,
) -> Result<Exit> {
    let merged = merged(service, recorded, wanted, update)?;
    if merged.conflicts.is_empty() && merged.files == service.files {
        say!("{title}: nothing changes");
        return Ok(Exit::Done);
    }
    if dry_run {
        show(service, &merged)?;
    } else {
        apply::apply(service, &merged, &message(service, title, &merged)?)?;
    }
    for note in &merged.notes {
        say!("note: {note}");
    }
    if merged.conflicts.is_empty() {
        if !dry_run {
            say!(
                "{title}: merged and staged. Review it with `git diff --staged`, then `git commit`; `git reset --merge` undoes it."
            );
        }
        return Ok(Exit::Done);
    }
    for message in &merged.messages {
        say!("{}", message.text);
    }
    let count = merged.conflicts.len();
    let files = if count == 1 { "1 file".to_owned() } else { format!("{count} files") };
    if dry_run {
        say!("{title}: this would conflict in {files}.");
    } else {
        say!(
            "{title}: merged, with conflicts in {files}. Resolve each (in text, both sides are between <<<<<<< and \
             >>>>>>>), `git add` or `git rm` it, then `git commit`; `git reset --merge` undoes the whole merge."
        );
    }
    Ok(Exit::Conflicts)
}

/// The message for the commit.
fn message(service: &Service, title: &str, merged: &Merged) -> Result<String> {
    let mut message = format!("{title}\n");
    for (at, note) in merged.notes.iter().enumerate() {
        let gap = if at == 0 { "\n" } else { "" };
        let _ = writeln!(message, "{gap}- {note}");
    }
    if !merged.conflicts.is_empty() {
        let files = merged.conflicts.keys().map(|path| format!("\t{}\n", path.display()));
        let list = format!("Conflicts:\n{}", files.collect::<String>());
        // As comments, with this repository's comment character.
        let list = service.git.feed(&["stripspace", "--comment-lines"], list.as_bytes())?;
        let _ = write!(message, "\n{}", String::from_utf8_lossy(&list));
    }
    Ok(message)
}

/// Prints the difference that `merged` makes.
fn show(service: &Service, merged: &Merged) -> Result<()> {
    let trees = [&*service.tree, &merged.tree];
    let diff = ["diff", "--find-renames", "--no-ext-diff", "--color=never"];
    let mut diff = merged.scratch.git.run(&[&diff[..], &trees].concat())?;
    if std::io::stdout().is_terminal() {
        diff = coloured(&String::from_utf8_lossy(&diff)).into_bytes();
    }
    match std::io::stdout().write_all(&diff) {
        // The reader may stop early: that is no error.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
