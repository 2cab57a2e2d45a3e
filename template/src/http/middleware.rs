//! What every request passes through: identity, log line, metrics, caps and deadlines.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Version, header};
use axum::response::{IntoResponse, Response};
use axum::routing::Route;
use futures_util::future::{Either, lazy};
use futures_util::{FutureExt, TryFutureExt};
use http_body::Body as _;
use ipnet::IpNet;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tower::layer::layer_fn;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_http::cors::CorsLayer;
use tracing::info;
//@ if otlp
use tracing::{Instrument, info_span};
//@ end
use uuid::Uuid;

use super::client;
use super::extract::BodyTimeout;
use super::problem::Problem;
use super::request_metrics::RequestMetrics;
use crate::config::Config;
use crate::lifecycle::{Lifecycle, State as Phase};
use crate::server::{BodyGuard, Client, Guarded, ResponseBudget};
use crate::telemetry::context::{Context, Trace};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// For a request to the admin listener: a client that sends half a body must not occupy connections that probes need.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Hands each request for `routes`, with the route that it matched, to `pass`. The layers are composed there, from
/// plain functions: each axum `Layer` would clone and box everything below it for each request.
pub fn layered<A: Future<Output = Response> + Send + 'static>(
    routes: Router,
    pass: impl Fn(Request, Route) -> A + Clone + Send + Sync + 'static,
) -> Router {
    routes.method_not_allowed_fallback(super::not_allowed).layer(layer_fn(move |route: Route| {
        // Cloned for each request, so it holds just one `Arc`.
        let passed = Arc::new((pass.clone(), route));
        service_fn(move |request| passed.0(request, passed.1.clone()).map(Ok::<_, Infallible>))
    }))
}

/// The response of the route itself.
pub fn call_route(mut route: Route, request: Request) -> impl Future<Output = Response> {
    // Boxed, since each function that the future passes through moves it, including the request in it.
    Box::pin(route.call(request)).map(|Ok(response)| response)
}

/// Answers an admin request under a request id, which errors name. It is neither logged nor counted.
pub fn with_request_id(request: Request, route: Route) -> impl Future<Output = Response> {
    let id = request_id(request.headers());
    let context = Context { request_id: id.clone(), trace: None };
    let answering = context.scope(bounded(ADMIN_TIMEOUT, catch_panics(call_route(route, request))));
    answering.map(move |mut response| {
        set_request_id(response.headers_mut(), &id);
        response
    })
}

/// What the outermost layer needs to know.
#[derive(Debug, Default)]
pub struct Observer {
    pub lifecycle: Lifecycle,
    pub trusted_proxies: Vec<IpNet>,
    /// Whether each request is logged.
    pub access: bool,
    /// Set if browsers may call from other origins.
    pub cors: Option<CorsLayer>,
    pub metrics: RequestMetrics,
    //@ if otlp
    /// The share of requests to sample where the caller has not decided; None without an endpoint.
    pub sample_ratio: Option<f64>,
    //@ end
}

impl Observer {
    pub fn new(config: &Config, lifecycle: Lifecycle) -> Self {
        Self {
            lifecycle,
            trusted_proxies: config.http.trusted_proxies.clone(),
            access: config.log.access,
            cors: super::cors(&config.http.cors_allowed_origins),
            metrics: RequestMetrics::default(),
            //@ if otlp
            sample_ratio: config.otlp.endpoint.as_ref().map(|_| config.otlp.sample_ratio),
            //@ end
        }
    }

    /// Who sent the request, as seen through trusted proxies. Inner layers find the same in the extensions.
    fn client(&self, request: &mut Request) -> Client {
        let peer = request.extensions().get::<Client>().copied();
        let peer = peer.unwrap_or_else(|| Client::new(Ipv4Addr::UNSPECIFIED.into()));
        let address = client::address(peer.address, request.headers(), &self.trusted_proxies);
        if address == peer.address {
            return peer;
        }
        let client = Client::new(address);
        request.extensions_mut().insert(client);
        client
    }
}

