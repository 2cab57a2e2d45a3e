//! The page that Prometheus reads, as its own tool finds it.

use std::fs::File;
use std::io::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::children::Scratch;
use crate::http::get;

use super::Site;
use super::clients::{complete, long_tasks, wait_until};
use super::peers::Receiver;
use super::prometheus::BOUND;

/// Every kind of metric has a value by the time that the page is read: what is not there can't be found fault with.
pub fn page(site: &Site<'_>) -> Result<String> {
    let receiver = Receiver::start()?;
    receiver.answer();
    let settings =
        [("APP__WEBHOOK__URL", &*receiver.url()), ("APP__WEBHOOK__ALLOW_PRIVATE_ADDRESSES", "true")];
    let service = site.start(&settings)?;
    let path = long_tasks(service.public, 1)?.remove(0);
    complete(service.public, &path)?;
    get(service.public, &path)?;
    get(service.public, "/nowhere")?;
    let done = "jobs_total{job=\"webhook\",outcome=\"done\"}";
    wait_until("the job done", BOUND, || Ok(service.metric(done)? == Some(1.0)))?;
    let page = get(service.admin, "/metrics")?.body;
    site.stop(service)?;

    let folder = Scratch::new()?;
    let file = folder.path().join("metrics");
    File::create(&file)?.write_all(page.as_bytes())?;
    let mut command = Command::new(site.promtool);
    let output = command.args(["check", "metrics"]).stdin(File::open(&file)?).output();
    let output = output.context("promtool")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
    Ok(format!("{} metrics", page.matches("# TYPE ").count()))
}
