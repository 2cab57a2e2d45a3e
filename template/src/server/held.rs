//! A body that keeps a value alive until it has been sent, or given up.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http_body::{Body, Frame, SizeHint};

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

impl<B: Body + Unpin, T: Unpin> Body for Held<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() {
            self.value = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
