//! Extractors: bodies, parameters and preconditions. What they reject becomes a problem that names the field, if any.

use std::time::Duration;

use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use bytes::BytesMut;
use garde::Validate;
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use utoipa::IntoParams;
use uuid::Uuid;
use uuid::fmt::Hyphenated;

use super::problem::{Category, FieldError, Problem};

/// How long a body may take to arrive; carried as a request extension.
#[derive(Clone, Copy, Debug)]
pub struct BodyTimeout(pub Duration);

/// A JSON body that is complete, of the right type, and valid.
#[derive(Debug)]
pub struct Valid<T>(pub T);

impl<T: DeserializeOwned + Validate<Context = ()>, S: Send + Sync> FromRequest<S> for Valid<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let refused = |detail| Problem::new(Category::Validation, StatusCode::UNSUPPORTED_MEDIA_TYPE, detail);
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
        if !media_type.eq_ignore_ascii_case("application/json") {
            return Err(refused("The body must be sent with content-type: application/json."));
        }
        let mut codings = request.headers().get_all(header::CONTENT_ENCODING).iter();
        if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(refused("The body must be sent without a content-encoding."));
        }
        let limit = request.extensions().get::<BodyTimeout>().map_or(Duration::MAX, |timeout| timeout.0);
        // Not `Bytes`, which keeps the read buffer alive: a single byte would hold on to the page it was read into.
        let bytes = tokio::time::timeout(limit, BytesMut::from_request(request, state))
            .await
            .map_err(|_| Problem::timeout("The body did not arrive in time."))??;
        let value: T = parse(&bytes)?;
        value.validate().map_err(|report| {
            let errors = report.iter().map(|(path, error)| {
                // garde writes paths like `a[0].b`.
                let path = path.to_string();
                let parts = path.split(['.', '[', ']']).filter(|part| !part.is_empty());
                FieldError { field: pointer(parts), detail: error.message().to_owned() }
            });
            Problem::validation("Some fields are not valid.", errors.collect())
        })?;
        Ok(Self(value))
    }
}

impl From<BytesRejection> for Problem {
    fn from(rejection: BytesRejection) -> Self {
        let too_large = rejection.status() == StatusCode::PAYLOAD_TOO_LARGE;
        if too_large { Self::too_large() } else { Self::bad_request("The body could not be read.") }
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    // serde would accept an array, reading its elements as the fields in order.
    if bytes.trim_ascii_start().starts_with(b"[") {
        let error = FieldError { field: String::new(), detail: "expected an object".to_owned() };
        return Err(Problem::validation("The body is not valid.", vec![error]));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let named = |part: &Segment| match part {
            Segment::Seq { index } => index.to_string(),
            other => other.to_string(),
        };
        let mut path: Vec<_> = error.path().iter().map(named).collect();
        let inner = error.into_inner();
        if !inner.is_data() {
            return Problem::bad_request("The body is not valid JSON.");
        }
        // serde's message without its "at line 1 column 2".
        let detail = inner.to_string();
        let detail = detail.rsplit_once(" at line ").map_or(detail.as_str(), |(text, _)| text).to_owned();
        path.extend(field_in(&detail).map(str::to_owned));
        let field = pointer(path.iter().map(String::as_str));
        Problem::validation("Some fields are not valid.", vec![FieldError { field, detail }])
    })?;
    json.end().map_err(|_| Problem::bad_request("The body contains more than one JSON value."))?;
    Ok(value)
}

/// The name of a missing or duplicate field, which serde reports at the path of the object around it.
fn field_in(detail: &str) -> Option<&str> {
    let rest = detail.strip_prefix("missing field `").or_else(|| detail.strip_prefix("duplicate field `"));
    rest?.strip_suffix('`')
}

/// A JSON Pointer (RFC 6901). Without parts, it points to the whole body.
fn pointer<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    let escaped = parts.map(|part| part.replace('~', "~0").replace('/', "~1"));
    escaped.fold(String::new(), |pointer, part| pointer + "/" + &part)
}

/// The id in a path, in the form in which ids are issued. Anything else is answered 404.
#[derive(Clone, Copy, Debug)]
pub struct Id(pub Uuid);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match <Path<Hyphenated> as FromRequestParts<S>>::from_request_parts(parts, state).await {
            Ok(Path(id)) => Ok(Self(id.into())),
            Err(_) => Err(Problem::new(Category::NotFound, StatusCode::NOT_FOUND, "Nothing has this id.")),
        }
    }
}

/// The parameters after the `?`.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query.map(|query| Self(query.0)).map_err(|rejection| {
            let text = rejection.body_text();
            let text = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
            let (field, detail) = text.split_once(": ").unwrap_or((field_in(text).unwrap_or_default(), text));
            let error = FieldError { field: field.to_owned(), detail: detail.to_owned() };
            Problem::validation("A parameter is not valid.", vec![error])
        })
    }
}

/// A version that nothing has.
const NEVER: i64 = -1;

/// The version that `If-Match` requires; `None` if the header is absent or `*`.
#[derive(Clone, Copy, Debug, IntoParams)]
#[into_params(names("if-match"), parameter_in = Header)]
pub struct IfMatch(
    /// The `ETag` that the resource must have, or `*`. A list of several never matches.
    #[param(value_type = String, required = false, example = "\"1\"")]
    pub Option<i64>,
);

impl<S: Send + Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let malformed = || Problem::bad_request("If-Match must be an ETag as received, quotes included.");
        let sent: Vec<_> = parts.headers.get_all(header::IF_MATCH).iter().collect();
        let [only] = sent[..] else { return Ok(Self((!sent.is_empty()).then_some(NEVER))) };
        let sent = only.to_str().map_err(|_| malformed())?.trim();
        if sent == "*" {
            return Ok(Self(None));
        }
        let tag = sent.strip_prefix("W/").unwrap_or(sent);
        let tag = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')).ok_or_else(malformed)?;
        // Compared as text: "01" is not the tag of version 1. A tag that we never issued matches nothing, and neither
        // does a weak one (RFC 9110, 13.1.1).
        let version = tag.parse().ok().filter(|version: &i64| sent == format!("\"{version}\""));
        Ok(Self(Some(version.unwrap_or(NEVER))))
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, Validate)]
    struct List {
        #[garde(dive)]
        items: Vec<Item>,
    }

    #[derive(Debug, Deserialize, Validate)]
    struct Item {
        #[garde(range(min = 1))]
        #[serde(rename = "a/b")]
        count: u8,
    }

    #[tokio::test]
    async fn what_is_wrong_deep_in_a_body_is_named_by_its_pointer() {
        for (body, field) in
            [(r#"{"items":[{"a/b":0}]}"#, "/items/0/count"), (r#"{"items":[{"a/b":""}]}"#, "/items/0/a~1b")]
        {
            let request = Request::post("/").header(header::CONTENT_TYPE, "application/json");
            let request = request.body(Body::from(body)).expect("a request");
            let problem = Valid::<List>::from_request(request, &()).await.expect_err("a problem");
            let problem = format!("{problem:?}");
            assert!(problem.contains(&format!("field: {field:?}")), "{problem}");
        }
    }
}
