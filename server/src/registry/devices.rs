//! Certificates for the device behind a machine, which macOS itself holds. They are revoked when the machine is
//! suspended.

use assay_protocol::admin_api::certificates::RevocationReason;
use serde_json::json;

use crate::{
    changes::EventKind,
    store::{
        StoreError, Transaction,
        device_certificates::{self, Revoked},
        machines::presence::LockedMachine,
    },
};

/// Revokes the certificates of the device with a machine's serial number. Does nothing if the machine only claims that
/// number: it could otherwise revoke the certificates of another device.
pub(crate) async fn revoke_certificates(
    tx: &mut Transaction,
    machine: &LockedMachine,
    reason: &str,
) -> Result<(), StoreError> {
    let Some(serial_number) = device_certificates::device_of_machine(tx, machine).await? else {
        return Ok(());
    };
    // A certificate that is being issued is stored before this continues.
    device_certificates::lock_device(tx, &serial_number).await?;
    let (published, now) = (RevocationReason::PrivilegeWithdrawn, tx.now());
    let which = Revoked::OfDevice(&serial_number);
    for certificate in device_certificates::revoke(tx, which, published, now).await? {
        let detail = json!({
            "serial_number": certificate, "device_serial_number": serial_number, "reason": published, "note": reason,
        });
        tx.announce(machine.id(), EventKind::DeviceCertificateRevoked, detail)
            .await?;
    }
    Ok(())
}
