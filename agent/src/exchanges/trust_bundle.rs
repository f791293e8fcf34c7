//! The trust bundle: the current roots of the server's CA. They change, with weeks of notice.

use assay_protocol::sha256;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{state::Record, trust::Trust};

/// The digest that identifies a bundle: SHA-256 of its text, in base64url.
pub(super) fn digest(bundle: &str) -> String {
    URL_SAFE_NO_PAD.encode(sha256(bundle.as_bytes()))
}

/// Records the bundle of a response. If the agent authenticates the server by a root of this bundle, it uses the new
/// roots from now on. The response came from a server that the previous roots authenticated.
pub(super) fn adopt(record: &mut Record, bundle: String) {
    if Trust::from_certificates(&bundle).is_err() {
        tracing::warn!("the server sent an invalid trust bundle: keeping the previous one");
        return;
    }
    let before = record.machine.as_ref().map(|machine| machine.trust_bundle.clone());
    if let Some(server) = record.server.as_mut() {
        server.trust = server.trust.updated(before.as_deref().unwrap_or_default(), &bundle);
    }
    if let Some(machine) = record.machine.as_mut() {
        machine.trust_bundle = bundle;
    }
}
