//! Runs inside a service that slipway generated: shows what it was generated from, updates it to another version of
//! the template, and changes its answers. Every change is a git merge.

#![warn(clippy::print_stdout, clippy::print_stderr)]

mod apply;
mod args;
mod change;
mod generate;
mod git;
mod merge;
mod new;
mod ownership;
mod record;
mod say;
mod service;
mod signals;
mod status;
mod template;
mod tree;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;

use args::{Args, Command};
use say::complain;

/// How a run ends. On a usage error, clap exits with 2 as well.
enum Exit {
    Done = 0,
    /// Both sides changed the same lines: the owner has to resolve them.
    Conflicts = 1,
    /// Nothing was changed.
    Refused = 2,
    /// The exit code that shells use for SIGINT. Nothing was changed.
    Interrupted = 130,
}

fn main() -> ExitCode {
    let exit = run(Args::parse()).unwrap_or_else(|error| {
        if error.is::<signals::Interrupted>() {
            complain!("slipway: interrupted; nothing was changed");
            return Exit::Interrupted;
        }
        complain!("error: {error:#}");
        Exit::Refused
    });
    ExitCode::from(exit as u8)
}

fn run(args: Args) -> Result<Exit> {
    signals::watch()?;
    match args.command {
        Command::Status { template } => status::run(template.template.as_deref()),
        Command::Update { to, from, common } => change::update(to.as_ref(), from.from.as_deref(), &common),
        Command::Set { answers, from, common } => change::set(&answers, from.from.as_deref(), &common),
        Command::New { name, answers, version, template } => {
            new::run(&name, &answers, version.as_ref(), template.template.as_deref())
        }
    }
}
