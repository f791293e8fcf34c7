//! What an Assay agent and an Assay server say to each other.
//!
//! Everything here is pure: bytes in, types out. What has come from outside and has not been
//! checked has a type of its own ([`UnverifiedCsr`], [`UnverifiedEvidence`]) that can do nothing but be verified.

pub mod admin_api;
pub mod agent_api;
pub mod attestation;
pub mod csr;
pub mod digest;
pub mod error_chain;
pub mod evidence;
pub mod key;
pub mod machine;
pub mod mdm_api;
mod names;
mod object;
pub mod problem;
pub mod text;

pub use csr::{Csr, UnverifiedCsr};
pub use digest::sha256;
pub use error_chain::Chain;
pub use evidence::{Evidence, EvidenceClaims, Purpose, UnverifiedEvidence};
pub use key::{KeyThumbprint, PublicKey};
pub use problem::{Problem, ProblemKind, Retry};
