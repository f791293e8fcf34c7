//! What the agent remembers about this machine: the record, as it is written to the state directory.

mod directory;
mod error;
mod grants;
mod key;

use std::path::Path;

use assay_protocol::{
    KeyThumbprint,
    agent_api::{AudienceGrant, Denial, IssuedCertificate},
    machine::{Assurance, MachineStatus},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use time::OffsetDateTime;
use uuid::Uuid;

pub(crate) use self::{
    directory::{StateDirectory, StateLock},
    grants::{GrantError, because, current_grant},
};
pub use self::{
    error::StateError,
    key::{KeyPlace, KeyRotation, KeyTrouble},
};
use crate::trust::ServerOnRecord;

/// The version of the record that this build writes, and the newest that it reads.
///
/// Before version 2 a machine's key was in one place.
const VERSION: u32 = 2;

/// What the agent remembers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// The server that this machine belongs to, or tries to.
    pub server: Option<ServerOnRecord>,
    /// The thumbprint of the machine's key, once it has been shown to a server.
    pub key: Option<KeyThumbprint>,
    /// Where that key is.
    #[serde(default)]
    pub key_place: KeyPlace,
    /// The replacement of that key, while it is under way. The next key is in the other place.
    #[serde(default)]
    pub rotation: Option<KeyRotation>,
    /// Whether that key took the place of one that the hardware refused, and no server has taken it yet.
    #[serde(default)]
    pub key_is_unknown: bool,
    /// An enrollment that is not through.
    pub pending: Option<PendingEnrollment>,
    /// Who this machine is, once it is enrolled.
    pub machine: Option<EnrolledMachine>,
    /// The answer to the last check-in that went through.
    pub last_check_in: Option<CheckInOnRecord>,
    /// When the next check-in is due, up to jitter.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub next_check_in_at: Option<OffsetDateTime>,
    /// What the last exchange failed with; none after one that went through.
    pub last_failure: Option<FailureOnRecord>,
}

/// An enrollment that was begun: what it takes to repeat it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PendingEnrollment {
    /// The enrollment token, until the enrollment is through.
    #[serde(serialize_with = "expose_token", default)]
    pub token: Option<SecretString>,
    /// What the administrator decides on; none until the server has answered.
    pub enrollment_id: Option<Uuid>,
}

/// A machine that has its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolledMachine {
    /// Its id.
    pub machine_id: Uuid,
    /// Its SPIFFE id.
    pub spiffe_id: String,
    /// What stood behind its serial number when the server last said so.
    pub assurance: Assurance,
    /// When it was enrolled, by this machine's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub enrolled_at: OffsetDateTime,
    /// Its current certificate.
    pub certificate: IssuedCertificate,
    /// The roots, PEM.
    pub trust_bundle: String,
}

/// A check-in that went through.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CheckInOnRecord {
    /// When, by this machine's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What the server said of the machine.
    pub status: MachineStatus,
    /// What was granted, with the tokens.
    pub grants: Vec<AudienceGrant>,
    /// What was not, and why.
    pub denied: Vec<Denial>,
}

/// An exchange that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureOnRecord {
    /// When, by this machine's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What was tried: `enroll`, `check-in` or `renew`.
    pub exchange: String,
    /// The problem's URN, when the server answered with one.
    pub problem: Option<String>,
    /// What happened, in words.
    pub message: String,
    /// What is the matter with the key, when it was that.
    #[serde(default)]
    pub key: Option<KeyTrouble>,
}

impl Default for Record {
    fn default() -> Self {
        Self {
            version: VERSION,
            server: None,
            key: None,
            key_place: KeyPlace::First,
            rotation: None,
            key_is_unknown: false,
            pending: None,
            machine: None,
            last_check_in: None,
            next_check_in_at: None,
            last_failure: None,
        }
    }
}

impl Record {
    /// Whether the machine has to enroll before it can do anything else.
    pub(crate) fn must_enroll(&self) -> bool {
        self.machine.is_none() || self.pending.is_some() || self.key_is_unknown
    }

    /// Whether a server has answered for this machine, so that it may hold a record of it.
    pub(crate) fn is_known_to_a_server(&self) -> bool {
        let waits = self
            .pending
            .as_ref()
            .is_some_and(|pending| pending.enrollment_id.is_some());
        self.machine.is_some() || waits
    }
}

/// Reads what an agent remembers, without a lock and without changing anything: also while the daemon runs.
pub fn read_record(state_directory: &Path) -> Result<Record, StateError> {
    StateDirectory::at(state_directory.to_owned()).record()
}

fn expose_token<S: Serializer>(token: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    token.as_ref().map(ExposeSecret::expose_secret).serialize(serializer)
}
