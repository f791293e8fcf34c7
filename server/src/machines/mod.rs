//! Machines as data: claims, assurance, labels and liveness. Pure.

pub(crate) mod assurance;
pub(crate) mod boundaries;
pub(crate) mod claims;
pub(crate) mod client_certificate;
pub(crate) mod continuity;
pub(crate) mod labels;
pub(crate) mod liveness;
pub(crate) mod opening;
