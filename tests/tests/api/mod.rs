//! The API of one server: every operation, every problem, and wrong bodies for each.

mod addresses;
mod api_keys;
mod audited_reenrollment;
mod background_work;
mod bodies;
mod body_in_parts;
mod claims;
mod client_certificates;
mod document;
mod event_streams;
mod large_fleet;
mod limits;
mod lists;
mod openapi;
mod operations;
mod problems;
mod retention;
mod search;
mod stats;
mod strangers;