/// Gives the request its identity, and logs and counts it once its response has been sent or abandoned. No `async fn`,
/// here and below: the future of each would reserve space for the request.
pub fn observe<A: Future<Output = Response>>(
    observer: &'static Observer,
    mut request: Request,
    next: impl FnOnce(Request) -> A,
) -> impl Future<Output = Response> {
    let client = observer.client(&mut request);
    let path = request.extensions().get::<MatchedPath>().cloned();
    let method = method_name(request.method());
    let version = request.version();
    let caller = Trace::from_headers(request.headers());
    let trace = caller.as_ref().map(Trace::child);
    //@ if otlp
    let begun = || Some(Trace { sampled: fastrand::f64() < observer.sample_ratio?, ..Trace::begin() });
    let trace = trace.or_else(begun);
    let (span, trace) = crate::telemetry::otlp::span(caller.as_ref(), trace, || {
        info_span!(
            "request",
            otel.name = format!("{method} {}", route(path.as_ref())),
            otel.kind = "server",
            http.request.method = method,
            http.route = route(path.as_ref()),
            http.response.status_code = tracing::field::Empty,
        )
    });
    //@ end
    let context = Context { request_id: request_id(request.headers()), trace };
    let mut record = Record { context, observer, started: Instant::now(), method, path, client, status: 499 };
    let answering = record.context.clone().scope(match ambiguity(&request) {
        None => {
            Either::Left(with_cors(observer.cors.as_ref(), request, |request| catch_panics(next(request))))
        }
        Some(fault) => Either::Right(rejection(Problem::bad_request(fault))),
    });
    //@ if otlp
    let answering = answering.instrument(span.clone());
    //@ end
    answering.map(move |mut response| {
        //@ if otlp
        // A signed integer: an unsigned one would be exported as text.
        span.record("http.response.status_code", i64::from(response.status().as_u16()));
        if response.status().is_server_error() {
            crate::telemetry::otlp::failed(&span);
        }
        //@ end
        record.status = response.status().as_u16();
        let headers = response.headers_mut();
        set_security_headers(headers);
        set_request_id(headers, &record.context.request_id);
        if record.observer.lifecycle.state() >= Phase::Draining && version < Version::HTTP_2 {
            // Asks the client to send its next request elsewhere. HTTP/2 has GOAWAY for that.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.map(|body| Body::new(Guarded::new(body, record)))
    })
}

/// The caller's id if it is 1 to 128 visible ASCII characters, else a new one.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let sent = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    match sent.filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())) {
        Some(id) => id.into(),
        None => (*Uuid::new_v4().as_hyphenated().encode_lower(&mut Uuid::encode_buffer())).into(),
    }
}

fn set_request_id(answer: &mut HeaderMap, id: &str) {
    answer.extend(HeaderValue::from_str(id).map(|id| (REQUEST_ID, id)));
}

/// A closed set: clients must not raise the label's cardinality by making up methods.
fn method_name(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    known.into_iter().find(|known| method == *known).unwrap_or("_OTHER")
}

/// The route that the path matched: the path itself would give the label as many values as clients ask for.
fn route(path: Option<&MatchedPath>) -> &str {
    path.map_or("unmatched", MatchedPath::as_str)
}

/// One request, reported when it is dropped: after the last byte, or when the client has gone.
struct Record {
    context: Context,
    observer: &'static Observer,
    started: Instant,
    method: &'static str,
    path: Option<MatchedPath>,
    client: Client,
    /// 499 until there is a response: what proxies log when the client has gone.
    status: u16,
}

impl BodyGuard for Record {}

impl Drop for Record {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        // A body that panicked left its response incomplete, whatever the head said.
        let status = if thread::panicking() { 500 } else { self.status };
        let (method, route) = (self.method, route(self.path.as_ref()));
        self.observer.metrics.record(method, route, status, seconds);
        if self.observer.access {
            let client = &*self.client.network;
            self.context.clone().enter(|| {
                info!(method, route, status, duration_seconds = seconds, client, "http.request");
            });
        }
    }
}

/// Why to refuse a request that another recipient on the way could have read differently (RFC 9112, 3.2 and 6.1).
fn ambiguity(request: &Request) -> Option<&'static str> {
    if !names_one_host(request) {
        return Some("The request must name one host.");
    }
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter().enumerate();
    let fault = "The only transfer coding allowed is chunked, applied once.";
    codings.any(|(before, coding)| before > 0 || !is_chunked(coding)).then_some(fault)
}

