//! Webhook events from MDMs, and requests for attestations through them.
//!
//! The MDM only delivers messages: the server trusts what Apple signed. The attested serial number determines the
//! machine, and the attestation is bound in the same way as one posted by an administrator. What the MDM says about a
//! device is used only to address commands.

pub(crate) mod asking;
mod client;
mod devices;
pub(crate) mod report;

use assay_authority::attestation::apple::{AttestationError, UnverifiedAttestation};
use assay_protocol::{
    Chain,
    attestation::AttestationRefusal,
    mdm_api::{MdmEvent, MdmMessage, MdmOutcome, MdmReceipt},
    text::{ClaimError, hardware_id},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use uuid::Uuid;

use self::{
    devices::{DeviceResponse, Learned},
    report::{Report, ReportError},
};
use crate::{
    changes::Origin,
    config::OpeningPolicy,
    registry::{
        apple_attestations::{self, AppleAttestationError},
        opening,
    },
    services::Services,
    store::{Store, StoreError, machines, mdm_devices::Device},
};

pub(crate) use self::client::NanoMdm;

/// The topic of a device's response to a command.
const CONNECT: &str = "mdm.Connect";
/// The topic of the message in which an enrolling device states its serial number.
const AUTHENTICATE: &str = "mdm.Authenticate";
/// The statuses that end a command.
const FINAL: [&str; 3] = ["Acknowledged", "Error", "CommandFormatError"];

const NO_REPORT: &str = "it is not a response to a command";

/// Why an event cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MdmError {
    #[error("{0} is missing; events with this topic must have it")]
    Missing(&'static str),
    #[error("the message names neither udid nor enrollment_id")]
    Nameless,
    #[error("udid or enrollment_id: {0}")]
    Name(ClaimError),
    #[error("raw_payload is not base64")]
    Base64,
    #[error("raw_payload cannot be read")]
    Report(#[from] ReportError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why an attestation was not bound.
struct RefusedAttestation {
    reason: Option<AttestationRefusal>,
    detail: String,
    /// The machine with the attested serial number.
    machine_id: Option<Uuid>,
}

/// How binding failed.
enum BindError {
    Refused(RefusedAttestation),
    Store(StoreError),
}

impl From<AttestationError> for BindError {
    fn from(error: AttestationError) -> Self {
        Self::Refused(RefusedAttestation {
            reason: Some(error.refusal()),
            detail: Chain(&error).to_string(),
            machine_id: None,
        })
    }
}

impl From<StoreError> for BindError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Handles one event. An event without an attestation only updates where the device can be reached.
pub(crate) async fn receive(services: &Services, origin: &Origin, event: &MdmEvent) -> Result<MdmReceipt, MdmError> {
    if event.topic == CONNECT {
        let message = event
            .acknowledge_event
            .as_ref()
            .ok_or(MdmError::Missing("acknowledge_event"))?;
        return connect(services, origin, message).await;
    }
    let Some(message) = &event.checkin_event else {
        return Ok(ignored(NO_REPORT));
    };
    let report = match &message.raw_payload {
        Some(_) if event.topic == AUTHENTICATE => read(message)?,
        _ => Report::default(),
    };
    if let Some(enrollment_id) = name(message, &report)? {
        let learned = Learned::Claimed(report.serial_number.as_deref());
        let device = devices::learn(&services.store, origin, enrollment_id, learned).await?;
        if event.topic == AUTHENTICATE {
            open(services, origin, &device).await?;
        }
    }
    Ok(ignored(NO_REPORT))
}

/// A Mac that enrolls anew with its MDM was wiped. The MDM's report opens its record only if Apple attested which
/// device has the serial number: otherwise a managed device could open the record of another one.
async fn open(services: &Services, origin: &Origin, device: &Device) -> Result<(), StoreError> {
    let Some(serial_number) = device.serial_number.as_deref().filter(|_| device.is_attested) else {
        return Ok(());
    };
    if services.policy.opening == OpeningPolicy::Off {
        return Ok(());
    }
    let mut connection = services.store.connection().await?;
    let machine = machines::record::find_by_serial_number(&mut connection, serial_number).await?;
    drop(connection);
    match machine {
        Some(machine) => opening::open_by_mdm(services, origin, machine.id).await,
        None => Ok(()),
    }
}

async fn connect(services: &Services, origin: &Origin, message: &MdmMessage) -> Result<MdmReceipt, MdmError> {
    let report = read(message)?;
    let enrollment_id = name(message, &report)?.ok_or(MdmError::Nameless)?;
    let device = devices::learn(
        &services.store,
        origin,
        enrollment_id,
        Learned::Claimed(report.serial_number.as_deref()),
    )
    .await?;
    let response = DeviceResponse {
        enrollment_id,
        command: message.command_uuid.as_deref(),
        chain: report.attestation.as_deref(),
    };
    let Some(chain) = report.attestation.clone() else {
        return without_attestation(&services.store, origin, message, &device, &response).await;
    };
    match attest(services, origin, enrollment_id, chain).await {
        Ok(machine_id) => {
            devices::clear_refusal(&services.store, &device, enrollment_id).await?;
            Ok(MdmReceipt {
                outcome: MdmOutcome::Bound,
                machine_id: Some(machine_id),
                reason: None,
                detail: "the attestation is recorded".to_owned(),
            })
        }
        Err(BindError::Refused(refusal)) => refused(&services.store, origin, &response, refusal).await,
        Err(BindError::Store(error)) => Err(error.into()),
    }
}

/// A device that has completed the command for an attestation without giving one will not give one later.
async fn without_attestation(
    store: &Store,
    origin: &Origin,
    message: &MdmMessage,
    device: &Device,
    response: &DeviceResponse<'_>,
) -> Result<MdmReceipt, MdmError> {
    let asked = device.asked_command.map(|command| command.to_string());
    let is_asked = message
        .command_uuid
        .as_deref()
        .is_some_and(|command| asked.is_some_and(|asked| asked.eq_ignore_ascii_case(command)));
    let status = message.status.as_deref().unwrap_or_default();
    if !is_asked || !FINAL.contains(&status) {
        return Ok(ignored("it contains no attestation"));
    }
    let detail = format!(
        "the Mac answered the request for an attestation with {status} and sent none; attestations need Apple silicon \
         and macOS 14 or later"
    );
    let refusal = RefusedAttestation {
        reason: None,
        detail,
        machine_id: None,
    };
    refused(store, origin, response, refusal).await
}

async fn refused(
    store: &Store,
    origin: &Origin,
    response: &DeviceResponse<'_>,
    refusal: RefusedAttestation,
) -> Result<MdmReceipt, MdmError> {
    let machine_id = devices::record_refusal(store, origin, response, &refusal).await?;
    Ok(MdmReceipt {
        outcome: MdmOutcome::Refused,
        machine_id,
        reason: refusal.reason,
        detail: refusal.detail,
    })
}

/// Binds an attestation to the machine that has the attested serial number.
async fn attest(
    services: &Services,
    origin: &Origin,
    enrollment_id: &str,
    chain: Vec<Vec<u8>>,
) -> Result<Uuid, BindError> {
    let unverified = UnverifiedAttestation::from_der(chain)?;
    let attestation = unverified.verify(&services.attestation_roots, services.store.now())?;
    let serial_number = attestation.claims().serial_number.clone();
    let serial_number = serial_number.ok_or(AttestationError::NoSerialNumber)?;
    let udid = attestation.claims().udid.as_deref();
    let learned = match udid.is_some_and(|udid| udid.eq_ignore_ascii_case(enrollment_id)) {
        true => Learned::Attested(&serial_number),
        false => Learned::Claimed(Some(&serial_number)),
    };
    devices::learn(&services.store, origin, enrollment_id, learned).await?;
    let mut connection = services.store.connection().await?;
    let machine = machines::record::find_by_serial_number(&mut connection, &serial_number).await?;
    drop(connection);
    let Some(machine) = machine else {
        return Err(BindError::Refused(RefusedAttestation {
            reason: Some(AttestationRefusal::SerialNumberMismatch),
            detail: format!(
                "the attestation is for {serial_number}, and no machine is enrolled with that serial number"
            ),
            machine_id: None,
        }));
    };
    let of_machine = |reason, detail| {
        BindError::Refused(RefusedAttestation {
            reason,
            detail,
            machine_id: Some(machine.id),
        })
    };
    match apple_attestations::bind_verified(services, origin, machine.id, &attestation).await {
        Ok(_state) => Ok(machine.id),
        Err(AppleAttestationError::Refused(error)) => {
            let detail = Chain(&error).to_string();
            Err(of_machine(Some(error.refusal()), detail))
        }
        Err(
            error @ (AppleAttestationError::Unknown
            | AppleAttestationError::Standing(_)
            | AppleAttestationError::NotOfKey),
        ) => Err(of_machine(None, error.to_string())),
        Err(AppleAttestationError::Store(error)) => Err(BindError::Store(error)),
    }
}

fn read(message: &MdmMessage) -> Result<Report, MdmError> {
    let payload = message.raw_payload.as_deref().ok_or(MdmError::Missing("raw_payload"))?;
    let bytes = STANDARD.decode(payload).map_err(|_| MdmError::Base64)?;
    Ok(Report::read(&bytes)?)
}

/// The id under which the MDM knows the device. The MDM's own statement takes precedence over the device's.
fn name<'a>(message: &'a MdmMessage, report: &'a Report) -> Result<Option<&'a str>, MdmError> {
    let names = [
        &message.udid,
        &message.enrollment_id,
        &report.udid,
        &report.enrollment_id,
    ];
    for name in names.into_iter().filter_map(Option::as_deref) {
        if let Some(name) = hardware_id(name).map_err(MdmError::Name)? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn ignored(detail: &str) -> MdmReceipt {
    MdmReceipt {
        outcome: MdmOutcome::Ignored,
        machine_id: None,
        reason: None,
        detail: detail.to_owned(),
    }
}
