//! The Assay server: a certificate authority that knows its machines, and grants them permissions.

mod administration;
mod audit;
pub mod authority;
mod check_in;
pub mod cli;
pub mod clock;
pub mod config;
pub mod database;
mod demo;
mod enrollment;
mod founding;
mod grants;
mod http;
mod introspection;
pub mod lifecycle;
mod machines;
mod random;
mod rate_limits;
pub mod running;
mod secrets;
mod services;
pub mod store;
pub mod telemetry;
mod text;
pub mod tls;
mod upkeep;
