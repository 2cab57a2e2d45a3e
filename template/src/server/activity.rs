//! What a connection is doing, and for how long it may.
//!
//! One mechanism covers silent connections, half-sent heads and HTTP/2 prefaces, idle keep-alive, and clients
//! that don't read their answers: the stream tells when bytes move, the service when a request is handled.

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

use super::room::Taken;
use super::{Hold, InFlight, Limits};

const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long an answer may take to stop a client that goes on sending.
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
struct State {
    /// Requests being handled or answered; HTTP/2 has many at once.
    requests: usize,
    /// Whether this is HTTP/2, where bytes between requests may be frames of the connection itself.
    multiplexed: bool,
    /// What is awaited while no request is handled. A new connection owes a head from the start.
    awaited: Deadline,
    /// Since when: as of the first look, which comes once the connection has moved.
    since: Option<Instant>,
    /// Since when the client takes nothing of what we want to write.
    stalled_since: Option<Instant>,
    /// Requests whose answer the client has to take, and since when. HTTP/2 clients may refuse to, one by one,
    /// while bytes of the connection itself go on.
    untaken: HashMap<u64, Instant>,
    /// Requests so far.
    count: u64,
    rest: Rest,
    /// Whether the service stops.
    hurries: bool,
    /// Whether an answer that is finished may wait in a buffer still.
    unsent: bool,
    /// Held while the client does not take such an answer: it is in flight.
    held_up: Option<TaskTrackerToken>,
    /// The room of such answers.
    taken: Vec<Taken>,
}

/// What still comes of a body after its answer. It is read and forgotten: closed on it, the kernel would send a
/// reset, which may overtake the answer.
#[derive(Debug, Default)]
enum Rest {
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

    /// Waits no longer than it must: a client that says nothing further must not hold up the stop.
    pub(super) fn hurry(&self) {
        self.update(|state| {
            (state.hurries, state.since) = (true, None);
            state.untaken.values_mut().for_each(|since| *since = Instant::now());
        });
    }

    /// Marks it as HTTP/2 whose client has begun: it may have connected ahead of its first request.
    pub(super) fn greeted(&self) {
        self.update(|state| {
            state.multiplexed = true;
            state.wait_for(Deadline::Idle);
        });
    }

    /// Marks a request as being handled until the guard is dropped.
    pub(super) fn busy(&self, version: Version) -> Busy {
        let stream = self.update(|state| {
            state.requests += 1;
            state.count += 1;
            state.multiplexed = version == Version::HTTP_2;
            state.multiplexed.then_some(state.count)
        });
        Busy { activity: self.clone(), stream, taken: None, _in_flight: self.0.in_flight.token() }
    }

    /// Marks the body of a request as unread until it has ended.
    pub(super) fn reading(&self) -> Self {
        self.update(|state| state.rest = if state.multiplexed { Rest::None } else { Rest::Unread });
        self.clone()
    }

    /// Resolves when a deadline has passed, with what it was for. It looks at the state each time it is polled, and so
    /// must share a task with the connection.
    pub(super) async fn expired(&self) -> Deadline {
        let mut sleep = pin!(sleep_until(Instant::now()));
        poll_fn(|cx| {
            loop {
                let now = Instant::now();
                let (at, deadline) = self.update(|state| state.deadline(&self.0, now));
                if at <= now {
                    return Poll::Ready(deadline);
                }
                // A deadline that moved away needs no new timer: the old one fires early and we look again.
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
    /// Nothing: a request is handled, and has deadlines of its own.
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
        if let Rest::Awaited(since) = self.rest {
            (since + if self.hurries { Duration::ZERO } else { LINGER }, Deadline::Lingering)
        } else if let Some(since) = self.stalled_since {
            (since + limits.stalled_write, Deadline::StalledWrite)
        } else if let Some(since) = self.untaken.values().min() {
            (*since + limits.stalled_write, Deadline::Untaken)
        } else if self.requests > 0 {
            // Some moment to look again: with HTTP/2, requests are handled in tasks of their own.
            (now + LOOK_AGAIN.min(limits.idle), Deadline::Busy)
        } else {
            let limit = if self.awaited == Deadline::Idle { limits.idle } else { limits.header_read };
            // It was told to go; whoever is there answers that, and takes what it was sent.
            let limit = if self.hurries { limit.min(limits.stalled_write) } else { limit };
            (*self.since.get_or_insert(now) + limit, self.awaited)
        }
    }

    fn wait_for(&mut self, awaited: Deadline) {
        self.awaited = awaited;
        // Or a client that does not heed GOAWAY could hold up the stop with one request after the other.
        if !self.hurries {
            self.since = None;
        }
    }
}

/// A request that is being handled.
#[derive(Debug)]
pub(super) struct Busy {
    activity: Activity,
    /// Which it is of those that share the connection; without, what waits for the client waits in the connection.
    stream: Option<u64>,
    /// The room of its answer.
    pub(super) taken: Option<Taken>,
    _in_flight: TaskTrackerToken,
}

impl Busy {
    /// Whether the body is not read to its end, on a connection where the next request comes after it.
    pub(super) fn leaves_body(&self) -> bool {
        self.activity.update(|state| matches!(state.rest, Rest::Unread))
    }
}

impl Hold for Busy {
    fn handed_on(&mut self, frame: bool) {
        let Some(stream) = self.stream else { return };
        self.activity.update(|state| {
            if frame {
                state.untaken.insert(stream, Instant::now());
            } else {
                // It is we who make the client wait.
                state.untaken.remove(&stream);
            }
        });
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.activity.update(|state| {
            state.requests -= 1;
            self.stream.map(|stream| state.untaken.remove(&stream));
            state.wait_for(Deadline::Idle);
            state.unsent = true;
            state.taken.extend(self.taken.take());
        });
    }
}

/// Held by the body of a request while it is read.
impl Hold for Activity {
    fn ended(&mut self) {
        self.update(|state| state.rest = Rest::None);
    }
}

/// A TCP stream that tells its [`Activity`] when bytes move.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) stream: TcpStream,
    pub(super) activity: Activity,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.update(|state| {
                // Bytes while nothing is handled can only be the start of a request head.
                if state.requests == 0 && !state.multiplexed && state.awaited == Deadline::Idle {
                    state.wait_for(Deadline::HeaderRead);
                }
            });
        }
        result
    }
}

impl AsyncWrite for Watched {
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
                    state.held_up.get_or_insert_with(|| self.activity.0.in_flight.token());
                }
            } else {
                (state.stalled_since, state.held_up) = (None, None);
            }
        });
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes once its buffer is empty: what was answered has left.
        self.activity.update(|state| (state.unsent, state.taken) = (false, Vec::new()));
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        let mut lingers = self.activity.update(|state| {
            if let Rest::Unread = state.rest {
                state.rest = Rest::Awaited(Instant::now());
            }
            matches!(state.rest, Rest::Awaited(_))
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
