//! A listener with its own accept loop on hyper: `axum::serve` sets no deadline on silent, half-open or idle
//! connections, nor on its graceful shutdown.

use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arrayvec::ArrayString;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::header::{CONNECTION, CONTENT_LENGTH};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use futures_util::future::FusedFuture;
use futures_util::{FutureExt, StreamExt, TryFutureExt, TryStreamExt, stream};
use hyper::Version;
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use ipnet::IpNet;
use metrics::gauge;
use scopeguard::guard;
use serde::Deserialize;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tower::Service;
use tracing::{debug, warn};

use self::activity::{ActiveRequest, Activity, Deadline, TrackedStream};
pub use self::descriptors::connections_within_limit;
pub use self::guarded_body::{BodyGuard, Guarded};
pub use self::response_budget::ResponseBudget;
use crate::lifecycle::Stop;

mod activity;
mod descriptors;
mod guarded_body;
mod memory;
mod response_budget;

/// Connections that may wait to be accepted; the kernel caps this (`net.core.somaxconn`). A burst fills the usual
/// 128, and a connection attempt dropped then is retried only after a second.
const BACKLOG: u32 = 4096;
/// The pause after a failed accept. It doubles with each further failure, up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Concurrent requests per HTTP/2 connection, each with a response in memory: the least that RFC 9113 (5.1.2) advises.
const MAX_STREAMS: u32 = 100;
/// Bytes of a response handed on at a time: HTTP/2 takes the next only when these are being written.
const SLICE: usize = 16 * 1024;
/// In bytes: the largest HTTP/1 request head, and the most that is read at once.
const MAX_HEAD: usize = 96 * 1024;
/// How long a client that connected just before the drain has to send its first request.
const FIRST_REQUEST: Duration = Duration::from_millis(250);
/// The HTTP/2 connection preface (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct AdminConfig {
    pub host: IpAddr,
    pub port: u16,
}

/// Deadlines and caps of one listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For the first bytes of a connection and for each request head.
    pub header_read: Duration,
    /// Between requests.
    pub idle: Duration,
    /// How long a client may take nothing of a response that is waiting for it.
    pub stalled_write: Duration,
    /// Open connections; further ones wait in the kernel's backlog.
    pub max_connections: usize,
}

/// Holds a token for each request whose response has not been fully sent, across all servers that share it.
pub type InFlight = TaskTracker;

/// Who sent a request, as a request extension. The server sets it to the peer's address.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub address: IpAddr,
    /// The form that is logged: wide enough not to identify a person.
    pub network: ArrayString<19>,
}

impl Client {
    pub fn new(address: IpAddr) -> Self {
        let network = IpNet::new_assert(address, if address.is_ipv4() { 24 } else { 48 }).trunc();
        let network = ArrayString::try_from(format_args!("{network}")).expect("at most ffff:ffff:ffff::/48");
        Self { address, network }
    }
}

/// Listens, but accepts no connections yet.
pub fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Otherwise a restart would have to wait until the connections of the previous process are gone.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("can't listen on {address}"))
}

/// Serves `router` on `listener` until `stop` tells it to drain and every connection has ended.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, in_flight: InFlight, stop: Stop) {
    let _ended = stop.ended.clone().drop_guard();
    let connections = TaskTracker::new();
    let permits = Arc::new(Semaphore::new(limits.max_connections));
    let _upkeep = AbortOnDropHandle::new(tokio::spawn(memory::trim_after_peaks(connections.clone())));
    let open = |(stream, peer): (TcpStream, SocketAddr), permit: OwnedSemaphorePermit| {
        let serving = serve_connection(stream, peer, router.clone(), limits, in_flight.clone(), stop.clone());
        // A guard, so that the gauge goes down even if a response body panics.
        let counted = guard(gauge!("http_connections"), |gauge| gauge.decrement(1));
        counted.increment(1);
        connections.spawn(serving.inspect(move |()| drop((counted, permit))));
    };
    let mut pause = MIN_PAUSE;
    while let Some(permit) = stop.drain.run_until_cancelled(permits.clone().acquire_owned()).await {
        let permit = permit.expect("the semaphore is never closed");
        match stop.drain.run_until_cancelled(listener.accept()).await {
            Some(Ok(accepted)) => {
                open(accepted, permit);
                pause = MIN_PAUSE;
            }
            Some(Err(error)) => {
                // Usually out of file descriptors: an immediate retry would only burn CPU.
                warn!(%error, "connection.accept_failed");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
            None => break,
        }
    }
    // Connections that the kernel has already established are served too: their clients can't know that we drain. The
    // kernel is asked directly: tokio would miss those it has not been notified of yet, and yield after a few.
    if let Ok(listener) = listener.into_std() {
        while let Ok(permit) = permits.clone().try_acquire_owned()
            && let Ok((stream, peer)) = listener.accept()
            && let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream))
        {
            open((stream, peer), permit);
        }
    }
    connections.close();
    connections.wait().await;
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    limits: Limits,
    in_flight: InFlight,
    stop: Stop,
) {
    // Responses are written whole: waiting to fill a packet would only add latency.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "connection.nodelay_failed");
    }
    let activity = Activity::new(limits, in_flight);
    let drain = async {
        stop.drain.cancelled().await;
        if activity.is_new() {
            tokio::time::sleep(FIRST_REQUEST).await;
        }
    };
    let mut drain = pin!(drain.fuse());
    let mut first = [0; PREFACE.len()];
    let peeked = tokio::select! {
        biased;
        peeked = stream.peek(&mut first) => peeked.unwrap_or_default(),
        deadline = activity.expired() => return debug!(?deadline, "connection.timed_out"),
        () = drain.as_mut() => return,
        () = stop.abort.cancelled() => return,
    };
    if first == *PREFACE {
        activity.preface_received();
    }
    let stream = TrackedStream { stream, activity: activity.clone() };
    let (client, tracked) = (Client::new(peer.ip()), activity.clone());
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        let version = request.version();
        // Held until the response has been handed to the connection.
        let active = tracked.begin_request(version);
        request.extensions_mut().insert(client);
        let empty = request.body().is_end_stream();
        let body = |it| if empty { Body::empty() } else { Body::new(Guarded::new(it, tracked.reading())) };
        router.clone().call(request.map(body)).map_ok(move |response| outgoing(response, version, active))
    });
    let builder = protocols(&first[..peeked], limits);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut closing = false;
    loop {
        tokio::select! {
            // In this order, so that `activity` is checked after the connection has made progress.
            biased;
            // Follows the drain, and is not polled before: it takes locks that all connections share.
            () = stop.abort.cancelled(), if drain.is_terminated() => break,
            result = connection.as_mut() => {
                if let Err(error) = result {
                    debug!(error, "connection.failed");
                }
                break;
            }
            deadline = activity.expired() => {
                debug!(?deadline, "connection.timed_out");
                // One untaken response must not cost the others on a connection that a proxy shares among clients.
                if closing || !matches!(deadline, Deadline::Idle | Deadline::Untaken) {
                    break;
                }
            }
            () = drain.as_mut() => {}
        }
        // Sends GOAWAY if the protocol has it. Requests sent before the client sees that are still answered.
        closing = true;
        activity.begin_close();
        connection.as_mut().graceful_shutdown();
    }
}

