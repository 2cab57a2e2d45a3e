//! The layers of the configuration: parsed and flattened to be merged, then nested again for serde.

use std::collections::{BTreeMap, BTreeSet};

use config::{FileFormat, Format, Map, Value, ValueKind};

use super::fault;

/// Values by their full key, such as `http.port`; each knows its source.
pub(super) type Values = BTreeMap<String, Value>;

pub(super) fn parse(source: &str, text: &str, faults: &mut BTreeSet<String>) -> Values {
    let mut values = Values::new();
    match FileFormat::Toml.parse(Some(&source.to_owned()), text) {
        Ok(table) => flatten("", table, &mut values),
        Err(error) => {
            // The first line gives the position; those after it quote the file, which may hold a secret.
            let place = error.to_string().lines().next().unwrap_or_default().to_owned();
            fault(faults, "(file)", source, &format!("expected TOML: {place}"));
        }
    }
    values
}

fn flatten(prefix: &str, table: Map<String, Value>, into: &mut Values) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value.kind {
            ValueKind::Table(inner) if !inner.is_empty() => flatten(&format!("{key}."), inner, into),
            _ => drop(into.insert(key, value)),
        }
    }
}

/// Groups keys into sections, as serde expects them. All known keys are one section deep.
pub(super) fn nested(values: &Values) -> Value {
    let mut sections: Map<String, Map<String, Value>> = Map::new();
    for (key, value) in values {
        if let Some((section, name)) = key.split_once('.') {
            sections.entry(section.to_owned()).or_default().insert(name.to_owned(), value.clone());
        }
    }
    Value::new(None, sections)
}

/// The keys of the section that `key` is in; all sections if there is no such section.
pub(super) fn siblings(key: &str, defaults: &Values) -> String {
    let section = key.split_once('.').map_or("", |(section, _)| section);
    let keys = defaults.keys().filter_map(|known| known.split_once('.'));
    let same: BTreeSet<&str> = keys.clone().filter(|(of, _)| *of == section).map(|(_, name)| name).collect();
    let names = if same.is_empty() { keys.map(|(of, _)| of).collect() } else { same };
    format!("one of {}", names.into_iter().collect::<Vec<_>>().join(", "))
}
