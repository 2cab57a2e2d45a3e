//! The OpenAPI document, and a page that shows it without loading anything from the internet.
#![expect(dead_code, reason = "responses are declared here only for the derive")]

use axum::Router;
use axum::body::Bytes;
use axum::http::header;
use axum::routing::get;
use utoipa::openapi::{ComponentsBuilder, Info, OpenApi, OpenApiBuilder};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

use super::problem::Body;

/// Responses that any route may give besides its own.
#[derive(IntoResponses)]
pub(super) enum Failures<'a> {
    /// The request is malformed
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(Body<'a>),
    /// The body is too large
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Body<'a>),
    //@ if rate_limit
    /// Too many requests; `retry-after` says how long to wait
    #[response(status = 429, content_type = "application/problem+json", headers(("retry-after" = u64)))]
    RateLimited(Body<'a>),
    //@ end
    /// An error in the service
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(Body<'a>),
    /// The request can't be served now; `retry-after` says when to try again
    #[response(status = 503, content_type = "application/problem+json", headers(("retry-after" = u64)))]
    Unavailable(Body<'a>),
    /// The request took too long
    #[response(status = 504, content_type = "application/problem+json")]
    Timeout(Body<'a>),
}

/// Further responses of routes that take a body.
#[derive(IntoResponses)]
pub(super) enum BodyRefused<'a> {
    //@ if postgres
    /// The change conflicts with other data
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(Body<'a>),
    //@ end
    /// The body was not sent as plain JSON
    #[response(status = 415, content_type = "application/problem+json")]
    MediaType(Body<'a>),
    /// The request is not valid: see `errors`
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(Body<'a>),
}

/// The request is not valid: see `errors`
#[derive(IntoResponses)]
#[response(status = 422, content_type = "application/problem+json")]
pub(super) struct ParametersRefused<'a>(Body<'a>);

/// Nothing has this id
#[derive(IntoResponses)]
#[response(status = 404, content_type = "application/problem+json")]
pub(super) struct NotFound<'a>(Body<'a>);

/// Further responses of routes that change an existing resource.
#[derive(IntoResponses)]
pub(super) enum ChangeRefused<'a> {
    //@ if postgres
    /// The change conflicts with other data
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(Body<'a>),
    //@ end
    /// The resource no longer has the `ETag` in `if-match`
    #[response(status = 412, content_type = "application/problem+json")]
    Changed(Body<'a>),
}

/// The document without its paths.
pub fn info() -> OpenApi {
    let mut info = Info::new(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    info.description = Some(env!("CARGO_PKG_DESCRIPTION").to_owned());
    // The routes add the schemas of their own bodies, but none names this one.
    let mut problem = vec![(Body::name().into_owned(), Body::schema())];
    Body::schemas(&mut problem);
    let components = ComponentsBuilder::new().schemas_from_iter(problem).build();
    OpenApiBuilder::new().info(info).components(Some(components)).build()
}

/// `/openapi.json`, and `/docs` with the files it is made of.
pub fn routes(document: String) -> Router {
    let document = Bytes::from(document);
    let json = async move || ([(header::CONTENT_TYPE, "application/json")], document);
    let file = |kind, text: &'static str| get(async move || ([(header::CONTENT_TYPE, kind)], text));
    Router::new()
        .route("/openapi.json", get(json))
        .route("/docs", file("text/html; charset=utf-8", include_str!("docs/index.html")))
        .route("/docs.js", file("text/javascript", include_str!("docs/docs.js")))
        .route("/docs.css", file("text/css", include_str!("docs/docs.css")))
}
