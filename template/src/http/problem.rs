//! Errors as clients see them: `application/problem+json` (RFC 9457) from every layer, without the cause.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use metrics::counter;
use serde::Serialize;
use strum::{IntoStaticStr, VariantArray};
//@ if postgres
use tracing::error;
//@ end
use utoipa::ToSchema;

use crate::telemetry::context::Context;
use crate::{store::Error, tasks};

pub type Result<T, E = Problem> = std::result::Result<T, E>;

/// The closed set of error categories, the same in responses, logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema, IntoStaticStr, VariantArray)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case", const_into_str)]
pub enum Category {
    Validation,
    NotFound,
    MethodNotAllowed,
    Conflict,
    TooLarge,
    //@ if rate_limit
    RateLimited,
    //@ end
    Timeout,
    Overloaded,
    Unavailable,
    Internal,
}

/// The most bytes in each text of a [`FieldError`]: serde quotes what was sent, however long it is.
const MAX_TEXT_BYTES: usize = 200;

/// One thing that is wrong with the request.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FieldError {
    /// The field: a JSON Pointer (RFC 6901) into the body, or the name of a parameter.
    pub field: String,
    pub detail: String,
}

/// An error on its way to the client.
#[derive(Debug)]
pub struct Problem {
    category: Category,
    status: StatusCode,
    detail: &'static str,
    errors: Vec<FieldError>,
    /// In whole seconds.
    pub retry_after: Option<u64>,
}

/// The body of every error response.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    category: Category,
    /// Also in the header `x-request-id`, and in every log line of the request.
    request_id: &'a str,
    /// Only in the category `validation`; empty if the fault is in no particular field.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    errors: Option<&'a [FieldError]>,
}

impl Problem {
    pub fn new(category: Category, status: StatusCode, detail: &'static str) -> Self {
        // Every 503 tells the client when to retry, and never to do so at once.
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Self { category, status, detail, errors: Vec::new(), retry_after }
    }

    pub fn validation(detail: &'static str, mut errors: Vec<FieldError>) -> Self {
        for text in errors.iter_mut().flat_map(|FieldError { field, detail }| [field, detail]) {
            text.truncate(text.floor_char_boundary(MAX_TEXT_BYTES));
        }
        Self { errors, ..Self::new(Category::Validation, StatusCode::UNPROCESSABLE_ENTITY, detail) }
    }

    /// For a request that is malformed as a whole, so that no field can be named.
    pub fn bad_request(detail: &'static str) -> Self {
        Self::new(Category::Validation, StatusCode::BAD_REQUEST, detail)
    }

    pub fn too_large() -> Self {
        let detail = "The body is larger than this service accepts.";
        Self::new(Category::TooLarge, StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    pub fn internal() -> Self {
        let detail = "The request could not be completed.";
        Self::new(Category::Internal, StatusCode::INTERNAL_SERVER_ERROR, detail)
    }

    pub fn overloaded(detail: &'static str) -> Self {
        Self::new(Category::Overloaded, StatusCode::SERVICE_UNAVAILABLE, detail)
    }

    pub fn timeout(detail: &'static str) -> Self {
        Self::new(Category::Timeout, StatusCode::GATEWAY_TIMEOUT, detail)
    }
    //@ if postgres

    /// Logs the cause, which the client is not told.
    fn because(self, cause: &impl std::fmt::Display) -> Self {
        error!(category = self.category.into_str(), status = self.status.as_u16(), %cause, "request.failed");
        self
    }
    //@ end
}

impl From<tasks::Error> for Problem {
    fn from(error: tasks::Error) -> Self {
        let tasks::Error::Store(error) = error else {
            return Self::overloaded("The job queue is full. Nothing was changed.");
        };
        match &*error {
            Error::NotFound => Self::new(Category::NotFound, StatusCode::NOT_FOUND, "Nothing has this id."),
            Error::VersionMismatch => {
                let detail = "The resource has changed. Read it again and retry with its new ETag.";
                Self::new(Category::Conflict, StatusCode::PRECONDITION_FAILED, detail)
            }
            //@ if postgres
            Error::Unavailable(cause) => {
                Self::new(Category::Unavailable, StatusCode::SERVICE_UNAVAILABLE, "Try again shortly.")
                    .because(cause)
            }
            // Not logged: it is the client's own fault, and no operator can fix it.
            Error::Conflict(_) => {
                Self::new(Category::Conflict, StatusCode::CONFLICT, "The change conflicts with other data.")
            }
            Error::Refused(cause) => Self::internal().because(cause),
            //@ end
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let category = self.category.into_str();
        counter!("errors_total", "category" => category).increment(1);
        let context = Context::current().unwrap_or_default();
        let body = Body {
            r#type: format!("urn:problem:{category}"),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: self.detail,
            category: self.category,
            request_id: &context.request_id,
            errors: (self.category == Category::Validation).then_some(&self.errors),
        };
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let kind = [(header::CONTENT_TYPE, "application/problem+json"), (header::CACHE_CONTROL, "no-store")];
        let retry_after = self.retry_after.map(|seconds| [(header::RETRY_AFTER, seconds.to_string())]);
        (self.status, kind, retry_after, json).into_response()
    }
}
