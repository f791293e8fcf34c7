//! The Assay agent: it holds a machine's key, enrolls it, and checks in.
//!
//! [`Agent`] is one machine. The program is [`commands::main`] around it; a simulated fleet is many of them in one process.

#[cfg(all(feature = "enclave-stand-in", not(debug_assertions)))]
compile_error!("enclave-stand-in pretends a Secure Enclave, for tests: it has no place in a release");

pub mod clock;
pub mod commands;
mod config;
mod connection;
mod daemon;
mod exchanges;
pub mod facts;
pub mod key_store;
mod local;
mod proxy;
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
#[allow(
    unsafe_code,
    reason = "the boundary to Swift, which Rust cannot check; nothing else may be unsafe"
)]
mod shim;
pub mod state;
mod trust;

pub use connection::{ClientError, Refusal};
pub use exchanges::{Agent, AgentError, AgentOptions, EnrollOptions, EnrollOutcome, Failure, ProofError, reset};
pub use trust::{Fingerprint, NotAFingerprint, ServerUrl, ServerUrlError, Trust, TrustAnchor, TrustError};
