//! `slipway new`: `cargo generate` with the template's newest release.

use std::io::{self, IsTerminal as _};

use anyhow::Result;
use semver::Version;

use crate::Exit;
use crate::generate::interactive;
use crate::record::Answers;
use crate::template::Template;

/// Generates `name` below the current folder.
pub fn run(
    name: &str,
    answers: &[(String, String)],
    version: Option<&Version>,
    template: Option<&str>,
) -> Result<Exit> {
    let template = Template::open(template, None)?;
    let checkout = template.checkout(version.unwrap_or(template.newest()))?;
    let answers: Answers = answers.iter().cloned().collect();
    checkout.accepts(&answers)?;
    // Without a terminal there is nobody to ask, so the defaults are used.
    let silent = !io::stdin().is_terminal();
    Ok(if interactive(&checkout, name, &answers, silent)? { Exit::Done } else { Exit::Refused })
}
