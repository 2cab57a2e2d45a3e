//! Three times as many requests as the service can handle, from clients that don't wait for one another: an accepted
//! request is served as if there were no overload, and any other is refused at once.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::http::{Connection, Response, head};

use super::clients::Latencies;
use super::shutdown::TASK;
use super::{Site, ensure_timing};

const CAP: u32 = 20;
/// The pause between the halves of a body: a request takes this long without using the CPU, so that on any machine
/// the capacity is the cap divided by it.
const HOLD: Duration = Duration::from_millis(100);
const LOAD: Duration = Duration::from_secs(3);
const TIMES: u32 = 3;
const CLIENTS: usize = 64;

/// How long a refusal may take: the median, and the 99th percentile, which tells more about a machine with shared
/// cores.
const REFUSAL: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// How requests fared.
#[derive(Default)]
struct Seen {
    accepted: Latencies,
    /// When accepted requests were answered, counted from the start.
    ends: Vec<Duration>,
    refused: Latencies,
}

pub fn shed(site: &Site<'_>) -> Result<String> {
    let cap = CAP.to_string();
    let mut settings = site.unlimited().to_vec();
    settings.extend([("APP__HTTP__MAX_IN_FLIGHT", cap.as_str()), ("APP__LOG__ACCESS", "false")]);
    let service = site.start(&settings)?;
    let mut unloaded = offer(service.public, HOLD / (CAP / 2), Duration::from_secs(1))?;
    let refused = unloaded.refused.count();
    ensure_timing(refused == 0, &format!("{refused} were refused below the cap, so they took longer"))?;
    let time = unloaded.accepted.mean();
    let capacity = f64::from(CAP) / time.as_secs_f64();
    let mut seen = offer(service.public, time / (CAP * TIMES), LOAD)?;
    site.stop(service)?;

    // From the first answer to the last one to a request sent in time: a window as long as the load.
    let window = time..time + LOAD;
    let done = seen.ends.iter().filter(|end| window.contains(end)).count();
    let goodput = f64::from(u32::try_from(done)?) / LOAD.as_secs_f64();
    let share = goodput / capacity * 100.0;
    let (p99, usual) = (seen.accepted.percentile(99), unloaded.accepted.percentile(99));
    let (median, late) = (seen.refused.percentile(50), seen.refused.percentile(99));
    let said = format!(
        "{goodput:.0} of {capacity:.0} requests a second ({share:.0} %), p99 {p99:.0?} against {usual:.0?} \
         unloaded; {} refused in {median:.1?}, p99 {late:.1?}",
        seen.refused.count(),
    );
    ensure_timing(share >= 90.0 && p99 <= usual * 2, &said)?;
    ensure_timing(median < REFUSAL.0 && late < REFUSAL.1, &said)?;
    // Fewer would mean that the load was not what it should be.
    ensure_timing(seen.refused.count() > seen.accepted.count(), &said)?;
    site.fact("overload_goodput_percent", share);
    Ok(said)
}

/// Sends a request every `period` for as long as `load`, whatever becomes of the earlier ones.
fn offer(address: SocketAddr, period: Duration, load: Duration) -> Result<Seen> {
    let next = AtomicU32::new(0);
    let started = Instant::now();
    let client = || -> Result<Seen> {
        let mut seen = Seen::default();
        loop {
            // Opened beforehand: the drill measures how fast the service answers, not its accept backlog.
            let connection = Connection::open(address)?;
            let due = period * next.fetch_add(1, Ordering::SeqCst);
            if due > load {
                return Ok(seen);
            }
            thread::sleep(due.saturating_sub(started.elapsed()));
            one(connection, started, &mut seen)?;
        }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        let mut all = Seen::default();
        for client in clients {
            let seen = client.join().expect("a client does not panic")?;
            all.accepted.extend(seen.accepted);
            all.refused.extend(seen.refused);
            all.ends.extend(seen.ends);
        }
        Ok(all)
    })
}

/// One request, its body in two halves unless it is refused before the second.
fn one(mut connection: Connection, started: Instant, seen: &mut Seen) -> Result<()> {
    let (first, rest) = TASK.split_at(TASK.len() / 2);
    let asked = Instant::now();
    connection.send(&(head("POST", "/v1/tasks", "", TASK.len()) + first))?;
    let early = connection.answers_within(HOLD)?;
    if !early {
        connection.send(rest)?;
    }
    let answer = connection.response()?;
    // A refusal that comes later than the pause is one all the same: `REFUSAL` bounds how many may.
    if early || answer.status == 503 {
        seen.refused.add(asked.elapsed());
        return refused(&answer);
    }
    ensure!(answer.status == 201, "answered {}: {}", answer.status, answer.body);
    seen.accepted.add(asked.elapsed());
    seen.ends.push(started.elapsed());
    Ok(())
}

fn refused(answer: &Response) -> Result<()> {
    ensure!(answer.status == 503, "refused with {}: {}", answer.status, answer.body);
    let after: u32 = answer.header("retry-after").context("no Retry-After")?.parse()?;
    ensure!(after >= 1, "Retry-After is {after}");
    ensure!(answer.json()?["category"] == "overloaded", "refused as {}", answer.body);
    Ok(())
}
