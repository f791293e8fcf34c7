//! Refusals that an administrator has to see: in the audit, and among the machine's events where there is one.

use serde_json::json;
use uuid::Uuid;

use super::requests::Caller;
use crate::{
    changes::Change,
    services::Services,
    store::{StoreError, Transaction, acme_accounts::Account, audit_entries, events},
};

/// What was refused.
pub(super) struct Refused<'a> {
    pub(super) account: &'a Account,
    pub(super) caller: &'a Caller,
    pub(super) serial_number: &'a str,
    /// The machine that has this serial number.
    pub(super) machine_id: Option<Uuid>,
    /// The order, where there is one.
    pub(super) order_id: Option<Uuid>,
    /// Why, in a sentence.
    pub(super) reason: &'a str,
}

/// Writes a refusal down.
///
/// Strangers can cause them, as nobody proves anything before the attestation. So many an hour are written of each serial
/// number that is known, and of all others together; the rest is in the log alone: the audit is never emptied.
pub(super) async fn note(tx: &mut Transaction, services: &Services, refused: &Refused<'_>) -> Result<(), StoreError> {
    let Refused {
        account,
        caller,
        serial_number,
        machine_id,
        order_id,
        reason,
    } = refused;
    tracing::warn!(serial_number, reason, account_id = %account.id, "refused a certificate by ACME");
    let known = order_id.is_some() || machine_id.is_some();
    if !services.rate_limits.may_note_refusal(known.then_some(*serial_number)) {
        return Ok(());
    }
    let clock = services.clock.as_ref();
    let detail = json!({
        "serial_number": serial_number, "account_id": account.id, "order_id": order_id, "address": caller.address,
        "reason": reason,
    });
    if let Some(machine_id) = machine_id {
        events::insert(tx, clock, *machine_id, "device-certificate.refused", detail.clone()).await?;
    }
    let change = Change::new("device-certificate.refuse", "device", serial_number)
        .reason(Some(reason))
        .after(detail);
    audit_entries::insert(tx, clock, &caller.origin(account, *machine_id), change).await
}
