//! What every request passes through: identity, log line, metrics, caps and deadlines.

use std::convert::Infallible;
use std::mem::take;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::Body as _;
use ipnet::IpNet;
use tokio::sync::Semaphore;
use tracing::info;
//@ if otlp
use tracing::{Instrument, info_span};
//@ end
use uuid::Uuid;

use super::client;
use super::extract::BodyTimeout;
use super::problem::{Category, Problem};
use super::tally::Tally;
use crate::config::Config;
use crate::lifecycle::{Lifecycle, State as Phase};
use crate::server::{Held, Hold};
use crate::telemetry::context::{Context, Trace};
//@ if otlp
use crate::telemetry::otlp;
//@ end

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the outermost layer needs to know.
#[derive(Debug, Default)]
pub struct Observer {
    pub lifecycle: Lifecycle,
    pub trusted_proxies: Vec<IpNet>,
    /// Whether each request is a line in the log.
    pub access: bool,
    pub tally: Tally,
    //@ if otlp
    pub sampling: otlp::Sampling,
    //@ end
}

impl Observer {
    pub fn new(config: &Config, lifecycle: Lifecycle) -> Self {
        Self {
            lifecycle,
            trusted_proxies: config.http.trusted_proxies.iter().map(|network| network.0).collect(),
            access: config.log.access,
            tally: Tally::default(),
            //@ if otlp
            sampling: otlp::Sampling::new(&config.otlp),
            //@ end
        }
    }
}

/// Who sent the request; an extension of each one.
#[derive(Clone, Copy, Debug)]
pub struct Client(pub IpAddr);

impl<S: Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().copied().unwrap_or(Self(Ipv4Addr::UNSPECIFIED.into())))
    }
}

/// Gives the request its identity, and writes and counts it once its answer has been sent or given up.
pub async fn observe(State(observer): State<Arc<Observer>>, mut request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let peer = peer.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let client = client::address(peer, request.headers(), &observer.trusted_proxies);
    request.extensions_mut().insert(Client(client));
    let path = request.extensions().get::<MatchedPath>().cloned();
    let method = method_name(request.method());
    let version = request.version();
    let caller = Trace::from_headers(request.headers());
    let trace = caller.as_ref().map(Trace::child);
    //@ if otlp
    let trace = trace.or_else(|| observer.sampling.begin());
    let (span, trace) = otlp::span(caller.as_ref(), trace, || {
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
    observer.tally.in_flight.increment(1);
    let mut record = Record {
        context: context.clone(),
        observer: observer.clone(),
        started: Instant::now(),
        method,
        path,
        client: client::network(client),
        status: None,
    };
    let answering = context.scope(guard(request, next));
    //@ if otlp
    let answering = answering.instrument(span.clone());
    //@ end
    let mut response = answering.await;
    //@ if otlp
    // Signed, or it would be exported as text.
    span.record("http.response.status_code", i64::from(response.status().as_u16()));
    //@ end
    record.status = Some(response.status());
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&record.context.request_id) {
        headers.insert(REQUEST_ID, id);
    }
    if observer.lifecycle.state() >= Phase::Draining && version < Version::HTTP_2 {
        // Asks the client to send its next request elsewhere. HTTP/2 has GOAWAY for that.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| Body::new(Held::new(body, record)))
}

/// The caller's id where it is 1 to 128 visible ASCII characters, else a new one.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let sent = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    match sent.filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())) {
        Some(id) => id.into(),
        None => Uuid::now_v7().to_string().into(),
    }
}

/// A closed set: a label must not grow with what clients make up.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "_OTHER",
    }
}

/// What the path matched, not the path: that would be as many labels as clients ask for.
fn route(path: Option<&MatchedPath>) -> &str {
    path.map_or("unmatched", MatchedPath::as_str)
}

/// One request, reported when it is dropped: after the last byte, or when the client has gone.
struct Record {
    context: Context,
    observer: Arc<Observer>,
    started: Instant,
    method: &'static str,
    path: Option<MatchedPath>,
    client: IpNet,
    /// None until there is an answer: a client that leaves before it gets none.
    status: Option<StatusCode>,
}

impl Hold for Record {}

impl Drop for Record {
    fn drop(&mut self) {
        // 499 is what proxies write for a client that has gone.
        let status = self.status.map_or(499, |status| status.as_u16());
        let seconds = self.started.elapsed().as_secs_f64();
        let (method, route) = (self.method, route(self.path.as_ref()));
        self.observer.tally.in_flight.decrement(1);
        self.observer.tally.answered(method, route, status, seconds);
        if self.observer.access {
            let client = self.client.to_string();
            take(&mut self.context).enter(|| {
                info!(method, route, status, duration_seconds = seconds, client, "http.request");
            });
        }
    }
}

/// Refuses what another recipient on the way could have read as another request (RFC 9112, 3.2 and 6.1), and gives
/// each answer the headers that keep browsers safe.
async fn guard(request: Request, next: Next) -> Response {
    let mut response = if !names_one_host(&request) {
        refused("The request must name one host.", request.version())
    } else if !is_framed_once(request.headers()) {
        refused("The body may have no transfer coding but chunked, and that once.", request.version())
    } else {
        next.run(request).await
    };
    secure(response.headers_mut());
    response
}

/// The connection ends with the answer: where the next request begins is not sure.
fn refused(detail: &'static str, version: Version) -> Response {
    let mut response = Problem::bad_request(detail).into_response();
    if version < Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn names_one_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        // HTTP/1.0 had none, HTTP/2 has `:authority`.
        (None, _) => request.version() != Version::HTTP_11,
        (Some(host), None) => {
            let authority = Authority::try_from(host.as_bytes());
            host.is_empty() || authority.is_ok_and(|authority| !authority.as_str().contains('@'))
        }
        _ => false,
    }
}

fn is_framed_once(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"),
        _ => false,
    }
}

/// The caps and deadlines of the API.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub in_flight: Arc<Semaphore>,
    /// In bytes.
    pub max_body_size: u64,
    pub request_timeout: Duration,
    pub body_timeout: Duration,
}

/// Turns away at once what is beyond the cap, and ends what takes too long.
pub async fn bound(State(bounds): State<Bounds>, mut request: Request, next: Next) -> Response {
    let Ok(_place) = bounds.in_flight.try_acquire() else {
        let detail = "As much is being handled as this service takes at once.";
        return Problem::new(Category::Overloaded, StatusCode::SERVICE_UNAVAILABLE, detail).into_response();
    };
    // A client that waits for `100 Continue` is told before it has sent anything.
    if request.body().size_hint().lower() > bounds.max_body_size {
        return Problem::too_large().into_response();
    }
    request.extensions_mut().insert(BodyTimeout(bounds.body_timeout));
    match tokio::time::timeout(bounds.request_timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::timeout("The request took too long.").into_response(),
    }
}

/// Headers that keep browsers from guessing, framing and caching; the docs page may run its own script.
fn secure(headers: &mut HeaderMap) {
    const PAGE: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
                        frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}
