//! The environment of this process, which nothing else reads.

use std::ffi::OsString;

/// Every variable. What is not Unicode is replaced, not left out: a setting that is ignored would go unseen.
#[allow(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn process_environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().map(|(name, value)| {
        (
            name.to_string_lossy().into_owned(),
            value.to_string_lossy().into_owned(),
        )
    })
}

/// `PATH`: where the system's programs are looked for.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_default()
}
