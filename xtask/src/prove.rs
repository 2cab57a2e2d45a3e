//! `cargo prove`: generates, lints, tests and drills every variant, and asserts how many checks passed.

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
pub(crate) use steps::programs;

/// The highest nice value, which is the lowest scheduling priority.
const LOWEST: i32 = 19;

/// What every part of the run needs.
pub struct Context {
    pub root: PathBuf,
    /// `target/prove`: the services, the shared build, the logs and the report.
    pub folder: PathBuf,
    /// The folder inside it for the logs of this kind of run.
    pub logs: PathBuf,
    pub tools: Tools,
    pub servers: Servers,
    /// The template as it was at the start: all variants are generated from it, whatever is edited meanwhile.
    pub snapshot: Scratch,
    /// What has been linted so far: the linter and the text, with the name of the service replaced.
    pub linted: Mutex<BTreeSet<String>>,
    /// Whether instructions are counted, which takes an optimised build of the program.
    pub counts: bool,
    /// The names of the drills to run (empty for all), and how many times each runs.
    pub drills: (Vec<String>, u32),
}

/// Proves what `plan` lists. Returns `false` when a check failed. The last line printed is always the count.
#[must_use]
pub fn run(root: &Path, plan: &Plan) -> bool {
    check::catch_panic(|| prove(root, plan)).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        println!("0 passed, {} failed", plan.checks());
        false
    })
}

fn prove(root: &Path, plan: &Plan) -> Result<bool> {
    machine::keep_temporary_files_in_memory();
    if plan.makes_images() {
        image::enter_mount_namespace()?;
    }
    let started = Instant::now();
    let folder = root.join("target/prove");
    fs::create_dir_all(&folder)?;
    let lock = fs::File::create(folder.join("lock"))?;
    lock.try_lock().context("another `cargo prove` is running in this checkout: wait for it to finish")?;
    machine::warn_if_disk_is_low(&folder)?;
    // The build folder stays: it makes a second run quick. So do the logs and reports of other kinds of run.
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
    ensure!(
        edited.is_empty(),
        "the template was edited during the run, so neither version is proven: {edited:?}"
    );
    board.close(&report, &page);
    Ok(report.proven())
}

/// Works through the plan: measures one subject at a time while the next ones are compiled at low priority.
fn work_through(context: &Context, plan: &Plan, board: &Board) -> Vec<Subject> {
    let mut subjects = plan.subjects();
    // Generation is timed, so it runs while nothing else does.
    for subject in subjects.iter_mut().filter(|subject| subject.variant.is_some()) {
        subject.run(Step::makes_the_code, context, board);
    }
    // Unbounded: the drills of some subjects take as long as several others take to compile.
    let (compiled, next) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            // Only for this thread and what it starts: what is measured gets the cores whenever it needs them.
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
