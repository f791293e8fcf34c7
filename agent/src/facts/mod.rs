//! Facts about a machine: its identity and the state of its protections. What cannot be read is null, never guessed.

#[cfg(any(target_os = "macos", test))]
mod command;
mod file;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(target_os = "macos", test))]
mod macos;

use std::{fmt, path::PathBuf, sync::Arc};

use assay_protocol::machine::{MachineIdentity, Posture};
#[cfg(any(target_os = "linux", target_os = "macos", test))]
use assay_protocol::text;

pub use file::FileFacts;
#[cfg(target_os = "linux")]
pub use linux::LinuxFacts;
#[cfg(any(target_os = "macos", test))]
pub use macos::MacFacts;

/// The facts in evidence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineFacts {
    /// The identity of the machine.
    pub machine: MachineIdentity,
    /// The state of its protections.
    pub posture: Posture,
}

/// A source of facts. Each piece of evidence reads them again. Reading may block.
pub trait Facts: Send + Sync + fmt::Debug {
    /// Reads the facts.
    fn read(&self) -> Result<MachineFacts, FactsError>;

    /// Reads the hardware UUID alone.
    fn hardware_uuid(&self) -> Result<Option<String>, FactsError> {
        Ok(self.read()?.machine.hardware_uuid)
    }
}

/// Why the facts cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// The file cannot be read.
    #[error("{} cannot be read", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a JSON object.
    #[error("{} is not a JSON object with \"machine\" and \"posture\"", file.display())]
    NotAnObject {
        /// The file.
        file: PathBuf,
        /// The cause, if the file is not JSON.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// The file has an unknown field.
    #[error("{}: {field} is not a field of the facts", file.display())]
    UnknownField {
        /// The file.
        file: PathBuf,
        /// The field, with its object.
        field: String,
    },
    /// A field has an invalid value.
    #[error("{}: {field} has an invalid value", file.display())]
    BadValue {
        /// The file.
        file: PathBuf,
        /// The field, with its object.
        field: String,
        /// The cause. `None` if the value is not one of the field's words.
        #[source]
        source: Option<serde_json::Error>,
    },
    /// This build supports no facts of this system.
    #[error("this build cannot read facts from this system; give them with --facts FILE")]
    UnsupportedSystem,
}

/// Fixed facts, for simulated machines.
impl Facts for MachineFacts {
    fn read(&self) -> Result<MachineFacts, FactsError> {
        Ok(self.clone())
    }
}

/// The facts of this system.
#[cfg(target_os = "linux")]
pub fn system() -> Result<Arc<dyn Facts>, FactsError> {
    Ok(Arc::new(LinuxFacts::default()))
}

/// The facts of this system.
#[cfg(target_os = "macos")]
pub fn system() -> Result<Arc<dyn Facts>, FactsError> {
    Ok(Arc::new(MacFacts))
}

/// The facts of this system.
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub fn system() -> Result<Arc<dyn Facts>, FactsError> {
    Err(FactsError::UnsupportedSystem)
}

/// A text of the system, by the server's own rule. One that is unfit to be shown is null.
#[cfg(any(target_os = "linux", target_os = "macos", test))]
fn claim(text: &str) -> Option<String> {
    text::display_text(text.trim()).map(str::to_owned)
}

/// A serial number or hardware UUID of the system, by the server's own rule. The server refuses evidence with another one,
/// so it is null.
#[cfg(any(target_os = "linux", target_os = "macos", test))]
fn hardware_id(text: &str) -> Option<String> {
    text::hardware_id(text.trim()).ok().flatten().map(str::to_owned)
}
