//! The OpenAPI document, and a page that shows it without anything from the internet.

use axum::Router;
use axum::body::Bytes;
use axum::http::header;
use axum::routing::get;
use utoipa::openapi::{ComponentsBuilder, InfoBuilder, OpenApi, OpenApiBuilder};
use utoipa::{IntoResponses, PartialSchema, ToSchema};

use super::problem::Body;

/// What any route may answer besides its own.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "read by the derive alone")]
pub(super) enum Failures<'a> {
    /// The request is not valid, or is refused, or could not be completed: see `category`
    #[response(status = "default", content_type = "application/problem+json")]
    Problem(Body<'a>),
}

/// The document without its paths.
pub fn info() -> OpenApi {
    let info = InfoBuilder::new()
        .title(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(env!("CARGO_PKG_DESCRIPTION")));
    // Those of the routes' own bodies are added by their routes; no route names this one.
    let mut problem = vec![(Body::name().into_owned(), Body::schema())];
    Body::schemas(&mut problem);
    let components = ComponentsBuilder::new().schemas_from_iter(problem).build();
    OpenApiBuilder::new().info(info.build()).components(Some(components)).build()
}

/// `/openapi.json`, and `/docs` with the files it is made of.
pub fn routes(document: String) -> Router {
    let document = Bytes::from(document);
    let json = async move || ([(header::CONTENT_TYPE, "application/json")], document);
    let file =
        |media_type, text: &'static str| get(async move || ([(header::CONTENT_TYPE, media_type)], text));
    Router::new()
        .route("/openapi.json", get(json))
        .route("/docs", file("text/html; charset=utf-8", include_str!("docs/index.html")))
        .route("/docs.js", file("text/javascript", include_str!("docs/docs.js")))
        .route("/docs.css", file("text/css", include_str!("docs/docs.css")))
}
