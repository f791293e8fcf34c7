//! The Assay agent: it holds a machine's key, enrolls it, and checks in.
//!
//! [`Agent`] is one machine. The program is [`cli::main`] around it; a simulated fleet is many of them in one process.

mod agent;
mod arguments;
mod certificate;
mod check_in;
pub mod cli;
mod client;
mod client_certificate;
pub mod clock;
pub mod config;
mod daemon;
mod delay;
mod enrollment;
mod evidence;
pub mod facts;
mod failure;
mod grant_socket;
mod handshake;
pub mod key_store;
mod local_peers;
mod local_server;
mod nonce;
mod proxy;
mod renewal;
#[cfg(test)]
mod scripted_server;
mod server_url;
mod service;
pub mod state;
mod status;
mod trust;

pub use agent::{Agent, AgentError, AgentOptions, Failure, reset, with_causes};
pub use client::{ClientError, Refusal};
pub use enrollment::{EnrollOptions, EnrollOutcome};
pub use evidence::ProofError;
pub use server_url::{ServerUrl, ServerUrlError};
pub use service::{run, run_once};
pub use trust::{Fingerprint, NotAFingerprint, Trust, TrustAnchor, TrustError};
