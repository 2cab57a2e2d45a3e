//! `cargo bench-service`: what the production stack costs over bare axum, measured in one run.

mod build;
mod crowd;
mod load;
mod plot;
mod rows;
mod server;
mod site;
mod start;
mod surge;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::machine;
use crate::servers::Servers;
use crate::tools::{Tools, Wanted};

use build::Programs;
use site::Site;
use table::Report;

/// What a maintainer asks to measure.
pub struct Asked {
    /// How many times each load is put on each contestant.
    pub rounds: u32,
    /// Only rows whose name contains this are measured.
    pub only: String,
    /// Whether to reuse the programs that the last run built.
    pub again: bool,
    /// Whether to write the results into the repository's documents.
    pub write: bool,
}

/// Runs the benchmark.
///
/// # Errors
/// When something can't be built, started or measured.
pub fn run(root: &Path, asked: &Asked) -> Result<()> {
    let say = |text: &str| println!("set-up: {text}");
    let wanted = Wanted { rotel: true, wrk: true, ..Wanted::default() };
    let tools = Tools::set_up(root, wanted, &say)?;
    let folder = root.join("target/bench");
    let programs =
        if asked.again { Programs::again(&folder)? } else { Programs::build(root, &folder, &tools, &say)? };
    let machine = machine::description();
    // Everything that is started from here on, including the servers, stays off the contestants' core.
    let cores = machine::reserve_core()?;
    machine::raise_descriptor_limit(crowd::LARGEST * 2 + 500)?;
    let servers = Servers::start(&tools)?;
    let site = Site::new(root, &tools, &servers, &programs, cores)?;
    let report = Report {
        machine,
        rows: rows::measure(&site, asked)?,
        starts: start::measure(&site)?,
        crowds: crowd::measure(&site)?,
        surge: surge::measure(&site)?,
    };
    let (markdown, svg) = (report.markdown(), plot::svg(&report));
    fs::write(folder.join("report.md"), &markdown).context("the table")?;
    fs::write(folder.join("plot.svg"), &svg).context("the plot")?;
    println!("\n{markdown}\nwritten to {}", folder.display());
    if asked.write {
        report.publish(root, &svg)?;
    }
    Ok(())
}
