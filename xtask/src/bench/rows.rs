//! One load after the other, each put on its contestants in turns.

use std::time::Duration;

use anyhow::{Result, ensure};
use regex::Regex;

use crate::http::get;
use crate::variant::Variant;

use super::Asked;
use super::load::{Load, Requests};
use super::server::Server;
use super::site::{Contestant, Site, WITHOUT_REDIS};

/// Enough to keep one core busy, and few enough that latency isn't time spent in a queue.
const CONNECTIONS: u64 = 64;
/// How many tasks there are where each is requested in turn.
const TASKS: usize = 1000;

/// With these, entries of the cache tiers above have expired by the time they are next requested.
const EXPIRED_MEMORY: &[(&str, &str)] = &[("APP__CACHE__TTL", "1ms")];
const EXPIRED_BOTH: &[(&str, &str)] = &[("APP__CACHE__TTL", "1ms"), ("APP__REDIS__TTL", "1ms")];

/// A load and its contestants, the reference first.
struct Row {
    name: &'static str,
    what: What,
    /// Between two requests of a connection, so that all contestants get about the same number of requests per second.
    pause: Duration,
    contestants: Vec<(Contestant, &'static [(&'static str, &'static str)])>,
}

#[derive(Clone, Copy)]
enum What {
    /// Always the same one: choosing one costs the load generator more than requesting it.
    GetOne,
    GetAny,
    Create,
    List,
}

/// The results of one contestant in one row: medians of the rounds.
pub struct Figures {
    pub label: &'static str,
    pub per_second: f64,
    /// CPU time per request, in microseconds.
    pub cpu: f64,
    /// The share of its core that it used; if that is well below 1, something else was the limit.
    pub busy: f64,
    /// In milliseconds, at the same pace for all.
    pub p50: f64,
    pub p99: f64,
    /// Peak memory, in MiB.
    pub peak: f64,
    pub lost_lines: f64,
}

pub struct Measured {
    pub name: &'static str,
    /// The requests per second at which latency was measured.
    pub pace: f64,
    pub figures: Vec<Figures>,
}

fn rows() -> Vec<Row> {
    let (memory, postgres, redis) =
        (Contestant::Bare("memory"), Contestant::Bare("postgres"), Contestant::Bare("redis"));
    let (base, beside, full) = (
        Contestant::Service(Variant::BASE),
        Contestant::Service(WITHOUT_REDIS),
        Contestant::Service(Variant::FULL),
    );
    let (quick, slow) = (Duration::from_millis(6), Duration::from_millis(24));
    vec![
        Row {
            name: "a task from memory",
            what: What::GetOne,
            pause: quick,
            contestants: vec![(memory, &[]), (Contestant::Loco, &[]), (base, &[]), (full, &[])],
        },
        Row {
            name: "a task from Redis",
            what: What::GetAny,
            pause: slow,
            contestants: vec![(redis, &[]), (full, EXPIRED_MEMORY)],
        },
        Row {
            name: "a task from Postgres",
            what: What::GetAny,
            pause: slow,
            contestants: vec![(postgres, &[]), (beside, EXPIRED_MEMORY), (full, EXPIRED_BOTH)],
        },
        Row {
            name: "create a task",
            what: What::Create,
            pause: slow,
            contestants: vec![(postgres, &[]), (full, &[])],
        },
        Row {
            name: "a page of 20 tasks",
            what: What::List,
            pause: slow,
            contestants: vec![(postgres, &[]), (full, &[])],
        },
    ]
}

/// Measures the rows that are asked for.
pub fn measure(site: &Site<'_>, asked: &Asked) -> Result<Vec<Measured>> {
    rows()
        .iter()
        .filter(|row| row.name.contains(&asked.only))
        .map(|row| in_turns(site, row, asked.rounds))
        .collect()
}

fn in_turns(site: &Site<'_>, row: &Row, rounds: u32) -> Result<Measured> {
    println!("{}", row.name);
    let mut running = Vec::new();
    for (who, settings) in &row.contestants {
        let server = site.start(*who, settings)?;
        let requests = match row.what {
            What::GetOne => Requests::Get(server.populate(1)?),
            What::GetAny => Requests::Get(server.populate(TASKS)?),
            What::Create => Requests::Create,
            What::List => {
                server.populate(21)?;
                Requests::Get(vec!["/v1/tasks".to_owned()])
            }
        };
        running.push(Runner { who: *who, server, requests, rounds: Vec::new() });
    }
    check_same_answers(&running)?;
    for runner in &running {
        runner.load(Duration::ZERO, 1).on(site.wrk, &runner.server)?;
    }
    for _ in 0..rounds {
        for runner in &mut running {
            runner.round(site, row.pause)?;
        }
    }
    let paces = running.iter().flat_map(|runner| &runner.rounds).map(|round| round.pace);
    let mut pace: Vec<f64> = paces.collect();
    let pace = median(&mut pace);
    let figures = running.into_iter().map(Runner::figures).collect::<Result<_>>()?;
    Ok(Measured { name: row.name, pace, figures })
}

/// A contestant that takes its turn.
struct Runner {
    who: Contestant,
    server: Server,
    requests: Requests,
    rounds: Vec<Round>,
}

struct Round {
    per_second: f64,
    cpu: f64,
    busy: f64,
    pace: f64,
    p50: f64,
    p99: f64,
}

impl Runner {
    fn load(&self, pause: Duration, seconds: u64) -> Load {
        Load { requests: self.requests.clone(), connections: CONNECTIONS, pause, seconds }
    }

