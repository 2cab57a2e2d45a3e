//! A listener with an accept loop of its own on hyper: `axum::serve` sets no deadline on silent, half-open
//! or idle connections, and its graceful stop has none either.

use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arrayvec::ArrayString;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::{CONNECTION, CONTENT_LENGTH};
use axum::response::Response;
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

use self::activity::{Activity, Busy, Deadline, Watched};
pub use self::descriptors::connections_within_limit;
pub use self::held::{Held, Hold};
pub use self::room::Room;
use crate::lifecycle::Stop;

mod activity;
mod descriptors;
mod held;
mod memory;
mod room;

/// Connections that may wait to be accepted, as far as the kernel allows (`net.core.somaxconn`). The usual 128
/// are gone in a burst, and who comes then tries again only after a second.
const BACKLOG: u32 = 4096;
/// Between two tries to accept while none succeeds.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Requests at once of one HTTP/2 connection, each with an answer in memory: the least that RFC 9113 (5.1.2) advises.
const STREAMS: u32 = 100;
/// In bytes, of an answer at once: HTTP/2 would keep what the client does not take, where nobody sees it.
const SLICE: usize = 16 * 1024;
/// In bytes, of a request head over HTTP/1 and of what is read at once.
const HEAD: usize = 96 * 1024;
/// What a client that has connected just before the drain may take for its first request.
const FIRST_REQUEST: Duration = Duration::from_millis(250);
/// What begins HTTP/2 (RFC 9113, 3.4).
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
    /// For a client to take some of an answer that waits for it.
    pub stalled_write: Duration,
    /// Open connections; further ones wait in the kernel's backlog.
    pub max_connections: usize,
}

/// Holds a token for each request whose answer has not been sent whole, of all servers that share it.
pub type InFlight = TaskTracker;

/// Who sent a request; an extension of each. As the server sees it, that is the peer.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub address: IpAddr,
    /// As it is logged: wide enough not to name a person.
    pub network: ArrayString<19>,
}

impl Client {
    pub fn new(address: IpAddr) -> Self {
        let network = IpNet::new_assert(address, if address.is_ipv4() { 24 } else { 48 }).trunc();
        let network = ArrayString::try_from(format_args!("{network}")).expect("at most ffff:ffff:ffff::/48");
        Self { address, network }
    }
}

/// Listens, but takes no connection yet.
pub fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // Or a restart would have to wait for the connections of the process before.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().with_context(|| format!("can't listen on {address}"))
}

