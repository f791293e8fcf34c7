//! The audit: one entry for each change, written in the transaction that makes the change, sealed into a hash chain
//! afterwards.

pub(crate) mod entries;
pub(crate) mod sealing;
pub(crate) mod verification;
