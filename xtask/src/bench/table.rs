//! Renders what was measured as Markdown, and writes it to where it is shown.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::crowd::Crowd;
use super::rows::{Figures, Measured};
use super::start::Start;
use super::surge::Surge;

pub struct Report {
    pub machine: String,
    pub rows: Vec<Measured>,
    pub starts: Vec<Start>,
    pub crowds: Vec<Crowd>,
    pub surge: Surge,
}

/// Everything between these two lines of the README is written by the benchmark.
const BEGIN: &str = "<!-- cargo bench-service --write -->\n";
const END: &str = "<!-- end -->\n";
/// So is the whole section with this heading in a service's guide; `NEXT` is the heading that follows it.
const HEADING: &str = "## Measured\n";
const NEXT: &str = "## Find out where it goes\n";
/// Marks requests/s that something other than the server's core limited.
const LIMITED: &str = "†";
const LEGEND: &str =
    "† Its core was not saturated: the load generator or the database was the bottleneck. Compare the CPU.\n";
const PLOT: &str = "![Requests per CPU time, bare axum = 1](bench/plot.svg)";

impl Report {
    /// The whole report.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}\n\n", self.machine);
        let _ = writeln!(
            text,
            "| `GET` or `POST` | server | requests/s | CPU per request | p50 | p99 | peak memory |"
        );
        text += "|---|---|---|---|---|---|---|\n";
        for row in &self.rows {
            let Some(bare) = row.figures.first() else { continue };
            for figures in &row.figures {
                let name = if figures.label == bare.label { row.name } else { "" };
                let _ = writeln!(text, "| {name} | {}", line(figures, bare));
            }
        }
        let paces: Vec<String> =
            self.rows.iter().map(|row| format!("{} for {}", thousands(row.pace), row.name)).collect();
        let _ = writeln!(
            text,
            "\nRequests/s and CPU: at full load on one core, with 64 connections. p50 and p99: at about the same \
             rate for every server, in requests/s {}. In brackets: the ratio to bare axum.",
            paces.join(", ")
        );
        if text.contains(LIMITED) {
            text += LEGEND;
        }
        let lost: f64 = self.rows.iter().flat_map(|row| &row.figures).map(|figures| figures.lost_lines).sum();
        let _ = writeln!(text, "Access log lines dropped: {lost:.0}.\n");
        text +=
            "| | ready | idle memory | program | memory per connection under load |\n|---|---|---|---|---|\n";
        for start in &self.starts {
            let crowd = self.crowds.iter().find(|crowd| crowd.label == start.label);
            let each = crowd.map_or("–".to_owned(), |crowd| format!("{:.1} KiB", crowd.each()));
            let Start { label, ready, idle, program } = start;
            let _ = writeln!(text, "| {label} | {ready:.1} ms | {idle:.1} MiB | {program:.1} MB | {each} |");
        }
        text += &self.of_connections();
        text += &self.of_surge();
        text
    }

    fn of_connections(&self) -> String {
        let mut text = "\n| connections |".to_owned();
        let sizes = self.crowds.first().map(|crowd| crowd.sizes.as_slice()).unwrap_or_default();
        for size in sizes {
            let _ = write!(text, " {} |", thousands_of(size.connections));
        }
        let _ = writeln!(text, "\n|---|{}", "---|".repeat(sizes.len()));
        for crowd in &self.crowds {
            let _ = write!(text, "| {} |", crowd.label);
            for size in &crowd.sizes {
                let _ = write!(
                    text,
                    " {}/s, {:.1} µs, {:.0} MiB |",
                    thousands(size.per_second),
                    size.cpu,
                    size.peak
                );
            }
            text += "\n";
        }
        text += "\nA task from memory: requests/s, CPU per request, peak memory. The second worker shares its \
                 core with the load generator.\n";
        text
    }

    fn of_surge(&self) -> String {
        let mut text = format!(
            "\n| offered load, × {}/s | answered | refused | p50 | p99 | peak memory |\n|---|---|---|---|---|---|\n",
            thousands(self.surge.capacity)
        );
        for step in &self.surge.steps {
            let _ = writeln!(
                text,
                "| {} × | {}/s | {}/s | {:.1} ms | {:.1} ms | {:.0} MiB |",
                step.times,
                thousands(step.answered),
                thousands(step.refused),
                step.p50,
                step.p99,
                step.peak
            );
        }
        text += "\nA page of 100 tasks from memory, base, one core. A request that only computes waits for the core in its \
                 connection, before it is in flight: `http.max_in_flight` refuses requests that wait for something else.\n";
        text
    }

    /// Writes the report into the repository's documents.
    pub fn publish(&self, root: &Path, svg: &str) -> Result<()> {
        fs::write(root.join("bench/plot.svg"), svg)?;
        let readme = root.join("README.md");
        let text = fs::read_to_string(&readme)?;
        let (before, rest) = text.split_once(BEGIN).context("README.md: no place for the table")?;
        let (_, after) = rest.split_once(END).context("README.md: the place for the table has no end")?;
        fs::write(&readme, format!("{before}{BEGIN}\n{PLOT}\n\n{}\n{END}{after}", self.markdown()))?;
        let guide = root.join("template/docs/performance.md");
        let text = fs::read_to_string(&guide)?;
        let (before, after) = text.split_once(NEXT).context("performance.md: no place for the table")?;
        let before = before.split_once(HEADING).map_or(before, |(before, _)| before);
        fs::write(&guide, format!("{before}{HEADING}\n{}\n{NEXT}{after}", self.for_services()))?;
        println!("written to README.md and template/docs/performance.md: now `cargo weave`");
        Ok(())
    }

    /// The section in a service's guide: outside the fence, it contains only what is true of every variant.
    fn for_services(&self) -> String {
        let mut text = format!(
            "{}. One core for the service. Requests/s and CPU at full load, with 64 \
             connections; p50 and p99 at about the same, lower rate for every server. In brackets, the ratio to a \
             bare axum handler that gives the same answers.\n\n",
            self.machine
        );
        text += "| request | server | requests/s | CPU per request | p50 | p99 | peak memory |\n|---|---|---|---|---|---|---|\n";
        let mut fenced = String::new();
        for row in &self.rows {
            let Some(bare) = row.figures.first() else { continue };
            for figures in &row.figures {
                let described = match figures.label {
                    "base" => "this service, in its smallest form",
                    "full" => "this service, with all of its parts",
                    "full, without Redis" | "loco" => continue,
                    label => label,
                };
                let line =
                    format!("| {} | {}", row.name, line(&Figures { label: described, ..*figures }, bare));
                let of_all = row.figures.iter().any(|figures| figures.label == "base");
                let to = if of_all && figures.label != "full" { &mut text } else { &mut fenced };
                to.push_str(&line);
                to.push('\n');
            }
        }
        if fenced.contains(LIMITED) {
            fenced = format!("{fenced}\n{LEGEND}");
        }
        let _ =
            write!(text, "<!--@ if postgres and redis and rate_limit and otlp -->\n{fenced}<!--@ end -->\n");
        text
    }
}

