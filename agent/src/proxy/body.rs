//! The bodies of requests and responses, which the proxy streams.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a request to the service.
pub(super) type RequestBody = UnsyncBoxBody<Bytes, BoxError>;

/// Limit for a body that is kept for a repetition, in bytes.
const MAX_KEPT: u64 = 64 * 1024;

/// How long a body that is kept may take to arrive. It occupies one of the proxy's places meanwhile.
const KEPT_WITHIN: Duration = Duration::from_secs(30);

/// Why a body cannot be kept.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the request's body cannot be read")]
    Unreadable(#[source] hyper::Error),
    #[error("the request's body did not arrive within {} s", KEPT_WITHIN.as_secs())]
    Late,
}

/// The body of a program's request.
#[derive(Debug)]
pub(super) enum ProgramBody {
    /// Streamed: it can be sent once.
    Streamed(Incoming),
    /// Kept: it can be sent again.
    Kept(Bytes),
}

impl ProgramBody {
    /// Reads the body if it is announced as short.
    pub(super) async fn keep_if_short(body: Incoming) -> Result<Self, BodyError> {
        if body.size_hint().upper().is_none_or(|length| length > MAX_KEPT) {
            return Ok(Self::Streamed(body));
        }
        let collected = tokio::time::timeout(KEPT_WITHIN, body.collect()).await;
        let collected = collected.map_err(|_| BodyError::Late)?;
        Ok(Self::Kept(collected.map_err(BodyError::Unreadable)?.to_bytes()))
    }

    /// The body for a request, and the same for its repetition if it was kept.
    pub(super) fn into_request(self) -> (RequestBody, Option<RequestBody>) {
        match self {
            Self::Streamed(body) => (body.map_err(Into::into).boxed_unsync(), None),
            Self::Kept(bytes) => (full(bytes.clone()), Some(full(bytes))),
        }
    }
}

/// A response's body that fails if the service pauses for too long.
#[derive(Debug)]
pub(super) struct ResponseBody {
    body: Incoming,
    limit: Duration,
    /// Runs while the next part is waited for.
    pause: Option<Pin<Box<Sleep>>>,
}

/// The service has paused for too long.
#[derive(Debug, thiserror::Error)]
#[error("the service has sent nothing for {} s", .0.as_secs())]
struct Paused(Duration);

impl ResponseBody {
    pub(super) fn new(body: Incoming, limit: Duration) -> Self {
        Self {
            body,
            limit,
            pause: None,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            self.pause = None;
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let limit = self.limit;
        let pause = self.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        pause.as_mut().poll(context).map(|()| Some(Err(Paused(limit).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn full(bytes: Bytes) -> RequestBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}
