//! Fences: pairs of comment lines around the lines of a file that a toggle owns.
//!
//! ```text
//! //@ if rate_limit
//! pub mod rate_limit;
//! //@ end
//! ```
//!
//! A condition is one toggle, or several joined by `or` or by `and`. There is no else, no `not` and no nesting: use
//! an overlay for that.

use std::fmt;

use crate::variant::{TOGGLES, Variant};

/// When a fence's lines stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    toggles: Vec<&'static str>,
    /// Whether one of the toggles is enough.
    any: bool,
}

impl Condition {
    /// Whether the lines stay in `variant`.
    #[must_use]
    pub fn holds(&self, variant: Variant) -> bool {
        let mut toggles = self.toggles.iter();
        if self.any {
            toggles.any(|toggle| variant.has(toggle))
        } else {
            toggles.all(|toggle| variant.has(toggle))
        }
    }

    fn parse(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let any = words.contains(&"or");
        let joint = if any { "or" } else { "and" };
        let mut toggles = Vec::new();
        for (at, word) in words.iter().enumerate() {
            if at % 2 == 1 {
                if *word != joint {
                    return Err(format!(
                        "`{text}` is not a valid condition, join toggles by ` or ` alone or by ` and ` alone"
                    ));
                }
            } else if let Some(toggle) = TOGGLES.iter().find(|toggle| *toggle == word) {
                toggles.push(*toggle);
            } else {
                return Err(format!("`{word}` is not a toggle, write one of {}", TOGGLES.join(", ")));
            }
        }
        if words.len().is_multiple_of(2) {
            return Err(format!("`if {text}` lacks a toggle, write one of {}", TOGGLES.join(", ")));
        }
        Ok(Self { toggles, any })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.toggles.join(if self.any { " or " } else { " and " }))
    }
}

/// Whole lines of a file, with their line breaks and without fence lines.
#[derive(Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The line that the text starts at, counted from 1.
    pub line: usize,
    /// None: the lines are in every variant.
    pub condition: Option<Condition>,
    pub text: &'a str,
}

/// A fault at a line of a file, with its cure.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    pub line: usize,
    pub what: String,
}

/// How fence lines are written in one kind of file.
#[derive(Clone, Copy)]
struct Marker {
    open: &'static str,
    close: &'static str,
}

const MARKERS: [Marker; 4] = [
    Marker { open: "//@", close: "" },
    Marker { open: "<!--@", close: "-->" },
    Marker { open: "--@", close: "" },
    Marker { open: "#@", close: "" },
];

impl Marker {
    fn of(file: &str) -> Self {
        let extension = file.rsplit_once('.').map_or("", |(_, extension)| extension);
        MARKERS[match extension {
            "rs" => 0,
            "md" | "html" => 1,
            "sql" => 2,
            _ => 3,
        }]
    }

    /// The text between the marks, if `line` is a fence line.
    fn word(self, line: &str) -> Option<&str> {
        let inner = line.trim().strip_prefix(self.open)?.strip_suffix(self.close)?;
        Some(inner.trim())
    }
}

/// Splits `text`, the content of `file`, at its fences.
///
/// # Errors
/// Every fault found in a fence.
pub fn split<'a>(file: &str, text: &'a str) -> Result<Vec<Piece<'a>>, Vec<Fault>> {
    let mut splitter =
        Splitter { marker: Marker::of(file), text, pieces: vec![], faults: vec![], open: None };
    splitter.run();
    if splitter.faults.is_empty() { Ok(splitter.pieces) } else { Err(splitter.faults) }
}

struct Splitter<'a> {
    marker: Marker,
    text: &'a str,
    pieces: Vec<Piece<'a>>,
    faults: Vec<Fault>,
    /// The line and the condition of the fence that is open; the condition is none when it was faulty.
    open: Option<(usize, Option<Condition>)>,
}

impl Splitter<'_> {
    fn run(&mut self) {
        // Where the lines since the last fence line begin: the byte offset and the line number.
        let mut start = (0, 1);
        let mut byte = 0;
        for (at, line) in self.text.split_inclusive('\n').enumerate() {
            let number = at + 1;
            if let Some(word) = self.marker.word(line) {
                self.push(start, byte);
                self.fence(number, word, start.1);
                start = (byte + line.len(), number + 1);
            } else {
                self.reject_misplaced(number, line);
            }
            byte += line.len();
        }
        self.push(start, byte);
        if let Some((line, _)) = self.open {
            self.fault(
                line,
                format!("the fence is not closed, write `{}` after its last line", self.written("end")),
            );
        }
    }

    fn push(&mut self, (from, line): (usize, usize), to: usize) {
        let condition = self.open.as_ref().and_then(|(_, condition)| condition.clone());
        if from < to {
            self.pieces.push(Piece { line, condition, text: &self.text[from..to] });
        }
    }

    fn fence(&mut self, line: usize, word: &str, inside_from: usize) {
        if word == "end" {
            match self.open.take() {
                None => self.fault(line, "an `end` without a fence, delete it".into()),
                Some(_) if inside_from == line => self.fault(line, "the fence is empty, delete it".into()),
                Some(_) => {}
            }
        } else if let Some(condition) = word.strip_prefix("if ").or((word == "if").then_some("")) {
            if let Some((outer, _)) = self.open {
                let cure = "close that one first, or join the toggles by ` and `";
                self.fault(line, format!("a fence inside the one of line {outer}, {cure}"));
            }
            let condition = Condition::parse(condition.trim());
            self.open = Some((line, condition.as_ref().ok().cloned()));
            if let Err(what) = condition {
                self.fault(line, what);
            }
        } else {
            let (begin, end) = (self.written("if TOGGLE"), self.written("end"));
            self.fault(line, format!("`{word}` is not a fence, write `{begin}` or `{end}`"));
        }
    }

    /// A fence in another file type's syntax, or one that shares its line, would end up in services as a comment.
    fn reject_misplaced(&mut self, number: usize, line: &str) {
        let misplaced = MARKERS.iter().any(|marker| {
            ["if ", "end"].iter().any(|word| line.contains(&format!("{} {word}", marker.open)))
        });
        if misplaced {
            let (begin, end) = (self.written("if TOGGLE"), self.written("end"));
            self.fault(number, format!("a fence must be alone on its line, here `{begin}` or `{end}`"));
        }
    }

    fn written(&self, word: &str) -> String {
        format!("{} {word} {}", self.marker.open, self.marker.close).trim().to_owned()
    }

    fn fault(&mut self, line: usize, what: String) {
        self.faults.push(Fault { line, what });
    }
}
