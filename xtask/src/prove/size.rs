//! How big a variant may be: a service that a person can read in an hour. (Functions are limited to 60 lines by
//! clippy's `too_many_lines`, with the service's own `clippy.toml`.)

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::variant::Variant;

use super::check::Work;

/// The most lines under `src` (code and comments) and crates in the tree; the base variant has its own bounds. The
/// bounds on lines are the present counts, so that growth is a decision; the aim is 4,000, and 2,000 for base.
const BOUNDS: [u32; 2] = [5839, 310];
const BASE_BOUNDS: [u32; 2] = [4153, 215];

pub fn check(work: &mut Work<'_>) -> Result<String> {
    let lines = lines_under(&work.subject.dir.join("src"))?;
    let crates = crates_in_tree(work)?;
    work.subject.facts.insert("lines", f64::from(lines));
    work.subject.facts.insert("crates", f64::from(crates));
    let base = work.subject.variant == Some(Variant::BASE);
    let [most_lines, most_crates] = if base { BASE_BOUNDS } else { BOUNDS };
    ensure!(lines <= most_lines, "{lines} lines under src, {most_lines} are allowed");
    ensure!(crates <= most_crates, "{crates} crates in the tree, {most_crates} are allowed");
    Ok(format!("{lines} lines, {crates} crates"))
}

fn lines_under(folder: &Path) -> Result<u32> {
    let mut total = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            total += lines_under(&path)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            total += lines_of(&text);
        }
    }
    Ok(total)
}

/// Counts the lines that are neither blank nor in a unit-test module.
fn lines_of(text: &str) -> u32 {
    let mut total = 0;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let next = lines.peek().copied().unwrap_or_default();
        if line == "#[cfg(test)]" && next.starts_with("mod ") {
            // rustfmt puts the closing brace of the module in the first column.
            let inline = next.ends_with('{');
            lines.by_ref().find(|line| !inline || *line == "}");
        } else if !line.trim().is_empty() {
            total += 1;
        }
    }
    total
}

fn crates_in_tree(work: &Work<'_>) -> Result<u32> {
    let mut command = Command::new("cargo");
    command.args(["tree", "--locked", "--edges", "normal,build", "--prefix", "none"]);
    let said = work.run(command.current_dir(&work.subject.dir))?;
    // A line reads `name v1.2.3 (proc-macro) (*)`: a crate is the same with and without the notes.
    let crates = said.lines().map(|line| {
        let mut words = line.split_whitespace();
        (words.next(), words.next())
    });
    Ok(u32::try_from(crates.collect::<BTreeSet<_>>().len())?)
}

#[cfg(test)]
mod tests {
    use super::lines_of;

    #[test]
    fn blank_lines_and_test_modules_do_not_count() {
        let text = "//! Doc.\n\nfn a() {\n}\n\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn b() {}\n}\nfn c() {}\n";
        assert_eq!(lines_of(text), 4);
        assert_eq!(lines_of("#[cfg(test)]\nmod tests;\nfn c() {}\n"), 1);
    }
}
