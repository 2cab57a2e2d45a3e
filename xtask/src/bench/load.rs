//! Load, made by wrk.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::children::{self, Child, Scratch};

use super::server::Server;

/// The body of each task that is created.
pub const TASK: &str =
    r#"{"title":"Launch the boat","description":"Before the tide turns, and with all hands on deck"}"#;

/// What is asked for.
#[derive(Clone)]
pub enum Requests {
    /// One path after the other, and again from the first.
    Get(Vec<String>),
    Create,
}

pub struct Load {
    pub requests: Requests,
    pub connections: u64,
    /// How long a connection waits before each request, on average; not at all for as much as there can be.
    pub pause: Duration,
    pub seconds: u64,
}

/// What wrk saw.
pub struct Seen {
    pub requests: f64,
    pub seconds: f64,
    /// Of the requests those that were answered with an error.
    pub refused: f64,
    /// In milliseconds.
    pub p50: f64,
    pub p99: f64,
    /// Processor time that the server has used meanwhile, in seconds.
    pub used: f64,
}

impl Seen {
    pub fn per_second(&self) -> f64 {
        self.requests / self.seconds
    }

    /// Microseconds of processor time a request.
    pub fn cpu(&self) -> f64 {
        self.used / self.requests * 1e6
    }

    /// Share of a core that the server has used.
    pub fn busy(&self) -> f64 {
        self.used / self.seconds
    }
}

impl Load {
    /// Puts it on `server`.
    ///
    /// # Errors
    /// When a request failed or was answered with an error: its time says nothing.
    pub fn on(&self, wrk: &Path, server: &Server) -> Result<Seen> {
        let seen = self.over(wrk, server)?;
        ensure!(seen.refused == 0.0, "{} requests were answered with an error", seen.refused);
        Ok(seen)
    }

    /// The same, where it may be more than `server` can take.
    ///
    /// # Errors
    /// When a request failed.
    pub fn over(&self, wrk: &Path, server: &Server) -> Result<Seen> {
        let home = Scratch::new()?;
        let (script, output) = (home.path().join("load.lua"), home.path().join("output"));
        std::fs::write(&script, self.script())?;
        let file = File::create(&output)?;
        let mut command = children::tied(wrk);
        command.args(["--threads", "1", "--timeout", "10s"]);
        command.args(["--connections", &self.connections.to_string()]);
        command.args(["--duration", &format!("{}s", self.seconds), "--script"]).arg(&script);
        command.arg(format!("http://{}", server.address)).stdout(Stdio::from(file.try_clone()?)).stderr(file);
        let bound = Duration::from_secs(self.seconds + 30);
        let before = server.cpu()?;
        let status = Child::spawn(&mut command, Signal::TERM)?.wait(bound)?;
        let used = server.cpu()? - before;
        let said = std::fs::read_to_string(&output)?;
        ensure!(status.is_some_and(|status| status.success()), "wrk failed: {said}");
        let line = said.lines().find_map(|line| line.strip_prefix("SEEN ")).context("wrk told nothing")?;
        let seen: Value = serde_json::from_str(line).with_context(|| format!("wrk told {line}"))?;
        let number = |name: &str| seen[name].as_f64().with_context(|| format!("wrk told no {name}"));
        ensure!(number("failed")? == 0.0, "requests failed: {line}");
        Ok(Seen {
            requests: number("requests")?,
            seconds: number("seconds")?,
            refused: number("refused")?,
            p50: number("p50")?,
            p99: number("p99")?,
            used,
        })
    }

    /// What wrk is told, in Lua.
    fn script(&self) -> String {
        let mut script = String::new();
        match &self.requests {
            Requests::Create => {
                let _ = writeln!(script, "wrk.method, wrk.path, wrk.body = 'POST', '/v1/tasks', '{TASK}'");
                script += "wrk.headers['content-type'] = 'application/json'\n";
            }
            // Without a function for it, wrk need not ask Lua for each request.
            Requests::Get(paths) if paths.len() == 1 => {
                let _ = writeln!(script, "wrk.path = '{}'", paths[0]);
            }
            Requests::Get(paths) => {
                script += "local made, next = {}, 0\nfunction init()\n";
                for path in paths {
                    let _ = writeln!(script, "  made[#made + 1] = wrk.format('GET', '{path}')");
                }
                script += "end\nfunction request() next = next % #made + 1; return made[next] end\n";
            }
        }
        if !self.pause.is_zero() {
            // At random around the average, or all connections would ask at the same moment.
            let twice = 2 * self.pause.as_millis();
            let _ = writeln!(script, "function delay() return math.random(0, {twice}) end");
        }
        script += "function done(summary, latency)\n\
                   local e = summary.errors\n\
                   io.write(string.format('SEEN {\"requests\":%d,\"seconds\":%f,\"p50\":%f,\"p99\":%f,\"refused\":%d,\"failed\":%d}\\n',\n\
                   summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,\n\
                   latency:percentile(99) / 1e3, e.status, e.connect + e.read + e.write + e.timeout))\n\
                   end\n";
        script
    }
}
