//! The devices that an MDM has reported, and their refused responses.

use assay_protocol::text::hardware_id;
use aws_lc_rs::digest::{self, SHA256};
use serde_json::json;
use uuid::Uuid;

use super::RefusedAttestation;
use crate::{
    changes::{Action, Change, EventKind, Origin},
    store::{
        Store, StoreError, Transaction,
        duties::{self, Duty},
        machines,
        mdm_devices::{self, Device, Refused},
        tx,
    },
};

/// A device's response to a command.
pub(super) struct DeviceResponse<'a> {
    pub(super) enrollment_id: &'a str,
    pub(super) command: Option<&'a str>,
    /// The attestation in the response, if any.
    pub(super) chain: Option<&'a [Vec<u8>]>,
}

/// The serial number of a device, by an event.
#[derive(Debug, Clone, Copy)]
pub(super) enum Learned<'a> {
    /// The device or its MDM says so.
    Claimed(Option<&'a str>),
    /// Apple attested it together with the UDID, by which the MDM knows the device.
    Attested(&'a str),
}

/// Records where a device can be reached. If the event has no serial number and the device is new, the machine that reports
/// this hardware UUID gives the serial number. If nothing is new, nothing is written. A claim never replaces an attested
/// serial number, and never takes one that Apple attested of another device.
pub(super) async fn learn(
    store: &Store,
    origin: &Origin,
    enrollment_id: &str,
    learned: Learned<'_>,
) -> Result<Device, StoreError> {
    let (serial_number, is_attested) = match learned {
        Learned::Claimed(serial_number) => (serial_number, false),
        Learned::Attested(serial_number) => (Some(serial_number), true),
    };
    let mut connection = store.connection().await?;
    let known = mdm_devices::find(&mut connection, enrollment_id).await?;
    let said = serial_number
        .and_then(|text| hardware_id(text).ok().flatten())
        .map(str::to_owned);
    let has_one = known.as_ref().is_some_and(|device| device.serial_number.is_some());
    let serial_number = match said {
        None if !has_one => machines::record::serial_number_by_hardware_uuid(&mut connection, enrollment_id).await?,
        said => said,
    };
    drop(connection);
    if let Some(device) = known.filter(|device| is_known(device, serial_number.as_deref(), is_attested)) {
        return Ok(device);
    }
    let serial_number = serial_number.as_deref();
    tx!(store, LearnMdmDevice, origin => keep(enrollment_id, serial_number, is_attested)).await
}

/// Clears the refusal of a device whose latest response was accepted.
pub(super) async fn clear_refusal(store: &Store, device: &Device, enrollment_id: &str) -> Result<(), StoreError> {
    if device.refused_digest.is_none() {
        return Ok(());
    }
    let mut connection = store.connection().await?;
    mdm_devices::set_refused(&mut connection, enrollment_id, None).await
}

/// Records a refusal for administrators, once for each response and reason. Returns the machine concerned: the one with
/// the attested serial number, or else the device's.
pub(super) async fn record_refusal(
    store: &Store,
    origin: &Origin,
    response: &DeviceResponse<'_>,
    refusal: &RefusedAttestation,
) -> Result<Option<Uuid>, StoreError> {
    tx!(store, RefuseAttestation, origin => record_refusal_once(response, refusal)).await
}

async fn record_refusal_once(
    tx: &mut Transaction,
    response: &DeviceResponse<'_>,
    refusal: &RefusedAttestation,
) -> Result<Option<Uuid>, StoreError> {
    let Some(device) = mdm_devices::lock(tx, response.enrollment_id).await? else {
        return Err(StoreError::Corrupt(
            "a device that was just recorded is missing".to_owned(),
        ));
    };
    let machine_id = match (refusal.machine_id, &device.serial_number) {
        (None, Some(serial_number)) => machines::record::find_by_serial_number(tx, serial_number)
            .await?
            .map(|machine| machine.id),
        (known, _) => known,
    };
    let digest = response.digest(refusal);
    if device.refused_digest.as_deref() == Some(digest.as_slice()) {
        return Ok(machine_id);
    }
    let refused = Refused {
        digest,
        refusal: &refusal.detail,
        at: tx.now(),
    };
    mdm_devices::set_refused(tx, response.enrollment_id, Some(&refused)).await?;
    let detail = json!({
        "reason": refusal.reason, "detail": refusal.detail, "enrollment_id": response.enrollment_id,
        "command_uuid": response.command, "machine_id": machine_id,
    });
    let mut change =
        Change::new(Action::MdmDeviceRefuseAttestation, response.enrollment_id).reason(Some(&refusal.detail));
    if let Some(machine_id) = machine_id {
        change = change.event(machine_id, EventKind::MachineAttestationRefused, detail.clone());
    }
    tx.record(change.after(detail)).await?;
    Ok(machine_id)
}

/// Runs one at a time. Otherwise two devices with the same serial number would conflict on its unique index.
async fn keep(
    tx: &mut Transaction,
    enrollment_id: &str,
    serial_number: Option<&str>,
    is_attested: bool,
) -> Result<Device, StoreError> {
    duties::wait_for(tx, Duty::LearnMdmDevices).await?;
    let before = mdm_devices::lock(tx, enrollment_id).await?;
    let serial_number = match serial_number {
        Some(claimed) if !is_attested && mdm_devices::is_attested_of_another(tx, enrollment_id, claimed).await? => None,
        serial_number => serial_number,
    };
    if let Some(device) = before
        .clone()
        .filter(|device| is_known(device, serial_number, is_attested))
    {
        return Ok(device);
    }
    let now = tx.now();
    mdm_devices::keep(tx, enrollment_id, (serial_number, is_attested), now).await?;
    let after = mdm_devices::find(tx, enrollment_id).await?;
    let after = after.ok_or_else(|| StoreError::Corrupt("a device that was just recorded is missing".to_owned()))?;
    let seen = |device: &Device| json!({ "serial_number": device.serial_number });
    let mut change = Change::new(Action::MdmDeviceLearn, enrollment_id).after(seen(&after));
    if let Some(before) = &before {
        change = change.before(seen(before));
    }
    tx.record(change).await?;
    Ok(after)
}

fn is_known(device: &Device, serial_number: Option<&str>, is_attested: bool) -> bool {
    match serial_number {
        None => true,
        Some(_) if device.is_attested && !is_attested => true,
        serial_number => device.serial_number.as_deref() == serial_number && device.is_attested == is_attested,
    }
}

impl DeviceResponse<'_> {
    /// The digest of the response and the reason for its refusal. A Mac repeats its attestation, and an MDM its
    /// message.
    fn digest(&self, refusal: &RefusedAttestation) -> [u8; 32] {
        let mut context = digest::Context::new(&SHA256);
        let subject: Vec<&[u8]> = match (self.chain, self.command) {
            (Some(chain), _) => chain.iter().map(Vec::as_slice).collect(),
            (None, command) => vec![command.unwrap_or_default().as_bytes()],
        };
        let reason = format!("{:?} {:?}", refusal.reason, refusal.machine_id);
        for part in subject.into_iter().chain([reason.as_bytes()]) {
            context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            context.update(part);
        }
        let mut bytes = [0; 32];
        bytes.copy_from_slice(context.finish().as_ref());
        bytes
    }
}
