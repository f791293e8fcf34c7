//! Settings that a configuration profile forces on a Mac: they go over the configuration's file, and may change while
//! the daemon runs. Other systems have none.

use std::time::Duration;

use serde_json::{Map, Value};

/// The domain of the settings, which is the profile's payload type, too.
pub(crate) const DOMAIN: &str = "dev.assay.agent";
/// How often a daemon looks for changes whose machine is not enrolled. One that is enrolled looks when it wakes up
/// anyway.
pub(crate) const LOOK: Duration = match cfg!(feature = "enclave-stand-in") {
    true => Duration::from_millis(100),
    false => Duration::from_mins(1),
};

/// Why the managed settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManagedSettingsError {
    /// The system refused.
    #[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
    #[error("{0}")]
    System(crate::shim::Report),
    /// The system's answer is not the JSON that was asked for.
    #[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// What is forced now, of these keys.
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
pub(super) fn settings(keys: &[&str]) -> Result<Map<String, Value>, ManagedSettingsError> {
    let json = crate::shim::managed_settings(DOMAIN, keys).map_err(ManagedSettingsError::System)?;
    Ok(serde_json::from_slice(&json)?)
}

/// What is forced now, of these keys.
#[cfg(not(any(target_os = "macos", feature = "enclave-stand-in", test)))]
#[allow(clippy::unnecessary_wraps, reason = "a Mac can fail to read them")]
pub(super) fn settings(_keys: &[&str]) -> Result<Map<String, Value>, ManagedSettingsError> {
    Ok(Map::new())
}

/// Whether this system has such settings, so that a daemon without a server waits for them.
pub(crate) const fn can_come() -> bool {
    cfg!(any(target_os = "macos", feature = "enclave-stand-in"))
}

/// How an error names them.
pub(super) fn place() -> String {
    format!("the managed settings ({DOMAIN})")
}
