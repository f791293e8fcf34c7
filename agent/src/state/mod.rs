//! The record: what the agent stores about this machine.

mod backups;
mod directory;
mod error;
mod grants;
mod key;

use std::path::Path;

use assay_protocol::{
    KeyThumbprint,
    agent_api::{AudienceGrant, Denial, IssuedCertificate},
    evidence::LONGEST_CONTINUITY,
    machine::{Assurance, MachineStatus},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use time::OffsetDateTime;
use uuid::Uuid;

pub(crate) use self::{
    backups::is_excluded,
    directory::{StateDirectory, StateLock},
    grants::{GrantError, because, current_grant},
};
pub use self::{
    error::StateError,
    key::{DeniedKey, KeyPlace, KeyRotation, KeyTrouble},
};
use crate::trust::KnownServer;

/// The version of the record that this build writes, and the newest that it reads.
///
/// In version 1, a machine had only one place for keys.
const VERSION: u32 = 2;

/// The record of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// The server that this machine is enrolled with, or tries to enroll with.
    pub server: Option<KnownServer>,
    /// The thumbprint of the current key, once an enrollment has used it.
    pub key: Option<KeyThumbprint>,
    /// The place of the current key.
    #[serde(default)]
    pub key_place: KeyPlace,
    /// The hardware UUID of the machine that keys and identity belong to. Migration Assistant and restored disks bring a
    /// record to another machine.
    #[serde(default)]
    pub hardware_uuid: Option<String>,
    /// The rotation in progress. The next key is in the other place.
    #[serde(default)]
    pub rotation: Option<KeyRotation>,
    /// The next key that an administrator denied, until another rotation begins.
    #[serde(default)]
    pub denied_next_key: Option<DeniedKey>,
    /// Whether the current key replaced one that the hardware rejected, and no server has accepted it yet.
    #[serde(default)]
    pub key_is_unknown: bool,
    /// An incomplete enrollment.
    pub pending: Option<PendingEnrollment>,
    /// The identity of the machine, once it is enrolled.
    pub machine: Option<EnrolledMachine>,
    /// The continuity value of the last answer to an enrollment, a renewal or a check-in. The next evidence carries it.
    #[serde(default)]
    pub continuity: Option<String>,
    /// `quarantined` or `revoked` if the server refused this machine for that, and has not accepted it since.
    #[serde(default)]
    pub suspension: Option<MachineStatus>,
    /// The last successful check-in.
    pub last_check_in: Option<RecordedCheckIn>,
    /// When the next check-in is due, without jitter.
    #[serde(with = "time::serde::rfc3339::option", default)]
    pub next_check_in_at: Option<OffsetDateTime>,
    /// The failure of the last exchange. `None` if it succeeded.
    pub last_failure: Option<RecordedFailure>,
}

/// What a repetition of an incomplete enrollment needs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PendingEnrollment {
    /// The enrollment token, until the enrollment is complete.
    #[serde(serialize_with = "expose_token", default)]
    pub token: Option<SecretString>,
    /// The server's id of the pending enrollment, once it has responded.
    pub enrollment_id: Option<Uuid>,
}

/// The identity of an enrolled machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolledMachine {
    /// The machine's id.
    pub machine_id: Uuid,
    /// The machine's SPIFFE id.
    pub spiffe_id: String,
    /// The assurance of the serial number in the server's last response.
    pub assurance: Assurance,
    /// When the machine was enrolled, by its own clock.
    #[serde(with = "time::serde::rfc3339")]
    pub enrolled_at: OffsetDateTime,
    /// The current certificate.
    pub certificate: IssuedCertificate,
    /// The roots of the server's CA, in PEM.
    pub trust_bundle: String,
}

/// A successful check-in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RecordedCheckIn {
    /// The time, by this machine's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The status of the machine in the server's response.
    pub status: MachineStatus,
    /// The grants, with their tokens.
    pub grants: Vec<AudienceGrant>,
    /// The denied permissions, with reasons.
    pub denied: Vec<Denial>,
}

/// A failed exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedFailure {
    /// The time, by this machine's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The exchange: `enroll`, `check-in`, `renew` or `rotate-key`.
    pub exchange: String,
    /// The problem's URN, if the server responded with a problem.
    pub problem: Option<String>,
    /// The error message.
    pub message: String,
    /// The problem with the key, if the key caused the failure.
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
            hardware_uuid: None,
            rotation: None,
            denied_next_key: None,
            key_is_unknown: false,
            pending: None,
            machine: None,
            continuity: None,
            suspension: None,
            last_check_in: None,
            next_check_in_at: None,
            last_failure: None,
        }
    }
}

impl Record {
    /// Whether the next exchange must be an enrollment.
    pub(crate) fn must_enroll(&self) -> bool {
        self.machine.is_none() || self.pending.is_some() || self.key_is_unknown
    }

    /// Whether a server has responded to an enrollment, and so may have a record of this machine.
    pub(crate) fn is_known_to_a_server(&self) -> bool {
        let waits = self
            .pending
            .as_ref()
            .is_some_and(|pending| pending.enrollment_id.is_some());
        self.machine.is_some() || waits
    }

    /// The recorded hardware UUID, if it is not this one. An unknown one is no difference, and neither is the case.
    pub(crate) fn other_hardware(&self, present: Option<&str>) -> Option<&str> {
        let recorded = self.hardware_uuid.as_deref()?;
        let is_other = present.is_some_and(|present| !present.eq_ignore_ascii_case(recorded));
        is_other.then_some(recorded)
    }

    /// Keeps the continuity value of an answer for the next evidence. An older server sends none, and the server would
    /// refuse evidence with one that is too long.
    pub(crate) fn keep_continuity(&mut self, value: Option<String>) {
        self.continuity = value.filter(|value| value.len() <= LONGEST_CONTINUITY);
    }
}

/// Reads a record without a lock and without any change. Works while the daemon runs.
pub fn read_record(state_directory: &Path) -> Result<Record, StateError> {
    StateDirectory::at(state_directory.to_owned()).record()
}

fn expose_token<S: Serializer>(token: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    token.as_ref().map(ExposeSecret::expose_secret).serialize(serializer)
}
