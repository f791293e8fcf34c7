//! A door to the proxy's check of requests (the feature `fuzzing`), for `tests/fuzz`.

use hyper::http::{StatusCode, request::Parts};

use crate::proxy::message::{Site, prepare_request};

/// Checks and changes the head of a request as the proxy does, on a loopback address or on a Unix socket.
/// Returns the path to request.
///
/// # Errors
/// The status of the refusal.
pub fn prepare_proxied_request(head: &mut Parts, is_loopback: bool) -> Result<String, StatusCode> {
    let site = if is_loopback { Site::Loopback } else { Site::UnixSocket };
    prepare_request(head, site).map_err(|rejected| rejected.status())
}
