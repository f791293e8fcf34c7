//! What a response says about the server's CAs: the current roots, which change with weeks of notice, and the issuing
//! CAs that were withdrawn.

use assay_protocol::{agent_api::IssuedCertificate, sha256};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use time::OffsetDateTime;

use crate::{
    state::Record,
    trust::{KnownServer, Trust},
};

/// The digest that identifies a bundle: SHA-256 of its text, in base64url.
pub(super) fn digest(bundle: &str) -> String {
    URL_SAFE_NO_PAD.encode(sha256(bundle.as_bytes()))
}

/// Records what a response says. The bundle adds the roots that follow a trusted one. Withdrawn issuing CAs are never
/// accepted again.
pub(super) fn adopt(record: &mut Record, bundle: Option<String>, withdrawn: &[String], now: OffsetDateTime) {
    if let Some(server) = record.server.as_mut() {
        server.withdrawn.add(withdrawn);
    }
    let Some(bundle) = bundle else { return };
    if Trust::from_certificates(&bundle).is_err() {
        tracing::warn!("the server sent an invalid trust bundle: keeping the previous one");
        return;
    }
    if let Some(server) = record.server.as_mut() {
        server.trust = server.trust.followed(&bundle, now);
    }
    if let Some(machine) = record.machine.as_mut() {
        machine.trust_bundle = bundle;
    }
}

/// Whether a CA in the machine's chain is withdrawn, by the record or by this response.
pub(super) fn is_from_withdrawn_issuer(
    certificate: &IssuedCertificate,
    server: &KnownServer,
    withdrawn: &[String],
) -> bool {
    let mut known = server.withdrawn.clone();
    known.add(withdrawn);
    known.issued(&certificate.chain)
}
