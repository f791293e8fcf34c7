//! Which permissions a machine has now, and why it has not the others. Pure: the catalog and the subject come in,
//! the result goes out.

pub(crate) mod catalog;
mod conditions;
pub(crate) mod evaluation;
pub(crate) mod os_version;
