//! Evaluates which permissions a machine has now, and why it lacks the others. Pure: a function of the catalog, the
//! machine and the time.

mod catalog;
mod conditions;
mod evaluation;
mod os_version;

pub use catalog::{Catalog, CatalogGrant};
pub use evaluation::{Attestation, Evaluation, Subject, evaluate};
pub use os_version::OsVersion;
