//! Clients that request the largest answers there are, and never read them.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::http::{Connection, get, head};

use super::Site;
use super::clients::{connect_with_small_buffers, tasks_of, wait_until};

/// A page of this many tasks has 2 MB: JSON doubles each quotation mark.
const TASKS: usize = 100;
const QUOTE: &str = "\"";
/// A task of these needs more room than any other: four bytes each.
const CANOE: &str = "\u{1f6f6}";
const CLIENTS: usize = 6;
/// Requests of each client: more than there is room for in total.
const ASKED: usize = 40;
/// In MiB, for 64 MiB of answers: buffers may have grown by doubling.
const GROWTH: f64 = 110.0;
const BOUND: Duration = Duration::from_secs(10);

pub fn answers(site: &Site<'_>) -> Result<String> {
    let mut settings = site.unlimited().to_vec();
    settings.extend([("APP__HTTP__BODY_TIMEOUT", "60s"), ("APP__HTTP__REQUEST_TIMEOUT", "20s")]);
    settings.push(("APP__HTTP__TRUSTED_PROXIES", "127.0.0.1/32"));
    let service = site.start(&settings)?;
    tasks_of(service.public, TASKS, QUOTE)?;
    let path = format!("/v1/tasks?limit={TASKS}");
    let length = get(service.public, &path)?.body.len();
    let before = service.resident()?;
    let (mut kept, mut refused) = (Vec::new(), 0);
    for client in 0..CLIENTS {
        let others = kept.len();
        for _ in 0..ASKED {
            let mut stream = connect_with_small_buffers(service.public)?;
            match status(&mut stream, &path, client)?.as_str() {
                "200" => kept.push(stream),
                "503" => refused += 1,
                other => bail!("answered {other}"),
            }
        }
        let share = kept.len() - others;
        let most = if client == 0 { 48 << 20 } else { 16 << 20 };
        ensure!(share * length <= most, "client {client} has {share} pages of {} KiB", length >> 10);
    }
    let more = service.resident()? - before;
    let asked = CLIENTS * ASKED;
    let said = format!("{} of {asked} pages of {} KiB, {more:.0} MiB more", kept.len(), length >> 10);
    ensure!((48 << 20..=64 << 20).contains(&(kept.len() * length)) && more < GROWTH, "{said}");
    // Everything else goes on.
    kept.extend(fill(service.public)?);
    tasks_of(service.public, 1, CANOE).context("a write")?;
    let read = get(service.public, "/v1/tasks?limit=1&status=completed")?;
    ensure!(read.status == 200, "a small answer was {}", read.status);
    drop(kept);
    wait_until("room again", BOUND, || Ok(get(service.public, &path)?.status == 200))?;
    // Each answer that was read makes room for the next one, even if the connection stays open.
    let mut taking = Connection::open(service.public)?;
    for number in 0..ASKED {
        let status = taking.request("GET", &path, "", "")?.status;
        ensure!(status == 200, "after {number} answers that were taken: {status}");
    }
    site.stop(service)?;
    Ok(format!("{said}; {refused} refused"))
}

/// Takes what room is left, by smaller and smaller pages: less remains than the answer to a write needs.
fn fill(address: SocketAddr) -> Result<Vec<TcpStream>> {
    let (mut kept, mut last) = (Vec::new(), String::new());
    for tasks in (2..=TASKS / 2).rev() {
        let mut stream = connect_with_small_buffers(address)?;
        last = status(&mut stream, &format!("/v1/tasks?limit={tasks}"), CLIENTS)?;
        if last == "200" {
            kept.push(stream);
        }
    }
    ensure!(last == "503", "the smallest page was {last}: there is still room");
    Ok(kept)
}

/// Sends a request as this client, and reads no more of the answer than its status.
fn status(stream: &mut TcpStream, path: &str, client: usize) -> Result<String> {
    let network = format!("x-forwarded-for: 192.0.{client}.1\r\n");
    stream.write_all(head("GET", path, &network, 0).as_bytes())?;
    let mut line = [0; 12];
    stream.read_exact(&mut line)?;
    Ok(String::from_utf8_lossy(&line[9..]).into_owned())
}
