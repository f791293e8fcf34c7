//! What a machine can say of itself: who it is, and the state of its defences. What cannot be read is null, never guessed.

#[cfg(any(target_os = "macos", test))]
mod command;
mod file;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(target_os = "macos", test))]
mod macos;

use std::{fmt, path::PathBuf, sync::Arc};

use assay_protocol::machine::{MachineIdentity, Posture};

pub use file::FileFacts;
#[cfg(target_os = "linux")]
pub use linux::LinuxFacts;
#[cfg(any(target_os = "macos", test))]
pub use macos::MacFacts;

/// The facts that evidence carries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineFacts {
    /// Which machine it is.
    pub machine: MachineIdentity,
    /// The state it is in.
    pub posture: Posture,
}

/// A source of facts, read anew for each piece of evidence. Reading may block.
pub trait Facts: Send + Sync + fmt::Debug {
    /// Reads them.
    fn read(&self) -> Result<MachineFacts, FactsError>;
}

/// Why there are no facts.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// The file cannot be read.
    #[error("{} cannot be read", file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not JSON, or not an object.
    #[error("{} is not a JSON object with \"machine\" and \"posture\"", file.display())]
    NotAnObject {
        /// Which file.
        file: PathBuf,
        /// Where and why.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// A field that no facts have.
    #[error("{}: {field} is no field of the facts", file.display())]
    UnknownField {
        /// Which file.
        file: PathBuf,
        /// Which field, with the object that it is in.
        field: String,
    },
    /// A field with a value that does not fit.
    #[error("{}: {field} has a value that does not fit", file.display())]
    BadValue {
        /// Which file.
        file: PathBuf,
        /// Which field, with the object that it is in.
        field: String,
        /// Why; `None` when the value is none of those that the field can have.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// Nobody has taught this build to read facts from this system.
    #[error("this build cannot read facts from this system; give them with --facts FILE")]
    UnsupportedSystem,
}

/// A simulated machine: its facts are what they are set to.
impl Facts for MachineFacts {
    fn read(&self) -> Result<MachineFacts, FactsError> {
        Ok(self.clone())
    }
}

/// The facts of the system that this runs on.
#[cfg(target_os = "linux")]
pub fn system() -> Result<Arc<dyn Facts>, FactsError> {
    Ok(Arc::new(LinuxFacts::default()))
}

/// The facts of the system that this runs on.
#[cfg(target_os = "macos")]
pub fn system() -> Result<Arc<dyn Facts>, FactsError> {
    Ok(Arc::new(MacFacts))
}

/// The facts of the system that this runs on.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub fn system() -> Result<Arc<dyn Facts>, FactsError> {
    Err(FactsError::UnsupportedSystem)
}

#[cfg(any(target_os = "linux", target_os = "macos"))]
/// What the server would refuse as a claim (blank, overlong, with control characters) is as good as unreadable.
fn claim(text: String) -> Option<String> {
    let text = text.trim();
    let is_fit = !text.is_empty() && text.len() <= 256 && !text.chars().any(char::is_control);
    is_fit.then(|| text.to_owned())
}
