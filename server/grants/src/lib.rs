//! Which permissions a machine has now, and why it has not the others. Pure: the catalog and the subject come in,
//! the result goes out.

mod catalog;
mod conditions;
mod evaluation;
mod os_version;

pub use catalog::{Catalog, CatalogGrant};
pub use evaluation::{Attestation, Evaluation, Subject, evaluate};
pub use os_version::OsVersion;
