//! The Assay agent: owns a machine's key, enrolls the machine, and checks in.
//!
//! [`Agent`] is one machine. [`commands::main`] is the program. A simulated fleet has many agents in one process.

#[cfg(all(feature = "enclave-stand-in", not(debug_assertions)))]
compile_error!("enclave-stand-in simulates a Secure Enclave for tests: a release must not contain it");

pub mod clock;
pub mod commands;
mod config;
mod connection;
mod daemon;
mod exchanges;
pub mod facts;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod key_store;
mod local;
mod proxy;
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
#[allow(
    unsafe_code,
    reason = "the boundary to Swift, which Rust cannot check; no other module may be unsafe"
)]
mod shim;
pub mod state;
mod trust;

pub use connection::{ClientError, Refusal};
pub use exchanges::{
    Agent, AgentError, AgentOptions, EnrollOptions, EnrollOutcome, Failure, ProofError, RotationOutcome, reset,
};
pub use trust::{
    Fingerprint, NotAFingerprint, ServerUrl, ServerUrlError, Trust, TrustAnchor, TrustError, WithdrawnIssuers,
};
