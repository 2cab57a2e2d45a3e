//! A running contestant: its address, what it has used, and its output, which is read as fast as it comes.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::children::Child;
use crate::http::{Connection, metric};

const START_BOUND: Duration = Duration::from_secs(20);

pub struct Server {
    child: Child,
    pub address: SocketAddr,
    /// Only a service has one.
    admin: Option<SocketAddr>,
    /// From the start of the process until it was ready.
    pub ready: Duration,
}

/// What the first lines of output say.
struct Up {
    address: SocketAddr,
    admin: Option<SocketAddr>,
    at: Instant,
}

impl Server {
    pub fn launch(command: &mut Command) -> Result<Self> {
        command.stdout(Stdio::piped());
        let started = Instant::now();
        let mut child = Child::spawn(command, Signal::TERM)?;
        let stdout = child.take_stdout().context("no output")?;
        let (told, up) = channel();
        thread::spawn(move || read(stdout, &told));
        let up = up.recv_timeout(START_BOUND).context("a contestant did not start")?;
        Ok(Self { child, address: up.address, admin: up.admin, ready: up.at - started })
    }

    /// CPU time that it has used so far, in seconds.
    pub fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name, in brackets, may have spaces; `utime` and `stime` are 12th and 13th after it (proc_pid_stat(5)).
        let fields = stat.rsplit(')').next().unwrap_or_default();
        let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
        let ticks = ticks.sum::<Result<u32, _>>().context("/proc/<pid>/stat")?;
        let per_second = u32::try_from(rustix::param::clock_ticks_per_second())?;
        Ok(f64::from(ticks) / f64::from(per_second))
    }

    /// Memory in MiB: `VmRSS` is the current use, `VmHWM` the peak.
    pub fn memory(&self, field: &str) -> Result<f64> {
        self.child.memory(field)
    }

    /// Log lines that it has dropped because the reader was too slow.
    pub fn lost_lines(&self) -> Result<f64> {
        let Some(admin) = self.admin else { return Ok(0.0) };
        metric(admin, "log_lines_dropped_total")?.context("no count of lost lines")
    }

    /// Lookups for which it got no answer from Redis, or did not ask.
    pub fn failed_lookups(&self) -> Result<f64> {
        let Some(admin) = self.admin else { return Ok(0.0) };
        let failed = metric(admin, r#"cache_requests_total{tier="redis",outcome="error"}"#)?;
        Ok(failed.unwrap_or_default())
    }

    /// Creates tasks, and returns their paths.
    pub fn populate(&self, count: usize) -> Result<Vec<String>> {
        let mut client = Connection::open(self.address)?;
        let mut create = || -> Result<String> {
            let answer = client.request("POST", "/v1/tasks", "", super::load::TASK)?;
            ensure!(answer.status == 201, "a task was answered {}: {}", answer.status, answer.body);
            Ok(answer.header("location").context("no location")?.to_owned())
        };
        (0..count).map(|_| create()).collect()
    }

    /// Asks it to end, and waits for it.
    pub fn stop(mut self) {
        self.child.end();
    }
}

/// Reports the start, then reads to the end and discards everything: a full pipe would distort the measurement.
fn read(stdout: ChildStdout, told: &Sender<Up>) {
    let mut reader = BufReader::with_capacity(1 << 16, stdout);
    let (mut address, mut admin) = (None, None);
    let mut line = String::new();
    while matches!(reader.read_line(&mut line), Ok(1..)) {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        let field = |name: &str| event[name].as_str().and_then(|text| text.parse::<SocketAddr>().ok());
        match event["message"].as_str() {
            Some("service.start") => (address, admin) = (field("bind"), field("admin")),
            // Bare axum prints only its address.
            None => address = line.trim().parse().ok(),
            _ => {}
        }
        let ready = event["message"] == "service.ready" || event.is_null();
        if let Some(address) = address.filter(|_| ready) {
            let _ = told.send(Up { address, admin, at: Instant::now() });
            break;
        }
        line.clear();
    }
    let mut bytes = vec![0; 1 << 16];
    while matches!(reader.read(&mut bytes), Ok(1..)) {}
}
