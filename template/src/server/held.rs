//! A body that keeps a value alive until it has been sent, or given up.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

/// What is told how the body that holds it fares.
pub trait Hold {
    /// The next frame was handed to the connection, or (`false`) is not there yet.
    fn handed_on(&mut self, _frame: bool) {}

    /// All frames were.
    fn ended(&mut self) {}
}

/// Body `B`, and a value that is dropped when the last frame has been handed to the connection or the body itself is
/// dropped. What happens at its drop is the purpose: a count goes down, a log line is written.
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
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let ended = matches!(frame, Poll::Ready(None)) || self.body.is_end_stream();
        if let Some(value) = &mut self.value {
            value.handed_on(frame.is_ready());
            if ended {
                value.ended();
            }
        }
        self.value.take_if(|_| matches!(frame, Poll::Ready(None)));
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
