//! The base of the outside tests: Postgres clusters in memory, the real programs as processes, and a server in the test
//! process with a mock clock.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::missing_panics_doc,
    reason = "a test that cannot go on has failed, and says where"
)]

pub mod acme;
pub mod administrator;
pub mod answer;
pub mod api;
pub mod apple;
mod bulk;
pub mod cluster;
pub mod event_stream;
pub mod fleet;
pub mod in_process;
pub mod installation;
pub mod load;
pub mod mac;
pub mod machine;
pub mod nginx;
pub mod node;
pub mod openssl;
pub mod output;
pub mod plans;
pub mod process;
pub mod processes;
pub mod proxied;
pub mod proxy;
pub mod python;
pub mod receiver;
pub mod revocation_race;
pub mod seed;
pub mod simulation;
