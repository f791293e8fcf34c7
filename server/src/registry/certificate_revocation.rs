//! Revoking one certificate. [`super::status_change`] revokes a machine with all of its certificates.

use assay_authority::issuing::certificate_pem;
use assay_protocol::{
    KeyThumbprint,
    admin_api::certificates::{
        Certificate, CertificatePurpose, CertificateStatus, CertificateWithPem, RevocationReason, RevokeCertificate,
    },
};
use serde_json::json;
use time::OffsetDateTime;

use super::{
    reason::{self, Reason},
    record, status_change,
};
use crate::{
    changes::{Action, Change, EventKind, Origin},
    services::{Policy, Services},
    store::{
        self, Connection, StoreError, Transaction,
        certificates::Revoked,
        device_certificates,
        machines::{keys::KeyStatus, presence::LockedMachine},
        tx,
    },
};

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("there is no such certificate")]
    Unknown,
    #[error("note must have 1 to {} characters, without control characters", reason::LONGEST)]
    Note,
    #[error("the certificate is already revoked, with the reason {}", .0.as_str())]
    Revoked(RevocationReason),
    #[error("the certificate expired at {0}, so it needs no revocation")]
    Expired(OffsetDateTime),
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(CertificateError);

/// Revokes a certificate permanently. Repeating the call with the same reason changes nothing.
///
/// The machine keeps its key. If this was its current certificate, the response to its next check-in tells it to renew.
/// With the reason `keyCompromise`, all certificates of the key are revoked, and a machine with this key is
/// quarantined. The holder of the copied key could otherwise renew.
pub(crate) async fn revoke(
    services: &Services,
    origin: &Origin,
    serial_number: &str,
    request: &RevokeCertificate,
) -> Result<CertificateWithPem, CertificateError> {
    let note = request.note.as_deref().map(Reason::parse).transpose();
    let note = note.map_err(|_| CertificateError::Note)?;
    let why = Why {
        reason: request.reason,
        note: note.as_ref().map(Reason::as_str),
    };
    let policy = &services.policy;
    tx!(services.store, RevokeCertificate, origin => revoke_once(policy, serial_number, why)).await
}

/// Revokes a device's certificate on its holder's request. Returns false if it is already revoked, for any reason.
pub(crate) async fn revoke_device_certificate(
    services: &Services,
    origin: &Origin,
    serial_number: &str,
    reason: RevocationReason,
) -> Result<bool, CertificateError> {
    let why = Why { reason, note: None };
    let policy = &services.policy;
    tx!(services.store, RevokeDeviceCertificate, origin => revoke_unless_revoked(policy, serial_number, why)).await
}

/// Why a certificate is revoked: the reason for relying parties, and the administrator's note.
#[derive(Debug, Clone, Copy)]
struct Why<'a> {
    reason: RevocationReason,
    note: Option<&'a str>,
}

impl Why<'_> {
    /// The reason in the audit entry.
    fn text(&self) -> &str {
        self.note.unwrap_or(self.reason.as_str())
    }
}

async fn revoke_unless_revoked(
    tx: &mut Transaction,
    policy: &Policy,
    serial_number: &str,
    why: Why<'_>,
) -> Result<bool, CertificateError> {
    let now = tx.now();
    let found = store::certificates::find(tx, serial_number, now).await?;
    if found.ok_or(CertificateError::Unknown)?.revoked_at.is_some() {
        return Ok(false);
    }
    revoke_once(tx, policy, serial_number, why).await?;
    Ok(true)
}

