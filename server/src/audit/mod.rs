//! The audit log. Each change writes one entry in its own transaction. Entries are sealed into a hash chain afterwards.

pub(crate) mod entries;
pub(crate) mod sealing;
pub(crate) mod verification;
