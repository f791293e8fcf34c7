//! The Assay server: a certificate authority that knows its machines, and grants them permissions.

pub mod authority;
pub mod clock;
pub mod config;
pub mod database;
pub mod lifecycle;
mod random;
pub mod telemetry;
pub mod tls;
