//! How configuration values are written, and the ranges they may have.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use config::{ConfigError, ValueKind};
use reqwest::Url;
use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// What was expected where a value is written otherwise than its default is. Without this, text and numbers
/// turn into each other on their way: "yes" into 1, 12.9 into 13.
pub(super) fn mistyped(default: &ValueKind, value: &ValueKind) -> Option<&'static str> {
    let (fits, expected) = match (default, value) {
        (ValueKind::I64(_), value) => (is_whole(value), "expected a whole number"),
        (ValueKind::Float(_), value) => (is_number(value), "expected a number"),
        (ValueKind::Boolean(_), value) => {
            (matches!(value, ValueKind::Boolean(_) | ValueKind::String(_)), "expected true or false")
        }
        // Text and lists have types that say more.
        _ => return None,
    };
    (!fits).then_some(expected)
}

/// Text has digits alone, and no zero first, which elsewhere means octal.
fn is_whole(value: &ValueKind) -> bool {
    match value {
        ValueKind::I64(number) => *number >= 0,
        ValueKind::String(text) => text.parse::<u64>().is_ok_and(|number| number.to_string() == *text),
        _ => false,
    }
}

fn is_number(value: &ValueKind) -> bool {
    match value {
        ValueKind::I64(_) => true,
        ValueKind::Float(number) => number.is_finite(),
        ValueKind::String(text) => text.parse().is_ok_and(f64::is_finite),
        _ => false,
    }
}

/// A size with its unit.
pub fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    let text = String::deserialize(deserializer)?;
    let size = text.parse().ok().filter(|_| text.ends_with(|last: char| last.is_ascii_alphabetic()));
    size.ok_or_else(|| D::Error::custom("expected a size such as \"64KiB\" or \"1MiB\""))
}

/// A URL that may carry a password or a token, and is never shown.
#[derive(Clone)]
pub struct SecretUrl(pub Url);

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl TryFrom<&str> for SecretUrl {
    type Error = <Url as FromStr>::Err;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        text.parse().map(Self)
    }
}

/// Checks that a URL can be called.
pub fn is_http(url: &Option<SecretUrl>, (): &()) -> garde::Result {
    match url.as_ref().map(|url| url.0.scheme()) {
        None | Some("http" | "https") => Ok(()),
        Some(_) => Err(garde::Error::new("expected an http or https URL")),
    }
}

/// What would have been right, without the value that was wrong.
pub(super) fn expected(error: &ConfigError) -> String {
    let text = match error {
        ConfigError::Type { expected, .. } => format!("expected {expected}"),
        other if other.to_string().contains("invalid IP address") => "expected an IP address".to_owned(),
        other => other.to_string(),
    };
    let allowed = text
        .rfind("expected ")
        .map_or("expected another value, see config/default.toml", |start| &text[start..]);
    let allowed = allowed.split(" for key ").next().unwrap_or(allowed);
    match allowed {
        "expected a duration" => "expected a duration such as \"250ms\" or \"5s\"".to_owned(),
        "expected an unsigned 16 bit integer" => "expected 0 to 65535".to_owned(),
        "expected an unsigned 32 bit integer" => "expected 0 to 4294967295".to_owned(),
        "expected a nonzero u32" => "expected 1 to 4294967295".to_owned(),
        other => other.to_owned(),
    }
}

/// A list: an array in a file, text with commas in a variable.
pub fn list<'de, D: Deserializer<'de>, T: FromStr>(deserializer: D) -> Result<Vec<T>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a list, or text with commas")]
    enum Written {
        Text(String),
        Array(Vec<String>),
    }
    let parts = match Written::deserialize(deserializer)? {
        Written::Text(text) => text.split(',').map(str::to_owned).collect(),
        Written::Array(parts) => parts,
    };
    let parts = parts.iter().map(|part| part.trim()).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            part.parse()
                .map_err(|_| D::Error::custom("expected networks such as \"10.0.0.0/8\", or addresses"))
        })
        .collect()
}

/// A value for which empty text means none.
pub fn optional<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: for<'text> TryFrom<&'text str>,
{
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    // Of the types used here only a URL can be malformed.
    T::try_from(&text).map(Some).map_err(|_| D::Error::custom("expected a URL such as \"https://host/path\""))
}

/// Checks that a duration, a size or the like lies within `min` and `max`, both allowed.
pub fn between<T: PartialOrd + fmt::Debug>(min: T, max: T) -> impl FnOnce(&T, &()) -> garde::Result {
    move |value, ()| {
        if *value < min || *value > max {
            return Err(garde::Error::new(format!("expected {min:?} to {max:?}")));
        }
        Ok(())
    }
}

/// [`between`] in milliseconds, for durations.
pub fn millis(min: u64, max: u64) -> impl FnOnce(&Duration, &()) -> garde::Result {
    between(Duration::from_millis(min), Duration::from_millis(max))
}
