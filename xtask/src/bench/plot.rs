//! The ratios as a bar chart: each contestant's bar shows what it serves, as a share of what bare axum serves.

use std::fmt::Write as _;

use super::table::Report;

const BAR: u32 = 16;
const GAP: u32 = 4;
const LEFT: u32 = 150;
/// The length of the reference's bar.
const WIDTH: f64 = 400.0;
const ALL: u32 = 700;

/// Readable on a light page and on a dark one.
const STYLE: &str =
    "text{font:12px sans-serif;fill:#777}.name{font-weight:bold}.bare{fill:#999}.service{fill:#2a7ab0}";

pub fn svg(report: &Report) -> String {
    let (mut body, mut top) = (String::new(), GAP);
    for row in &report.rows {
        let Some(bare) = row.figures.first() else { continue };
        let _ = writeln!(body, r#"<text class="name" x="4" y="{}">{}</text>"#, top + BAR - GAP, row.name);
        top += BAR + GAP;
        for figures in &row.figures {
            // Compares the CPU time of a request: requests per second may be limited by the load generator.
            let ratio = bare.cpu / figures.cpu;
            let class = if figures.label == bare.label { "bare" } else { "service" };
            let (middle, width) = (top + BAR - GAP, ratio * WIDTH);
            let _ = writeln!(
                body,
                r#"<text x="{}" y="{middle}" text-anchor="end">{}</text>"#,
                LEFT - 6,
                figures.label
            );
            let _ = writeln!(
                body,
                r#"<rect class="{class}" x="{LEFT}" y="{top}" width="{width:.0}" height="{BAR}"/>"#
            );
            let _ = writeln!(
                body,
                r#"<text x="{:.0}" y="{middle}">{ratio:.2} · {:.1} µs a request</text>"#,
                f64::from(LEFT) + width + 6.0,
                figures.cpu
            );
            top += BAR + GAP;
        }
        top += BAR / 2;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {ALL} {top}\" role=\"img\">\n\
         <title>Requests per CPU time, bare axum = 1</title>\n<style>{STYLE}</style>\n{body}</svg>\n"
    )
}
