//! The public API: its routes, and the layers around them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use bytesize::ByteSize;
use garde::Validate;
use ipnet::IpNet;
use metrics::gauge;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use tokio::sync::Semaphore;
use tower_http::cors::{AllowOrigin, CorsLayer};
use utoipa_axum::router::OpenApiRouter;

use self::middleware::{Observer, call_route, enforce_limits, layered, observe};
use self::problem::{Category, Problem};
use crate::config::value::{between, check, millis, size};
use crate::health::{self, Health};
use crate::server::{self, Limits, ResponseBudget};
use crate::tasks::Tasks;

pub mod admin;
pub mod client;
pub mod extract;
pub mod middleware;
pub mod openapi;
pub mod problem;
//@ if rate_limit
pub mod rate_limit;
//@ end
mod request_metrics;
pub mod tasks;

#[derive(Clone, Debug, Deserialize, Validate)]
#[garde(allow_unvalidated)]
pub struct Config {
    pub host: IpAddr,
    pub port: u16,
    #[serde(deserialize_with = "millis::<10, 3_600_000, _>")]
    pub request_timeout: Duration,
    #[serde(deserialize_with = "millis::<10, 600_000, _>")]
    pub header_read_timeout: Duration,
    #[serde(deserialize_with = "millis::<10, 3_600_000, _>")]
    pub body_timeout: Duration,
    #[serde(deserialize_with = "millis::<10, 86_400_000, _>")]
    pub idle_timeout: Duration,
    #[garde(custom(between(1, 1_000_000)))]
    pub max_connections: usize,
    #[garde(custom(between(1, 1_000_000)))]
    pub max_in_flight: usize,
    #[serde(deserialize_with = "size")]
    #[garde(custom(between(ByteSize::b(1), ByteSize::gib(1))))]
    pub max_body_size: ByteSize,
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
    #[garde(inner(custom(is_origin)))]
    pub cors_allowed_origins: Vec<String>,
}

impl Config {
    /// The deadlines and caps of the public listener.
    pub fn limits(&self) -> Limits {
        Limits {
            header_read: self.header_read_timeout,
            idle: self.idle_timeout,
            stalled_write: self.body_timeout,
            max_connections: server::connections_within_limit(self.max_connections),
        }
    }
}

fn is_origin(origin: &str, (): &()) -> garde::Result {
    let url = origin.parse::<reqwest::Url>();
    let is_web = |url: &reqwest::Url| matches!(url.scheme(), "http" | "https");
    let is_one = !origin.contains('*');
    let fits = is_one && url.is_ok_and(|url| is_web(&url) && url.origin().ascii_serialization() == origin);
    check(fits, "expected origins such as \"https://app.example.com\", without a path")
}

/// Networks in CIDR notation, or single addresses; IPv4 may be written as IPv6, as `ss` shows it.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let canonical = |it: IpNet| match it.addr().to_canonical() {
        IpAddr::V4(v4) if it.prefix_len() >= 96 => IpNet::new_assert(v4.into(), it.prefix_len() - 96),
        _ => it,
    };
    let parse = |text: &String| text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    let network = |text| parse(text).map(canonical);
    let networks: Result<_, _> = Vec::deserialize(deserializer)?.iter().map(network).collect();
    networks.map_err(|_| D::Error::custom("expected networks such as \"10.0.0.0/8\", or addresses"))
}

/// What the layers around the API need besides its configuration.
#[derive(Debug)]
pub struct Layers {
    pub health: Health,
    pub observer: Observer,
    //@ if rate_limit
    pub rate_limit: rate_limit::RateLimit,
    //@ end
}

/// Everything that the public listener serves.
pub fn router(config: &Config, tasks: Tasks, layers: Layers) -> anyhow::Result<Router> {
    let (api, document) = OpenApiRouter::with_openapi(openapi::info())
        .merge(tasks::router().with_state(Arc::new(tasks)))
        .split_for_parts();
    let permits = Semaphore::new(config.max_in_flight);
    let bounds = forever((config.clone(), permits, ResponseBudget::default()));
    gauge!("http_requests_in_flight_max").set(config.max_in_flight as f64);
    //@ if rate_limit
    let limits = forever(layers.rate_limit);
    //@ end
    let observer = forever(layers.observer);
    // Limits guard all but probes, which answer even when the service is full, and preflights, which `observe`, the
    // outermost, answers itself.
    let probes = observed(health::public_routes(layers.health), observer);
    let api = api.merge(openapi::routes(document.to_pretty_json()?)).fallback(not_found);
    let api = layered(api, move |request, route| {
        let next = |request| call_route(route, request);
        //@ if rate_limit
        let next = |request| rate_limit::limit(limits, request, next);
        //@ end
        observe(observer, request, |request| enforce_limits(bounds, request, next))
    });
    Ok(api.merge(probes))
}