async fn revoke_once(
    tx: &mut Transaction,
    policy: &Policy,
    serial_number: &str,
    why: Why<'_>,
) -> Result<CertificateWithPem, CertificateError> {
    let now = tx.now();
    let found = store::certificates::find(tx, serial_number, now)
        .await?
        .ok_or(CertificateError::Unknown)?;
    // A renewal locks the same row. It ends before this, or sees the revoked certificate.
    let machine = match (found.purpose, found.machine_id) {
        (CertificatePurpose::Machine, Some(machine_id)) => record::lock(tx, policy, machine_id).await?,
        _ => None,
    };
    let before = find_with_pem(tx, serial_number, now).await?;
    match (before.certificate.status, before.certificate.revocation_reason) {
        (CertificateStatus::Revoked, Some(reason)) if reason == why.reason => return Ok(before),
        (CertificateStatus::Revoked, reason) => {
            return Err(CertificateError::Revoked(
                reason.unwrap_or(RevocationReason::Unspecified),
            ));
        }
        (CertificateStatus::Expired, _) => return Err(CertificateError::Expired(before.certificate.not_after)),
        (CertificateStatus::Valid, _) => {}
    }
    let key = before.certificate.key_thumbprint;
    let compromised = why.reason == RevocationReason::KeyCompromise;
    let revoked = revoke_rows(
        tx,
        machine.as_ref().map(|(locked, _)| locked),
        &before.certificate,
        compromised,
        why.reason,
    )
    .await?;
    if let Some((locked, machine)) = &machine {
        let current = machine
            .certificate
            .as_ref()
            .map(|certificate| &certificate.serial_number);
        if current.is_some_and(|current| revoked.contains(current)) {
            store::machines::presence::bump_record_version(tx, locked).await?;
        }
        if compromised && serves(tx, key).await? {
            let reason = format!("its key is reported to be compromised: {}", why.text());
            status_change::quarantine_active(tx, policy, locked, machine, &reason).await?;
        }
    }
    for serial_number in &revoked {
        record_revocation(tx, serial_number, why).await?;
    }
    let now = tx.now();
    find_with_pem(tx, serial_number, now).await
}

/// Revokes all certificates of a compromised key.
async fn revoke_rows(
    tx: &mut Transaction,
    machine: Option<&LockedMachine>,
    certificate: &Certificate,
    compromised: bool,
    reason: RevocationReason,
) -> Result<Vec<String>, CertificateError> {
    let now = tx.now();
    let (serial_number, key) = (certificate.serial_number.as_str(), certificate.key_thumbprint);
    let revoked = match (&certificate.device_serial_number, certificate.machine_id) {
        (Some(device), _) => {
            let which = match compromised {
                true => device_certificates::Revoked::OfKey(device, key),
                false => device_certificates::Revoked::One(serial_number),
            };
            device_certificates::revoke(tx, which, reason, now).await?
        }
        (None, Some(machine_id)) => {
            let which = match compromised {
                true => Revoked::OfKey(key),
                false => Revoked::One(serial_number),
            };
            match machine {
                Some(machine) => store::certificates::revoke(tx, machine, which, reason, now).await?,
                None => store::certificates::revoke_of_deleted(tx, machine_id, which, reason, now).await?,
            }
        }
        (None, None) => return Err(CertificateError::Unknown),
    };
    Ok(revoked)
}

/// Whether a key is a machine's current or next key.
async fn serves(tx: &mut Transaction, key: KeyThumbprint) -> Result<bool, StoreError> {
    let record = store::machines::keys::find(tx, key).await?;
    Ok(record.is_some_and(|record| matches!(record.status, KeyStatus::Current | KeyStatus::Next)))
}

/// Writes the event and the audit entry of a revocation.
async fn record_revocation(tx: &mut Transaction, serial_number: &str, why: Why<'_>) -> Result<(), CertificateError> {
    let now = tx.now();
    let after = store::certificates::find(tx, serial_number, now)
        .await?
        .ok_or(CertificateError::Unknown)?;
    let mut change = Change::new(Action::CertificateRevoke, serial_number)
        .reason(Some(why.text()))
        .before(json!({"revoked_at": null, "revocation_reason": null}))
        .after(store::json(&after)?);
    if let Some(machine_id) = after.machine_id {
        let (kind, device) = match after.purpose {
            CertificatePurpose::Machine => (EventKind::CertificateRevoked, None),
            CertificatePurpose::Device => (EventKind::DeviceCertificateRevoked, after.device_serial_number),
        };
        let mut detail = json!({"serial_number": serial_number, "reason": why.reason, "note": why.note});
        if let (Some(device), Some(members)) = (device, detail.as_object_mut()) {
            members.insert("device_serial_number".to_owned(), device.into());
        }
        change = change.event(machine_id, kind, detail);
    }
    Ok(tx.record(change).await?)
}

/// One certificate, with its PEM.
pub(crate) async fn find_with_pem(
    connection: &mut Connection,
    serial_number: &str,
    now: OffsetDateTime,
) -> Result<CertificateWithPem, CertificateError> {
    let found = store::certificates::find(connection, serial_number, now).await?;
    let der = store::certificates::find_der(connection, serial_number).await?;
    let (Some(certificate), Some(der)) = (found, der) else {
        return Err(CertificateError::Unknown);
    };
    Ok(CertificateWithPem {
        certificate,
        pem: certificate_pem(&der),
    })
}
