//! How many instructions a request takes, layer by layer, and how many it may take.
//!
//! Valgrind counts them: the same work takes the same number on any day and beside any other load, which can't be
//! said of its time. Another compiler generates different code, so the counts are compared with the committed ones
//! only if the compiler is the committed one too.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use toml_edit::DocumentMut;

use crate::children::{self, Scratch};
use crate::http::Connection;
use crate::machine;
use crate::prove::service::Service;

use super::Site;
use super::shutdown::TASK;
use super::traces::Collector;

/// The committed counts.
const TABLE: &str = "xtask/budget.toml";
const COMMITTED: &str = include_str!("../../../budget.toml");
/// How much more than the committed count a request may take. What is compared is the count with all layers up to
/// one: the difference of two counts, which is what that layer adds, varies by more.
const GROWTH: f64 = 0.05;
/// A count is the difference of two runs, so that what start-up and the first request cost cancels out.
const FEW: u32 = 300;
const MANY: u32 = 1300;
/// The prefix of the names of valgrind's files, and the suffix of the main thread's.
const COUNTS: &str = "counts";
const FIRST: &str = "-01";
const BOUND: Duration = Duration::from_secs(30);

/// A layer, and all layers below it.
struct Layer {
    name: &'static str,
    settings: &'static [(&'static str, &'static str)],
    /// The path to request; by default, that of a task in memory.
    path: Option<&'static str>,
}

const BASE: [Layer; 2] =
    [layer("without its log line", &[("APP__LOG__ACCESS", "false")]), layer("all of it", &[])];
const FULL: [Layer; 4] = [
    layer("without its span", &[("APP__OTLP__ENDPOINT", "")]),
    layer("with a span", &[("APP__OTLP__SAMPLE_RATIO", "0")]),
    layer("with its export", &[("APP__OTLP__SAMPLE_RATIO", "1")]),
    Layer { path: Some("/v1/tasks?limit=1"), ..layer("with a query", &[("APP__OTLP__SAMPLE_RATIO", "0")]) },
];

const fn layer(name: &'static str, settings: &'static [(&'static str, &'static str)]) -> Layer {
    Layer { name, settings, path: None }
}

pub fn kept(site: &Site<'_>) -> Result<String> {
    let committed: DocumentMut = COMMITTED.parse().context(TABLE)?;
    let (variant, layers) = if site.postgres { ("full", &FULL[..]) } else { ("base", &BASE[..]) };
    let compiler = committed["rustc"].as_str().context(TABLE)?;
    let compared = machine::compiler() == compiler;
    let collector = site.rotel.map(|_| Collector::start(site)).transpose()?;
    let endpoint = collector.as_ref().map(Collector::url);
    let endpoint = endpoint.as_ref().map(|url| ("APP__OTLP__ENDPOINT", url.as_str()));
    let (mut seen, mut over) = (Vec::new(), Vec::new());
    for layer in layers {
        let settings = [endpoint.as_slice(), site.unlimited(), layer.settings].concat();
        let run = |requests| run(site, &settings, layer.path, requests).context(layer.name);
        let counted = || -> Result<f64> { Ok((run(MANY)? - run(FEW)?) / f64::from(MANY - FEW)) };
        let budget = committed[variant][layer.name]
            .as_integer()
            .with_context(|| format!("{TABLE}: {}", layer.name))?;
        let budget = f64::from(i32::try_from(budget)?);
        let most = budget * (1.0 + GROWTH);
        let mut count = counted()?;
        if count > most {
            // Work driven by the clock, not by requests, such as an export, may have fallen into one of the runs.
            count = count.min(counted()?);
        }
        let line = format!("{}: {count:.0} of {budget}", layer.name);
        if compared && count > most {
            over.push(line.clone());
        }
        seen.push(line);
    }
    ensure!(over.is_empty(), "more than {TABLE} allows: {} (all: {})", over.join(", "), seen.join(", "));
    if !compared {
        let own = machine::compiler();
        site.not_run(&format!("the comparison with {TABLE} (its counts are of rustc {compiler}, not {own})"));
    }
    Ok(seen.join(", "))
}

/// The instructions of a whole run, except for the main thread's: it only waits for the end while others serve, and
/// its start-up varies, because it calibrates a clock for as long as that takes.
fn run(site: &Site<'_>, settings: &[(&str, &str)], path: Option<&str>, requests: u32) -> Result<f64> {
    let (valgrind, program) = site.counting.as_ref().context("no program to count")?;
    let home = Scratch::new()?;
    let mut command = children::killed_with_parent(valgrind);
    command.args(["--tool=callgrind", "--separate-threads=yes"]);
    command.arg(format!("--log-file={}", home.path().join("log").display()));
    command.arg(format!("--callgrind-out-file={}", home.path().join(COUNTS).display())).arg(program);
    site.bare(&mut command)?;
    // Health checks are driven by the clock, and are not part of a request.
    command.envs([("TOKIO_WORKER_THREADS", "1"), ("APP__HEALTH__INTERVAL", "1m")]);
    let service = Service::launch(command.envs(settings.iter().copied()))?;
    service.ready()?;
    let mut client = Connection::open(service.public)?;
    let created = client.request("POST", "/v1/tasks", "", TASK)?;
    let created = created.header("location").with_context(|| format!("answered {}", created.status))?;
    let path = path.unwrap_or(created);
    for _ in 0..requests {
        let answer = client.request("GET", path, "", "")?;
        ensure!(answer.status == 200, "answered {}", answer.status);
    }
    drop(client);
    service.signal();
    site.end(service, BOUND)?;
    total(home.path())
}

/// Adds up the counts that valgrind has written, a file for each thread.
fn total(home: &Path) -> Result<f64> {
    let (mut total, mut threads) = (0.0, 0);
    for file in fs::read_dir(home)? {
        let file = file?;
        let name = file.file_name();
        let Some(thread) = name.to_str().and_then(|name| name.strip_prefix(COUNTS)) else { continue };
        let text = fs::read_to_string(file.path())?;
        let Some(line) = text.lines().find_map(|line| line.strip_prefix("totals: ")) else { continue };
        if thread != FIRST {
            total += line.trim().parse::<f64>()?;
            threads += 1;
        }
    }
    ensure!(threads > 0, "valgrind counted no thread");
    Ok(total)
}
