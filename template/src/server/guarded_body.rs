//! A body that keeps a value alive until it has been sent or abandoned.

use std::pin::Pin;
use std::task::{Context, Poll};

use http_body::{Body, Frame, SizeHint};

/// A value that is told about the progress of the body that holds it.
pub trait BodyGuard {
    /// The next frame was handed to the connection or, if `false`, is not ready yet.
    fn frame_polled(&mut self, _ready: bool) {}

    /// All frames have been handed to the connection.
    fn ended(&mut self) {}
}

/// Body `B`, and a value that is dropped when the last frame has been handed to the connection or the body itself is
/// dropped. The value is there for what its `Drop` does: decrement a count, write a log line.
#[derive(Debug)]
pub struct Guarded<B, T> {
    body: B,
    value: Option<T>,
}

impl<B, T> Guarded<B, T> {
    pub fn new(body: B, value: T) -> Self {
        Self { body, value: Some(value) }
    }
}

impl<B: Body + Unpin, T: BodyGuard + Unpin> Body for Guarded<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let ended = matches!(frame, Poll::Ready(None)) || self.body.is_end_stream();
        if let Some(value) = &mut self.value {
            value.frame_polled(frame.is_ready());
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
