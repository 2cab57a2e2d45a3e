//! A real Prometheus with the service's own configuration, sped up so that a minute lasts a second.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use regex::{Captures, Regex};
use rustix::process::Signal;
use serde_json::Value;

use crate::children::{self, Child, Scratch};
use crate::http::get;
use crate::servers::{free_port, tail};

use super::Site;
use super::clients::wait_until;

/// Nothing that is waited for here takes this long, even on a busy machine.
pub const BOUND: Duration = Duration::from_mins(1);

/// Ranges, and how long an alert waits. Durations in the names of recorded series stay.
static DURATIONS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(\[|for: )(\d+)([mhd])\b").expect("a pattern"));

/// A query or a rule file, sped up so that a minute lasts a second: an incident of minutes fits into a drill.
pub fn sped_up(text: &str) -> String {
    let hasten = |found: &Captures<'_>| {
        let count: u32 = found[2].parse().unwrap_or_default();
        match &found[3] {
            "m" => format!("{}{count}s", &found[1]),
            "h" => format!("{}{count}m", &found[1]),
            _ => format!("{}{}m", &found[1], count * 24),
        }
    };
    DURATIONS.replace_all(text, hasten).into_owned()
}

pub struct Prometheus {
    _child: Child,
    _home: Scratch,
    address: SocketAddr,
    started: SystemTime,
}

/// A rule as Prometheus has read it.
pub struct Rule {
    pub name: String,
    pub query: String,
    pub alert: bool,
    /// `None` if it could be evaluated.
    pub error: Option<String>,
}

impl Prometheus {
    /// Scrapes `target` as the service's own configuration says, except for the intervals.
    pub fn start(site: &Site<'_>, target: SocketAddr) -> Result<Self> {
        let home = Scratch::new()?;
        let config = configure(&site.dir.join("deploy/prometheus"), home.path(), target)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let log = home.path().join("log");
        let mut command = children::killed_with_parent(site.prometheus);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", home.path().join("data").display()));
        command.args([&format!("--web.listen-address={address}"), "--log.level=warn"]);
        command.stdout(File::create(&log)?).stderr(File::options().append(true).open(&log)?);
        let child = Child::spawn(&mut command, Signal::TERM)?;
        let started = SystemTime::now();
        let prometheus = Self { _child: child, _home: home, address, started };
        let ready = || Ok(get(address, "/-/ready").is_ok_and(|answer| answer.status == 200));
        wait_until("Prometheus ready", BOUND, ready)
            .with_context(|| tail(&fs::read_to_string(&log).unwrap_or_default(), 5))?;
        // Prometheus may take five seconds to discover its targets.
        wait_until("a scrape", BOUND, || Ok(prometheus.series("up == 1")? > 0))?;
        Ok(prometheus)
    }

    /// How many series of `query` have had a number as their value at any time since the start.
    pub fn series(&self, query: &str) -> Result<usize> {
        let seconds =
            |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map(|it| it.as_secs_f64());
        let (start, end) = (seconds(self.started)?, seconds(SystemTime::now())?);
        let path = format!("/api/v1/query_range?start={start}&end={end}&step=0.25&query={}", encoded(query));
        let data = self.ask(&path)?;
        let is_number = |sample: &Value| sample[1].as_str().is_some_and(|number| number != "NaN");
        let has_numbers = |series: &&Value| series["values"].as_array().into_iter().flatten().any(is_number);
        Ok(data["result"].as_array().into_iter().flatten().filter(has_numbers).count())
    }

    /// The alerts that fire now.
    pub fn firing(&self) -> Result<BTreeSet<String>> {
        let mut firing = BTreeSet::new();
        for alert in self.ask("/api/v1/alerts")?["alerts"].as_array().into_iter().flatten() {
            if alert["state"] == "firing" {
                let name = alert["labels"]["alertname"].as_str().context("an alert without a name")?;
                let said = alert["annotations"]["description"].as_str().unwrap_or_default();
                ensure!(!said.is_empty() && !said.contains("error expanding"), "{name} says: {said}");
                firing.insert(name.to_owned());
            }
        }
        Ok(firing)
    }

    pub fn rules(&self) -> Result<Vec<Rule>> {
        let data = self.ask("/api/v1/rules")?;
        let groups = data["groups"].as_array().into_iter().flatten();
        let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
        let text = |rule: &Value, key: &str| rule[key].as_str().unwrap_or_default().to_owned();
        let read = |rule: &Value| Rule {
            name: text(rule, "name"),
            query: text(rule, "query"),
            alert: rule["type"] == "alerting",
            error: (rule["health"] != "ok").then(|| text(rule, "lastError")),
        };
        Ok(rules.map(read).collect())
    }

    fn ask(&self, path: &str) -> Result<Value> {
        let mut answer = get(self.address, path)?.json()?;
        ensure!(answer["status"] == "success", "Prometheus: {}", answer["error"]);
        Ok(answer["data"].take())
    }
}

/// Writes the configuration and the rules of `from` to `to`, sped up.
fn configure(from: &Path, to: &Path, target: SocketAddr) -> Result<std::path::PathBuf> {
    let rules = to.join("rules");
    fs::create_dir(&rules)?;
    for entry in fs::read_dir(from.join("rules"))? {
        let entry = entry?;
        fs::write(rules.join(entry.file_name()), sped_up(&fs::read_to_string(entry.path())?))?;
    }
    let text = fs::read_to_string(from.join("prometheus.yml"))?;
    ensure!(text.contains("15s") && text.contains("service:9090"), "prometheus.yml has changed:\n{text}");
    let config = to.join("prometheus.yml");
    fs::write(&config, text.replace("15s", "250ms").replace("service:9090", &target.to_string()))?;
    Ok(config)
}

/// `text` as a value in a URL.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

#[cfg(test)]
mod tests {
    use super::sped_up;

    #[test]
    fn a_minute_becomes_a_second_and_names_stay() {
        let rule = "record: burn_rate5m\nexpr: rate(a[5m]) + rate(b[3d])\nfor: 1h\n";
        assert_eq!(sped_up(rule), "record: burn_rate5m\nexpr: rate(a[5s]) + rate(b[72m])\nfor: 1m\n");
    }
}
