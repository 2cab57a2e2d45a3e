//! The example domain: what a task is and which ones are valid.

use garde::Validate;
use serde::{Deserialize, Deserializer, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;
use uuid::Uuid;

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// UUIDv7: ids sort by the time of creation.
    pub id: Uuid,
    pub title: String,
    pub description: Option<String>,
    pub status: Status,
    /// Rises by one with each change; the `ETag` of the task.
    pub version: i64,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub completed_at: Option<OffsetDateTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Open,
    Completed,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Completed => "completed",
        }
    }
}

/// A task that is to be created.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewTask {
    /// 1 to 200 characters once trimmed, none of them a control character.
    #[serde(deserialize_with = "trimmed")]
    #[schema(min_length = 1, max_length = 200)]
    #[garde(length(chars, min = 1, max = 200), custom(one_line))]
    pub title: String,
    /// At most 10,000 characters.
    #[serde(default)]
    #[schema(max_length = 10_000)]
    #[garde(inner(length(chars, max = 10_000), custom(plain_text)))]
    pub description: Option<String>,
}

/// A change of a task: what is absent stays, a `null` description is removed.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TaskPatch {
    /// 1 to 200 characters once trimmed, none of them a control character.
    #[serde(default, deserialize_with = "some_trimmed")]
    #[schema(value_type = String, min_length = 1, max_length = 200, required = false)]
    #[garde(inner(length(chars, min = 1, max = 200), custom(one_line)))]
    pub title: Option<String>,
    /// At most 10,000 characters.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, max_length = 10_000)]
    #[garde(inner(inner(length(chars, max = 10_000), custom(plain_text))))]
    pub description: Option<Option<String>>,
}

fn trimmed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| text.trim().to_owned())
}

fn some_trimmed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    trimmed(deserializer).map(Some)
}

/// Tells `null`, which is `Some(None)`, from absent, which is `None`.
#[expect(clippy::option_option, reason = "three states: absent, null, text")]
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn one_line(text: &str, (): &()) -> garde::Result {
    refuse_if(text.chars().any(char::is_control))
}

fn plain_text(text: &str, (): &()) -> garde::Result {
    refuse_if(text.chars().any(|char| char.is_control() && !matches!(char, '\n' | '\r' | '\t')))
}

fn refuse_if(found: bool) -> garde::Result {
    if found { Err(garde::Error::new("contains control characters")) } else { Ok(()) }
}
