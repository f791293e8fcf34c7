//! Bodies that were not read because the request was refused. In HTTP/1.1 the next request follows on the same
//! connection. The body is therefore read to its end, or the response announces that the connection closes (RFC 9112,
//! section 9.6). Otherwise the caller's next request would fail without a visible reason. In HTTP/2 the stream of an
//! unread body is reset, and the reset can overtake the response.

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

/// How much of an unread body is read, in bytes, and for how long.
const MAX_BYTES: usize = 2 * 1024 * 1024;
const MAX_TIME: Duration = Duration::from_secs(2);

/// Reads the rest of the body, or closes the connection after the response.
pub(super) async fn drain(request: Request, next: impl AsyncFnOnce(Request) -> Response) -> Response {
    if request.body().is_end_stream() {
        return next(request).await;
    }
    let has_further_requests = request.version() < Version::HTTP_2;
    let (head, body) = request.into_parts();
    let body = SharedBody(Arc::new(Mutex::new(body)));
    let mut response = next(Request::from_parts(head, Body::new(body.clone()))).await;
    if !body.is_end_stream() {
        let rest = Limited::new(body, MAX_BYTES);
        let is_read = matches!(timeout(MAX_TIME, rest.collect()).await, Ok(Ok(_)));
        if !is_read && has_further_requests {
            let headers = response.headers_mut();
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    response
}

/// A body shared by the handler and by the code that drains it afterwards.
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
