//! An OpenTelemetry collector that discards what it receives.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::children::{self, Child, Scratch};
use crate::http::Connection;

use super::free_port;

const START_BOUND: Duration = Duration::from_secs(20);

/// A running collector; dropping it stops it.
pub struct Rotel {
    _child: Child,
    home: Scratch,
    /// Where it accepts OTLP over HTTP.
    address: SocketAddr,
}

impl Rotel {
    /// Starts it with additional `arguments`, and waits until it listens.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(program: &Path, arguments: &[&str]) -> Result<Self> {
        let home = Scratch::new()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let log = File::create(home.path().join("log"))?;
        let mut command = children::killed_with_parent(program);
        command.args(["start", "--exporter", "blackhole"]).args(arguments);
        command.args(["--otlp-http-endpoint", &address.to_string()]);
        command.args(["--otlp-grpc-endpoint", &format!("127.0.0.1:{}", free_port()?)]);
        command.env_clear().current_dir(home.path()).stdout(log.try_clone()?).stderr(log);
        let child = Child::spawn(&mut command, Signal::TERM)?;
        let started = Instant::now();
        while Connection::open(address).is_err() {
            ensure!(started.elapsed() < START_BOUND, "the collector does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { _child: child, home, address })
    }

    /// The URL to give to a service as its endpoint.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Its log output so far.
    ///
    /// # Errors
    /// When its log can't be read.
    pub fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.home.path().join("log"))?)
    }
}
