//! The command line.

use clap::{Parser, Subcommand};
use semver::Version;

/// Keeps a service that slipway generated up to date with its template
///
/// Exit codes: 0 done, 1 conflicts are left to resolve, 2 refused or failed and nothing was changed,
/// 130 interrupted and nothing was changed.
#[derive(Parser)]
#[command(version)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Show this service's recorded version and answers, and what an update would change
    Status {
        #[command(flatten)]
        template: Template,
    },
    /// Merge the template's changes since the recorded version into this service
    Update {
        /// The version to update to, which may be an older one (default: the newest, unless that would lead back)
        #[arg(long, value_name = "VERSION", value_parser = version)]
        to: Option<Version>,
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        common: Common,
    },
    /// Change answers: switch an optional part on or off, or change the owner or the description
    Set {
        /// Such as `redis=true` or `owner=harbour`
        #[arg(required = true, value_name = "QUESTION=ANSWER", value_parser = answer)]
        answers: Vec<(String, String)>,
        #[command(flatten)]
        from: From,
        #[command(flatten)]
        common: Common,
    },
    /// Generate a new service in a folder of its name; asks the questions that aren't answered here
    New {
        /// The service's name: a-z, 0-9 and single hyphens
        name: String,
        /// Such as `redis=true` or `owner=harbour`
        #[arg(value_name = "QUESTION=ANSWER", value_parser = answer)]
        answers: Vec<(String, String)>,
        /// The version of the template (default: the newest)
        #[arg(long, value_name = "VERSION", value_parser = version)]
        version: Option<Version>,
        #[command(flatten)]
        template: Template,
    },
}

#[derive(clap::Args)]
pub struct Template {
    /// The template's repository, or a folder with the template (default: what `template` in slipway.toml names, or
    /// else the repository that slipway was installed from)
    #[arg(long, value_name = "PATH|URL")]
    pub template: Option<String>,
}

#[derive(clap::Args)]
pub struct From {
    /// The branch or tag of the template that this service was generated from, if that was not a release; the full id
    /// of the commit, if the branch has moved on since
    #[arg(long, value_name = "BRANCH|TAG|COMMIT")]
    pub from: Option<String>,
}

#[derive(clap::Args)]
pub struct Common {
    #[command(flatten)]
    pub template: Template,
    /// Only show the diff and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// A version, with or without the `v` of its tag.
fn version(text: &str) -> Result<Version, String> {
    Version::parse(text.strip_prefix('v').unwrap_or(text))
        .map_err(|error| format!("{error}; a version looks like 0.1.0"))
}

fn answer(text: &str) -> Result<(String, String), String> {
    let (question, answer) = text.split_once('=').ok_or("write QUESTION=ANSWER, like redis=true")?;
    Ok((question.trim().to_owned(), answer.to_owned()))
}
