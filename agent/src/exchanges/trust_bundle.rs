//! The trust bundle: the roots of the server's authority, as it last told them. They change, with weeks of notice.

use assay_protocol::sha256;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{state::Record, trust::Trust};

/// By which a bundle is told from another one: SHA-256 of its text in base64url.
pub(super) fn digest(bundle: &str) -> String {
    URL_SAFE_NO_PAD.encode(sha256(bundle.as_bytes()))
}

/// Takes over the bundle of an answer: what the machine's programs trust and, where the server is recognized by one of
/// these roots, what it is recognized by from now on. Whoever answered has been recognized by the roots before.
pub(super) fn adopt(record: &mut Record, bundle: String) {
    if Trust::in_certificates(&bundle).is_err() {
        tracing::warn!("the server's roots cannot be read, and the ones before stay");
        return;
    }
    let before = record.machine.as_ref().map(|machine| machine.trust_bundle.clone());
    if let Some(server) = record.server.as_mut() {
        server.trust = server.trust.following(before.as_deref().unwrap_or_default(), &bundle);
    }
    if let Some(machine) = record.machine.as_mut() {
        machine.trust_bundle = bundle;
    }
}
