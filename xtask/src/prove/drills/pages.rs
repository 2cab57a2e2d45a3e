//! A list of many tasks: every page is found by an index, and a deep one costs what the first does.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::http::Connection;

use super::{Site, ensure_timing};

const ROWS: usize = 200_000;
/// Tasks are completed in the order of creation; the last tenth is open.
const COMPLETED: usize = ROWS / 10 * 9;
/// How many reads each median is taken from.
const READS: usize = 51;
/// A busy machine may double a median; without an index the deep page costs hundreds of times more.
const FACTOR: f64 = 2.0;
/// Blocks that a page of 21 rows may touch, wherever the rows lie: one for each row, and those of the index.
const MOST_BLOCKS: u64 = 32;
/// From the sixth execution on, the server may use a generic plan.
const EXECUTIONS: usize = 8;

/// A page of the list, for a request to the API and for the query behind it.
struct Page {
    name: &'static str,
    status: Option<&'static str>,
    /// How many tasks come before it.
    after: usize,
}

pub fn cost(site: &Site<'_>) -> Result<String> {
    let database = site.database()?;
    let service = site.start(&[site.unlimited(), &[("DATABASE_URL", &database)]].concat())?;
    let made = format!(
        "INSERT INTO tasks (id, title, status, version, created_at, updated_at, completed_at)
         SELECT {}, 'Task ' || n, CASE WHEN n <= {COMPLETED} THEN 'completed' ELSE 'open' END, 1, now(), now(),
             CASE WHEN n <= {COMPLETED} THEN now() END
         FROM generate_series(1, {ROWS}) AS n",
        id_of("n")
    );
    site.servers.query(&database, &made)?;
    site.servers.query(&database, "VACUUM ANALYZE tasks")?;
    let pages = [
        Page { name: "all", status: None, after: ROWS - 1000 },
        Page { name: "completed", status: Some("completed"), after: COMPLETED - 1000 },
        Page { name: "open", status: Some("open"), after: ROWS - 1000 },
    ];
    let mut seen = Vec::new();
    for deep in pages {
        let cursor = site.servers.query(&database, &format!("SELECT {}", id_of(&deep.after.to_string())))?;
        let blocks = blocks(site, &database, &deep, cursor.trim()).context(deep.name)?;
        let times = times(&mut Connection::open(service.public)?, &deep, cursor.trim()).context(deep.name)?;
        seen.push(format!("{}: {blocks}, {times}", deep.name));
    }
    site.stop(service)?;
    Ok(format!("{ROWS} tasks; first and deep page of {}", seen.join("; ")))
}

/// An SQL expression for the id of the task with this number: a `UUIDv7`, so that ids ascend.
fn id_of(number: &str) -> String {
    let hex = |value: &str| format!("lpad(to_hex({value}), 12, '0')");
    format!("({} || '70008000' || {})::uuid", hex(&format!("1700000000000 + {number}")), hex(number))
}

/// How many blocks the first page and the deep one touch, even once the server has run the prepared query often
/// enough to choose a generic plan.
fn blocks(site: &Site<'_>, database: &str, deep_page: &Page, cursor: &str) -> Result<String> {
    let query = query(site, deep_page.status.is_some())?;
    let status = deep_page.status.map(|status| format!("'{status}', ")).unwrap_or_default();
    let touched = |after: &str| -> Result<u64> {
        let page = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) EXECUTE page({status}'{after}', 21);");
        let said =
            site.servers.query(database, &format!("PREPARE page AS {query}; {}", page.repeat(EXECUTIONS)))?;
        let mut most = 0;
        for plan in said.split("Limit ").skip(1) {
            let scans = !["Seq Scan", "Sort"].iter().any(|other| plan.contains(other));
            ensure!(scans && plan.contains("Index Scan"), "not read off an index:\n{plan}");
            most = most.max(touched_blocks(plan).with_context(|| format!("no buffers in:\n{plan}"))?);
        }
        ensure!((1..=MOST_BLOCKS).contains(&most), "a page touches {most} blocks:\n{said}");
        Ok(most)
    };
    let (first, deep) = (touched("00000000-0000-0000-0000-000000000000")?, touched(cursor)?);
    if deep_page.status.is_some() {
        // Where matches lie at one end of a bigger table, an index that mixes them with other rows may look cheaper.
        let tempted = format!(
            "BEGIN; DROP INDEX tasks_by_status; PREPARE page AS {query};
             EXPLAIN EXECUTE page({status}'{cursor}', 21); ROLLBACK"
        );
        let plan = site.servers.query(database, &tempted)?;
        ensure!(!plan.contains("Filter: (status"), "read off an index that passes by others:\n{plan}");
    }
    Ok(format!("{first} and {deep} blocks"))
}

/// The text of the query behind the list, as the service itself has it.
fn query(site: &Site<'_>, by_status: bool) -> Result<String> {
    for entry in fs::read_dir(site.dir.join(".sqlx"))? {
        let query: Value = serde_json::from_str(&fs::read_to_string(entry?.path())?)?;
        let text = query["query"].as_str().unwrap_or_default();
        let order = if by_status { "ORDER BY status, id LIMIT" } else { "ORDER BY id LIMIT" };
        if text.contains(order) {
            return Ok(text.to_owned());
        }
    }
    anyhow::bail!("no query of the list in .sqlx")
}

/// The blocks that the top node of a plan and those below it touched.
fn touched_blocks(plan: &str) -> Option<u64> {
    let line = plan.lines().find_map(|line| line.trim().strip_prefix("Buffers: shared "))?;
    line.split(' ').map(|part| part.split_once('=')?.1.parse::<u64>().ok()).sum()
}

/// How long the first page and the deep one take through the API: medians of alternating requests.
fn times(connection: &mut Connection, deep: &Page, cursor: &str) -> Result<String> {
    let status = deep.status.map(|status| format!("&status={status}")).unwrap_or_default();
    let paths = [String::new(), format!("&cursor={cursor}")]
        .map(|cursor| format!("/v1/tasks?limit=20{status}{cursor}"));
    let mut taken = [Vec::new(), Vec::new()];
    for _ in 0..READS {
        for (path, taken) in paths.iter().zip(&mut taken) {
            let began = Instant::now();
            let answer = connection.request("GET", path, "", "")?;
            taken.push(began.elapsed());
            let items = answer.json()?["items"].as_array().map_or(0, Vec::len);
            ensure!(items == 20, "{path} answered {} with {items} tasks", answer.status);
        }
    }
    let [first, deep] = taken.map(median);
    let ratio = deep.as_secs_f64() / first.as_secs_f64();
    let said = format!("{first:.1?} and {deep:.1?}");
    ensure_timing(ratio < FACTOR, &said)?;
    Ok(said)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::touched_blocks;

    #[test]
    fn hits_and_reads_add_up() {
        let plan = "Limit  (actual rows=21 loops=1)\n  Buffers: shared hit=5 read=2\n  ->  Index Scan\n        Buffers: shared hit=4 read=2";
        assert_eq!(touched_blocks(plan), Some(7));
        assert_eq!(touched_blocks("Limit"), None);
    }
}
