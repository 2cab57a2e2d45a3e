//! A body that keeps a value alive until it has been sent, or given up.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::Error;
use axum::body::{Body as Answer, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::Version;

/// What is told how the body that holds it fares.
pub trait Hold {
    /// The next frame was handed to the connection, or (`false`) is not there yet.
    fn handed_on(&mut self, _frame: bool) {}

    /// All frames were.
    fn ended(&mut self) {}
}

/// Body `B`, and a value that is dropped when the last frame has been handed to the connection or the body
/// itself is dropped, whichever comes first. What happens at its drop is the purpose: a count goes down, a log line is written.
#[derive(Debug)]
pub struct Held<B, T> {
    body: B,
    value: Option<T>,
}

impl<B, T> Held<B, T> {
    pub fn new(body: B, value: T) -> Self {
        Self { body, value: Some(value) }
    }
}

impl<B: Body + Unpin, T: Hold + Unpin> Body for Held<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        let ended = matches!(frame, Poll::Ready(None)) || self.body.is_end_stream();
        if let Some(value) = &mut self.value {
            value.handed_on(frame.is_ready());
            if ended {
                value.ended();
            }
        }
        if matches!(frame, Poll::Ready(None)) {
            self.value = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// In bytes: the most that is handed on at once.
const SLICE: usize = 16 * 1024;

/// A body in small frames. Of a large one HTTP/2 would keep what the client does not take, where nobody sees it.
#[derive(Debug)]
pub(super) struct Sliced {
    body: Answer,
    rest: Bytes,
}

impl Sliced {
    /// `body` as `version` needs it.
    pub(super) fn where_needed(body: Answer, version: Version) -> Answer {
        let is_small = body.size_hint().upper().is_some_and(|length| length <= SLICE as u64);
        if version < Version::HTTP_2 || is_small {
            body
        } else {
            Answer::new(Self { body, rest: Bytes::new() })
        }
    }
}

impl Body for Sliced {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                end => return Poll::Ready(end),
            }
        }
        let length = self.rest.len().min(SLICE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }
}
