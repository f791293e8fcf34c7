//! What MDMs send, in the envelope that NanoMDM and MicroMDM share. Whatever else is in it is ignored: other versions say
//! more.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::attestation::AttestationRefusal;

/// `POST /v1/mdm/nanomdm`: one event of an MDM's webhook.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MdmEvent {
    /// What happened: `mdm.Connect` when a device reported what came of a command, `mdm.TokenUpdate`, …
    pub topic: String,
    /// What a device reported, of `mdm.Connect`.
    #[serde(default)]
    pub acknowledge_event: Option<MdmMessage>,
    /// What a device sent, of the other topics.
    #[serde(default)]
    pub checkin_event: Option<MdmMessage>,
}

/// A message of a device, as its MDM got it.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(expecting = "an object")]
pub struct MdmMessage {
    /// By which the MDM knows the device.
    #[serde(default)]
    pub udid: Option<String>,
    /// The same, of a device that is enrolled by its user and shows no UDID.
    #[serde(default)]
    pub enrollment_id: Option<String>,
    /// Which command the device answers.
    #[serde(default)]
    pub command_uuid: Option<String>,
    /// `Acknowledged`, `Error`, `NotNow`, `Idle`, …
    #[serde(default)]
    pub status: Option<String>,
    /// The message itself, a property list in XML, in base64.
    #[serde(default)]
    pub raw_payload: Option<String>,
}

/// What came of an event. Its status is 200 in each case: sending it again would change nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MdmReceipt {
    /// In one word.
    pub outcome: MdmOutcome,
    /// The machine whose attestation it was; null where there is none.
    pub machine_id: Option<Uuid>,
    /// Why an attestation was refused; null where the reason is none of these.
    pub reason: Option<AttestationRefusal>,
    /// In words.
    pub detail: String,
}

/// What came of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MdmOutcome {
    /// There was no attestation in it.
    Ignored,
    /// The attestation is on record.
    Bound,
    /// The attestation was refused, and what is on record stays. Administrators see it in the events and in the audit.
    Refused,
}
