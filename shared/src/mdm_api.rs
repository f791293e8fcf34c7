//! Webhook events of MDMs, in the envelope that NanoMDM and MicroMDM share. Unknown members are ignored, because other
//! versions add some.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::attestation::AttestationRefusal;
use crate::words;

/// `POST /v1/mdm/nanomdm`: one event of an MDM's webhook.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MdmEvent {
    /// What happened: `mdm.Connect` when a device reports the result of a command, `mdm.TokenUpdate`, …
    pub topic: String,
    /// The device's report, for `mdm.Connect`.
    #[serde(default)]
    pub acknowledge_event: Option<MdmMessage>,
    /// The device's message, for other topics.
    #[serde(default)]
    pub checkin_event: Option<MdmMessage>,
}

/// A message from a device, as its MDM received it.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(expecting = "an object")]
pub struct MdmMessage {
    /// The UDID by which the MDM knows the device.
    #[serde(default)]
    pub udid: Option<String>,
    /// The id of a user-enrolled device, which shows no UDID.
    #[serde(default)]
    pub enrollment_id: Option<String>,
    /// The command that the device answers.
    #[serde(default)]
    pub command_uuid: Option<String>,
    /// `Acknowledged`, `Error`, `NotNow`, `Idle`, …
    #[serde(default)]
    pub status: Option<String>,
    /// The message: a property list in XML, encoded in base64.
    #[serde(default)]
    pub raw_payload: Option<String>,
}

/// The result of an event. The HTTP status is always 200, because repeating the event changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MdmReceipt {
    /// The result.
    pub outcome: MdmOutcome,
    /// The attested machine; null if there is none.
    pub machine_id: Option<Uuid>,
    /// Why an attestation was refused; null for any other reason, see `detail`.
    pub reason: Option<AttestationRefusal>,
    /// An explanation for people.
    pub detail: String,
}

words! {
    /// The result of an event.
    pub enum MdmOutcome {
        /// The event has no attestation.
        Ignored = "ignored",
        /// The attestation is bound to the machine.
        Bound = "bound",
        /// The attestation was refused, and the record stays as it is. Events and audit show the refusal.
        Refused = "refused",
    }
}
