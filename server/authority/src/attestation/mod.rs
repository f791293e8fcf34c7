//! Attestations by third parties, such as Apple, about a machine. Pure functions: from bytes and a time to verified
//! claims.

pub mod apple;
