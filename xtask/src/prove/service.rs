//! A running service in a drill: its process, its log as it comes in, and its two addresses.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::children::{Child, lock};
use crate::http::metric;
use crate::servers::tail;

/// Under valgrind a start takes a hundred times as long as usual.
const START_BOUND: Duration = Duration::from_secs(30);
/// What is still in the pipe at the end is read at once.
const LAST_LINES: Duration = Duration::from_secs(5);

/// What the service has logged so far.
#[derive(Default)]
struct Log {
    lines: Vec<(Instant, String)>,
    ended: bool,
}

type Shared = Arc<(Mutex<Log>, Condvar)>;

pub struct Service {
    child: Child,
    log: Shared,
    started: Instant,
    pub public: SocketAddr,
    pub admin: SocketAddr,
}

/// How a service ended.
pub struct Exit {
    pub code: Option<i32>,
    pub lines: Vec<String>,
    /// From the call of [`Service::wait`] to the end.
    pub after: Duration,
}

impl Service {
    /// Runs `command` and waits until it has bound its listeners.
    pub fn launch(command: &mut Command) -> Result<Self> {
        command.stdout(Stdio::piped());
        let started = Instant::now();
        let mut child = Child::spawn(command, Signal::TERM)?;
        let stdout = child.take_stdout().context("the service has no output")?;
        let log = Shared::default();
        follow(stdout, Arc::clone(&log));
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut service = Self { child, log, started, public: nowhere, admin: nowhere };
        let (_, start) = service.event("service.start")?;
        service.public = address(&start, "bind")?;
        service.admin = address(&start, "admin")?;
        Ok(service)
    }

    /// Waits for `service.ready` and returns how long after the start it came.
    pub fn ready(&self) -> Result<Duration> {
        let (at, _) = self.event("service.ready")?;
        Ok(at - self.started)
    }

    /// Waits for an event and returns when it came, and its fields.
    pub fn event(&self, name: &str) -> Result<(Instant, Value)> {
        let deadline = Instant::now() + START_BOUND;
        let mut log = lock(&self.log.0);
        let mut read = 0;
        loop {
            for (at, line) in &log.lines[read..] {
                let event: Value = serde_json::from_str(line).unwrap_or_default();
                if event["message"] == name {
                    return Ok((*at, event));
                }
            }
            read = log.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if log.ended || left.is_zero() {
                let lines: Vec<&str> = log.lines.iter().map(|(_, line)| line.as_str()).collect();
                bail!("no `{name}` came; the log ends:\n{}", tail(&lines.join("\n"), 5));
            }
            let waited = self.log.1.wait_timeout(log, left);
            log = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Stops reading its log until the returned guard is dropped.
    pub fn stop_reading(&self) -> impl Sized {
        lock(&self.log.0)
    }

    /// How many lines with `text` it has logged so far.
    pub fn logged(&self, text: &str) -> usize {
        lock(&self.log.0).lines.iter().filter(|(_, line)| line.contains(text)).count()
    }

    /// The value of a metrics series, such as `http_connections`, or `None` if the series doesn't exist yet.
    pub fn metric(&self, series: &str) -> Result<Option<f64>> {
        metric(self.admin, series)
    }

    /// Resident memory, in MiB (Linux only).
    pub fn resident(&self) -> Result<f64> {
        self.child.memory("VmRSS")
    }

    pub fn signal(&self) {
        self.child.signal(Signal::TERM);
    }

    /// Ends it as a crash would: at once, and without a chance to clean up.
    pub fn kill(&self) {
        self.child.signal(Signal::KILL);
    }

    /// Waits for the process to exit, which it must do within `bound`.
    pub fn wait(mut self, bound: Duration) -> Result<Exit> {
        let asked = Instant::now();
        let status = self.child.wait(bound)?;
        let after = asked.elapsed();
        ensure!(status.is_some(), "it still ran {bound:.1?} after SIGTERM");
        // The pipe closes when the process exits, unless something else holds it open.
        let log = lock(&self.log.0);
        let waited = self.log.1.wait_timeout_while(log, LAST_LINES, |log| !log.ended);
        let log = waited.unwrap_or_else(PoisonError::into_inner).0;
        ensure!(
            log.ended,
            "it has exited, but {LAST_LINES:.0?} later something that it started still has its log open"
        );
        let lines = log.lines.iter().map(|(_, line)| line.clone()).collect();
        Ok(Exit { code: status.and_then(|status| status.code()), lines, after })
    }
}

impl Exit {
    /// The messages of the log that are among `names`, in the order in which they were logged.
    pub fn order_of(&self, names: &[&str]) -> Vec<String> {
        let events = self.lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let messages = events.filter_map(|event| event["message"].as_str().map(str::to_owned));
        messages.filter(|message| names.contains(&message.as_str())).collect()
    }

    pub fn event(&self, name: &str) -> Option<Value> {
        let mut events = self.lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.find(|event| event["message"] == name)
    }
}

fn follow(stdout: ChildStdout, log: Shared) {
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            lock(&log.0).lines.push((Instant::now(), line));
            log.1.notify_all();
        }
        lock(&log.0).ended = true;
        log.1.notify_all();
    });
}

fn address(start: &Value, field: &str) -> Result<SocketAddr> {
    let text = start[field].as_str().with_context(|| format!("service.start has no `{field}`"))?;
    text.parse().with_context(|| format!("`{field}` of service.start is no address: {text}"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::*;

    #[test]
    fn who_keeps_the_log_open_is_not_waited_for_forever() {
        let start = r#"{"message":"service.start","bind":"127.0.0.1:1","admin":"127.0.0.1:2"}"#;
        let other = r#"setsid sh -c 'echo "$0"; exec sleep 30 2>/dev/null' "$0" & wait"#;
        let service = Service::launch(Command::new("sh").args(["-c", other, start])).unwrap();
        service.kill();
        let said = service.wait(START_BOUND).err().map(|error| error.to_string());
        assert!(said.is_some_and(|said| said.contains("still has its log open")));
    }
}
