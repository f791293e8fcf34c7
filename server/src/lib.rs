//! The Assay server: a certificate authority that knows its machines, and grants them permissions.

mod acme;
mod administration;
mod assembly;
pub mod attestation;
mod audit;
pub mod authority;
mod check_in;
pub mod cli;
pub mod clock;
pub mod config;
pub mod database;
mod demo;
mod enrollment;
mod error_chain;
mod events;
mod founding;
mod grants;
mod http;
mod introspection;
pub mod lifecycle;
mod machines;
mod mdm;
#[cfg(feature = "measuring")]
#[doc(hidden)]
pub mod measuring;
mod outgoing;
mod random;
mod rate_limits;
mod retention;
mod revocation;
mod rotation;
pub mod running;
mod secrets;
mod services;
pub mod store;
pub mod telemetry;
mod text;
pub mod tls;
mod upkeep;
mod webhooks;
