//! What the drills' clients share.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::http::{Connection, request};

/// The longest description that a task may have.
const LONG: usize = 10_000;

/// A connection that buffers little: small segments make the kernel keep small buffers at both ends. Otherwise
/// loopback absorbs megabytes that nobody reads, and a client that reads nothing looks to the service like one that
/// reads everything.
pub fn connect_with_small_buffers(address: SocketAddr) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_recv_buffer_size(8 << 10)?;
    socket.set_tcp_mss(536)?;
    socket.connect(&address.into())?;
    Ok(socket.into())
}

/// Creates tasks with long descriptions and returns their paths.
pub fn long_tasks(address: SocketAddr, count: usize) -> Result<Vec<String>> {
    tasks_of(address, count, "x")
}

/// The same with descriptions of this character alone, which may be longer once encoded as JSON.
pub fn tasks_of(address: SocketAddr, count: usize, character: &str) -> Result<Vec<String>> {
    let body = json!({ "title": "Read the manual", "description": character.repeat(LONG) }).to_string();
    let mut connection = Connection::open(address)?;
    let mut make = |_| {
        let answer = connection.request("POST", "/v1/tasks", "", &body)?;
        ensure!(answer.status == 201, "answered {}: {}", answer.status, answer.body);
        Ok(format!("/v1/tasks/{}", answer.json()?["id"].as_str().context("no id")?))
    };
    (0..count).map(&mut make).collect()
}

/// Completes a task, which queues its webhook.
pub fn complete(address: SocketAddr, path: &str) -> Result<()> {
    let answer = request(address, "POST", &format!("{path}/complete"), "")?;
    ensure!(answer.status == 200, "completing answered {}: {}", answer.status, answer.body);
    Ok(())
}

/// Waits until `holds` does.
pub fn wait_until(what: &str, bound: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let started = Instant::now();
    while !holds()? {
        ensure!(started.elapsed() < bound, "{what}: not within {bound:.1?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(started.elapsed())
}

/// Latencies, sorted when a percentile is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn add(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub fn count(&self) -> usize {
        self.0.len()
    }

    pub fn mean(&self) -> Duration {
        self.0.iter().sum::<Duration>() / u32::try_from(self.0.len().max(1)).unwrap_or(u32::MAX)
    }

    /// The latency that `percent` of them don't exceed.
    pub fn percentile(&mut self, percent: usize) -> Duration {
        self.0.sort_unstable();
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }
}
