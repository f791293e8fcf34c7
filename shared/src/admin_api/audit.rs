//! `/v1/admin/audit`

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

/// Who did it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ActorKind {
    /// An administrator, by API key.
    ApiKey,
    /// A machine, by its key.
    Machine,
    /// Somebody at the server's command line.
    CommandLine,
    /// The server by itself.
    System,
}

/// Who did it, and under which name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Actor {
    /// What kind of actor.
    pub kind: ActorKind,
    /// Its id, where it has one.
    pub id: Option<String>,
    /// Its name at that time.
    pub name: Option<String>,
}

/// What it was done to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Resource {
    /// Such as `machine` or `grant`.
    #[cfg_attr(feature = "openapi", schema(value_type = super::changes::ResourceKind))]
    pub kind: String,
    /// Its id.
    pub id: String,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// Its id.
    pub id: Uuid,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Who.
    pub actor: Actor,
    /// What, such as `machine.revoke`.
    #[cfg_attr(feature = "openapi", schema(value_type = super::changes::Action))]
    pub action: String,
    /// To what.
    pub resource: Resource,
    /// By which request.
    pub request_id: Option<String>,
    /// Why, in the actor's words.
    pub reason: Option<String>,
    /// The resource before; null where it did not exist.
    pub before: Option<Value>,
    /// The resource after; null where it exists no more.
    pub after: Option<Value>,
    /// SHA-256 in hex over this entry and the hash of the one before; null for the moment until it is sealed.
    pub hash: Option<String>,
}

/// `GET /v1/admin/audit/verify`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditVerification {
    /// Whether every sealed entry is as it was when it was sealed, and none is missing.
    pub valid: bool,
    /// How many entries are sealed.
    pub entries: u64,
    /// The first entry that is not as it was.
    pub first_broken_id: Option<Uuid>,
    /// What is wrong with it, or with the chain where that lacks the hash that was asked for.
    pub reason: Option<String>,
    /// How far the chain is as it was sealed: the place of the last entry that is, from 1; null where none is.
    pub last_sequence: Option<u64>,
    /// The hash of that entry. Noted elsewhere, it proves later that the chain was not cut off before it.
    pub last_hash: Option<String>,
}
