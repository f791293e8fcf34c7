//! What a service puts in front of itself, to let in only machines that Assay has granted access.
//!
//! [`Verifier`] checks a grant token: signature, issuer, audience, time, permissions, and that the caller holds the key
//! that the token is bound to. The proof of that is the client certificate (RFC 8705) or a signature for the request
//! (DPoP, RFC 9449). [`VerifyLayer`] does this inside a tower service. The program `assay-verify` does it for a proxy:
//! nginx (`auth_request`), HAProxy, or Envoy (external authorization over HTTP).

mod access;
mod certificate_header;
mod clock;
mod https;
mod introspection;
mod keys;
mod layer;
pub mod program;
mod refusal;
mod replay;
mod token;
mod verifier;

pub use self::{
    access::Access,
    https::{IssuerUrl, Roots, SetUpError},
    introspection::{IntrospectionOptions, WhenAway},
    layer::{ClientCertificate, Verify, VerifyLayer},
    refusal::Refusal,
    verifier::{Presented, RequiredProof, Verifier, VerifierOptions},
};
