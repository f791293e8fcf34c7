//! What a service learns of a machine that was let in.

use assay_protocol::machine::Assurance;
use http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

/// The headers to the service. Those of a client are always removed.
pub(crate) const MACHINE: HeaderName = HeaderName::from_static("x-assay-machine");
pub(crate) const PERMISSIONS: HeaderName = HeaderName::from_static("x-assay-permissions");
pub(crate) const ASSURANCE: HeaderName = HeaderName::from_static("x-assay-assurance");

/// A machine that was let in, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// The machine's id.
    pub machine_id: Uuid,
    /// All its permissions at this audience.
    pub permissions: Vec<String>,
    /// How well its serial number is confirmed.
    pub assurance: Assurance,
}

/// A permission has characters that a header cannot have.
#[derive(Debug, thiserror::Error)]
#[error("a permission cannot be sent in a header")]
pub(crate) struct NoHeader;

impl Access {
    /// Replaces the headers of this access.
    pub(crate) fn write(&self, headers: &mut HeaderMap) -> Result<(), NoHeader> {
        let is_word = |permission: &String| permission.bytes().all(|byte| byte.is_ascii_graphic());
        if !self.permissions.iter().all(is_word) {
            return Err(NoHeader);
        }
        let value = |text: &str| HeaderValue::from_str(text).map_err(|_| NoHeader);
        let machine = value(self.machine_id.as_hyphenated().encode_lower(&mut Uuid::encode_buffer()))?;
        let permissions = value(&self.permissions.join(" "))?;
        headers.insert(MACHINE, machine);
        headers.insert(PERMISSIONS, permissions);
        headers.insert(ASSURANCE, HeaderValue::from_static(self.assurance.as_str()));
        Ok(())
    }
}

/// Removes every header that a service takes for this program's, also ones that later versions may add. Some services
/// read `_` as `-`.
pub(crate) fn strip(headers: &mut HeaderMap) {
    let ours: Vec<_> = headers
        .keys()
        .filter(|name| name.as_str().replace('_', "-").starts_with("x-assay-"))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
}
