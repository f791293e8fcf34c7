//! Machines as data: what they claim, how far that is assured, their labels, and whether they are alive. Pure.

pub(crate) mod assurance;
pub(crate) mod boundaries;
pub(crate) mod claims;
pub(crate) mod client_certificate;
pub(crate) mod labels;
pub(crate) mod liveness;
