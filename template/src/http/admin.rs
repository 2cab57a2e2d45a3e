//! The admin listener, for operators and their tools: probes, metrics, and how much is logged.

use std::time::Duration;

use axum::Router;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::{StatusCode, header};
use axum::routing::{get, put};
use bytes::BytesMut;
use metrics::gauge;

use super::middleware::{layered, with_request_id};
use super::problem::Problem;
use crate::health::{self, Health};
use crate::server::InFlight;
use crate::store::Store;
use crate::telemetry::Telemetry;
use crate::telemetry::filter::{self, Filter};

/// How long a changed log filter lasts by default: a forgotten `debug` must not fill the disks.
const DEFAULT_DURATION: Duration = Duration::from_mins(10);
const MAX_DURATION: Duration = Duration::from_hours(1);
/// In bytes, of a filter: sorting the directives of a very long one takes minutes.
const MAX_BYTES: usize = 4096;

pub fn router(health: &Health, telemetry: &Telemetry, store: &Store, in_flight: &InFlight) -> Router {
    let (metrics, store, in_flight) = (telemetry.metrics.clone(), store.clone(), in_flight.clone());
    let page = async move || {
        store.observe();
        gauge!("http_requests_in_flight").set(in_flight.len() as f64);
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render())
    };
    let filter = put(set_filter).layer(DefaultBodyLimit::max(MAX_BYTES)).with_state(telemetry.filter.clone());
    let pages = health::admin_routes(health.clone()).route("/metrics", get(page));
    layered(pages.route("/log/filter", filter).fallback(super::not_found), with_request_id)
}

/// `PUT /log/filter?for=10m` with the filter as its body.
async fn set_filter(
    State(logs): State<Filter>,
    RawQuery(query): RawQuery,
    body: Result<BytesMut, BytesRejection>,
) -> Result<StatusCode, Problem> {
    let body = body?;
    // A body that is not UTF-8 becomes an empty string, which is no filter either.
    let text = str::from_utf8(&body).unwrap_or_default();
    let filter = filter::parse(text).ok_or_else(|| {
        Problem::bad_request("The body must be a filter, such as info,service::server=debug.")
    })?;
    let time = match query.as_deref().map(|query| query.strip_prefix("for=").map(humantime::parse_duration)) {
        None => DEFAULT_DURATION,
        Some(Some(Ok(time))) if time <= MAX_DURATION => time,
        Some(_) => return Err(Problem::bad_request("The query may only be for=<duration>, up to 1h.")),
    };
    logs.change(text, filter, time).map_err(|_| Problem::internal())?;
    Ok(StatusCode::NO_CONTENT)
}
