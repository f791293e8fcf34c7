//! The protocol between an Assay agent and an Assay server.
//!
//! Everything here is pure: bytes in, types out. Unchecked input has a type of its own
//! ([`UnverifiedCsr`], [`UnverifiedEvidence`]), which can only be verified.

pub mod admin_api;
pub mod agent_api;
pub mod attestation;
pub mod csr;
pub mod digest;
pub mod dpop;
pub mod error_chain;
pub mod evidence;
pub mod jws;
pub mod key;
pub mod machine;
pub mod mdm_api;
mod object;
pub mod problem;
pub mod text;
pub mod word;

pub use csr::{Csr, UnverifiedCsr};
pub use digest::sha256;
pub use error_chain::Chain;
pub use evidence::{Evidence, EvidenceClaims, Purpose, UnverifiedEvidence};
pub use key::{KeyThumbprint, PublicKey};
pub use problem::{Problem, ProblemKind, Retry};
