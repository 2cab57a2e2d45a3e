//! The command line, and the exit codes that orchestrators read.

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use service::{app, config, health, http};

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Clone, Copy, Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT (the default)
    Serve,
    //@ if postgres
    /// Bring the database schema up to date and exit
    Migrate,
    /// List or requeue jobs that failed for good
    #[command(subcommand)]
    DeadLetters(service::store::dead_letters::Command),
    //@ end
    /// Print the effective configuration and where each value came from
    CheckConfig,
    /// Check that the running service is alive, for images without a shell
    Healthcheck,
    /// Print the OpenAPI document
    Openapi,
}

fn main() -> ExitCode {
    // Clients look up the process-wide TLS provider and panic if there is none. The first install can't fail.
    let _ = rustls::crypto::ring::default_provider().install_default();
    run(Arguments::parse().command.unwrap_or(Command::Serve)).unwrap_or_else(|error| {
        // `eprintln!` would panic if nobody reads it.
        let _ = writeln!(io::stderr(), "{error:#}");
        // 78 is EX_CONFIG from sysexits.h: a restart won't help until the configuration changes.
        ExitCode::from(if error.is::<config::Faults>() { 78 } else { 1 })
    })
}

fn run(command: Command) -> Result<ExitCode> {
    let text = match command {
        Command::Openapi => http::openapi_document()?,
        Command::Serve => return app::serve(),
        //@ if postgres
        Command::Migrate => app::migrate(&config::load()?).map(|()| "the schema is up to date".to_owned())?,
        Command::DeadLetters(command) => app::in_runtime(command.run(config::load()?.config))?,
        //@ end
        Command::Healthcheck => app::in_runtime(health::healthcheck(config::load()?.config.admin))?,
        Command::CheckConfig => config::load()?.explained,
    };
    match text.lines().try_for_each(|line| writeln!(io::stdout(), "{line}")) {
        // A reader that stops early, such as `head`, is not an error.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("stdout"),
        _ => Ok(ExitCode::SUCCESS),
    }
}
