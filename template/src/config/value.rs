//! How configuration values are written, and the ranges they may have.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use config::{ConfigError, ValueKind};
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde::de::{Deserializer, Error};

/// What was expected, if a value does not fit its default's type. Without this check, text and numbers would be
/// converted silently: "yes" to 1, 12.9 to 13.
pub(super) fn mistyped(default: &ValueKind, value: &ValueKind) -> Option<&'static str> {
    let text = value.to_string();
    // Only digits, without a leading zero, which elsewhere means octal.
    let is_whole = || text.parse::<u64>().is_ok_and(|number| number.to_string() == text);
    match (default, value) {
        (ValueKind::I64(_), ValueKind::I64(_) | ValueKind::String(_)) if is_whole() => None,
        (ValueKind::I64(_), _) => Some("expected a whole number"),
        (ValueKind::Float(_), _) if !text.parse().is_ok_and(f64::is_finite) => Some("expected a number"),
        (ValueKind::Boolean(_), ValueKind::Boolean(_) | ValueKind::String(_))
        | (ValueKind::Array(_), ValueKind::Array(_)) => None,
        (ValueKind::Boolean(_), _) => Some("expected true or false"),
        (ValueKind::Array(_), _) => Some("expected a list or comma-separated text"),
        // Text is parsed into more specific types, which do their own checks.
        _ => None,
    }
}

/// A size with its unit.
pub fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
    let text = String::deserialize(deserializer)?;
    let size = text.parse().ok().filter(|_| text.ends_with(|last: char| last.is_ascii_alphabetic()));
    size.ok_or_else(|| D::Error::custom("expected a size such as \"64KiB\" or \"1MiB\""))
}

/// The result of a check; its error says what was expected.
pub fn check(fits: bool, expected: &str) -> garde::Result {
    if fits { Ok(()) } else { Err(garde::Error::new(expected)) }
}

/// Checks that a URL is valid and its scheme is http or https.
pub fn is_http(url: &Option<SecretString>, (): &()) -> garde::Result {
    let url = url.as_ref().map(|url| url.expose_secret().parse::<Url>());
    let fits = url.is_none_or(|url| url.is_ok_and(|url| matches!(url.scheme(), "http" | "https")));
    check(fits, "expected an http or https URL such as \"https://host/path\"")
}

/// What was expected, without the value that was wrong.
pub(super) fn expected(error: &ConfigError) -> String {
    let text = error.to_string();
    let known = text.rsplit_once("expected ").map(|(_, rest)| rest.split(" for key ").next().unwrap_or(rest));
    let expected = match known {
        Some("a duration") => "a duration such as \"250ms\" or \"5s\"",
        Some("an unsigned 16 bit integer") => "0 to 65535",
        Some("an unsigned 32 bit integer") => "0 to 4294967295",
        Some("a nonzero u32") => "1 to 4294967295",
        Some(other) => other,
        None if text.contains("invalid IP address") => "an IP address",
        // Not a wrong setting: `config/default.toml` itself lacks the key.
        None if text.starts_with("missing ") => {
            return format!("expected a default in config/default.toml: {text}");
        }
        None => "another value, see config/default.toml",
    };
    format!("expected {expected}")
}

/// A value where empty text means None.
pub fn optional<'de, D: Deserializer<'de>, T: From<String>>(deserializer: D) -> Result<Option<T>, D::Error> {
    String::deserialize(deserializer).map(|text| (!text.is_empty()).then(|| text.into()))
}

/// Checks that a duration, a size or the like is between `min` and `max`, inclusive.
pub fn between<T: PartialOrd + fmt::Debug>(min: T, max: T) -> impl FnOnce(&T, &()) -> garde::Result {
    move |value, ()| check(min <= *value && *value <= max, &format!("expected {min:?} to {max:?}"))
}

/// A duration of `MIN` to `MAX` milliseconds, inclusive.
pub fn millis<'de, const MIN: u64, const MAX: u64, D>(deserializer: D) -> Result<Duration, D::Error>
where
    D: Deserializer<'de>,
{
    let time = humantime_serde::deserialize(deserializer)?;
    let allowed = between(Duration::from_millis(MIN), Duration::from_millis(MAX));
    allowed(&time, &()).map(|()| time).map_err(D::Error::custom)
}
