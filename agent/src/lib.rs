//! The Assay agent: it holds a machine's key, enrolls it, and checks in.
//!
//! [`Agent`] is one machine. The program is [`cli::main`] around it; a simulated fleet is many of them in one process.

#[cfg(all(feature = "enclave-stand-in", not(debug_assertions)))]
compile_error!("enclave-stand-in pretends a Secure Enclave, for tests: it has no place in a release");

mod agent;
mod agent_error;
mod arguments;
mod attempt;
mod certificate;
mod check_in;
pub mod cli;
mod client;
mod client_certificate;
pub mod clock;
pub mod config;
mod credential;
mod daemon;
mod delay;
mod doctor;
mod enrollment;
mod evidence;
pub mod facts;
mod failure;
mod grant_socket;
mod handshake;
pub mod key_store;
mod local_peers;
mod local_server;
mod managed;
mod nonce;
mod proxy;
mod renewal;
mod rotation;
#[cfg(test)]
mod scripted_server;
mod selftest;
mod server_url;
mod service;
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
#[allow(
    unsafe_code,
    reason = "the boundary to Swift, which Rust cannot check; nothing else may be unsafe"
)]
mod shim;
pub mod state;
mod state_error;
mod status;
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
mod system_log;
mod trust;
mod trust_bundle;
mod wake;

pub use agent::{Agent, AgentError, AgentOptions, Failure, reset, with_causes};
pub use client::{ClientError, Refusal};
pub use enrollment::{EnrollOptions, EnrollOutcome};
pub use evidence::ProofError;
pub use server_url::{ServerUrl, ServerUrlError};
pub use service::{run, run_once};
pub use trust::{Fingerprint, NotAFingerprint, Trust, TrustAnchor, TrustError};