/// The response is made when polled: only then is there a context, whose request id the problem names.
fn rejection(problem: Problem) -> impl Future<Output = Response> {
    lazy(|_| problem.into_response())
}

/// A panic fails only its own request; the panic hook has logged and counted it.
fn catch_panics(answering: impl Future<Output = Response>) -> impl Future<Output = Response> {
    let panicked = |_| Problem::internal().into_response();
    AssertUnwindSafe(answering).catch_unwind().unwrap_or_else(panicked)
}

/// Answers the preflight requests of browsers, and lets pages of allowed origins read the response of `next`.
fn with_cors<A: Future<Output = Response>>(
    cors: Option<&CorsLayer>,
    request: Request,
    next: impl FnOnce(Request) -> A,
) -> impl Future<Output = Response> {
    // An OPTIONS request that does not ask to use another method is no preflight.
    let asks = || request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let cors = cors.filter(|_| request.method() != Method::OPTIONS || asks());
    let Some(cors) = cors else { return Either::Left(next(request)) };
    let mut next = Some(next);
    let once = service_fn(move |request| {
        let next = next.take().expect("a request is answered once");
        next(request).map(Ok::<_, Infallible>)
    });
    // Boxed, so that services without CORS don't pay for the size of its future.
    Either::Right(Box::pin(cors.layer(once).oneshot(request).map(|Ok(response)| response)))
}

fn names_one_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    if let Some(named) = request.uri().authority().filter(|_| request.version() == Version::HTTP_2) {
        return !named.as_str().contains('@')
            && hosts.all(|host| host.as_bytes().eq_ignore_ascii_case(named.as_str().as_bytes()));
    }
    match (hosts.next(), hosts.next()) {
        // HTTP/1.0 requires none.
        (None, _) => request.version() != Version::HTTP_11,
        (Some(host), None) => {
            let host = host.as_bytes();
            // The usual host, a name or an address with an optional port, need not be copied to be parsed.
            let digits = host.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
            let name = &host[..host.len() - digits];
            let name = name.strip_suffix(b":").unwrap_or(name);
            let authority = || Authority::try_from(host).is_ok_and(|it| !it.as_str().contains('@'));
            name.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(byte)) || authority()
        }
        _ => false,
    }
}

/// Rejects requests beyond the caps at once, and ends those that take too long.
pub fn enforce_limits<A: Future<Output = Response>>(
    (config, permits, budget): &'static (super::Config, Semaphore, ResponseBudget),
    mut request: Request,
    next: impl FnOnce(Request) -> A,
) -> impl Future<Output = Response> {
    let Ok(permit) = permits.try_acquire() else {
        let problem = Problem::overloaded("The service is at its limit of concurrent requests.");
        return Either::Left(rejection(problem));
    };
    if !request.body().is_end_stream() {
        // A client that waits for `100 Continue` is rejected before it has sent any of the body.
        let most = config.max_body_size.as_u64();
        if request.body().size_hint().lower() > most {
            return Either::Left(rejection(Problem::too_large()));
        }
        DefaultBodyLimit::max(usize::try_from(most).unwrap_or(usize::MAX)).apply(&mut request);
        request.extensions_mut().insert(BodyTimeout(config.body_timeout));
    }
    // A write is always acknowledged, even when there is no room for the response.
    let (budget, version) = (request.method().is_safe().then_some(budget), request.version());
    let client = request.extensions().get::<Client>().copied();
    let answering = bounded(config.request_timeout, next(request));
    Either::Right(answering.map(move |mut response| {
        drop(permit);
        if budget.is_none_or(|budget| budget.try_reserve(&mut response, version, client)) {
            return response;
        }
        let detail = "Too many responses are waiting for clients to read them.";
        Problem::overloaded(detail).into_response()
    }))
}

fn bounded(limit: Duration, answering: impl Future<Output = Response>) -> impl Future<Output = Response> {
    timeout(limit, answering)
        .unwrap_or_else(|_| Problem::timeout("The request took too long.").into_response())
}

/// Headers that keep browsers from sniffing types, framing and caching; the docs page may run its own script.
fn set_security_headers(headers: &mut HeaderMap) {
    const PAGE: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                        frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}
