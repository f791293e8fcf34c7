//! The registry: machines, what they claim, who may act for them, and whether they are alive.

pub(crate) mod admission;
pub(crate) mod assurance;
pub(crate) mod boundaries;
pub(crate) mod claims;
pub(crate) mod client_certificate;
pub(crate) mod devices;
pub(crate) mod labels;
pub(crate) mod liveness;
pub(crate) mod noted_liveness;
pub(crate) mod record;
pub(crate) mod rotation;
