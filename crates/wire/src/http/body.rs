//! Request bodies that fail when too large or too slow, and response bodies that hold their
//! request's permit until they are sent.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cohort_base::Cause;
use http_body_util::Limited;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;

/// A request body that fails when it exceeds `bytes_max` or pauses for longer than `idle_max`.
pub(super) struct GuardedBody {
    inner: Limited<Incoming>,
    idle_max: Duration,
    pause: Pin<Box<Sleep>>,
}

impl GuardedBody {
    pub(super) fn new(inner: Incoming, bytes_max: u64, idle_max: Duration) -> Self {
        let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX);
        let pause = Box::pin(tokio::time::sleep(idle_max));
        Self { inner: Limited::new(inner, bytes_max), idle_max, pause }
    }
}

impl Body for GuardedBody {
    type Data = Bytes;
    type Error = Cause;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cause>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            // The clock restarts when the handler asks for more, not while it is busy.
            let next = tokio::time::Instant::now() + self.idle_max;
            self.pause.as_mut().reset(next);
            return Poll::Ready(frame);
        }
        std::task::ready!(self.pause.as_mut().poll(context));
        let reason = format!("request body paused for {} ms", self.idle_max.as_millis());
        Poll::Ready(Some(Err(reason.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A response body that holds its request's permit.
pub(super) struct CountedBody {
    pub(super) inner: axum::body::Body,
    pub(super) _permit: Option<OwnedSemaphorePermit>,
}

impl Body for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
