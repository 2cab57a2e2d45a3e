//! `cargo prove`: every variant generated, linted, tested and drilled, and the count asserted.

mod board;
mod check;
mod command;
mod drills;
mod features;
mod files;
mod fuzz;
mod html;
mod image;
mod plan;
mod recipes;
mod report;
mod rules;
mod service;
mod size;
mod steps;
mod template;
mod transitions;
mod unused;
mod workflow;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Result;

use crate::children::Scratch;
use crate::generate;
use crate::servers::Servers;
use crate::tools::{Tools, Wanted};

use board::Board;
use check::Subject;
pub use plan::{Asked, Plan};
use report::Report;

/// What every part of the run needs.
pub struct Context {
    pub root: PathBuf,
    /// `target/prove`: the services, the shared build, the logs and the report.
    pub folder: PathBuf,
    pub tools: Tools,
    pub servers: Servers,
    /// The template as it is now: an edit during the run must not prove half of it.
    pub snapshot: Scratch,
    /// Held while cargo builds. Its own lock on the shared target folder would do the same, but
    /// the waiting would count as the step's time.
    pub build: Mutex<()>,
    /// Held while the base image is made, or the peers of a container run, whose address is fixed.
    pub images: Mutex<()>,
    /// The names of the drills to run, or none for all, and how often.
    pub drills: (Vec<String>, u32),
}

/// Proves what `plan` lists. `false` when a check failed.
///
/// # Errors
/// When the set-up fails, or the report can't be written.
pub fn run(root: &Path, plan: &Plan) -> Result<bool> {
    let started = Instant::now();
    let folder = root.join("target/prove");
    // The build folder stays: it is what makes a second run quick.
    for stale in ["services", "logs", "report.html", "report.json"] {
        let path = folder.join(stale);
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
    fs::create_dir_all(&folder)?;
    let wanted = Wanted {
        schemathesis: plan.fuzzes(),
        rotel: plan.traces(),
        linters: plan.looks_at_files(),
        images: plan.makes_images(),
    };
    let tools = Tools::set_up(root, wanted, &|text| println!("set-up: {text}"))?;
    let servers = Servers::start(&tools)?;
    let snapshot = Scratch::new()?;
    generate::snapshot(root, snapshot.path())?;
    let build = Mutex::new(());
    let drills = (plan.drills.clone(), plan.times);
    let context = Context {
        root: root.to_path_buf(),
        folder,
        tools,
        servers,
        snapshot,
        build,
        images: Mutex::default(),
        drills,
    };
    let set_up = started.elapsed();
    println!("set-up: {:.1} s", set_up.as_secs_f64());

    let board = Board::new(plan);
    let mut subjects = one_by_one(&context, plan, &board);
    subjects.sort_by_key(|subject| subject.place);
    let report = Report { plan, subjects, set_up, total: started.elapsed(), machine: report::machine() };
    report.write(&context.folder)?;
    board.close(&report, &context.folder);
    Ok(report.proven())
}

/// Works through what is planned, one after the other: two at once make the deadlines miss that either measures.
fn one_by_one(context: &Context, plan: &Plan, board: &Board) -> Vec<Subject> {
    let mut subjects = Vec::from(plan.subjects());
    // Before anything builds: how long generation takes is measured on a machine with nothing else to do.
    for subject in subjects.iter_mut().filter(|subject| subject.variant.is_some()) {
        subject.run(1, context, board);
    }
    for subject in &mut subjects {
        subject.run(usize::MAX, context, board);
        board.row(subject);
    }
    subjects
}

/// A thread that panics takes the run down with it; what the lock guards is whole even then.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
