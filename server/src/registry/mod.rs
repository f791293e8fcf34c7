//! The registry: what acts on machines. Who may act for one now, what changes its record, and what revokes it.

pub(crate) mod admission;
pub(crate) mod apple_attestations;
pub(crate) mod certificate_revocation;
pub(crate) mod client_certificate;
mod continuity;
pub(crate) mod devices;
pub(crate) mod key_replacement;
pub(crate) mod key_rotation;
pub(crate) mod liveness_sweep;
pub(crate) mod opening;
pub(crate) mod reason;
pub(crate) mod record;
pub(crate) mod status_change;
mod superseded_keys;
