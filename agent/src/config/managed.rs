//! Managed settings: what a configuration profile forces on a Mac. They override the configuration file and the
//! environment, and may change while the daemon runs. Other systems have none.

use std::time::Duration;

use serde_json::{Map, Value};

/// The preference domain, which is also the payload type of the profile.
pub(crate) const DOMAIN: &str = "dev.assay.agent";
/// How often the daemon of a machine without an identity reads the managed settings. The daemon of an enrolled machine
/// reads them each time it wakes up.
pub(crate) const POLL_INTERVAL: Duration = match cfg!(feature = "enclave-stand-in") {
    true => Duration::from_millis(100),
    false => Duration::from_mins(1),
};

/// Why the managed settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManagedSettingsError {
    /// The system reported an error.
    #[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
    #[error("{0}")]
    System(crate::shim::Report),
    /// The shim returned invalid JSON.
    #[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// The values that are forced now for these keys.
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
pub(super) fn settings(keys: &[&str]) -> Result<Map<String, Value>, ManagedSettingsError> {
    let json = crate::shim::managed_settings(DOMAIN, keys).map_err(ManagedSettingsError::System)?;
    Ok(serde_json::from_slice(&json)?)
}

/// The values that are forced now for these keys.
#[cfg(not(any(target_os = "macos", feature = "enclave-stand-in", test)))]
#[allow(clippy::unnecessary_wraps, reason = "on a Mac, reading can fail")]
pub(super) fn settings(_keys: &[&str]) -> Result<Map<String, Value>, ManagedSettingsError> {
    Ok(Map::new())
}

/// Whether this system has managed settings. If so, a daemon without a server waits for them.
pub(crate) const fn are_supported() -> bool {
    cfg!(any(target_os = "macos", feature = "enclave-stand-in"))
}

/// The name of the managed settings in error messages.
pub(super) fn place() -> String {
    format!("the managed settings ({DOMAIN})")
}
