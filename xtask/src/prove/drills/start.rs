//! Startup drills: from nothing to ready, or to a refusal that names every fault.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use crate::http::get;
use crate::prove::service::Service;

use super::Site;
use super::clients::wait_until;

/// The aim is 10 ms. The machine may be compiling other variants, so the best of a few starts counts.
const STARTS: u32 = 5;

pub fn defaults(site: &Site<'_>) -> Result<String> {
    let mut best = Duration::MAX;
    let mut resident: f64 = 0.0;
    let mut command = Command::new(&site.program);
    site.bare(&mut command)?;
    for _ in 0..STARTS {
        // Not `killed_with_parent`: the start of that helper program would count, too.
        let service = Service::launch(&mut command)?;
        best = best.min(service.ready()?);
        resident = resident.max(service.resident()?);
        site.stop(service)?;
    }
    let best = best.as_secs_f64() * 1000.0;
    site.fact("ready_ms", best);
    site.fact("resident_mib", resident);
    ensure!(best < 1000.0, "ready after {best:.0} ms");
    Ok(format!("ready after {best:.1} ms, {resident:.1} MiB"))
}

pub fn probes(site: &Site<'_>) -> Result<String> {
    let service = site.start(&[])?;
    let expected = [
        (service.public, "/health", 200, r#""status":"ok""#),
        (service.public, "/ready", 200, r#""status":"ready""#),
        (service.public, "/openapi.json", 200, r#""/v1/tasks""#),
        (service.public, "/docs", 200, "<"),
        (service.public, "/metrics", 404, "not_found"),
        (service.admin, "/health/live", 200, r#""status":"ok""#),
        (service.admin, "/health/ready", 200, r#""status":"ready""#),
        (service.admin, "/metrics", 200, "service_state"),
    ];
    for (address, path, status, part) in expected {
        let answer = get(address, path)?;
        ensure!(answer.status == status, "{path} answered {}: {}", answer.status, answer.body);
        let body = answer.body.replace(": ", ":");
        ensure!(body.contains(part), "{path} answered without {part}: {body}");
    }
    let metrics = get(service.admin, "/metrics")?.body;
    for name in ["http_requests_total", "http_request_duration_seconds", "service_info"] {
        ensure!(metrics.contains(name), "/metrics has no {name}");
    }
    site.stop(service)?;
    Ok(format!("{} routes", expected.len()))
}

pub fn bad_settings(site: &Site<'_>) -> Result<String> {
    let faults = [
        ("APP__HTTP__PORT", "many"),
        ("APP__SHUTDOWN__DRAIN_TIMEOUT", "5 parsecs"),
        ("APP__HTTP__NO_SUCH_KEY", "1"),
        ("APP__LOG__FORMAT", "xml"),
    ];
    let mut command = site.command()?;
    command.envs(faults).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = command.output()?;
    ensure!(output.status.code() == Some(78), "exit {:?}, not 78", output.status.code());
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let said = said.to_lowercase();
    for (variable, _) in faults {
        let key = variable.trim_start_matches("APP__").replace("__", ".").to_lowercase();
        let named = said.contains(&key) || said.contains(&variable.to_lowercase());
        ensure!(named, "{key} is not named in: {said}");
    }
    Ok(format!("{} faults named", faults.len()))
}

const BEHIND: Duration = Duration::from_secs(5);

/// The database's migrations have not run: the service is alive, not ready, and ready once they have.
pub fn schema(site: &Site<'_>) -> Result<String> {
    let mut command = site.command()?;
    command.env("APP__DATABASE__MIGRATE_ON_START", "false").env("APP__HEALTH__INTERVAL", "100ms");
    command.env("APP__HEALTH__TIMEOUT", "100ms");
    let service = Service::launch(&mut command)?;
    ensure!(get(service.public, "/health")?.status == 200, "not alive");
    // Waits for that, because a service that has just started is not ready either.
    wait_until("the schema looked at and found to be behind", BEHIND, || {
        Ok(get(service.admin, "/health/ready")?.json()?["checks"][0]["status"] == "down")
    })?;
    let answer = get(service.public, "/ready")?;
    ensure!(answer.status == 503, "/ready answered {} before the migrations", answer.status);
    // `killed_with_parent` may have put a helper before the program, so the argument goes last either way.
    let migrated = command.arg("migrate").stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    ensure!(migrated.success(), "migrate: {migrated}");
    let started = Instant::now();
    while get(service.public, "/ready")?.status != 200 {
        if started.elapsed() > Duration::from_secs(5) {
            bail!("not ready 5 s after the migrations");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let after = started.elapsed();
    site.stop(service)?;
    Ok(format!("ready {after:.0?} after"))
}
