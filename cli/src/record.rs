//! `slipway.toml`: the record of what a service was generated with.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use semver::Version;
use toml_edit::{DocumentMut, Item, Value};

pub const FILE: &str = "slipway.toml";

/// Answers as text, by question.
pub type Answers = BTreeMap<String, String>;

/// The content of `slipway.toml`.
#[derive(Clone, Debug)]
pub struct Record {
    pub version: Version,
    pub name: String,
    pub answers: Answers,
    /// The template's repository, if the owners wrote one into the record.
    pub template: Option<String>,
}

impl Record {
    /// Parses the record's text.
    pub fn parse(text: &str) -> Result<Self> {
        Self::of(text).context(format!("{FILE} can't be used (`git log -p {FILE}` shows how it changed)"))
    }

    fn of(text: &str) -> Result<Self> {
        let document: DocumentMut = text.parse()?;
        let text_of = |key: &str| {
            let value = document.get(key).and_then(Item::as_str);
            value.map(str::to_owned).with_context(|| format!("it has no `{key} = \"…\"`"))
        };
        let version = text_of("version")?;
        let version = Version::parse(&version)
            .with_context(|| format!("`version = \"{version}\"` is not a version"))?;
        let values = document.get("values").and_then(Item::as_table_like).context("it has no [values]")?;
        let mut answers = Answers::new();
        for (question, answer) in values.iter() {
            let answer = match answer.as_value() {
                Some(Value::String(text)) => text.value().clone(),
                Some(Value::Boolean(on)) => on.value().to_string(),
                Some(Value::Integer(number)) => number.value().to_string(),
                _ => bail!("the answer to `{question}` is neither text, true, false nor a number"),
            };
            answers.insert(question.to_owned(), answer);
        }
        // It holds the template's name until someone replaces that with an address.
        let template = text_of("template").ok().filter(|address| address.contains(['/', ':']));
        Ok(Self { version, name: text_of("name")?, answers, template })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
mod tests {
    use super::Record;

    const RECORD: &str =
        "template = \"slipway\"\nversion = \"0.1.0\"\nname = \"orders\"\n\n[values]\nredis = true\n";

    #[test]
    fn reads_what_was_recorded() {
        let record = Record::parse(RECORD).unwrap();
        assert_eq!((record.version.to_string(), record.name.as_str()), ("0.1.0".into(), "orders"));
        assert_eq!(record.answers["redis"], "true");
        assert_eq!(record.template, None);
        let named = Record::parse(&RECORD.replace("\"slipway\"", "\"https://example.com/x\"")).unwrap();
        assert_eq!(named.template.as_deref(), Some("https://example.com/x"));
    }

    #[test]
    fn says_what_is_broken() {
        for (from, to, wanted) in [
            ("version = \"0.1.0\"", "", "no `version"),
            ("0.1.0", "latest", "`version = \"latest\"` is not a version"),
            ("name = \"orders\"", "", "no `name"),
            ("[values]", "[answers]", "no [values]"),
            ("= true", "= [1]", "the answer to `redis`"),
            ("[values]", "<<<<<<< yours", "parse error"),
        ] {
            let said = format!("{:#}", Record::parse(&RECORD.replace(from, to)).unwrap_err());
            assert!(said.contains(wanted) && said.contains("can't be used"), "{said}");
        }
    }
}
