//! `report.html`: a single file, without scripts or external resources.

use std::fmt::Write as _;

use super::check::{Check, Outcome, Subject};
use super::report::{Report, minutes};

const STYLE: &str = include_str!("report.css");

pub fn page(report: &Report<'_>) -> String {
    let state = if report.proven() { "good" } else { "bad" };
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\">\
         <title>slipway: {0}</title><style>{STYLE}</style></head><body>\
         <header class=\"{state}\"><p class=\"brand\">slipway</p><h1>{0}</h1>\
         <p>{1} checks passed, {2} failed · {3}</p></header><main>",
        escaped(&report.verdict()),
        report.passed(),
        report.failed(),
        escaped(&report.machine),
    );
    matrix(&mut page, report);
    template(&mut page, report);
    failures(&mut page, report);
    times(&mut page, report);
    drills(&mut page, report);
    page += "</main></body></html>\n";
    page
}

fn failures(page: &mut String, report: &Report<'_>) {
    let failed = |check: &&Check| matches!(check.outcome, Outcome::Failed { .. });
    if !report.checks().any(|check| failed(&check)) {
        return;
    }
    *page += "<section><h2>What failed</h2>";
    for subject in &report.subjects {
        for check in subject.checks.iter().filter(failed) {
            failure(page, subject, check);
        }
    }
    *page += "</section>";
}

fn failure(page: &mut String, subject: &Subject, check: &Check) {
    let Outcome::Failed { cause, command, tail } = &check.outcome else { return };
    let _ = write!(
        page,
        "<article class=\"failure\"><h3>{} · {}</h3><p class=\"cause\">{}</p>",
        escaped(&subject.title),
        check.step,
        escaped(cause)
    );
    if !tail.is_empty() {
        let _ = write!(page, "<pre>{}</pre>", escaped(tail));
    }
    if let Some(command) = command {
        let _ = write!(page, "<p>ran <code>{}</code></p>", escaped(command));
    }
    let _ = write!(page, "<p>log <code>{}</code></p></article>", escaped(&check.log.display().to_string()));
}

fn matrix(page: &mut String, report: &Report<'_>) {
    *page += "<section><h2>Variants</h2><p class=\"hint\">Seconds per step; hover for details.\
              </p><div class=\"wide\"><table class=\"matrix\"><thead><tr><th>variant</th>";
    for step in &report.plan.steps {
        let _ = write!(page, "<th>{}</th>", step.name);
    }
    for title in ["generated in", "lines", "crates", "tests", "ready", "resident"] {
        let _ = write!(page, "<th class=\"fact\">{title}</th>");
    }
    *page += "</tr></thead><tbody>";
    for subject in report.subjects.iter().filter(|subject| subject.variant.is_some()) {
        let _ = write!(page, "<tr><th>{}</th>", escaped(&subject.title));
        subject.checks.iter().for_each(|check| cell(page, check));
        facts(page, subject);
        *page += "</tr>";
    }
    *page += "</tbody></table></div></section>";
}

fn facts(page: &mut String, subject: &Subject) {
    for (fact, unit, digits) in [
        ("generation_ms", " ms", 0),
        ("lines", "", 0),
        ("crates", "", 0),
        ("tests", "", 0),
        ("ready_ms", " ms", 1),
        ("resident_mib", " MiB", 1),
    ] {
        let value = subject.facts.get(fact);
        let text = value.map_or("–".into(), |value| format!("{value:.digits$}{unit}"));
        let _ = write!(page, "<td class=\"fact\">{text}</td>");
    }
}

fn cell(page: &mut String, check: &Check) {
    let (class, note) = match &check.outcome {
        Outcome::Passed(note) => ("good", note.as_str()),
        Outcome::Failed { cause, .. } => ("bad", cause.as_str()),
        Outcome::Skipped => ("none", "an earlier step failed"),
    };
    let text = match class {
        "none" => "–".into(),
        "bad" => "failed".into(),
        _ => format!("{:.1}", check.time.as_secs_f64()),
    };
    let _ = write!(page, "<td class=\"{class}\" title=\"{}\">{text}</td>", escaped(note));
}

fn template(page: &mut String, report: &Report<'_>) {
    for subject in report.subjects.iter().filter(|subject| subject.variant.is_none()) {
        *page += "<section><h2>The template itself</h2><div class=\"wide\"><table class=\"matrix\">\
                  <thead><tr>";
        for check in &subject.checks {
            let _ = write!(page, "<th>{}</th>", check.step);
        }
        *page += "</tr></thead><tbody><tr>";
        subject.checks.iter().for_each(|check| cell(page, check));
        *page += "</tr></tbody></table></div></section>";
    }
}

fn times(page: &mut String, report: &Report<'_>) {
    let mut sums = report.time_by_step();
    sums.push(("set-up", report.set_up.as_secs_f64()));
    sums.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let most = sums.first().map_or(1.0, |(_, seconds)| seconds.max(0.1));
    let _ = write!(
        page,
        "<section><h2>Where the time goes</h2><p class=\"hint\">{} of wall-clock time; one subject is \
         measured while the next are compiled, so the steps add up to more.</p><dl class=\"bars\">",
        minutes(report.total)
    );
    for (step, seconds) in sums {
        let width = seconds / most * 100.0;
        let _ = write!(
            page,
            "<dt>{step}</dt><dd><i style=\"width:{width:.1}%\"></i><span>{seconds:.0} s</span></dd>"
        );
    }
    *page += "</dl></section>";
}

fn drills(page: &mut String, report: &Report<'_>) {
    let drilled: Vec<&Subject> =
        report.subjects.iter().filter(|subject| !subject.drills.is_empty()).collect();
    if drilled.is_empty() {
        return;
    }
    *page += "<section><h2>Drills</h2><p class=\"hint\">The service as a process of its own, \
              driven from outside.</p>";
    for subject in drilled {
        let good = subject.drills.iter().filter(|drill| drill.result.is_ok()).count();
        let _ = write!(
            page,
            "<details{}><summary>{} <small>{good} of {}</small></summary><table><thead><tr>\
             <th>drill</th><th>held to</th><th>seen</th><th>seconds</th></tr></thead><tbody>",
            if good == subject.drills.len() { "" } else { " open" },
            escaped(&subject.title),
            subject.drills.len(),
        );
        for drill in &subject.drills {
            let _ = write!(
                page,
                "<tr><th>{}</th><td>{}</td><td class=\"{}\">{}</td><td>{:.1}</td></tr>",
                drill.name,
                escaped(drill.bound),
                if drill.result.is_ok() { "good" } else { "bad" },
                escaped(drill.seen()),
                drill.time.as_secs_f64(),
            );
        }
        *page += "</tbody></table></details>";
    }
    *page += "</section>";
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
