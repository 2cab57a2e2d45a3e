//! The command line, and the exit codes that orchestrators read.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use service::{app, config, http};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A fault that is none of those below.
const FAULT: u8 = 1;
/// `EX_CONFIG` of sysexits.h.
const BAD_CONFIGURATION: u8 = 78;

#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT (the default)
    Serve,
    //@ if postgres
    /// Bring the database's schema up to date, and exit
    Migrate,
    //@ end
    /// Print the configuration in force and where each value came from
    CheckConfig,
    /// Ask the running service whether it lives, for images without a shell
    Healthcheck,
    /// Print the OpenAPI document
    Openapi,
}

fn main() -> ExitCode {
    let command = Arguments::parse().command.unwrap_or(Command::Serve);
    if matches!(command, Command::Openapi) {
        return print(http::openapi_document());
    }
    let loaded = match config::load() {
        Ok(loaded) => loaded,
        Err(faults) => {
            eprint!("bad configuration:\n{faults}");
            return BAD_CONFIGURATION.into();
        }
    };
    match command {
        Command::Serve | Command::Openapi => app::serve(&loaded),
        //@ if postgres
        Command::Migrate => print(app::migrate(&loaded).map(|()| "the schema is up to date".to_owned())),
        //@ end
        Command::Healthcheck => print(app::healthcheck(&loaded.config).map(|()| "ok".to_owned())),
        Command::CheckConfig => print(Ok(loaded.explain())),
    }
}

fn print(result: anyhow::Result<String>) -> ExitCode {
    match result {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error:#}");
            FAULT.into()
        }
    }
}
