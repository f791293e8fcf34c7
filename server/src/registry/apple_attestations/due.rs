//! The machines that are due for an attestation, with the command to send to each.

use assay_protocol::{admin_api::apple_attestations::DueAppleAttestation, attestation::FreshnessCode};
use base64::{Engine, engine::general_purpose::STANDARD};
use time::{Duration, OffsetDateTime};

use super::request;
use crate::{
    services::{Policy, Services},
    store::{
        self, StoreError,
        apple_attestations::{Due, DuePlace},
    },
};

/// When an attestation is due for renewal, after Apple signed it: at two thirds of its lifetime, as with certificates.
/// The rest is a reserve for Macs that are asleep, and for the 7 days during which a Mac creates no new attestation.
pub(crate) fn due_after(policy: &Policy) -> Duration {
    policy.attestation_max_age * 2 / 3
}

/// A page of the active machines whose current key needs an attestation: first those without one, then those with the
/// oldest one.
pub(crate) async fn list(
    services: &Services,
    after: Option<DuePlace>,
    rows: i64,
) -> Result<Vec<(DuePlace, DueAppleAttestation)>, StoreError> {
    let boundary = services.store.now().saturating_sub(due_after(&services.policy));
    let mut snapshot = services.store.snapshot().await?;
    let found = store::apple_attestations::list_due(&mut snapshot, boundary, after, rows).await?;
    store::end(snapshot).await?;
    Ok(found.into_iter().map(|due| shown(services, due)).collect())
}

fn shown(services: &Services, due: Due) -> (DuePlace, DueAppleAttestation) {
    let nonce = FreshnessCode::of(&due.key);
    let lapses_at = |at: OffsetDateTime| at.saturating_add(services.policy.attestation_max_age);
    let item = DueAppleAttestation {
        machine_id: due.place.machine_id,
        serial_number: due.serial_number,
        attested_at: due.attested_at,
        lapses_at: due.attested_at.map(lapses_at),
        nonce: STANDARD.encode(nonce.as_bytes()),
        nonce_hex: nonce,
        device_information: request::device_information(nonce, services.store.new_id()),
        mdm_device: due.mdm_device,
    };
    (due.place, item)
}
