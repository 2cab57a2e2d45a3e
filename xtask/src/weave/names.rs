//! The names of the living service, which are replaced by the answers to the questions.

use std::fmt::Write as _;
use std::path::Path;

use super::fence::Fault;

/// The name of the living service's package, and so of its binary.
pub const NAME: &str = "skiff";
/// The organisation that owns the living service.
pub const OWNER: &str = "skiff-owner";
/// The living service's description; also the default answer to the question.
pub const DESCRIPTION: &str = "Keeps a list of tasks and tells others when one is done";

/// What a service is called and who owns it.
#[derive(Clone, Debug)]
pub struct Names {
    pub name: String,
    pub owner: String,
    pub description: String,
}

impl Names {
    /// The names of the living service.
    #[must_use]
    pub fn living() -> Self {
        Self { name: NAME.into(), owner: OWNER.into(), description: DESCRIPTION.into() }
    }
}

/// A stretch of text: literal, or the place of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    Plain(&'a str),
    /// The name of the question's variable.
    Answer(&'static str),
}

/// Splits `text` at the names of the living service.
#[must_use]
pub fn split(text: &str) -> Vec<Segment<'_>> {
    // The owner's name starts with the service's and so comes first.
    const TOKENS: [(&str, &str); 3] =
        [(DESCRIPTION, "description"), (OWNER, "owner"), (NAME, "project-name")];
    let mut stretches = Vec::new();
    let mut rest = text;
    while let Some((at, (token, variable))) =
        TOKENS.iter().filter_map(|token| Some((rest.find(token.0)?, token))).min_by_key(|(at, _)| *at)
    {
        stretches.push(Segment::Plain(&rest[..at]));
        stretches.push(Segment::Answer(variable));
        rest = &rest[at + token.len()..];
    }
    stretches.push(Segment::Plain(rest));
    stretches.retain(|stretch| *stretch != Segment::Plain(""));
    stretches
}

/// Whether `text` contains a name of the living service.
#[must_use]
pub fn contains_name(text: &str) -> bool {
    text.contains(NAME) || text.contains(DESCRIPTION)
}

/// `text` with the names of the living service replaced by `names`.
#[must_use]
pub fn replace(text: &str, names: &Names) -> String {
    split(text)
        .into_iter()
        .map(|stretch| match stretch {
            Segment::Plain(text) => text,
            Segment::Answer("project-name") => &names.name,
            Segment::Answer("owner") => &names.owner,
            Segment::Answer(_) => &names.description,
        })
        .collect()
}

/// The places in `text`, the content of `file`, where a name would not be replaced correctly.
#[must_use]
pub fn faults(file: &str, text: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let mut fault = |what: String| faults.push(Fault { line: at + 1, what });
        let lower = line.to_ascii_lowercase();
        if is_rust(file) && (lower.contains(NAME) || line.contains(DESCRIPTION)) {
            fault(format!(
                "`{NAME}` in Rust, use env!(\"CARGO_PKG_NAME\") or env!(\"CARGO_PKG_DESCRIPTION\")"
            ));
            continue;
        }
        for (start, _) in lower.match_indices(NAME) {
            let end = start + NAME.len();
            let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
            let bytes = lower.as_bytes();
            let joined =
                start > 0 && word(bytes[start - 1]) || bytes.get(end).is_some_and(|byte| word(*byte));
            if joined || &line[start..end] != NAME {
                let cure = format!("write `{NAME}` alone, since a name with a hyphen takes its place");
                fault(format!("`{NAME}` as a part of a word or in capitals, {cure}"));
            }
        }
    }
    faults
}

fn is_rust(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|extension| extension == "rs")
}

/// Liquid that renders to `text`, except for the names.
#[must_use]
pub fn liquid(text: &str) -> String {
    let mut out = String::new();
    for stretch in split(text) {
        match stretch {
            Segment::Plain(text) => literal(&mut out, text),
            Segment::Answer(variable) => {
                // A brace right before the tag would be read as a part of it.
                if out.ends_with('{') {
                    out.pop();
                    out.push_str(r#"{{ "{" }}"#);
                }
                let _ = write!(out, "{{{{{variable}}}}}");
            }
        }
    }
    out
}

fn literal(out: &mut String, text: &str) {
    let mut rest = text;
    while let Some(at) = [rest.find("{{"), rest.find("{%")].into_iter().flatten().min() {
        let _ = write!(out, r#"{}{{{{ "{}" }}}}"#, &rest[..at], &rest[at..at + 2]);
        rest = &rest[at + 2..];
    }
    out.push_str(rest);
}