/// Routes whose every response is logged and counted, even after a panic.
fn observed(routes: Router, observer: &'static Observer) -> Router {
    layered(routes, move |request, route| observe(observer, request, |it| call_route(route, it)))
}

/// For what lives as long as the process: counting who uses it would cost each request a dozen locked instructions.
fn forever<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

pub fn openapi_document() -> anyhow::Result<String> {
    let mut document = openapi::info();
    // Once for each router that [`router`] merges: each has a state of its own.
    document.merge(tasks::router().into_openapi());
    Ok(document.to_pretty_json()?)
}

/// The response for any path without a route.
pub async fn not_found() -> Problem {
    Problem::new(Category::NotFound, StatusCode::NOT_FOUND, "There is nothing at this path.")
}

async fn not_allowed() -> Problem {
    let detail = "This path does not support this method; see the Allow header.";
    Problem::new(Category::MethodNotAllowed, StatusCode::METHOD_NOT_ALLOWED, detail)
}

/// Off unless configured: without origins, no CORS headers are sent.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    let origins: Vec<HeaderValue> = origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    if origins.is_empty() {
        return None;
    }
    let [id, parent, state] = ["x-request-id", "traceparent", "tracestate"].map(HeaderName::from_static);
    let exposed = vec![header::ETAG, header::LOCATION, header::RETRY_AFTER, id.clone()];
    //@ if rate_limit
    let exposed = [exposed, rate_limit::HEADERS.to_vec()].concat();
    //@ end
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, header::IF_MATCH, id, parent, state])
        .expose_headers(exposed)
        .max_age(Duration::from_mins(10));
    Some(layer)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::task::Poll;

    use axum::body::{Body, Bytes, to_bytes};
    use axum::extract::Request;
    use axum::routing::get;
    use futures_util::stream;
    use metrics::with_local_recorder;
    use metrics_exporter_prometheus::PrometheusBuilder;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::runtime::Builder;
    use tower::ServiceExt;

    use super::*;
    use crate::lifecycle::Stop;
    use crate::server::InFlight;

    #[test]
    fn networks_are_read_in_every_form() {
        let written = ["10.0.0.0/8", "10.0.0.7", "::ffff:10.0.0.7", "::ffff:10.0.0.0/104", "2001:db8::/32"];
        let read = networks(json!(written)).expect("networks");
        let forms: Vec<_> = read.iter().map(ToString::to_string).collect();
        assert_eq!(forms, ["10.0.0.0/8", "10.0.0.7/32", "10.0.0.7/32", "10.0.0.0/8", "2001:db8::/32"]);
        assert!(networks(json!(["10.0.0.0/33"])).is_err());
    }

    #[tokio::test]
    async fn handler_that_panics_is_answered_for_and_says_nothing_of_the_cause() {
        let panics = get(async || -> StatusCode { panic!("a secret") });
        let cors = cors(&["https://a".to_owned()]);
        let observer = Observer { cors, ..Observer::default() };
        let router = observed(Router::new().route("/", panics), forever(observer));
        let request = Request::get("/").header("host", "test").header("x-request-id", "cause");
        let request = request.header(header::ORIGIN, "https://a");
        let request = request.body(Body::empty()).expect("a request");
        let response = router.oneshot(request).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()["x-request-id"], "cause");
        assert_eq!(
            response.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN],
            "https://a",
            "a browser may tell"
        );
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        let body = to_bytes(response.into_body(), 10_000).await.expect("a body");
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains("cause") && !body.contains("secret"), "{body}");
    }

    /// Otherwise the gauge would climb forever, and the fault would show nowhere.
    #[test]
    fn body_that_panics_is_counted_as_a_fault_and_its_connection_as_gone() {
        let asked = async {
            let listener = server::listen(([127, 0, 0, 1], 0).into()).expect("a listener");
            let address = listener.local_addr().expect("its address");
            let body =
                || stream::poll_fn(|_| -> Poll<Option<Result<Bytes, Infallible>>> { panic!("planted") });
            let panics = get(async move || Body::from_stream(body()));
            let router = observed(Router::new().route("/", panics), forever(Observer::default()));
            let long = Duration::from_secs(10);
            let limits = Limits { header_read: long, idle: long, stalled_write: long, max_connections: 1 };
            let stop = Stop::default();
            let serving = server::serve(listener, router, limits, InFlight::default(), stop.clone());
            let serving = tokio::spawn(serving);
            let mut client = TcpStream::connect(address).await.expect("a connection");
            client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("a request");
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("its end");
            stop.drain.cancel();
            serving.await.expect("it ends");
        };
        let recorder = PrometheusBuilder::new().build_recorder();
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        with_local_recorder(&recorder, || runtime.block_on(asked));
        let told = recorder.handle().render();
        assert!(told.contains("http_connections 0") && told.contains("status=\"500\"} 1"), "{told}");
    }
}