/// Serves `router` on `listener` until `stop` says so and each connection has ended.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, in_flight: InFlight, stop: Stop) {
    let _ended = stop.ended.clone().drop_guard();
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(limits.max_connections));
    let _upkeep = AbortOnDropHandle::new(tokio::spawn(memory::give_back(connections.clone())));
    let open = |(stream, peer): (TcpStream, SocketAddr), place: OwnedSemaphorePermit| {
        let serving = serve_connection(stream, peer, router.clone(), limits, in_flight.clone(), stop.clone());
        // Let go of also where the body of an answer panics.
        let counted = guard(gauge!("http_connections"), |gauge| gauge.decrement(1));
        counted.increment(1);
        connections.spawn(serving.inspect(move |()| drop((counted, place))));
    };
    let mut pause = SHORTEST_PAUSE;
    while let Some(place) = stop.drain.run_until_cancelled(places.clone().acquire_owned()).await {
        let place = place.expect("the semaphore is never closed");
        match stop.drain.run_until_cancelled(listener.accept()).await {
            Some(Ok(accepted)) => {
                open(accepted, place);
                pause = SHORTEST_PAUSE;
            }
            Some(Err(error)) => {
                // Out of file descriptors, mostly: trying again at once would only burn the CPU.
                warn!(%error, "connection.accept_failed");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            None => break,
        }
    }
    // Clients whose connection the kernel has made already don't know that it comes late. It is asked itself: tokio would
    // know of none that it was not told of yet, and pause after some.
    if let Ok(listener) = listener.into_std() {
        while let Ok(place) = places.clone().try_acquire_owned()
            && let Ok((stream, peer)) = listener.accept()
            && let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream))
        {
            open((stream, peer), place);
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
    // Answers are written whole: waiting to fill a packet would only add latency.
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
    let heard = tokio::select! {
        biased;
        heard = stream.peek(&mut first) => heard.unwrap_or_default(),
        deadline = activity.expired() => return debug!(?deadline, "connection.timed_out"),
        () = drain.as_mut() => return,
        () = stop.abort.cancelled() => return,
    };
    if first == *PREFACE {
        activity.greeted();
    }
    let stream = Watched { stream, activity: activity.clone() };
    let (client, noted) = (Client::new(peer.ip()), activity.clone());
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        let version = request.version();
        // Kept until the answer has left.
        let busy = noted.busy(version);
        request.extensions_mut().insert(client);
        let none = request.body().is_end_stream();
        let body = |body| if none { Body::empty() } else { Body::new(Held::new(body, noted.reading())) };
        router.clone().call(request.map(body)).map_ok(move |response| leaving(response, version, busy))
    });
    let builder = protocols(&first[..heard], limits);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut told = false;
    loop {
        tokio::select! {
            // In this order, so that `activity` is asked after the connection has moved.
            biased;
            () = stop.abort.cancelled() => break,
            result = connection.as_mut() => {
                if let Err(error) = result {
                    debug!(error, "connection.failed");
                }
                break;
            }
            deadline = activity.expired() => {
                debug!(?deadline, "connection.timed_out");
                // One answer that is not taken must not cost the others of a connection which a proxy shares.
                if told || !matches!(deadline, Deadline::Idle | Deadline::Untaken) {
                    break;
                }
            }
            () = drain.as_mut() => {}
        }
        // Says goodbye (GOAWAY) where the protocol can. What is asked before that is heard gets its answer.
        told = true;
        activity.hurry();
        connection.as_mut().graceful_shutdown();
    }
}

/// What is spoken with a client that begins like this.
fn protocols(first: &[u8], limits: Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    // `Activity` sets the deadlines: hyper's own can't tell an idle connection from half a head.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(HEAD);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(limits.idle / 2);
    builder.http2().max_concurrent_streams(STREAMS);
    // The builder could find out by itself, but hands on what it has read for that alone. hyper would make room for more,
    // and keep 16 KiB a connection instead of 8.
    if PREFACE.starts_with(first) { builder } else { builder.http1_only() }
}

/// An answer on its way to a client, with what is kept until it has left.
fn leaving(mut response: Response, version: Version, mut busy: Busy) -> Response<Held<Body, Busy>> {
    busy.handed_on(true);
    busy.taken = response.extensions_mut().remove();
    if busy.leaves_body() {
        // What may still come of it is in the way of the next request, which the client should send elsewhere.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    let length = response.body().size_hint().exact();
    if version == Version::HTTP_2 && length != Some(0) {
        // Which slices don't tell.
        if let Some(length) = length {
            response.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
        }
        response = response.map(sliced);
    }
    response.map(|body| Held::new(body, busy))
}

/// A body in frames of at most [`SLICE`], and its last byte by itself: HTTP/2 asks for it once the client has taken all
/// before it, and lets go of the body only then.
fn sliced(body: Body) -> Body {
    let slices = |mut frame: Bytes| {
        let next = move || (!frame.is_empty()).then(|| frame.split_to((frame.len() - 1).clamp(1, SLICE)));
        stream::iter(iter::from_fn(next)).map(Ok::<_, axum::Error>)
    };
    Body::from_stream(body.into_data_stream().map_ok(slices).try_flatten())
}

#[cfg(test)]
mod tests {
    use super::Client;

    #[test]
    fn client_is_logged_as_its_network() {
        let network = |address: &str| Client::new(address.parse().expect("an address")).network.to_string();
        assert_eq!(network("192.0.2.77"), "192.0.2.0/24");
        assert_eq!(network("ffff:ffff:ffff:ffff::1"), "ffff:ffff:ffff::/48");
    }
}
