//! The maintainers' commands: see CONTRIBUTING.md.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use xtask::variant::Variant;
use xtask::{bench, children, demo, prove, weave};

/// The maintainers' commands of slipway.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Generate, lint, test and drill every variant; the results go to target/prove/
    Prove(Prove),
    /// Generate the default service, build it, start it, and show three requests to try
    ///
    /// It runs until Ctrl-C. With --once, or when CI is set, it makes the three requests itself
    /// and stops.
    Demo {
        /// Make the three requests, then stop
        #[arg(long)]
        once: bool,
        /// Build it as the proof does, with what the proof has built
        #[arg(long, hide = true)]
        proof: bool,
    },
    /// Measure the service against bare axum; the results go to target/bench/
    Bench(Bench),
    /// Write the `.liquid` sibling of every fenced file
    Weave {
        /// Only report which siblings are stale
        #[arg(long)]
        check: bool,
    },
}

#[derive(clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
struct Prove {
    /// Prove only this variant, such as `base` or `postgres+otlp`; may be repeated
    #[arg(long = "variant", value_name = "NAME")]
    variants: Vec<Variant>,
    /// Prove the template itself: that its siblings are up to date, its own tests, the living service in place
    #[arg(long)]
    template: bool,
    /// Leave out the drills on the running service
    #[arg(long)]
    quick: bool,
    /// Run only this drill and the steps that it needs; may be repeated
    #[arg(long = "drill", value_name = "NAME", conflicts_with_all = ["quick", "template"])]
    drills: Vec<String>,
    /// Run each drill this many times; it passes if every run does
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    times: u32,
    /// Only check the running service against its API document: base and the full variant, unless --variant is given
    #[arg(long, conflicts_with_all = ["drills", "quick", "template", "times"])]
    fuzz: bool,
    /// Only the checks that need no build: leftovers, and linters and schemas for the files that no compiler reads
    #[arg(long, conflicts_with_all = ["drills", "quick", "template", "times", "fuzz"])]
    files: bool,
    /// Only build the image, run it, and run the steps of the workflows: base and the full variant, unless --variant
    /// is given
    #[arg(long, conflicts_with_all = ["drills", "quick", "template", "times", "fuzz", "files"])]
    images: bool,
    /// Only build without each feature of each dependency in turn: base and the full variant, unless --variant is given
    #[arg(long, conflicts_with_all = ["drills", "quick", "template", "times", "fuzz", "files", "images"])]
    features: bool,
    /// Only switch the toggles of twelve services that their owners have changed, then lint and test them
    #[arg(long, conflicts_with_all = ["drills", "quick", "template", "times", "fuzz", "files", "images", "features", "variants"])]
    transitions: bool,
    /// Only print the names of the planned variants, as a JSON array
    #[arg(long)]
    list_json: bool,
}

#[derive(clap::Args)]
struct Bench {
    /// How often each load is run against each server
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only the rows whose name contains this, such as `memory`
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Reuse the programs that the last run built
    #[arg(long)]
    again: bool,
    /// Write the result into README.md and docs/performance.md of services
    #[arg(long, conflicts_with = "only")]
    write: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<bool> {
    let root = root()?;
    children::watch_signals()?;
    match cli.command {
        Command::Prove(asked) => {
            let Prove {
                variants,
                template,
                quick,
                drills,
                times,
                fuzz,
                files,
                images,
                features,
                transitions,
                list_json,
            } = asked;
            let plan = if fuzz {
                prove::Plan::fuzz(&variants)
            } else if images {
                prove::Plan::images(&variants)
            } else if features {
                prove::Plan::features(&variants)
            } else if files {
                prove::Plan::files(&variants)
            } else if transitions {
                prove::Plan::transitions()
            } else {
                prove::Plan::new(prove::Asked { variants, template, quick, drills, times })?
            };
            if list_json {
                println!("{}", plan.names_as_json());
                return Ok(true);
            }
            Ok(prove::run(&root, &plan))
        }
        Command::Bench(Bench { rounds, only, again, write }) => {
            bench::run(&root, &bench::Asked { rounds, only, again, write })?;
            Ok(true)
        }
        Command::Demo { once, proof } => demo::run(&root, once || std::env::var_os("CI").is_some(), proof),
        Command::Weave { check } => {
            println!("{}", weave::run(&root, check)?);
            Ok(true)
        }
    }
}

/// The repository that this program was compiled in.
fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(Path::to_path_buf).context("xtask is not in a repository")
}