/// The cells of one contestant, each with its ratio to the reference.
fn line(figures: &Figures, bare: &Figures) -> String {
    let of = |value: f64, reference: f64| {
        if figures.label == bare.label { String::new() } else { format!(" ({:.2})", value / reference) }
    };
    let limited = if figures.busy < 0.9 { LIMITED } else { "" };
    format!(
        "{} | {}{limited}{} | {:.1} µs{} | {:.2} ms{} | {:.2} ms{} | {:.0} MiB{} |",
        figures.label,
        thousands(figures.per_second),
        of(figures.per_second, bare.per_second),
        figures.cpu,
        of(figures.cpu, bare.cpu),
        figures.p50,
        of(figures.p50, bare.p50),
        figures.p99,
        of(figures.p99, bare.p99),
        figures.peak,
        of(figures.peak, bare.peak),
    )
}

/// As in `12,300`: two runs agree on no more digits.
fn thousands(value: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "requests a second")]
    let rounded = (value / 100.0).round().max(0.0) as u64 * 100;
    thousands_of(rounded)
}

fn thousands_of(value: u64) -> String {
    if value < 1000 { value.to_string() } else { format!("{},{:03}", value / 1000, value % 1000) }
}

#[cfg(test)]
mod tests {
    use super::{thousands, thousands_of};

    #[test]
    fn numbers_have_no_more_digits_than_they_mean() {
        assert_eq!(thousands(98_765.4), "98,800");
        assert_eq!(thousands(960.0), "1,000");
        assert_eq!(thousands_of(4096), "4,096");
    }
}
