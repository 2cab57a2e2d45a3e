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

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rustix::process::nice;

use crate::children::Scratch;
use crate::generate;
use crate::machine;
use crate::servers::Servers;
use crate::tools::{Tools, Wanted};

use board::Board;
use check::Subject;
pub use plan::{Asked, Plan};
use report::Report;
use steps::Step;

/// The least that the kernel gives to anyone.
const LOWEST: i32 = 19;

/// What every part of the run needs.
pub struct Context {
    pub root: PathBuf,
    /// `target/prove`: the services, the shared build, the logs and the report.
    pub folder: PathBuf,
    /// Where in it the logs of this kind of run are.
    pub logs: PathBuf,
    pub tools: Tools,
    pub servers: Servers,
    /// The template as it is now: an edit during the run must not prove half of it.
    pub snapshot: Scratch,
    /// What was held to its linter, as it is in a service of any name.
    pub linted: Mutex<BTreeSet<String>>,
    /// Whether instructions are counted, which takes a program of its own.
    pub counts: bool,
    /// The names of the drills to run, or none for all, and how often.
    pub drills: (Vec<String>, u32),
}

/// Proves what `plan` lists. `false` when a check failed. The last line is the count, whatever happened.
#[must_use]
pub fn run(root: &Path, plan: &Plan) -> bool {
    check::unwound(|| proven(root, plan)).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        println!("0 passed, {} failed", plan.checks());
        false
    })
}

fn proven(root: &Path, plan: &Plan) -> Result<bool> {
    machine::keep_temporary_files_in_memory();
    if plan.makes_images() {
        image::among_own_mounts()?;
    }
    let started = Instant::now();
    let folder = root.join("target/prove");
    fs::create_dir_all(&folder)?;
    let lock = fs::File::create(folder.join("lock"))?;
    lock.try_lock().context("another `cargo prove` is at work in this checkout: wait for it")?;
    machine::look_for_room(&folder)?;
    // The build folder stays: it is what makes a second run quick. So does what a run of another kind has told.
    let logs = folder.join(plan.kind.named("logs"));
    let reports = report::names(plan.kind).map(|name| folder.join(name));
    for path in [folder.join("services"), logs.clone()].into_iter().chain(reports) {
        let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    }
    let wanted = Wanted {
        schemathesis: plan.fuzzes(),
        rotel: plan.traces(),
        linters: plan.looks_at_files(),
        images: plan.makes_images(),
        valgrind: plan.counts(),
        wrk: false,
    };
    let tools = Tools::set_up(root, wanted, &|text| println!("set-up: {text}"))?;
    let servers = Servers::start(&tools)?;
    let snapshot = Scratch::new()?;
    generate::snapshot(root, snapshot.path())?;
    let drills = (plan.drills.clone(), plan.times);
    let (counts, linted) = (plan.counts(), Mutex::default());
    let context =
        Context { root: root.to_path_buf(), folder, logs, linted, counts, tools, servers, snapshot, drills };
    let set_up = started.elapsed();
    println!("set-up: {:.1} s", set_up.as_secs_f64());

    let board = Board::new(plan);
    let mut subjects = work_through(&context, plan, &board);
    subjects.sort_by_key(|subject| subject.place);
    let report = Report { plan, subjects, set_up, total: started.elapsed(), machine: machine::description() };
    let page = report.write(&context.folder)?;
    let edited = if plan.template { generate::differing(root, context.snapshot.path())? } else { Vec::new() };
    ensure!(edited.is_empty(), "edited during the run, which proves neither: {edited:?}");
    board.close(&report, &page);
    Ok(report.proven())
}

/// Works through what is planned: one subject at a time is measured, while the next ones are compiled out of its way.
fn work_through(context: &Context, plan: &Plan, board: &Board) -> Vec<Subject> {
    let mut subjects = plan.subjects();
    // How long generation takes is measured on a machine with nothing else to do.
    for subject in subjects.iter_mut().filter(|subject| subject.variant.is_some()) {
        subject.run(Step::makes_the_code, context, board);
    }
    // However many wait: the drills of some take as long as several compile.
    let (compiled, next) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            // Of this thread and what it starts: what is measured has the cores whenever it wants them.
            let _ = nice(LOWEST);
            for mut subject in subjects {
                subject.run(|step| step.ahead, context, board);
                if compiled.send(subject).is_err() {
                    break;
                }
            }
        });
        let measured = next.iter().map(|mut subject: Subject| {
            subject.run(|_| true, context, board);
            board.row(&subject);
            subject
        });
        measured.collect()
    })
}
