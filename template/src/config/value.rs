//! How configuration values are written, and the ranges they may have.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error};

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
    parts.map(|part| part.parse().map_err(|_| D::Error::custom("expected each entry to be valid"))).collect()
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
