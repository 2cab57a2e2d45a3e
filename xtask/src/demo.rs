//! `cargo demo`: the default service, generated, built, started, and three requests to try.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::children::{self, Child, Scratch};
use crate::generate::{self, Request};
use crate::http::{self, Response};
use crate::servers::free_port;
use crate::tools;
use crate::variant::Variant;

const NAME: &str = "orders";
const PORT: u16 = 8080;
const START_BOUND: Duration = Duration::from_secs(20);
/// The service's own drain is bounded below this.
const STOP_BOUND: Duration = Duration::from_secs(30);
const BUILD_BOUND: Duration = Duration::from_mins(30);

/// Generates the default service, builds and runs it until a signal comes; with `once`, makes the
/// three requests itself and stops.
///
/// # Errors
/// When a part of it fails.
pub fn run(root: &Path, once: bool) -> Result<bool> {
    let tool = tools::cargo_generate(root, &|text| println!("{text}"))?;
    let service = generated(root, tool)?;
    println!("generated {}", service.display());
    let program = built(root, &service)?;
    let port = if is_free(PORT) { PORT } else { free_port()? };
    if port != PORT {
        println!("port {PORT} is taken, so it is {port}");
    }
    let mut child = started(&program, &service, port)?;
    // From here on Ctrl-C is the way to end it, not to break it off.
    children::defer_signals();
    wait_until_ready(&mut child, port)?;
    println!("\n{NAME} is ready on http://127.0.0.1:{port}\n");
    if once {
        try_it(port)?;
    } else {
        println!("{}\n\nCtrl-C stops it.\n", curl_lines(port));
        while !children::interrupted() && child.poll()?.is_none() {
            thread::sleep(Duration::from_millis(50));
        }
    }
    stopped(&mut child)
}

/// The service in `target/demo`, made anew: what a former run left there was made by us.
fn generated(root: &Path, cargo_generate: PathBuf) -> Result<PathBuf> {
    let parent = root.join("target/demo");
    let old = parent.join(NAME);
    if old.exists() {
        ensure!(old.join("slipway.toml").is_file(), "{} is not ours: move it away", old.display());
        fs::remove_dir_all(&old)?;
    }
    fs::create_dir_all(&parent)?;
    let snapshot = Scratch::new()?;
    generate::snapshot(root, snapshot.path())?;
    let template = snapshot.path().to_path_buf();
    let variant: Variant = "rate_limit+otlp".parse()?;
    generate::generate(&Request { cargo_generate, template, variant, name: NAME.into(), parent })
}

fn built(root: &Path, service: &Path) -> Result<PathBuf> {
    println!("building it (a minute or two the first time)");
    let target = root.join("target/demo/build");
    let mut command = Command::new("cargo");
    command.args(["build", "--locked", "--quiet"]).current_dir(service);
    command.env("CARGO_TARGET_DIR", &target).env("CARGO_PROFILE_DEV_DEBUG", "0");
    let status = Child::spawn(&mut command, Signal::TERM)?.wait(BUILD_BOUND)?;
    ensure!(status.is_some_and(|status| status.success()), "the service did not build");
    Ok(target.join("debug").join(NAME))
}

fn started(program: &Path, service: &Path, port: u16) -> Result<Child> {
    let mut command = children::tied(program);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("APP_")) {
            command.env_remove(name);
        }
    }
    command.current_dir(service).env("APP__HTTP__PORT", port.to_string());
    command.env_remove("PORT").env("APP__ADMIN__PORT", free_port()?.to_string());
    Child::spawn(&mut command, Signal::TERM)
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn wait_until_ready(child: &mut Child, port: u16) -> Result<()> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.poll()? {
            bail!("it ended at once: {status}");
        }
        if http::get((Ipv4Addr::LOCALHOST, port).into(), "/ready").is_ok_and(|it| it.status == 200) {
            return Ok(());
        }
        ensure!(started.elapsed() < START_BOUND, "it was not ready after {START_BOUND:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn curl_lines(port: u16) -> String {
    let tasks = format!("http://127.0.0.1:{port}/v1/tasks");
    format!(
        "curl -s {tasks} -H 'content-type: application/json' -d '{{\"title\": \"Launch\"}}'\n\
         curl -s {tasks}\n\
         curl -s -X POST {tasks}/<id of the task>/complete\n\n\
         and in a browser: http://127.0.0.1:{port}/docs"
    )
}

/// What the three lines do, for a run that nobody watches.
fn try_it(port: u16) -> Result<()> {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let ask = |method: &str, path: &str, body: &str, status: u16| -> Result<Response> {
        let answer = http::request(address, method, path, body)?;
        println!("{method} {path}\n  {} {}", answer.status, answer.body);
        ensure!(answer.status == status, "{method} {path} answered {}", answer.status);
        Ok(answer)
    };
    let task = ask("POST", "/v1/tasks", r#"{"title": "Launch"}"#, 201)?.json()?;
    let id = task["id"].as_str().context("a task without an id")?;
    ask("GET", "/v1/tasks", "", 200)?;
    ask("POST", &format!("/v1/tasks/{id}/complete"), "", 200)?;
    Ok(())
}

fn stopped(child: &mut Child) -> Result<bool> {
    child.signal(Signal::TERM);
    let status = child.wait(STOP_BOUND)?.context("it did not stop")?;
    println!("\n{NAME} has stopped: {status}");
    Ok(status.success())
}
