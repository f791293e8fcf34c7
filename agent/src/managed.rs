//! Settings that a configuration profile forces on a Mac: they go over the configuration's file, and may change while
//! the daemon runs. Other systems have none.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::config::ConfigurationError;

/// The domain of the settings, which is the profile's payload type, too.
pub(crate) const DOMAIN: &str = "dev.assay.agent";
/// How often a daemon looks for changes whose machine is not enrolled. One that is enrolled looks when it wakes up
/// anyway.
pub(crate) const LOOK: Duration = match cfg!(feature = "enclave-stand-in") {
    true => Duration::from_millis(100),
    false => Duration::from_mins(1),
};

/// What is forced now, of these keys.
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
pub(crate) fn settings(keys: &[&str]) -> Result<Map<String, Value>, ConfigurationError> {
    let bad = |reason: String| ConfigurationError::Bad { place: place(), reason };
    let json = crate::shim::managed_settings(DOMAIN, keys).map_err(|report| bad(report.to_string()))?;
    serde_json::from_slice(&json).map_err(|error| bad(error.to_string()))
}

/// What is forced now, of these keys.
#[cfg(not(any(target_os = "macos", feature = "enclave-stand-in", test)))]
#[allow(clippy::unnecessary_wraps, reason = "a Mac can fail to read them")]
pub(crate) fn settings(_keys: &[&str]) -> Result<Map<String, Value>, ConfigurationError> {
    Ok(Map::new())
}

/// Whether this system has such settings, so that a daemon without a server waits for them.
pub(crate) const fn can_come() -> bool {
    cfg!(any(target_os = "macos", feature = "enclave-stand-in"))
}

/// How an error names them.
pub(crate) fn place() -> String {
    format!("the managed settings ({DOMAIN})")
}
