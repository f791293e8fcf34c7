//! The device that a machine is: the certificates of the Mac's own system, which end when the machine is held back.

use assay_protocol::admin_api::certificates::RevocationReason;
use serde_json::json;
use uuid::Uuid;

use crate::{
    clock::Clock,
    store::{
        StoreError, Transaction,
        device_certificates::{self, Revoked},
        events,
    },
};

/// Revokes the certificates of the device whose serial number a machine has that is held, and is active or quarantined until
/// now. One that waits for an administrator has no claim to the serial number, so nothing of another's ends with it.
pub(crate) async fn revoke_certificates(
    tx: &mut Transaction,
    clock: &dyn Clock,
    machine_id: Uuid,
    reason: &str,
) -> Result<(), StoreError> {
    let Some(serial_number) = device_certificates::device_of_machine(tx, machine_id).await? else {
        return Ok(());
    };
    // One that is being issued is on record first.
    device_certificates::hold_device(tx, &serial_number).await?;
    let published = RevocationReason::PrivilegeWithdrawn;
    let which = Revoked::OfDevice(&serial_number);
    for certificate in device_certificates::revoke(tx, which, published, clock.now()).await? {
        let detail = json!({
            "serial_number": certificate, "device_serial_number": serial_number, "reason": published, "note": reason,
        });
        events::insert(tx, clock, machine_id, "device-certificate.revoked", detail).await?;
    }
    Ok(())
}
