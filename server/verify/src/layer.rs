//! The verifier as a layer of a tower service, such as an axum router.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use assay_protocol::{dpop::TargetUri, sha256};
use http::{Request, Response};
use tower::{Layer, Service};

use crate::{
    access::{Access, strip},
    clock::now,
    refusal::Refusal,
    verifier::{Presented, Verifier},
};

/// The client certificate of a request's TLS connection, in DER. A service that ends TLS itself puts it into the
/// extensions of each request.
#[derive(Debug, Clone)]
pub struct ClientCertificate(pub Arc<[u8]>);

/// Lets in only machines. Put it outside of everything that changes paths.
///
/// The inner service gets [`Access`] as an extension, and in the headers `X-Assay-Machine`, `X-Assay-Permissions` and
/// `X-Assay-Assurance`. Headers of these names that a client sent are removed.
#[derive(Debug, Clone)]
pub struct VerifyLayer {
    verifier: Arc<Verifier>,
    origin: Arc<str>,
    required: Arc<[String]>,
}

/// A service behind a [`VerifyLayer`].
#[derive(Debug, Clone)]
pub struct Verify<S> {
    inner: S,
    layer: VerifyLayer,
}

impl VerifyLayer {
    /// `origin` is the scheme and authority under which clients reach the service, such as `https://wiki.example.com`.
    /// It is not taken from a request, because a proof for another service must not be accepted. Each request needs all
    /// permissions in `required`.
    #[must_use]
    pub fn new(verifier: Arc<Verifier>, origin: &str, required: Vec<String>) -> Self {
        Self {
            verifier,
            origin: origin.trim_end_matches('/').into(),
            required: required.into(),
        }
    }

    async fn verify<B>(&self, request: &mut Request<B>) -> Result<(), Refusal> {
        strip(request.headers_mut());
        let target = format!("{}{}", self.origin, request.uri().path()).parse::<TargetUri>();
        let method = request.method().as_str().parse();
        let certificate = request.extensions().get::<ClientCertificate>();
        let presented = Presented {
            headers: request.headers(),
            certificate: certificate.map(|certificate| sha256(&certificate.0)),
            request: method.ok().zip(target.ok()),
            required: &self.required,
        };
        let access: Access = self.verifier.verify(&presented, now()).await?;
        access
            .write(request.headers_mut())
            .map_err(|error| Refusal::InvalidToken(error.to_string()))?;
        request.extensions_mut().insert(access);
        Ok(())
    }
}

impl<S> Layer<S> for VerifyLayer {
    type Service = Verify<S>;

    fn layer(&self, inner: S) -> Verify<S> {
        Verify {
            inner,
            layer: self.clone(),
        }
    }
}

impl<S, B, R> Service<Request<B>> for Verify<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    B: Send + 'static,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        // The service that is ready, and not its clone, takes the request.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let layer = self.layer.clone();
        Box::pin(async move {
            match layer.verify(&mut request).await {
                Ok(()) => inner.call(request).await,
                Err(refusal) => {
                    let mut response = Response::new(R::default());
                    *response.status_mut() = refusal.status();
                    refusal.write(layer.verifier.proof(), response.headers_mut());
                    Ok(response)
                }
            }
        })
    }
}
