//! Bodies that a refusal left unread. HTTP/1.1 has the next request behind them on the same connection: they are read
//! to their end, or the caller is told that the connection closes (RFC 9112, section 9.6). Without either, its next
//! request would fail for no reason that it can see. In HTTP/2 the stream of an unread body is reset, and the reset
//! can overtake the answer.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::Request,
    http::{HeaderValue, Version, header},
    response::Response,
};
use http_body_util::{BodyExt, Limited};
use tokio::time::timeout;

/// The most that is read for the sake of the connection, in bytes, and how long.
const MOST: usize = 2 * 1024 * 1024;
const LONGEST: Duration = Duration::from_secs(2);

/// Leaves the connection as the next request needs it.
pub(super) async fn drain(request: Request, next: impl AsyncFnOnce(Request) -> Response) -> Response {
    if request.body().is_end_stream() {
        return next(request).await;
    }
    let has_further_requests = request.version() < Version::HTTP_2;
    let (head, body) = request.into_parts();
    let body = SharedBody(Arc::new(Mutex::new(body)));
    let mut response = next(Request::from_parts(head, Body::new(body.clone()))).await;
    if !body.is_end_stream() {
        let rest = Limited::new(body, MOST);
        let is_read = matches!(timeout(LONGEST, rest.collect()).await, Ok(Ok(_)));
        if !is_read && has_further_requests {
            let headers = response.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    response
}

/// One body that the handler reads, and afterwards whoever drains it.
#[derive(Clone)]
struct SharedBody(Arc<Mutex<Body>>);

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).size_hint()
    }
}
