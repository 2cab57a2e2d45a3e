//! What a connection is doing, and how long it may take.
//!
//! One mechanism covers silent connections, half-sent heads and HTTP/2 prefaces, idle keep-alive, and clients
//! that don't read their responses: the stream reports when bytes move, the service when it is handling a request.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::Version;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::response_budget::Permits;
use super::{BodyGuard, InFlight, Limits};

const RECHECK: Duration = Duration::from_secs(1);
/// How long a client that was told to go may take for that, or less if it may stall for less.
const CLOSE_WAIT: Duration = Duration::from_secs(5);
/// How long a client may go on sending after its response, before the connection is closed on it.
const LINGER: Duration = Duration::from_millis(500);

/// The state of one connection, shared by its stream, its service and its watcher.
#[derive(Clone, Debug)]
pub(super) struct Activity(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    limits: Limits,
    in_flight: InFlight,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent of one another")]
struct State {
    /// Requests being handled or answered; HTTP/2 has many at once.
    requests: usize,
    /// Whether this is HTTP/2, where bytes between requests may be frames of the connection itself.
    multiplexed: bool,
    /// What is awaited while no request is handled. A new connection owes a request head from the start.
    awaited: Deadline,
    /// Since when it is awaited: set by the first check, which comes after the connection has been polled.
    since: Option<Instant>,
    /// Since when the client has taken nothing of what we want to write.
    stalled_since: Option<Instant>,
    /// Requests whose response is waiting for the client to take it, and since when. An HTTP/2 client can stall
    /// single responses while bytes of the connection itself keep moving.
    untaken: HashMap<u64, Instant>,
    /// Requests so far.
    count: u64,
    body: BodyState,
    /// Whether the connection is shutting down, and waits are cut short.
    closing: bool,
    /// Whether a response came after the client was told to go: it may not have taken it yet.
    answered_late: bool,
    /// Whether a finished response may still be waiting in a buffer.
    unsent: bool,
    /// Held while the client does not take such a response: the request is still in flight.
    in_flight_token: Option<TaskTrackerToken>,
    /// The `ResponseBudget` permits of such responses.
    permits: Vec<Permits>,
}

/// What the client may yet send after its response. It is read and discarded: if we closed the connection with data
/// unread, the kernel would send a reset, which may overtake the response.
#[derive(Debug, Default)]
enum BodyState {
    #[default]
    None,
    Unread,
    Awaited(Instant),
}

impl Activity {
    pub(super) fn new(limits: Limits, in_flight: InFlight) -> Self {
        Self(Arc::new(Shared { limits, in_flight, state: Mutex::default() }))
    }

    /// Whether no request has come yet.
    pub(super) fn is_new(&self) -> bool {
        self.update(|state| state.count == 0)
    }

    /// Cuts the remaining waits short: a client that sends nothing more must not hold up the shutdown.
    pub(super) fn begin_close(&self) {
        self.update(|state| {
            (state.closing, state.since) = (true, None);
            state.untaken.values_mut().for_each(|since| *since = Instant::now());
        });
    }

    /// Marks the connection as HTTP/2, its preface received: the client may have connected ahead of its first request.
    pub(super) fn preface_received(&self) {
        self.update(|state| {
            state.multiplexed = true;
            state.wait_for(Deadline::Idle);
        });
    }

    /// Marks a request as being handled until the guard is dropped.
    pub(super) fn begin_request(&self, version: Version) -> ActiveRequest {
        let stream = self.update(|state| {
            state.requests += 1;
            state.count += 1;
            state.multiplexed = version == Version::HTTP_2;
            state.multiplexed.then_some(state.count)
        });
        ActiveRequest { activity: self.clone(), stream, permits: None, _in_flight: self.0.in_flight.token() }
    }

    /// Marks the body of a request as unread until it has ended.
    pub(super) fn reading(&self) -> Self {
        self.update(|state| state.body = if state.multiplexed { BodyState::None } else { BodyState::Unread });
        self.clone()
    }

    /// Resolves when a deadline has passed, with what it was for. It checks the state each time it is polled, so it
    /// must run in the same task as the connection.
    pub(super) async fn expired(&self) -> Deadline {
        let mut sleep = pin!(sleep_until(Instant::now()));
        poll_fn(|cx| {
            loop {
                let now = Instant::now();
                let (at, deadline) = self.update(|state| state.deadline(&self.0, now));
                if at <= now {
                    return Poll::Ready(deadline);
                }
                // A deadline that moved later needs no new timer: the old one fires early and we check again.
                if at < sleep.deadline() || sleep.is_elapsed() {
                    sleep.as_mut().reset(at);
                }
                ready!(sleep.as_mut().poll(cx));
            }
        })
        .await
    }

    fn update<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.state.lock())
    }
}

