//! The running program against its API document, tested by a third-party tool: schemathesis reads the document and
//! sends requests that it allows, requests that it forbids, and sequences of both.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::children::Scratch;

use super::check::Work;
use super::drills::{Site, log_lines};

/// With fewer requests than this, schemathesis can't have read the document.
const FEWEST: u32 = 500;

/// Fails on a response whose status, content type, shape or headers are not in the document, on a 5xx, on valid
/// input that is refused, and on invalid input that is accepted.
pub fn run(work: &mut Work<'_>) -> Result<String> {
    let program = work.context.tools.schemathesis.clone().context("schemathesis was not set up")?;
    let site = Site::prepare(work)?;
    let service = site.start(site.unlimited())?;
    // schemathesis stores what it has tried in its working directory.
    let folder = Scratch::new()?;
    let mut command = Command::new(program);
    command.arg("--config-file").arg(work.context.root.join("xtask/schemathesis.toml"));
    command.args(["run", &format!("http://{}/openapi.json", service.public), "--no-color"]);
    command.args(["--max-examples", "100", "--request-timeout", "10", "--continue-on-failure"]);
    command.current_dir(folder.path());
    let said = work.run(&mut command)?;
    let tried = tried(&said).context("schemathesis did not say how much it tried")?;
    ensure!(tried >= FEWEST, "schemathesis tried no more than {tried} requests");
    site.stop(service)?;
    log_lines(&site)?;
    work.subject.facts.insert("fuzzed", f64::from(tried));
    Ok(format!("{tried} requests"))
}

/// The number in `1131 generated, 1131 passed`.
fn tried(said: &str) -> Option<u32> {
    said.lines().find_map(|line| line.split_once(" generated, ")?.0.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::tried;

    #[test]
    fn what_was_tried_is_read_from_the_summary() {
        assert_eq!(tried("Test cases:\n  1131 generated, 1131 passed\n"), Some(1131));
        assert_eq!(tried("Test cases:\n  0 generated\n"), None);
    }
}
