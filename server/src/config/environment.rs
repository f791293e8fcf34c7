//! The environment of this process. Only this module reads it.

use std::ffi::OsString;

/// All variables. Invalid Unicode is replaced: a setting must not be ignored silently.
#[allow(clippy::disallowed_methods, reason = "only this module reads the environment")]
pub fn process_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| {
        (
            name.to_string_lossy().into_owned(),
            value.to_string_lossy().into_owned(),
        )
    })
}

/// The variable `PATH`, to find the system's programs.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "only this module reads the environment")]
pub fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_default()
}
