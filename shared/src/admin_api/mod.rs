//! The bodies of `/v1/admin`. Unknown fields are refused: a misspelt condition must not grant more than intended.

pub mod api_keys;
pub mod apple_attestations;
pub mod audiences;
pub mod audit;
pub mod background_work;
pub mod certificates;
pub mod changes;
pub mod enrollment_tokens;
pub mod enrollments;
pub mod events;
pub mod grants;
pub mod inventory;
pub mod machines;
pub mod page;
pub mod permissions;
pub mod policy;
pub mod stats;
pub mod webhooks;
