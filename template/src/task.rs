//! The example domain: what a task is and which ones are valid.

use bytes::Bytes;
use garde::Validate;
use serde::{Deserialize, Deserializer, Serialize};
use strum::{EnumString, IntoStaticStr};
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};
use uuid::Uuid;

use crate::config::value::check;

/// Something to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// UUIDv7: ids sort by the time of creation.
    pub id: Uuid,
    pub title: String,
    #[schema(required = true)]
    pub description: Option<String>,
    pub status: Status,
    /// Incremented by each change; also the task's `ETag`.
    pub version: i64,
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub updated_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(required = true)]
    pub completed_at: Option<OffsetDateTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoStaticStr, EnumString)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase", const_into_str)]
pub enum Status {
    Open,
    Completed,
}

/// A page of tasks
#[derive(Debug, Serialize, ToSchema)]
pub struct TaskPage {
    pub items: Vec<Task>,
    /// Where the next page begins; `null` on the last one.
    #[schema(required = true)]
    pub next_cursor: Option<Uuid>,
}

/// A task as clients see it, serialized once for all that read it.
#[derive(Clone, Debug)]
pub struct Rendered {
    pub version: i64,
    pub json: Bytes,
}

impl From<&Task> for Rendered {
    fn from(task: &Task) -> Self {
        let json = serde_json::to_vec(task).expect("a task is always JSON");
        Self { version: task.version, json: json.into() }
    }
}

/// A task to be created.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct NewTask {
    #[serde(deserialize_with = "trimmed")]
    #[schema(schema_with = title)]
    #[garde(length(chars, min = 1, max = 200), custom(one_line))]
    pub title: String,
    /// At most 10,000 characters, without control characters other than tabs and line breaks.
    #[serde(default)]
    #[schema(max_length = 10_000, pattern = r"^[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]*$")]
    #[garde(inner(length(chars, max = 10_000), custom(plain_text)))]
    pub description: Option<String>,
}

/// A change to a task: absent fields stay as they are; `null` removes the description.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct TaskPatch {
    #[serde(default, deserialize_with = "some_trimmed")]
    #[schema(schema_with = title)]
    #[garde(inner(length(chars, min = 1, max = 200), custom(one_line)))]
    pub title: Option<String>,
    /// At most 10,000 characters, without control characters other than tabs and line breaks.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, max_length = 10_000)]
    #[schema(pattern = r"^[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]*$")]
    #[garde(inner(inner(length(chars, max = 10_000), custom(plain_text))))]
    pub description: Option<Option<String>>,
}

/// The rules for a title, for readers of the API document. The pattern includes the length, which counts only after
/// trimming, and spells out Unicode's white space, since `\s` is a different set in each language.
fn title() -> Object {
    let space = r"[\t-\r \u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*";
    let edge = r"[^\u0000- \u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]";
    let middle = r"[^\u0000-\u001f\u007f-\u009f]{0,198}";
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some("1 to 200 characters after trimming, without control characters."))
        .pattern(Some(format!("^{space}{edge}({middle}{edge})?{space}$")))
        .build()
}

fn trimmed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| text.trim().to_owned())
}

fn some_trimmed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    trimmed(deserializer).map(Some)
}

/// Distinguishes `null`, which becomes `Some(None)`, from an absent field, which is `None`.
#[expect(clippy::option_option, reason = "three states: absent, null, text")]
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

fn one_line(text: &str, (): &()) -> garde::Result {
    check(!text.contains(char::is_control), "contains control characters")
}

fn plain_text(text: &str, (): &()) -> garde::Result {
    let forbidden = |char: char| char.is_control() && !matches!(char, '\n' | '\r' | '\t');
    check(!text.contains(forbidden), "contains control characters")
}
