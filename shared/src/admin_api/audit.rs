//! `/v1/admin/audit`

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::words;

words! {
    /// What kind of actor made a change.
    pub enum ActorKind {
        /// An administrator with an API key.
        ApiKey = "api-key",
        /// A machine with its key.
        Machine = "machine",
        /// A person at the server's command line.
        CommandLine = "command-line",
        /// The server itself.
        System = "system",
    }
}

/// Who made a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Actor {
    /// The kind of actor.
    pub kind: ActorKind,
    /// Its id, if it has one.
    pub id: Option<String>,
    /// Its name at that time; null if it has none, or if it was deleted.
    pub name: Option<String>,
}

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Resource {
    /// The kind of resource, such as `machine` or `grant`.
    #[cfg_attr(feature = "openapi", schema(value_type = super::changes::ResourceKind))]
    pub kind: String,
    /// Its id.
    pub id: String,
}

/// One entry of the audit log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// Its id.
    pub id: Uuid,
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Who did it.
    pub actor: Actor,
    /// What was done, such as `machine.revoke`.
    #[cfg_attr(feature = "openapi", schema(value_type = super::changes::AuditAction))]
    pub action: String,
    /// What it was done to.
    pub resource: Resource,
    /// The request that did it.
    pub request_id: Option<String>,
    /// The reason that the actor gave.
    pub reason: Option<String>,
    /// The resource before; null if it did not exist.
    pub before: Option<Value>,
    /// The resource after; null if it no longer exists.
    pub after: Option<Value>,
    /// The address that the actor called from. Null if the actor had no address, or if it was deleted.
    pub address: Option<String>,
    /// SHA-256 in hex over `personal_salt` and the actor's name and address. The hash of the entry covers this digest in
    /// place of name and address. Null for entries without either, and of earlier versions.
    pub personal_digest: Option<String>,
    /// The salt of that digest in hex; null if name and address were deleted.
    pub personal_salt: Option<String>,
    /// SHA-256 in hex over this entry and the previous hash; null until the entry is sealed, moments later.
    pub hash: Option<String>,
}

/// `GET /v1/admin/audit/verify`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditVerification {
    /// Whether every sealed entry is unchanged and none is missing.
    pub valid: bool,
    /// The number of sealed entries.
    pub entries: u64,
    /// The first entry that was changed.
    pub first_broken_id: Option<Uuid>,
    /// What is wrong with that entry, or that the chain lacks the requested hash.
    pub reason: Option<String>,
    /// The position of the last entry up to which the chain is intact, counted from 1; null if there is none.
    pub last_sequence: Option<u64>,
    /// The hash of that entry. A copy kept elsewhere proves later that the chain was not truncated before it.
    pub last_hash: Option<String>,
}
