//! Errors as clients see them: `application/problem+json` (RFC 9457) from every layer, and nothing of the cause.

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

/// The closed set that answers, logs and metrics share.
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

/// In bytes, of each text of a [`FieldError`]: serde quotes what was sent, however long.
const LONGEST: usize = 200;

/// One thing wrong with what was sent.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FieldError {
    /// The field, as a JSON Pointer (RFC 6901) into the body or the name of a parameter.
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

/// The body of every error.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Body<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    category: Category,
    /// Also in the header `x-request-id`, and in each log line of the request.
    request_id: &'a str,
    /// Of the category `validation`; empty where no field is to blame.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    errors: Option<&'a [FieldError]>,
}

impl Problem {
    pub fn new(category: Category, status: StatusCode, detail: &'static str) -> Self {
        // Whoever is turned away for now is told when to come back; never at once.
        let retry_after = (status == StatusCode::SERVICE_UNAVAILABLE).then_some(1);
        Self { category, status, detail, errors: Vec::new(), retry_after }
    }

    pub fn validation(detail: &'static str, mut errors: Vec<FieldError>) -> Self {
        for text in errors.iter_mut().flat_map(|FieldError { field, detail }| [field, detail]) {
            text.truncate(text.floor_char_boundary(LONGEST));
        }
        Self { errors, ..Self::new(Category::Validation, StatusCode::UNPROCESSABLE_ENTITY, detail) }
    }

    /// What is malformed as a whole, so that no field can be named.
    pub fn bad_request(detail: &'static str) -> Self {
        Self::new(Category::Validation, StatusCode::BAD_REQUEST, detail)
    }

    pub fn too_large() -> Self {
        let detail = "The body is larger than this service takes.";
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

    /// Tells the log why, and the client nothing of it.
    fn because(self, cause: &impl std::fmt::Display) -> Self {
        error!(category = self.category.into_str(), status = self.status.as_u16(), %cause, "request.failed");
        self
    }
    //@ end
}

impl From<tasks::Error> for Problem {
    fn from(error: tasks::Error) -> Self {
        let tasks::Error::Store(error) = error else {
            return Self::overloaded("Too much is waiting to be done. Nothing was changed.");
        };
        match &*error {
            Error::NotFound => Self::new(Category::NotFound, StatusCode::NOT_FOUND, "Nothing has this id."),
            Error::VersionMismatch => {
                let detail = "It has changed. Read it again and repeat the change with its new ETag.";
                Self::new(Category::Conflict, StatusCode::PRECONDITION_FAILED, detail)
            }
            //@ if postgres
            Error::Unavailable(cause) => {
                Self::new(Category::Unavailable, StatusCode::SERVICE_UNAVAILABLE, "Try again shortly.")
                    .because(cause)
            }
            // The client's own fault, which no operator can mend.
            Error::Conflict(_) => {
                Self::new(Category::Conflict, StatusCode::CONFLICT, "The change contradicts other data.")
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
