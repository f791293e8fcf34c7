//! The Assay server: a certificate authority that knows the machines of a fleet and grants them permissions.

mod acme;
mod administration;
mod audit;
mod changes;
mod check_in;
pub mod cli;
pub mod clock;
pub mod config;
pub mod connections;
pub mod database;
mod demo;
mod enrollment;
mod events;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod keyring;
mod machines;
mod mdm;
#[cfg(feature = "measuring")]
#[doc(hidden)]
pub mod measuring;
mod memory;
mod networks;
mod outgoing;
mod periodic;
mod rate_limits;
mod readiness;
mod registry;
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
mod webhooks;
