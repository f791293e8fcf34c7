//! Tests of Assay from outside, in one binary: real programs, real Postgres, real TLS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test that cannot go on has failed and says where, and figures are worth a line"
)]

mod api;
mod flows;
mod ground;
mod independent_client;
mod instruction_count;
mod simulation;