/// What a connection was too slow for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Deadline {
    /// Nothing: a request is being handled, and has its own deadlines.
    Busy,
    #[default]
    HeaderRead,
    Idle,
    StalledWrite,
    Untaken,
    Lingering,
}

impl State {
    fn deadline(&mut self, Shared { limits, .. }: &Shared, now: Instant) -> (Instant, Deadline) {
        if let BodyState::Awaited(since) = self.body {
            let limit = match (self.multiplexed, self.closing) {
                (true, _) => limits.stalled_write.min(CLOSE_WAIT),
                (false, true) => Duration::ZERO,
                (false, false) => LINGER,
            };
            (since + limit, Deadline::Lingering)
        } else if let Some(since) = self.stalled_since {
            (since + limits.stalled_write, Deadline::StalledWrite)
        } else if let Some(since) = self.untaken.values().min() {
            (*since + limits.stalled_write, Deadline::Untaken)
        } else if self.requests > 0 {
            // Just a time to check again: over HTTP/2, requests are handled in tasks of their own.
            (now + RECHECK.min(limits.idle), Deadline::Busy)
        } else {
            let limit = if self.awaited == Deadline::Idle { limits.idle } else { limits.header_read };
            // The client was told to go: a live one reacts in this time, and takes what it was sent.
            let limit = if self.closing { limit.min(limits.stalled_write).min(CLOSE_WAIT) } else { limit };
            (*self.since.get_or_insert(now) + limit, self.awaited)
        }
    }

    fn wait_for(&mut self, awaited: Deadline) {
        self.awaited = awaited;
        // Otherwise a client that ignores GOAWAY could hold up the shutdown with one request after another.
        if !self.closing {
            self.since = None;
        }
    }
}

/// A request that is being handled.
#[derive(Debug)]
pub(super) struct ActiveRequest {
    activity: Activity,
    /// Its number on an HTTP/2 connection. None over HTTP/1, where an untaken response stalls the connection itself.
    stream: Option<u64>,
    /// The `ResponseBudget` permits of its response.
    pub(super) permits: Option<Permits>,
    _in_flight: TaskTrackerToken,
}

impl ActiveRequest {
    /// Whether the request body has not been read to its end, on a connection where the next request follows it.
    pub(super) fn has_unread_body(&self) -> bool {
        self.activity.update(|state| matches!(state.body, BodyState::Unread))
    }
}

impl BodyGuard for ActiveRequest {
    fn frame_polled(&mut self, ready: bool) {
        let Some(stream) = self.stream else { return };
        self.activity.update(|state| {
            if ready {
                state.untaken.insert(stream, Instant::now());
            } else {
                // Now the client is waiting for us.
                state.untaken.remove(&stream);
            }
        });
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.activity.update(|state| {
            state.requests -= 1;
            self.stream.map(|stream| state.untaken.remove(&stream));
            state.wait_for(Deadline::Idle);
            (state.unsent, state.answered_late) = (true, state.closing);
            state.permits.extend(self.permits.take());
        });
    }
}

/// Held by the body of a request while it is read.
impl BodyGuard for Activity {
    fn ended(&mut self) {
        self.update(|state| state.body = BodyState::None);
    }
}

/// A TCP stream that tells its [`Activity`] when bytes move.
#[derive(Debug)]
pub(super) struct TrackedStream {
    pub(super) stream: TcpStream,
    pub(super) activity: Activity,
}

impl AsyncRead for TrackedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.update(|state| {
                // Bytes that arrive while nothing is handled can only be the start of a request head.
                if state.requests == 0 && !state.multiplexed && state.awaited == Deadline::Idle {
                    state.wait_for(Deadline::HeaderRead);
                }
            });
        }
        result
    }
}

impl AsyncWrite for TrackedStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.activity.update(|state| {
            if written.is_pending() {
                state.stalled_since.get_or_insert_with(Instant::now);
                if state.unsent {
                    state.in_flight_token.get_or_insert_with(|| self.activity.0.in_flight.token());
                }
            } else {
                (state.stalled_since, state.in_flight_token) = (None, None);
            }
        });
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes once its buffer is empty: finished responses have left.
        self.activity.update(|state| (state.unsent, state.permits) = (false, Vec::new()));
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        let mut lingers = self.activity.update(|state| {
            // While an HTTP/2 client takes its last response, it sends frames of the connection.
            let sends = matches!(state.body, BodyState::Unread) || state.multiplexed && state.answered_late;
            if sends && !matches!(state.body, BodyState::Awaited(_)) {
                state.body = BodyState::Awaited(Instant::now());
            }
            matches!(state.body, BodyState::Awaited(_))
        });
        let mut bytes = [0; 8192];
        while lingers {
            let mut buffer = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            lingers = !buffer.filled().is_empty();
        }
        Poll::Ready(Ok(()))
    }
}