    /// First at full load, then at a pace that all can keep up with: on a saturated core, latency is only the time
    /// spent in the queue.
    fn round(&mut self, site: &Site<'_>, pause: Duration) -> Result<()> {
        let most = self.load(Duration::ZERO, 2).on(site.wrk, &self.server)?;
        let paced = self.load(pause, 1).on(site.wrk, &self.server)?;
        self.rounds.push(Round {
            per_second: most.per_second(),
            cpu: most.cpu(),
            busy: most.busy(),
            pace: paced.per_second(),
            p50: paced.p50,
            p99: paced.p99,
        });
        Ok(())
    }

    fn figures(self) -> Result<Figures> {
        let of = |figure: fn(&Round) -> f64| median(&mut self.rounds.iter().map(figure).collect::<Vec<_>>());
        let figures = Figures {
            label: self.who.label(),
            per_second: of(|round| round.per_second),
            cpu: of(|round| round.cpu),
            busy: of(|round| round.busy),
            p50: of(|round| round.p50),
            p99: of(|round| round.p99),
            peak: self.server.memory("VmHWM")?,
            lost_lines: self.server.lost_lines()?,
        };
        // One that works around Redis is measured without it.
        let failed = self.server.failed_lookups()?;
        ensure!(failed < figures.per_second / 100.0, "{}: {failed} lookups in Redis failed", figures.label);
        println!(
            "  {:18} {:8.0}/s  {:6.1} µs  core {:3.0} %  {:.2} ms  {:.2} ms  {:5.1} MiB",
            figures.label,
            figures.per_second,
            figures.cpu,
            figures.busy * 100.0,
            figures.p50,
            figures.p99,
            figures.peak
        );
        self.server.stop();
        Ok(figures)
    }
}

/// Checks that each gives the same answer as the reference, except for values that differ from task to task. A
/// reference that answers less would make all others look slow.
fn check_same_answers(running: &[Runner]) -> Result<()> {
    let values = Regex::new(r#":"[^"]*""#)?;
    let mut shapes = running.iter().map(|runner| -> Result<String> {
        let path = match &runner.requests {
            Requests::Get(paths) => &paths[0],
            Requests::Create => "/v1/tasks",
        };
        let answer = get(runner.server.address, path)?;
        ensure!(answer.status == 200, "{} answered {}", runner.who.label(), answer.status);
        Ok(values.replace_all(&answer.body, ":\"\"").into_owned())
    });
    let reference = shapes.next().transpose()?;
    for shape in shapes {
        let shape = Some(shape?);
        ensure!(shape == reference, "the reference answers {reference:?}, another one {shape:?}");
    }
    Ok(())
}

/// The middle value.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
