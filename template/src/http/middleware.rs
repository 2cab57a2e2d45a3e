//! What every request passes through: identity, log line, metrics, caps and deadlines.

use std::convert::Infallible;
use std::mem;
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
use super::tally::Tally;
use crate::config::Config;
use crate::lifecycle::{Lifecycle, State as Phase};
use crate::server::{Client, Held, Hold, Room};
use crate::telemetry::context::{Context, Trace};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// For a request of operators: whoever sends half a body must not keep the places of probes.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Hands each request of `routes`, and the route that it matched, to `pass`. What a request passes is put together
/// there, of functions: each `Layer` of axum's would copy and box for each request what is below it.
pub fn passing<A: Future<Output = Response> + Send + 'static>(
    routes: Router,
    pass: impl Fn(Request, Route) -> A + Clone + Send + Sync + 'static,
) -> Router {
    routes.method_not_allowed_fallback(super::not_allowed).layer(layer_fn(move |route: Route| {
        // Copied for each request, so that all it holds is one `Arc`.
        let passed = Arc::new((pass.clone(), route));
        service_fn(move |request| passed.0(request, passed.1.clone()).map(Ok::<_, Infallible>))
    }))
}

/// What the route itself answers.
pub fn matched(mut route: Route, request: Request) -> impl Future<Output = Response> {
    // Boxed, since each function that it passes through moves it, with the request in it.
    Box::pin(route.call(request)).map(|Ok(response)| response)
}

/// What the route answers operators, under an id, which errors name; neither logged nor counted.
pub fn identified(request: Request, route: Route) -> impl Future<Output = Response> {
    let id = request_id(request.headers());
    let context = Context { request_id: id.clone(), trace: None };
    let answering = context.scope(in_time(ADMIN_TIMEOUT, contained(matched(route, request))));
    answering.map(move |mut response| {
        identify(response.headers_mut(), &id);
        response
    })
}

/// What the outermost layer needs to know.
#[derive(Debug, Default)]
pub struct Observer {
    pub lifecycle: Lifecycle,
    pub trusted_proxies: Vec<IpNet>,
    /// Whether each request is a line in the log.
    pub access: bool,
    /// Set where browsers may call from other origins.
    pub cors: Option<CorsLayer>,
    pub tally: Tally,
    //@ if otlp
    /// Which share of requests is exported where their caller has not decided; none without an endpoint.
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
            tally: Tally::default(),
            //@ if otlp
            sample_ratio: config.otlp.endpoint.as_ref().map(|_| config.otlp.sample_ratio),
            //@ end
        }
    }

    /// Who sent the request, behind proxies that are trusted; what stands below finds the same.
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

/// Gives the request its identity, and writes and counts it once its answer has been sent or given up. No `async fn`, here
/// and below: its future would keep room for the request in each of them.
pub fn observe<A: Future<Output = Response>>(
    observer: Arc<Observer>,
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
    let begun = || Some(Trace::begin(fastrand::f64() < observer.sample_ratio?));
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
    let cors = observer.cors.clone();
    let mut record = Record { context, observer, started: Instant::now(), method, path, client, status: 499 };
    let answering = record.context.clone().scope(match fault(&request) {
        None => Either::Left(with_cors(cors, request, |request| contained(next(request)))),
        Some(fault) => Either::Right(refused(Problem::bad_request(fault))),
    });
    //@ if otlp
    let answering = answering.instrument(span.clone());
    //@ end
    answering.map(move |mut response| {
        //@ if otlp
        // Signed, or it would be exported as text.
        span.record("http.response.status_code", i64::from(response.status().as_u16()));
        if response.status().is_server_error() {
            crate::telemetry::otlp::failed(&span);
        }
        //@ end
        record.status = response.status().as_u16();
        let headers = response.headers_mut();
        secure(headers);
        identify(headers, &record.context.request_id);
        if record.observer.lifecycle.state() >= Phase::Draining && version < Version::HTTP_2 {
            // Asks the client to send its next request elsewhere. HTTP/2 has GOAWAY for that.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.map(|body| Body::new(Held::new(body, record)))
    })
}

/// The caller's id where it is 1 to 128 visible ASCII characters, else a new one.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let sent = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    match sent.filter(|id| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())) {
        Some(id) => id.into(),
        None => (*Uuid::new_v4().as_hyphenated().encode_lower(&mut Uuid::encode_buffer())).into(),
    }
}

fn identify(answer: &mut HeaderMap, id: &str) {
    answer.extend(HeaderValue::from_str(id).map(|id| (REQUEST_ID, id)));
}

/// A closed set: a label must not grow with what clients make up.
fn method_name(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    known.into_iter().find(|known| method == *known).unwrap_or("_OTHER")
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
    client: Client,
    /// Until there is an answer 499, which proxies write for a client that has gone.
    status: u16,
}

impl Hold for Record {}

