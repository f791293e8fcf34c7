//! The protocol from outside: golden vectors, round trips, and untrusted bytes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that cannot go on has failed, and says where"
)]

mod dpop;
mod key;
mod outside_bytes;
mod round_trips;
mod text;
mod vectors;