/// The protocols for a client whose first bytes are these.
fn protocols(first: &[u8], limits: Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // `Activity` sets the deadlines: hyper's own can't tell an idle connection from a half-sent head.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(MAX_HEAD);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(limits.idle / 2);
    // While a client stalls, the ping waits behind what it has not taken.
    builder.http2().keep_alive_timeout(limits.stalled_write.max(Duration::from_secs(20)));
    // Otherwise it would buffer 400 KB per response, out of our sight.
    builder.http2().max_concurrent_streams(MAX_STREAMS).max_send_buf_size(1);
    // The builder could detect the protocol itself, but passes on the bytes it read for that as a read of their own.
    // hyper would then grow its buffer, and keep 16 KiB per connection instead of 8.
    if PREFACE.starts_with(first) { builder } else { builder.http1_only() }
}

/// Prepares a response for sending; its body holds `active` until the connection has the last frame.
fn outgoing(
    mut response: Response,
    version: Version,
    mut active: ActiveRequest,
) -> Response<Guarded<Body, ActiveRequest>> {
    active.frame_polled(true);
    active.permits = response.extensions_mut().remove();
    if active.has_unread_body() {
        // The rest of the request body is in the way of the next request, which should use another connection.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if response.status() == StatusCode::NO_CONTENT {
        // Set by axum, taken back by hyper over HTTP/1 only: RFC 9110, 8.6, forbids it.
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    let length = response.body().size_hint().exact();
    if version == Version::HTTP_2 && length != Some(0) {
        // A sliced body no longer knows its length.
        if let Some(length) = length {
            response.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
        }
        response = response.map(sliced);
    }
    response.map(|body| Guarded::new(body, active))
}

/// Splits a body into frames of at most [`SLICE`], with the last byte in a frame of its own: HTTP/2 hands that on only
/// once the client has taken everything before it, and drops the body only then.
fn sliced(body: Body) -> Body {
    let slices = |mut frame: Bytes| {
        let next = move || match frame.len() {
            0 => None,
            // Copied: it is written last, and would keep the whole body in memory until then.
            1 => Some(Bytes::copy_from_slice(&frame.split_to(1))),
            length => Some(frame.split_to((length - 1).min(SLICE))),
        };
        stream::iter(iter::from_fn(next)).map(Ok::<_, axum::Error>)
    };
    Body::from_stream(body.into_data_stream().map_ok(slices).try_flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_without_content_has_no_length() {
        let long = Duration::from_secs(10);
        let limits = Limits { header_read: long, idle: long, stalled_write: long, max_connections: 1 };
        let activity = Activity::new(limits, InFlight::default());
        for (status, has) in [(StatusCode::OK, true), (StatusCode::NO_CONTENT, false)] {
            let response = Response::builder().status(status).header(CONTENT_LENGTH, 0);
            let response = response.body(Body::empty()).expect("a response");
            let sent = outgoing(response, Version::HTTP_2, activity.begin_request(Version::HTTP_2));
            assert_eq!(sent.headers().contains_key(CONTENT_LENGTH), has, "{status}");
        }
    }

    #[test]
    fn client_is_logged_as_its_network() {
        let network = |address: &str| Client::new(address.parse().expect("an address")).network.to_string();
        assert_eq!(network("192.0.2.77"), "192.0.2.0/24");
        assert_eq!(network("ffff:ffff:ffff:ffff::1"), "ffff:ffff:ffff::/48");
    }
}
