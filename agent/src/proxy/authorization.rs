//! What the proxy sends in `Authorization`: the grant token alone, or with a proof of possession (DPoP, RFC 9449).

use std::sync::{Mutex, PoisonError};

use assay_protocol::dpop::{DpopNonce, TargetUri};
use hyper::{
    HeaderMap, StatusCode,
    header::{AUTHORIZATION, HeaderName, HeaderValue},
    http::{request, response},
};

use super::ForwardError;
use crate::{
    exchanges::{Machine, ProvenRequest, Prover},
    state::{Record, current_grant},
};

const DPOP: HeaderName = HeaderName::from_static("dpop");
const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");

/// How the proxy proves that this machine holds the key of its grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ProofKind {
    /// With a signature for each request.
    Dpop,
}

/// What the proxy adds to each request.
#[derive(Debug)]
pub(super) enum Authorization {
    /// Nothing: the program's own `Authorization` header is forwarded.
    None,
    /// The grant token as bearer token. The client certificate proves possession.
    Bearer { audience: String },
    /// The grant token with a proof for the request.
    Dpop {
        audience: String,
        prover: Box<Prover>,
        nonce: ServiceNonce,
    },
}

/// The last nonce of the service. Each response may bring another one (RFC 9449, section 8.2).
#[derive(Debug, Default)]
pub(super) struct ServiceNonce(Mutex<Option<DpopNonce>>);

impl Authorization {
    pub(super) fn new(machine: &Machine, audience: Option<String>, proof: Option<ProofKind>) -> Self {
        match (audience, proof) {
            (None, _) => Self::None,
            (Some(audience), None) => Self::Bearer { audience },
            (Some(audience), Some(ProofKind::Dpop)) => Self::Dpop {
                audience,
                prover: Box::new(machine.prover()),
                nonce: ServiceNonce::default(),
            },
        }
    }

    /// Whether the service may ask for a repetition of a request with its nonce.
    pub(super) fn may_need_a_nonce(&self) -> bool {
        matches!(self, Self::Dpop { .. })
    }

    /// Adds the headers. `url` is the whole URL of the request.
    pub(super) async fn add(
        &self,
        head: &mut request::Parts,
        url: &str,
        machine: &Machine,
        record: &Record,
    ) -> Result<(), ForwardError> {
        match self {
            Self::None => {}
            Self::Bearer { audience } => {
                let grant = current_grant(record, audience, machine.clock.now())?;
                insert(&mut head.headers, AUTHORIZATION, &format!("Bearer {}", grant.token))?;
            }
            Self::Dpop {
                audience,
                prover,
                nonce,
            } => {
                let request = ProvenRequest {
                    method: head.method.as_str().parse().map_err(|_| ForwardError::NoProof)?,
                    target: url.parse::<TargetUri>().map_err(|_| ForwardError::NoProof)?,
                    nonce: nonce.current(),
                };
                let proven = prover.prove(audience, &request).await?;
                insert(
                    &mut head.headers,
                    AUTHORIZATION,
                    &format!("DPoP {}", proven.grant.token),
                )?;
                insert(&mut head.headers, DPOP, &proven.proof)?;
            }
        }
        Ok(())
    }

    /// Keeps the nonce of a response. Returns whether the request must be repeated with it.
    pub(super) fn keep_nonce(&self, response: &response::Parts) -> bool {
        let Self::Dpop { nonce, .. } = self else { return false };
        let mut sent = response.headers.get_all(DPOP_NONCE).iter();
        let (Some(sent), None) = (sent.next(), sent.next()) else {
            return false;
        };
        let Some(sent) = sent.to_str().ok().and_then(|sent| sent.parse::<DpopNonce>().ok()) else {
            return false;
        };
        nonce.keep(sent) && response.status == StatusCode::UNAUTHORIZED
    }
}

impl ServiceNonce {
    fn current(&self) -> Option<DpopNonce> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns whether the nonce is a new one.
    fn keep(&self, nonce: DpopNonce) -> bool {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = current.as_ref() != Some(&nonce);
        *current = Some(nonce);
        is_new
    }
}

/// Replaces a header with a secret value.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: &str) -> Result<(), ForwardError> {
    let mut value = HeaderValue::from_str(value).map_err(|_| ForwardError::InvalidToken)?;
    value.set_sensitive(true);
    headers.insert(name, value);
    Ok(())
}
