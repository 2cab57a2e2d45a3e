//! The drills: the service as a process of its own, driven from outside as production would.

mod api;
mod clients;
mod descriptors;
mod frozen;
mod hostile;
mod load;
mod overload;
mod peers;
mod rolling;
mod shutdown;
mod start;

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::children;
use crate::servers::Servers;
use crate::variant::Variant;

use super::check::Work;
use super::service::{Exit, Service};

/// A drill: what the service must do, the bound that it is held to, and who it is for.
struct Drill {
    name: &'static str,
    bound: &'static str,
    /// Runs only where this toggle is on.
    needs: Option<&'static str>,
    /// Runs only in the variants without and with all toggles: what it holds depends on none of
    /// them, and it takes too long to run in all sixteen.
    ends_only: bool,
    run: fn(&Site<'_>) -> Result<String>,
}

const ALL: [Drill; 20] = [
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
    drill("stops under load", "exit 0, no request and no job lost", load::under_load),
    drill("finishes a slow request", "answered though SIGTERM came", shutdown::slow_request),
    drill("ends a half-sent request", "504, then exit 0", shutdown::half_sent),
    drill("cuts a drain short", "exit 3 within the drain's bound", shutdown::cut_short),
    drill("stops without a receiver", "in time; what is cut is told", frozen::receiver),
    Drill {
        needs: Some("postgres"),
        ..drill("stops without Postgres", "in time; what is cut is told", frozen::postgres)
    },
    Drill { needs: Some("redis"), ..drill("stops without Redis", "in time, exit 0", frozen::redis) },
    Drill { needs: Some("otlp"), ..drill("stops without a collector", "in time, exit 0", frozen::collector) },
    drill("runs out of descriptors", "goes on by itself", descriptors::exhausted),
    Drill {
        ends_only: true,
        ..drill("sheds load", "90 % goodput, p99 at most doubled, refusals in 5 ms", overload::shed)
    },
    Drill {
        ends_only: true,
        ..drill("outlasts hostile clients", "closed in time, others served in 50 ms", hostile::storm)
    },
    Drill {
        ends_only: true,
        ..drill("restarts behind HAProxy", "0 failed of 100,000 requests", rolling::restarts)
    },
    drill("logs only JSON", "every line, flat, with its four fields", log_lines),
];

const fn drill(name: &'static str, bound: &'static str, run: fn(&Site<'_>) -> Result<String>) -> Drill {
    Drill { name, bound, needs: None, ends_only: false, run }
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

pub fn run(work: &mut Work<'_>) -> Result<String> {
    let site = Site::prepare(work)?;
    let (asked, times) = &work.context.drills;
    let at_an_end = work.subject.variant.is_none_or(Variant::is_an_end);
    let needed = |drill: &&Drill| {
        (asked.is_empty() || asked.iter().any(|name| name == drill.name))
            && drill.needs.is_none_or(|need| work.subject.has(need))
            && (at_an_end || !drill.ends_only)
    };
    for drill in ALL.iter().filter(needed).collect::<Vec<_>>() {
        let started = Instant::now();
        let result = repeated(drill, &site, *times);
        let Drill { name, bound, .. } = *drill;
        work.subject.drills.push(Drilled { name, bound, result, time: started.elapsed() });
    }
    work.subject.facts.extend(site.facts.take());
    std::fs::write(&work.log, site.lines.take().join("\n"))?;
    let drills = &work.subject.drills;
    let failed: Vec<String> = drills
        .iter()
        .filter(|drill| drill.result.is_err())
        .map(|drill| format!("{}: {}", drill.name, drill.seen()))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n    "));
    Ok(format!("{} drills", drills.len()))
}

/// The result of the last run of a drill, or of the first that failed.
fn repeated(drill: &Drill, site: &Site<'_>, times: u32) -> Result<String, String> {
    let mut seen = String::new();
    for run in 1..=times {
        seen = (drill.run)(site).map_err(|error| match times {
            1 => format!("{error:#}"),
            _ => format!("run {run} of {times}: {error:#}"),
        })?;
    }
    Ok(if times == 1 { seen } else { format!("{times} runs, the last: {seen}") })
}

/// Where a variant is drilled: its program, the settings it can't do without, and what was seen.
struct Site<'a> {
    servers: &'a Servers,
    haproxy: &'a Path,
    program: PathBuf,
    dir: PathBuf,
    place: usize,
    postgres: bool,
    redis: bool,
    rate_limit: bool,
    errors: File,
    databases: Cell<u32>,
    facts: RefCell<Vec<(&'static str, f64)>>,
    lines: RefCell<Vec<String>>,
}

impl<'a> Site<'a> {
    fn prepare(work: &mut Work<'a>) -> Result<Self> {
        // `cargo test` has built it already, unless the tests' own dependencies changed features.
        let built = work.build(&mut work.cargo("build", &["--message-format=json"]))?;
        let program = built
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find_map(|message| message["executable"].as_str().map(PathBuf::from));
        Ok(Self {
            servers: &work.context.servers,
            haproxy: &work.context.tools.haproxy,
            program: program.context("cargo built no program")?,
            dir: work.subject.dir.clone(),
            place: work.subject.place,
            postgres: work.subject.has("postgres"),
            redis: work.subject.has("redis"),
            rate_limit: work.subject.has("rate_limit"),
            errors: File::create(work.log.with_extension("stderr.log"))?,
            databases: Cell::default(),
            facts: RefCell::default(),
            lines: RefCell::default(),
        })
    }

    fn fact(&self, name: &'static str, value: f64) {
        self.facts.borrow_mut().push((name, value));
    }

    /// The program with nothing in its environment but what it can't do without: the servers' URLs
    /// and free ports.
    fn command(&self) -> Result<Command> {
        let mut command = children::tied(&self.program);
        self.bare(&mut command)?;
        Ok(command)
    }

    fn bare(&self, command: &mut Command) -> Result<()> {
        command.env_clear().current_dir(&self.dir).stderr(self.errors.try_clone()?);
        command.envs([("APP__HTTP__PORT", "0"), ("APP__ADMIN__PORT", "0"), ("APP__LOG__FORMAT", "json")]);
        if self.redis {
            command.env("REDIS_URL", self.servers.redis_url(self.place));
        }
        if self.postgres {
            let number = self.databases.replace(self.databases.get() + 1);
            let name = format!("drill_{}_{number}", self.place);
            command.env("DATABASE_URL", self.servers.create_database(&name)?);
            command.env("APP__DATABASE__MIGRATE_ON_START", "true");
        }
        Ok(())
    }

    /// A service with these settings besides, ready.
    fn start(&self, settings: &[(&str, &str)]) -> Result<Service> {
        let service = Service::launch(self.command()?.envs(settings.iter().copied()))?;
        service.ready()?;
        Ok(service)
    }

    /// The settings of a client that means no harm but is in a hurry.
    fn unlimited(&self) -> &'static [(&'static str, &'static str)] {
        const HURRY: &[(&str, &str)] = &[
            ("APP__RATE_LIMIT__PER_CLIENT_PER_SECOND", "100000"),
            ("APP__RATE_LIMIT__PER_CLIENT_BURST", "100000"),
            ("APP__RATE_LIMIT__GLOBAL_PER_SECOND", "100000"),
            ("APP__RATE_LIMIT__GLOBAL_BURST", "100000"),
            ("APP__RATE_LIMIT__WRITES_PER_SECOND", "100000"),
            ("APP__RATE_LIMIT__WRITES_BURST", "100000"),
        ];
        if self.rate_limit { HURRY } else { &[] }
    }

    /// Settings with short deadlines, and a pool that gives up before they pass.
    fn with_pool<'s>(&self, settings: &[(&'s str, &'s str)]) -> Vec<(&'s str, &'s str)> {
        let mut settings = settings.to_vec();
        if self.postgres {
            settings.push(("APP__DATABASE__ACQUIRE_TIMEOUT", "500ms"));
        }
        settings
    }

    /// Waits for the end and keeps the log for the last drill.
    fn end(&self, service: Service, bound: Duration) -> Result<Exit> {
        let exit = service.wait(bound)?;
        self.lines.borrow_mut().extend(exit.lines.iter().cloned());
        Ok(exit)
    }

    /// Stops a service that has nothing left to do.
    fn stop(&self, service: Service) -> Result<Exit> {
        service.signal();
        let exit = self.end(service, Duration::from_secs(5))?;
        ensure!(exit.code == Some(0), "exit {:?} after SIGTERM when idle", exit.code);
        Ok(exit)
    }
}

/// Every line that any service of the drills has logged.
fn log_lines(site: &Site<'_>) -> Result<String> {
    let lines = site.lines.borrow();
    for line in lines.iter() {
        let Ok(Value::Object(event)) = serde_json::from_str::<Value>(line) else {
            bail!("no JSON object: {line}");
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
