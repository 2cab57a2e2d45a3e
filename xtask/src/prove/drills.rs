//! The drills: the service runs as a process of its own, driven from outside as in production.

mod alerts;
mod api;
mod budget;
mod clients;
mod coherence;
mod crash;
mod crowd;
mod degraded;
mod descriptors;
mod docs;
mod exporting;
mod frozen;
mod history;
mod hostile;
mod limits;
mod load;
mod metrics;
mod overload;
mod pages;
mod peers;
mod pooler;
mod prometheus;
mod rolling;
mod shutdown;
mod site;
mod start;
mod traces;
mod unread;
mod untaken;

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::http::get;
use crate::variant::Variant;

use super::check::Work;

pub use site::Site;

/// A drill: what the service must do, the bound that it is held to, and the variants that it runs in.
struct Drill {
    name: &'static str,
    bound: &'static str,
    /// Runs only where this toggle is on.
    needs: Option<&'static str>,
    /// Runs only in the base and the full variant: what it checks depends on no toggle besides `needs`, and it
    /// takes too long to run in all sixteen.
    extremes_only: bool,
    run: fn(&Site<'_>) -> Result<String>,
}

/// A timing comparison that failed. Whatever else the machine does at that moment can spoil one, so the drill runs
/// again, up to [`TRIES`] times in all: a real fault fails every time. No other failure is retried.
#[derive(Debug)]
struct TimingMiss(String);

impl fmt::Display for TimingMiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TimingMiss {}

/// Holds a timing comparison to its bound.
fn ensure_timing(within: bool, said: &str) -> Result<()> {
    if within { Ok(()) } else { Err(TimingMiss(said.to_owned()).into()) }
}

const TRIES: usize = 4;

/// The drills that need a collector.
pub const COLLECTOR: [&str; 4] = [TRACES, ALERTS, EXPORTING, BUDGET];
const TRACES: &str = "traces one request";
const ALERTS: &str = "raises alerts";
const EXPORTING: &str = "bears its collector's faults";
/// The drill that needs Node.js, which comes with the linters.
pub const DOCS: &str = "shows its API";
/// The drill that runs the optimised program under valgrind.
pub const BUDGET: &str = "keeps to its budget";

const ALL: [Drill; 37] = [
    drill("starts with its defaults", "ready within 1 s", start::defaults),
    drill("answers every probe", "each as the contract says", start::probes),
    drill("refuses bad settings", "exit 78, every fault named", start::bad_settings),
    Drill {
        needs: Some("postgres"),
        ..drill("waits for its schema", "503 until migrated, then ready", start::schema)
    },
    drill("keeps tasks", "create, read, change, complete, list, delete", api::round_trip),
    drill("guards versions", "412 for a stale If-Match", api::versions),
    drill("explains refusals", "problem+json for 400, 404, 405, 413, 415, 422", api::problems),
    drill(DOCS, "a page with each operation, its parameters and answers", docs::page),
    drill("shows its metrics", "promtool finds no problem", metrics::page),
    Drill {
        needs: Some("otlp"),
        extremes_only: true,
        ..drill(EXPORTING, "median at most 5 % slower, memory bounded, losses counted", exporting::faults)
    },
    Drill {
        extremes_only: true,
        ..drill("keeps its series", "100,000 strange requests add none", metrics::series)
    },
    Drill {
        extremes_only: true,
        ..drill("outlives its log's reader", "requests go on, each line is kept or counted", unread::log)
    },
    drill("stops under load", "exit 0, no request and no job lost", load::under_load),
    drill("finishes a slow request", "answered despite SIGTERM", shutdown::slow_request),
    drill("ends a half-sent request", "504, then exit 0", shutdown::half_sent),
    drill("cuts a drain short", "exit 3 within the drain's bound", shutdown::cut_short),
    drill("stops without a receiver", "in time; what is cut is reported", frozen::receiver),
    Drill {
        needs: Some("postgres"),
        ..drill("stops without Postgres", "in time; what is cut is reported", frozen::postgres)
    },
    Drill { needs: Some("redis"), ..drill("stops without Redis", "in time, exit 0", frozen::redis) },
    Drill { needs: Some("otlp"), ..drill("stops without a collector", "in time, exit 0", frozen::collector) },
    drill("runs out of descriptors", "goes on by itself", descriptors::exhausted),
    Drill {
        needs: Some("postgres"),
        extremes_only: true,
        ..drill("survives kill -9", "each completion kept and delivered, nothing else", crash::killed)
    },
    Drill {
        needs: Some("postgres"),
        extremes_only: true,
        ..drill("finds any page", "by an index, deep ones at no higher cost", pages::cost)
    },
    Drill {
        needs: Some("postgres"),
        extremes_only: true,
        ..drill(
            "works through pgbouncer",
            "no request and no job lost; from version 1.21 on, in transaction mode",
            pooler::through,
        )
    },
    Drill {
        needs: Some("redis"),
        extremes_only: true,
        ..drill(
            "outgrows what it missed",
            "cached again 20 s after 10,000 loads without Redis",
            degraded::crowded,
        )
    },
    Drill {
        needs: Some("redis"),
        extremes_only: true,
        ..drill(
            "does without Redis",
            "no 5xx, p99 at most 1.5 times as long, used again",
            degraded::without_redis,
        )
    },
    Drill {
        needs: Some("redis"),
        extremes_only: true,
        ..drill(
            "stays coherent",
            "no replica goes back; stale reads by 250 ms (99 %), 1 s or the TTL",
            coherence::storm,
        )
    },
    Drill {
        needs: Some("rate_limit"),
        extremes_only: true,
        ..drill("limits to the rate", "5 % off alone, 10 % for three replicas with Redis", limits::accuracy)
    },
    Drill {
        extremes_only: true,
        ..drill("sheds load", "90 % goodput, p99 at most doubled, refusals in 5 ms", overload::shed)
    },
    Drill {
        extremes_only: true,
        ..drill("bears a crowd", "at most 16 KiB for each client that stays", crowd::memory)
    },
    Drill {
        extremes_only: true,
        ..drill("outlasts hostile clients", "closed in time, others served in 50 ms", hostile::storm)
    },
    Drill {
        extremes_only: true,
        ..drill("keeps no more than it has room for", "answers that nobody takes: 64 MiB", untaken::answers)
    },
    Drill {
        extremes_only: true,
        ..drill("restarts behind HAProxy", "0 failed of 100,000 requests", rolling::restarts)
    },
    Drill {
        extremes_only: true,
        ..drill(ALERTS, "each incident seen by Prometheus and its end too", alerts::raised)
    },
    Drill {
        needs: Some("otlp"),
        extremes_only: true,
        ..drill(TRACES, "from the client to the receiver, in someone else's collector", traces::followed)
    },
    Drill {
        extremes_only: true,
        ..drill(BUDGET, "with the committed compiler, no layer takes 5 % more instructions", budget::kept)
    },
    drill("logs only JSON", "every line, flat, with its four fields", logs),
];

const fn drill(name: &'static str, bound: &'static str, run: fn(&Site<'_>) -> Result<String>) -> Drill {
    Drill { name, bound, needs: None, extremes_only: false, run }
}

/// A drill that was run.
pub struct Drilled {
    pub name: &'static str,
    pub bound: &'static str,
    pub result: Result<String, String>,
    pub time: Duration,
}

impl Drilled {
    pub fn seen(&self) -> &str {
        match &self.result {
            Ok(seen) | Err(seen) => seen,
        }
    }
}

/// The names of all drills.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|drill| drill.name)
}

/// The drills that run in `variant`, out of `asked`, or out of all when that is empty.
fn of(asked: &[String], variant: Variant) -> impl Iterator<Item = &'static Drill> + use<'_> {
    ALL.iter().filter(move |drill| {
        (asked.is_empty() || asked.iter().any(|name| name == drill.name))
            && drill.needs.is_none_or(|need| variant.has(need))
            && (variant.is_extreme() || !drill.extremes_only)
    })
}

/// Whether one of `asked` runs in `variant`.
pub fn any(asked: &[String], variant: Variant) -> bool {
    of(asked, variant).next().is_some()
}

pub fn run(work: &mut Work<'_>) -> Result<String> {
    let site = Site::prepare(work)?;
    let (asked, times) = &work.context.drills;
    let mut in_part = 0;
    for drill in of(asked, work.subject.variant.unwrap_or(Variant::FULL)) {
        let Drill { name, bound, .. } = *drill;
        let started = Instant::now();
        let mut result = run_times(drill, &site, *times);
        let left_out = site.left_out.take();
        in_part += usize::from(!left_out.is_empty());
        for what in left_out {
            println!("not run: {}: {name}: {what}", work.subject.title);
            result = result.map(|seen| format!("not run: {what}; {seen}"));
        }
        work.subject.drills.push(Drilled { name, bound, result, time: started.elapsed() });
    }
    site.clear()?;
    work.subject.facts.extend(site.facts.take());
    std::fs::write(&work.log, site.lines.take().join("\n"))?;
    let drills = &work.subject.drills;
    let failed: Vec<String> = drills
        .iter()
        .filter(|drill| drill.result.is_err())
        .map(|drill| format!("{}: {}", drill.name, drill.seen()))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n    "));
    ensure!(!drills.is_empty(), "no drill ran");
    let but = if in_part == 0 { String::new() } else { format!(", {in_part} of them only in part") };
    Ok(format!("{} drills{but}", drills.len()))
}

/// Runs a drill `times` times. Returns the last result, or the first failure.
fn run_times(drill: &Drill, site: &Site<'_>, times: u32) -> Result<String, String> {
    let mut seen = String::new();
    for run in 1..=times {
        seen = with_retries(|| (drill.run)(site)).map_err(|error| match times {
            1 => format!("{error:#}"),
            _ => format!("run {run} of {times}: {error:#}"),
        })?;
    }
    Ok(if times == 1 { seen } else { format!("{times} runs, the last: {seen}") })
}

/// Runs a drill, and runs it again if a timing comparison in it failed.
fn with_retries(run: impl Fn() -> Result<String>) -> Result<String> {
    let mut missed: Vec<String> = Vec::new();
    loop {
        match run() {
            Err(error) if error.is::<TimingMiss>() && missed.len() + 1 < TRIES => {
                missed.push(format!("{error:#}"));
            }
            result if missed.is_empty() => return result,
            result => {
                let before = missed.join("; ");
                let seen = result.with_context(|| format!("missed before: {before}; then"))?;
                return Ok(format!("{seen}; measured again after: {before}"));
            }
        }
    }
}

/// Checks the log of a service of its own, and what the services of earlier drills have logged.
fn logs(site: &Site<'_>) -> Result<String> {
    let service = site.start(&[])?;
    for (path, status) in [("/v1/tasks", 200), ("/nowhere", 404)] {
        let answer = get(service.public, path)?;
        ensure!(answer.status == status, "{path} answered {}", answer.status);
    }
    site.stop(service)?;
    log_lines(site)
}

/// Checks every line that a service has logged in any drill so far.
pub fn log_lines(site: &Site<'_>) -> Result<String> {
    let lines = site.lines.borrow();
    for line in lines.iter() {
        let Ok(Value::Object(event)) = serde_json::from_str::<Value>(line) else {
            bail!("not a JSON object: {line}");
        };
        for field in ["timestamp", "level", "message", "target"] {
            ensure!(event.get(field).is_some_and(Value::is_string), "no `{field}`: {line}");
        }
        let nested = event.iter().find(|(_, value)| value.is_object());
        ensure!(nested.is_none(), "not flat: {line}");
        ensure!(event["level"] != "ERROR", "an error was logged: {line}");
    }
    ensure!(!lines.is_empty(), "nothing was logged");
    Ok(format!("{} lines", lines.len()))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use anyhow::{Context as _, Result, bail};

    use super::{TRIES, ensure_timing, with_retries};

    /// Runs a drill that ends like `ends` before run `good`; returns how many times it ran and whether it passed.
    fn tries(good: usize, ends: impl Fn() -> Result<()>) -> (usize, bool) {
        let made = Cell::new(0);
        let result = with_retries(|| {
            made.set(made.get() + 1);
            if made.get() < good {
                ends()?;
            }
            Ok("seen".into())
        });
        (made.get(), result.is_ok())
    }

    #[test]
    fn only_a_comparison_of_times_is_made_again() {
        let late = || ensure_timing(false, "too late").context("of the second client");
        assert_eq!(tries(TRIES, late), (TRIES, true));
        assert_eq!(tries(usize::MAX, late), (TRIES, false));
        assert_eq!(tries(usize::MAX, || bail!("answered 500")), (1, false));
        assert_eq!(tries(usize::MAX, || ensure_timing(true, "in time")), (1, true));
    }
}
