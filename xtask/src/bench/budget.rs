//! How many instructions a request takes, layer by layer, and how many it may.
//!
//! Counted by valgrind on the program as it is released. The same work takes the same instructions on any day and
//! beside any other load, which can't be said of its time.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use toml_edit::{DocumentMut, Item, Table, value};

use crate::children::Scratch;
use crate::http::Connection;
use crate::variant::Variant;

use super::site::{BESIDE, Contestant, Site};

/// What is committed, from the root.
const TABLE: &str = "bench/budget.toml";
/// How much more a request may take than what is committed. It is held with all layers up to one: the difference of two
/// counts, which is what that layer adds, varies by more.
const GROWTH: f64 = 0.05;
/// The same where each request waits for a server: how often it is woken for an answer is decided by time.
const GROWTH_BESIDE_A_SERVER: f64 = 0.15;
/// A count is the difference of two runs, so that a start costs nothing.
const FEW: u32 = 1000;
const MANY: u32 = 3000;
const RUNS: u32 = 2;
/// Checks of dependencies go by the clock, and are no part of a request.
const SELDOM: (&str, &str) = ("APP__HEALTH__INTERVAL", "1m");

/// A layer: what it adds to the one before, or to the one that is named.
struct Layer {
    name: &'static str,
    on: Option<&'static str>,
    who: Contestant,
    growth: f64,
    settings: &'static [(&'static str, &'static str)],
}

const BARE: &str = "bare axum";
const BASE: Contestant = Contestant::Service(Variant::BASE);
const FULL: Contestant = Contestant::Service(Variant::FULL);
const RATE_LIMIT: &str = "rate limit and what else is switched on";
const SPANS: &str = "a span, not exported";

const LAYERS: [Layer; 8] = [
    Layer { name: BARE, on: None, who: Contestant::Bare("memory"), growth: GROWTH, settings: &[] },
    Layer {
        name: "the service, without its log line",
        on: Some(BARE),
        who: BASE,
        growth: GROWTH,
        settings: &[("APP__LOG__ACCESS", "false")],
    },
    Layer {
        name: "the log line",
        on: Some("the service, without its log line"),
        who: BASE,
        growth: GROWTH,
        settings: &[],
    },
    Layer {
        name: RATE_LIMIT,
        on: Some("the log line"),
        who: Contestant::Service(BESIDE),
        growth: GROWTH,
        settings: &[("APP__OTLP__ENDPOINT", "")],
    },
    Layer {
        name: SPANS,
        on: Some(RATE_LIMIT),
        who: Contestant::Service(BESIDE),
        growth: GROWTH,
        settings: &[("APP__OTLP__SAMPLE_RATIO", "0")],
    },
    Layer {
        name: "its export",
        on: Some(SPANS),
        who: Contestant::Service(BESIDE),
        growth: GROWTH,
        settings: &[("APP__OTLP__SAMPLE_RATIO", "1")],
    },
    Layer {
        name: "the budgets in Redis",
        on: Some(SPANS),
        who: FULL,
        growth: GROWTH_BESIDE_A_SERVER,
        settings: &[("APP__OTLP__SAMPLE_RATIO", "0")],
    },
    Layer {
        name: "a query",
        on: Some(SPANS),
        who: Contestant::Service(BESIDE),
        growth: GROWTH_BESIDE_A_SERVER,
        settings: &[("APP__OTLP__SAMPLE_RATIO", "0"), ("APP__CACHE__TTL", "1ms")],
    },
];

/// Counts, and holds the counts to what is committed; `write` commits them instead. `false` when one is too high.
pub fn check(root: &Path, site: &Site<'_>, write: bool) -> Result<bool> {
    let path = root.join(TABLE);
    let mut table: DocumentMut = fs::read_to_string(&path)?.parse().context(TABLE)?;
    let mut counts: Vec<(&str, f64)> = Vec::new();
    let mut held = true;
    for layer in &LAYERS {
        let count = count(site, layer)?;
        let below = layer.on.and_then(|on| counts.iter().find(|(name, _)| *name == on));
        let own = count - below.map_or(0.0, |(_, count)| *count);
        counts.push((layer.name, count));
        let budget = table["instructions"].get(layer.name).and_then(Item::as_integer);
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        let budget = budget.map(|budget| budget as f64);
        let verdict = match budget {
            _ if write => "written",
            Some(budget) if count <= budget * (1.0 + layer.growth) => "ok",
            _ => "TOO MANY",
        };
        held &= verdict != "TOO MANY";
        let committed = budget.map_or("none".to_owned(), |budget| format!("{budget:.0}"));
        println!("{:42} {own:+8.0}  in all {count:8.0}  committed {committed:>8}  {verdict}", layer.name);
        if write {
            #[expect(clippy::cast_possible_truncation, reason = "a count of instructions")]
            let count = count.round() as i64;
            table["instructions"].or_insert(Item::Table(Table::new()))[layer.name] = value(count);
        }
    }
    if write {
        fs::write(&path, table.to_string())?;
    } else if !held {
        println!("a request takes more than {TABLE} allows");
    }
    Ok(held)
}

/// Instructions a request, with all layers up to this one.
fn count(site: &Site<'_>, layer: &Layer) -> Result<f64> {
    let (few, many) = (least(site, layer, FEW)?, least(site, layer, MANY)?);
    Ok((many - few) / f64::from(MANY - FEW))
}

/// Of some runs: what a run does besides, now and then, only ever adds.
fn least(site: &Site<'_>, layer: &Layer, requests: u32) -> Result<f64> {
    let mut runs = (0..RUNS).map(|_| counted(site, layer, requests));
    runs.try_fold(f64::INFINITY, |least, run| Ok(least.min(run?)))
}

/// Instructions of a whole run.
fn counted(site: &Site<'_>, layer: &Layer, requests: u32) -> Result<f64> {
    let home = Scratch::new()?;
    let log = home.path().join("log");
    let log_file = format!("--log-file={}", log.display());
    let counts = format!("--callgrind-out-file={}", home.path().join("counts").display());
    let valgrind = site.bench.valgrind.to_str().context("valgrind's path")?;
    let under = [valgrind, "--tool=callgrind", &log_file, &counts];
    let settings: Vec<_> = layer.settings.iter().copied().chain([SELDOM]).collect();
    let server = site.start_under(&under, layer.who, &settings)?;
    let path = server.populate(1)?.remove(0);
    let mut client = Connection::open(server.address)?;
    for _ in 0..requests {
        let answer = client.request("GET", &path, "", "")?;
        ensure!(answer.status == 200, "answered {}", answer.status);
    }
    drop(client);
    server.stop();
    let said = fs::read_to_string(&log)?;
    let Some(total) = said.lines().find_map(|line| line.split_once("Collected : ")) else {
        bail!("valgrind counted nothing:\n{said}");
    };
    Ok(total.1.trim().parse()?)
}