impl Drop for Record {
    fn drop(&mut self) {
        let seconds = self.started.elapsed().as_secs_f64();
        // A body that panicked has answered nothing whole, whatever its head said.
        let status = if thread::panicking() { 500 } else { self.status };
        let (method, route) = (self.method, route(self.path.as_ref()));
        self.observer.tally.answered(method, route, status, seconds);
        if self.observer.access {
            let client = &*self.client.network;
            mem::take(&mut self.context).enter(|| {
                info!(method, route, status, duration_seconds = seconds, client, "http.request");
            });
        }
    }
}

/// What another recipient on the way could have read as another request (RFC 9112, 3.2 and 6.1).
fn fault(request: &Request) -> Option<&'static str> {
    if !names_one_host(request) {
        return Some("The request must name one host.");
    }
    let is_chunked = |coding: &HeaderValue| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked");
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter().enumerate();
    let fault = "The body may have no transfer coding but chunked, and that once.";
    codings.any(|(before, coding)| before > 0 || !is_chunked(coding)).then_some(fault)
}

/// Made once it is polled, as an answer to the request of that moment.
fn refused(problem: Problem) -> impl Future<Output = Response> {
    lazy(|_| problem.into_response())
}

/// A panic is a fault of one request alone; the hook has logged and counted it.
fn contained(answering: impl Future<Output = Response>) -> impl Future<Output = Response> {
    let panicked = |_| Problem::internal().into_response();
    AssertUnwindSafe(answering).catch_unwind().unwrap_or_else(panicked)
}

/// Answers for browsers what they ask before a request of another origin, and lets them read what `next` answers.
fn with_cors<A: Future<Output = Response>>(
    cors: Option<CorsLayer>,
    request: Request,
    next: impl FnOnce(Request) -> A,
) -> impl Future<Output = Response> {
    // OPTIONS that asks for no other method's leave is a request like others.
    let asks = || request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let cors = cors.filter(|_| request.method() != Method::OPTIONS || asks());
    let Some(cors) = cors else { return Either::Left(next(request)) };
    let mut next = Some(next);
    let once = service_fn(move |request| {
        let next = next.take().expect("a request is answered once");
        next(request).map(Ok::<_, Infallible>)
    });
    // Boxed, so that services without it need not carry the room that it takes.
    Either::Right(Box::pin(cors.layer(once).oneshot(request).map(|Ok(response)| response)))
}

fn names_one_host(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    if let Some(named) = request.uri().authority().filter(|_| request.version() == Version::HTTP_2) {
        return !named.as_str().contains('@') && hosts.all(|host| host == named.as_str());
    }
    match (hosts.next(), hosts.next()) {
        // HTTP/1.0 had none.
        (None, _) => request.version() != Version::HTTP_11,
        (Some(host), None) => {
            let host = host.as_bytes();
            // The usual one, a name or an address and perhaps a port, need not be copied to be parsed.
            let digits = host.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
            let name = &host[..host.len() - digits];
            let name = name.strip_suffix(b":").unwrap_or(name);
            let authority = || Authority::try_from(host).is_ok_and(|it| !it.as_str().contains('@'));
            name.iter().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(byte)) || authority()
        }
        _ => false,
    }
}

/// Turns away at once what is beyond the cap, and ends what takes too long.
pub fn bound<A: Future<Output = Response>>(
    (config, places, room): (Arc<super::Config>, Arc<Semaphore>, Room),
    mut request: Request,
    next: impl FnOnce(Request) -> A,
) -> impl Future<Output = Response> {
    let Ok(place) = places.try_acquire_owned() else {
        let problem = Problem::overloaded("As much is being handled as this service takes at once.");
        return Either::Left(refused(problem));
    };
    if !request.body().is_end_stream() {
        // A client that waits for `100 Continue` is told before it has sent anything.
        let most = config.max_body_size.as_u64();
        if request.body().size_hint().lower() > most {
            return Either::Left(refused(Problem::too_large()));
        }
        DefaultBodyLimit::max(usize::try_from(most).unwrap_or(usize::MAX)).apply(&mut request);
        request.extensions_mut().insert(BodyTimeout(config.body_timeout));
    }
    // A write is acknowledged, whatever room there is.
    let (room, version) = (request.method().is_safe().then_some(room), request.version());
    let client = request.extensions().get::<Client>().copied();
    let answering = in_time(config.request_timeout, next(request));
    Either::Right(answering.map(move |mut response| {
        drop(place);
        if room.is_none_or(|room| room.holds(&mut response, version, client)) {
            return response;
        }
        let detail = "Clients have yet to take as many answers as this service keeps for them.";
        Problem::overloaded(detail).into_response()
    }))
}

fn in_time(limit: Duration, answering: impl Future<Output = Response>) -> impl Future<Output = Response> {
    timeout(limit, answering)
        .unwrap_or_else(|_| Problem::timeout("The request took too long.").into_response())
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
