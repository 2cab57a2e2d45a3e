//! The page that shows the API document: its script runs in Node.js, with as much of a browser as it needs.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::children::{Child, Scratch};

use super::Site;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/page.mjs");
const BOUND: Duration = Duration::from_secs(20);

pub fn page(site: &Site<'_>) -> Result<String> {
    let service = site.start(site.unlimited())?;
    let folder = Scratch::new()?;
    let said = folder.path().join("said");
    let mut command = Command::new(site.node.context("Node.js was not set up")?);
    command.arg(SCRIPT).arg(format!("http://{}/docs", service.public));
    let log = File::create(&said)?;
    let status = Child::spawn(command.stdout(log.try_clone()?).stderr(log), Signal::TERM)?.wait(BOUND)?;
    let said = fs::read_to_string(said)?;
    ensure!(status.is_some_and(|status| status.success()), "the page: {}", said.trim());
    site.stop(service)?;
    Ok(said.trim().to_owned())
}
