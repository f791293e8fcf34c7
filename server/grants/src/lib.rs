//! Evaluates which permissions a machine has now, and why it lacks the others. Pure: a function of the catalog, the
//! machine and the time.

mod catalog;
mod conditions;
mod evaluation;
mod os_version;
mod placeholders;
mod token_template;

pub use catalog::{Catalog, CatalogGrant};
pub use evaluation::{Attestation, Evaluation, Granted, Subject, evaluate};
pub use os_version::OsVersion;
pub use placeholders::TextError;
pub use token_template::{LONGEST_LIFETIME, TemplateError, TokenContents, TokenTemplate};
