//! Changes by administrators, and what they read.

pub(crate) mod api_key_expiry;
pub(crate) mod api_keys;
pub(crate) mod audiences;
pub(crate) mod certificates;
pub(crate) mod enrollment_tokens;
pub(crate) mod grants;
pub(crate) mod inventory;
pub(crate) mod machines;
pub(crate) mod permissions;
pub(crate) mod policy;
pub(crate) mod stats;
pub(crate) mod webhooks;
